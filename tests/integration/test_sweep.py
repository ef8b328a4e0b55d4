"""Several campaigns over one set of workers."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from campaign.ledger import read_ledger
from tests.integration.conftest import Campaign

Start = Callable[..., Campaign]

ONCE = (
    "SELECT count(*), count(DISTINCT task_id) FROM attempt JOIN task ON id = task_id"
    " WHERE kind = 'simulate' AND outcome = 'success'"
)


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "table.csv"
    file.write_text(text)
    return str(file)


def done(run_dir: Path) -> int:
    """Return how many segments a ledger has, each once."""
    with read_ledger(run_dir / "ledger.sqlite") as db:
        n_done, n_segments = db.execute(ONCE).fetchone()
    assert n_done == n_segments
    return n_done


def forget_all_but_inputs(run_dir: Path) -> None:
    """Leave a campaign as if its process had been killed before it made the ledger."""
    for path in run_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
            path.mkdir()
        elif path.name not in ("params.json", "host_info.json", "system.safetensors", "topology.pdb"):
            path.unlink()


def members(run: Campaign) -> dict[str, Path]:
    return {ledger.parent.name: ledger.parent for ledger in sorted(run.run_dir.glob("*/ledger.sqlite"))}


def n_traced(run: Campaign) -> int:
    return sum(len(path.read_text().splitlines()) for path in run.run_dir.glob("*/simulation-results.jsonl"))


@pytest.fixture
def mine(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sweeps_policy.py").write_text(
        "class Failing:\n"
        "    candidates, learns = 'novel', True\n"
        "    def choose(self, scores, used, rng):\n"
        "        raise ValueError('on purpose')\n"
    )
    return {"PYTHONPATH": str(tmp_path)}


def test_campaigns_share_workers_and_nothing_else(campaign: Start, tmp_path: Path) -> None:
    rows = "name,seed,policy,segment-ps,max-segments\nlong,1,novelty,4,20\nplain,2,plain,2,40\n,3,random,2,30\n"
    run = campaign("--sweep", write(tmp_path, rows), "--walkers", "4", "--no-control")
    assert run.wait() == 0, run.err
    assert members(run).keys() == {"long", "plain", "003"}
    told = {name: json.loads((path / "summary.json").read_text()) for name, path in members(run).items()}
    assert {name: (s["status"], s["segments"], s["seed"], s["policy"]) for name, s in told.items()} == {
        "long": ("complete", 20, 1, "novelty"),
        "plain": ("complete", 40, 2, "plain"),
        "003": ("complete", 30, 3, "random"),
    }
    assert told["long"]["simulated_ns"] == pytest.approx(0.08, rel=0.01)  # whole steps, of 4 ps each
    for name, path in members(run).items():
        assert done(path) == told[name]["segments"] == len(list((path / "trajectories").glob("*.dcd")))
        assert told[name]["proxies"]["left"] == 0
        assert 500 < told[name]["thinker_bytes_per_segment"]["sent"] < 8000
        log = (path / "runtime.log").read_text()
        assert told[name]["policy"] in log
        assert not any(
            f"alanine-dipeptide: {other}" in log for other in {"novelty", "plain", "random"} - {told[name]["policy"]}
        )
    # One set of workers for all.
    pids = {
        json.loads(line)["worker_info"]["PARSL_WORKER_POOL_ID"]
        for path in run.run_dir.glob("*/simulation-results.jsonl")
        for line in path.read_text().splitlines()
    }
    assert len(pids) == 1
    assert run.out.splitlines()[-1] == f"run directory: {run.run_dir}"
    assert "003: complete: alanine-dipeptide, policy random, seed 3, 30 segments" in run.out


def test_one_that_fails_takes_no_other_with_it(campaign: Start, tmp_path: Path, mine: dict[str, str]) -> None:
    rows = "name,policy\nbad,sweeps_policy:Failing\ngood,novelty\n"
    run = campaign("--sweep", write(tmp_path, rows), "--max-segments", "40", "--no-control", env=mine)
    assert run.wait() == 1, run.err
    told = {name: json.loads((path / "summary.json").read_text()) for name, path in members(run).items()}
    assert told["good"]["status"] == "complete"
    assert told["good"]["segments"] == 40
    assert told["bad"]["status"] == "failed"
    assert "on purpose" in told["bad"]["reason"]
    assert "on purpose" not in (members(run)["good"] / "runtime.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_left(campaign: Start, tmp_path: Path, number: signal.Signals) -> None:
    rows = "name,seed,max-segments\nshort,1,4\na,2,60\nb,3,60\n"
    run = campaign("--sweep", write(tmp_path, rows), "--no-control", "--min-segment-seconds", "0.1")
    run.until(lambda: n_traced(run) >= 30, 90)
    run.process.send_signal(number)
    assert run.wait() == (-number if number == signal.SIGKILL else 128 + number)
    before = {name: done(path) for name, path in members(run).items()}
    assert before["short"] == 4
    # It was complete, whatever came later.
    with read_ledger(run.run_dir / "short" / "ledger.sqlite") as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'status'").fetchone() == ('"complete"',)
    if number == signal.SIGKILL:
        forget_all_but_inputs(run.run_dir / "b")
    assert 30 <= sum(before.values()) < 124
    run.resume()
    assert run.wait() == 0, run.err
    assert {name: done(path) for name, path in members(run).items()} == {"short": 4, "a": 60, "b": 60}
    assert {
        json.loads((path / "summary.json").read_text())["status"]
        for path in members(run).values()
        if path.name != "short"
    } == {"complete"}
    run.resume()
    assert run.wait() == 0, run.err
    assert "nothing is left to do" in run.out
    (run.run_dir / "a").rename(run.run_dir.parent / "elsewhere")
    run.resume()
    assert run.wait() == 2
    assert run.err.startswith("wayfinder: campaign a: ")


def test_what_cannot_be_begun_leaves_nothing_behind(campaign: Start, tmp_path: Path) -> None:
    rows = "name,pdb\na,\nb,nowhere.pdb\n"
    run = campaign("--sweep", write(tmp_path, rows), "--max-segments", "4")
    assert run.wait() == 2
    assert run.err.startswith("wayfinder: ")
    assert len(run.err.splitlines()) == 1
    assert not run.run_dir.exists()
    redis = campaign(
        "--sweep", write(tmp_path, "seed\n1\n2\n"), "--max-segments", "4", "--simulate-ps-backend", "redis"
    )
    assert redis.wait() == 2
    assert "name one with --redishost" in redis.err
    assert not redis.run_dir.exists()
