"""A campaign goes on where its last commit left it, whatever ended it and whatever was damaged meanwhile."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, Campaign, small_disk

Start = Callable[..., Campaign]
SLOW = pytest.mark.slow

QUICK = ("--min-segment-seconds", "0.05", "--retrain-every", "20", "--first-epochs", "3", "--epochs", "1")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WAYFINDER_")}
    told = [sys.executable, str(ROOT / "run.py"), *words]
    return subprocess.run(told, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False)


def resume(run: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return command("resume", str(run), *flags)


def assert_refused(ended: subprocess.CompletedProcess[str], *told: str) -> None:
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith("wayfinder: ")
    assert ended.stderr.count("\n") == 1
    for words in told:
        assert words in ended.stderr


def contents(run: Path) -> dict[str, str]:
    """Digest of every file of a run but what only tells who looked."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in (".lock", "ledger.sqlite-shm", "ledger.sqlite-wal")
    }


def assert_whole(run: Campaign, segments: int) -> None:
    """Every segment was committed once, with its parent and its file, and all files tell the same."""
    done = "FROM task WHERE kind = 'simulate' AND state = 'complete'"
    assert run.ask(f"SELECT count(*) {done}") == [(segments,)]
    assert run.ask("SELECT task_id FROM attempt WHERE outcome = 'success' GROUP BY 1 HAVING count(*) > 1") == []
    assert run.ask("SELECT id FROM task WHERE parent_id IS NOT NULL AND parent_id NOT IN (SELECT id FROM task)") == []
    files = run.ask("SELECT path, sha256 FROM artifact")
    assert sum(path.startswith("trajectories/") for path, _ in files) == segments
    for path, digest in files:
        assert hashlib.sha256((run.run_dir / path).read_bytes()).hexdigest() == digest
    assert len(list((run.run_dir / "trajectories").iterdir())) == segments
    for topic, kind in (("simulation", "simulate"), ("inference", "infer"), ("training", "train")):
        lines = [line for (line,) in run.ask(f"SELECT line FROM record WHERE topic = '{kind}'")]
        path = run.run_dir / f"{topic}-results.jsonl"
        assert sorted(path.read_text().splitlines()) == sorted(lines)
    summary = run.summary()
    assert (summary["status"], summary["segments"]) == ("complete", segments)
    assert summary["proxies"]["left"] == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short campaign that is complete."""
    run = Campaign(tmp_path_factory.mktemp("finished") / "run", "--max-segments", "40", "--no-control", *QUICK[2:])
    assert run.wait() == 0, run.err
    return run.run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign whose main process was killed while a training was out."""
    run = Campaign(tmp_path_factory.mktemp("killed") / "run", "--max-segments", "90", *QUICK)
    out = "SELECT count(*) FROM attempt JOIN task ON id = task_id WHERE outcome IS NULL AND kind = 'train'"
    run.until_segments(45)
    run.until(lambda: run.ask(out) == [(1,)], 60)
    run_id = run.run_id
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 10
    while run.processes(run_id) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.processes(run_id) == []
    return run.run_dir


def of(path: Path) -> Campaign:
    """What a campaign in that directory left, to be asked."""
    found = Campaign.__new__(Campaign)
    found.run_dir = path
    return found


# ---- going on


@pytest.mark.parametrize(
    ("victim", "flags"),
    [
        ("main", ()),
        pytest.param("redis-server", ("--simulate-ps-backend", "redis"), marks=SLOW),
        pytest.param("main", ("--simulate-ps-backend", "redis", "--ml-site", "local-no-redis"), marks=SLOW),
    ],
)
def test_a_killed_campaign_is_resumed(campaign: Start, victim: str, flags: tuple[str, ...]) -> None:
    run = campaign("--max-segments", "120", *QUICK, *flags)
    run.until_segments(50)
    run_id = run.run_id
    if victim == "main":
        run.process.kill()
        run.process.wait()
    else:
        next(process for process in run.processes(run_id) if victim in process.name()).kill()
        assert run.wait(60) == 1
    before = {row[0] for row in run.ask("SELECT id FROM task WHERE kind = 'simulate' AND state = 'complete'")}
    attempts = dict(run.ask("SELECT task_id, max(number) FROM attempt GROUP BY task_id"))
    ended = resume(run.run_dir)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert_whole(run, 120)
    after = dict(run.ask("SELECT task_id, max(number) FROM attempt GROUP BY task_id"))
    assert {task: after[task] for task in before} == {task: attempts[task] for task in before}
    assert run.ask("SELECT count(*) FROM attempt WHERE outcome = 'abandoned'")[0][0] <= 12


@SLOW
def test_signals_and_limits_leave_a_campaign_that_goes_on_and_a_finished_one_that_does_not(campaign: Start) -> None:
    run = campaign("--max-segments", "60", "--policy", "plain", "--infer-every", "2", *QUICK[:2])
    run.until_segments(20)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(40) == 143
    assert not (run.run_dir / "proxystore").exists()
    ends = run.ask("SELECT walker_id, max(id) FROM task WHERE kind = 'simulate' AND state = 'complete' GROUP BY 1")
    assert resume(run.run_dir).returncode == 0
    assert_whole(run, 60)
    # Plain dynamics carry on where each walker's last segment ended, in the process before too.
    for walker, last in ends:
        nexts = run.ask(f"SELECT parent_id FROM task WHERE walker_id = {walker} AND id > {last} ORDER BY id LIMIT 1")
        assert nexts in ([(last,)], [(run.ask(f"SELECT parent_id FROM task WHERE id = {last}")[0][0],)])
    before = contents(run.run_dir)
    again = resume(run.run_dir)
    assert (again.returncode, again.stdout.splitlines()) == (
        0,
        [f"{run.run_dir} is complete (60 segments): nothing is left to do", f"run directory: {run.run_dir}"],
    )
    assert contents(run.run_dir) == before
    assert resume(run.run_dir, "--max-segments", "70").returncode == 0
    assert_whole(run, 70)
    params = json.loads((run.run_dir / "params.json").read_text())
    assert (params["max_segments"], params["policy"]) == (70, "plain")


@pytest.mark.slow
def test_in_lockstep_kills_change_no_decision(campaign: Start) -> None:
    flags = ("--lockstep", "--max-segments", "60", "--seed", "5", "--walkers", "4", *QUICK)
    undisturbed = campaign(*flags, name="undisturbed")
    killed = campaign(*flags, name="killed")
    for count in (15, 35):
        killed.until_segments(count)
        killed.process.kill()
        killed.process.wait()
        if count == 15:
            killed.resume()
    assert undisturbed.wait() == 0
    assert resume(killed.run_dir).returncode == 0
    assert_whole(killed, 60)
    told = (
        "SELECT id, parent_id, parent_frame, walker_id, steered, novelty FROM task WHERE kind = 'simulate' ORDER BY 1"
    )
    assert killed.ask(told) == undisturbed.ask(told)
    for kind in ("trajectory", "model"):
        files = f"SELECT path, sha256 FROM artifact WHERE kind = '{kind}' ORDER BY path"
        assert killed.ask(files) == undisturbed.ask(files)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("before-commit:9", marks=SLOW),
        pytest.param("after-commit:9", marks=SLOW),
        pytest.param("after-send:6", marks=SLOW),
        "before-publish:5",
        pytest.param("before-park", marks=SLOW),
        pytest.param("after-park", marks=SLOW),
    ],
)
def test_a_kill_at_a_commit_point_loses_nothing(campaign: Start, point: str) -> None:
    run = campaign("--max-segments", "12", "--policy", "random", *QUICK[2:], env={"WAYFINDER_KILL_AT": point})
    assert run.wait() == -signal.SIGKILL
    assert resume(run.run_dir).returncode == 0
    assert_whole(run, 12)


@pytest.mark.slow
def test_a_second_process_is_refused_while_one_has_the_run(campaign: Start) -> None:
    run = campaign("--max-segments", "5000", "--min-segment-seconds", "0.1")
    run.until_segments(4)
    for words in (("resume", str(run.run_dir)), ("rerun", str(run.run_dir), "--failed")):
        assert_refused(command(*words), f"run {run.run_dir} is in use by process {run.process.pid} on")
    told = json.loads(command("status", str(run.run_dir), "--json").stdout)
    assert (told["status"], told["processes"]) == ("running", 1)
    run.process.kill()
    run.process.wait()
    told = json.loads(command("status", str(run.run_dir), "--json").stdout)
    assert told["status"] == "died"


@SLOW
def test_time_that_a_scheduler_gives_is_kept(campaign: Start) -> None:
    ends = str(int(time.time()) + 40)
    run = campaign("--max-segments", "5000", "--min-segment-seconds", "1", env={"SLURM_JOB_END_TIME": ends})
    assert run.wait() == 143
    assert time.time() < int(ends)
    assert run.summary()["reason"].startswith("the time is over: ")
    # What was out came back.
    assert run.ask("SELECT count(*) FROM attempt WHERE outcome = 'abandoned'") == [(0,)]
    assert command("status", str(run.run_dir)).stdout.startswith("run: interrupted, ")


@SLOW
def test_a_campaign_waits_for_room_on_its_disk(campaign: Start, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "40m") as disk:
        run = campaign("--max-segments", "150", "--min-free-mb", "10", *QUICK, name="disk/run")
        run.until_segments(10)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 8_000_000))
        run.until(lambda: "waiting: the disk of" in run.diagnosis(), 30)
        # What was out comes back, and then nothing more.
        run.until(lambda: run.ask("SELECT count(*) FROM attempt WHERE outcome IS NULL") == [(0,)], 30)
        before = len(run.traces("simulation"))
        time.sleep(2)
        assert len(run.traces("simulation")) == before < 150
        ballast.unlink()
        assert run.wait() == 0, run.err
        assert_whole(run, 150)


# ---- what is refused


def test_other_science_is_refused_and_other_limits_are_not(finished: Path) -> None:
    before = contents(finished)
    for flags, told in [
        (("--temperature", "310"), "--temperature 310 would make another campaign"),
        (("--seed", "2"), "--seed 2 would make another campaign"),
        (("--system", "chignolin"), "--system chignolin would make another campaign"),
        (("--walkers", "8"), "--walkers 8 would make another campaign"),
        (("--policy", "plain"), "--policy plain would make another campaign"),
        (("--simulate-site", "nowhere", "--max-segments", "50"), "site nowhere is not known"),
        (("--max-segments", "-1"), "--max-segments -1"),
        (("--run-dir", "elsewhere"), "--run-dir"),
    ]:
        assert_refused(resume(finished, *flags), told)
    assert contents(finished) == before


@pytest.mark.parametrize("verb", ["resume", *(pytest.param(verb, marks=SLOW) for verb in ("status", "rerun"))])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, verb: str) -> None:
    flags = ("--failed",) if verb == "rerun" else ()
    for path in (tmp_path, tmp_path / "nothing", Path(__file__)):
        assert_refused(command(verb, str(path), *flags), str(path))
    assert list(tmp_path.iterdir()) == []
    assert_refused(command(verb), f"{verb} is about a campaign and none is named")


@pytest.mark.parametrize(
    ("verb", "length"),
    [
        ("resume", 9000),
        *(pytest.param(verb, length, marks=SLOW) for verb in ("status", "rerun") for length in (0, 50, 4096)),
    ],
)
def test_a_torn_ledger_is_refused(run_dir: Path, verb: str, length: int) -> None:
    ledger = run_dir / "ledger.sqlite"
    ledger.write_bytes(ledger.read_bytes()[:length])
    before = contents(run_dir)
    assert_refused(command(verb, str(run_dir), *(("--failed",) if verb == "rerun" else ())), "ledger.sqlite")
    assert contents(run_dir) == before


@SLOW
def test_a_newer_ledger_is_refused(run_dir: Path) -> None:
    with closing(sqlite3.connect(run_dir / "ledger.sqlite")) as db, db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    before = contents(run_dir)
    assert_refused(resume(run_dir, "--max-segments", "50"), "has schema 99, and this Wayfinder knows up to 2")
    assert contents(run_dir) == before


@pytest.mark.parametrize("length", [100, *(pytest.param(length, marks=SLOW) for length in (None, 0, 3000))])
@pytest.mark.slow
def test_a_lost_trajectory_is_named_and_its_segment_can_be_given_up(run_dir: Path, length: int | None) -> None:
    path = run_dir / "trajectories" / "00000039.dcd"
    if length is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:length])
    before = contents(run_dir)
    assert_refused(resume(run_dir, "--max-segments", "50"), str(path), f"rerun {run_dir} --segment 39")
    assert contents(run_dir) == before
    assert_refused(command("rerun", str(run_dir), "--segment", "3"), "segment 3", "is complete")
    given_up = command("rerun", str(run_dir), "--segment", "39")
    assert given_up.returncode == 0, given_up.stderr
    assert "segment 39 is given up: its trajectory is lost" in given_up.stdout
    path.unlink(missing_ok=True)
    assert resume(run_dir, "--max-segments", "42").returncode == 0
    assert_whole(of(run_dir), 42)


# ---- what heals


@SLOW
def test_torn_files_that_are_told_elsewhere_are_made_anew(run_dir: Path) -> None:
    for name in ("params.json", "summary.json", "host_info.json", "topology.pdb"):
        (run_dir / name).write_bytes((run_dir / name).read_bytes()[:20])
    ended = resume(run_dir, "--max-segments", "44")
    assert ended.returncode == 0, ended.stderr
    assert_whole(of(run_dir), 44)
    assert json.loads((run_dir / "params.json").read_text())["max_segments"] == 44


@pytest.mark.parametrize("length", [0.5, *(pytest.param(length, marks=SLOW) for length in (0, 0.99))])
@pytest.mark.slow
def test_after_a_kill_torn_files_cost_nothing_that_was_committed(killed: Path, tmp_path: Path, length: float) -> None:
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    newest = [max(run.glob(pattern)) for pattern in ("models/model-*", "models/reference-*")]
    stored = max((run / "proxystore").glob("*[!y]"), key=lambda path: path.stat().st_mtime)
    for path in (*newest, stored, run / "simulation-results.jsonl", run / "training-results.jsonl"):
        path.write_bytes(path.read_bytes()[: int(length * path.stat().st_size)])
    (run / "trajectories" / ".00000999.dcd.attempt-1").write_bytes(b"half")
    ended = resume(run)
    assert ended.returncode == 0, ended.stderr
    campaign = of(run)
    done = campaign.ask("SELECT count(*) FROM task WHERE kind = 'simulate' AND state = 'complete'")[0][0]
    assert done == 90
    assert campaign.ask("SELECT task_id FROM attempt WHERE outcome = 'success' GROUP BY 1 HAVING count(*) > 1") == []


@SLOW
def test_a_store_that_is_gone_is_told_and_the_campaign_goes_on(killed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    shutil.rmtree(run / "proxystore")
    ended = resume(run)
    assert ended.returncode == 0, ended.stderr
    assert "the reference is taken from the run directory's files" in ended.stdout
    assert "lost" in ended.stdout
    campaign = of(run)
    assert campaign.ask("SELECT count(*) FROM task WHERE kind = 'simulate' AND state = 'complete'") == [(90,)]


# ---- rerun and status


@SLOW
def test_what_was_given_up_runs_again_when_a_person_wants_it(campaign: Start) -> None:
    flags = ("--timestep-fs", "10", "--temperature", "20000", "--max-segments", "50", "--max-attempts", "2")
    run = campaign(*flags)
    assert run.wait() == 1
    failed = command("rerun", str(run.run_dir), "--failed")
    assert failed.returncode == 0, failed.stderr
    assert "is ready to run again, after 2 attempts" in failed.stdout
    ready = run.ask("SELECT count(*) FROM task WHERE state = 'ready' AND kind = 'simulate'")[0][0]
    assert ready >= 1
    assert resume(run.run_dir).returncode == 1
    # History is kept: the new attempts are numbered on.
    assert run.ask("SELECT max(number) FROM attempt")[0][0] >= 3
    told = json.loads(command("status", str(run.run_dir), "--json").stdout)
    assert told["status"] == "failed"
    assert told["attempts"]["simulate"]["nan"] >= 3
    assert "NaN" in told["errors"][0]["error"]
    assert_refused(command("rerun", str(run.run_dir)), "rerun takes either --failed or --segment ID")
    assert_refused(command("rerun", str(run.run_dir), "--segment", "x"), "--segment x is no segment")
    assert_refused(command("rerun", str(run.run_dir), "--segment", "777"), "segment 777", "not there")


@pytest.mark.slow
def test_status_tells_one_line_for_each_campaign_of_a_folder(finished: Path, killed: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name, source in (("first", finished), ("second", killed)):
        shutil.copytree(source, runs / name)
    before = contents(runs)
    lines = command("status", str(runs)).stdout.splitlines()
    assert [line.partition(", ")[0] for line in sorted(lines)] == ["first: complete", "second: died"]
    told = json.loads(command("status", str(runs), "--json").stdout)
    assert {each["status"] for each in told} == {"complete", "died"}
    (complete,) = [each for each in told if each["status"] == "complete"]
    assert complete["segments"] == complete["target"] == 40
    assert complete["tasks"]["simulate"]["cpu"] == {"complete": 40}
    assert complete["segments_per_hour"] > 0
    assert contents(runs) == before
