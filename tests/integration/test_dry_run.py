"""``--dry-run``: what it plans is what a campaign writes; what cannot fit is refused; nothing is left behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.prepared import PreparedSystem
from tasks.transport import pack
from tests.integration.conftest import ROOT, Campaign
from tests.integration.test_bad_input import refuse, snapshot

# In lockstep the number of inferences does not depend on the clock.
SHORT = (
    *("--max-segments", "40", "--lockstep", "--retrain-every", "20", "--first-epochs", "1", "--epochs", "1"),
    *("--platform", "Reference"),
)


def dry_run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), "--dry-run", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a dry run says in JSON; it leaves nothing behind."""
    folder = tmp_path_factory.mktemp("planned")
    before = snapshot(folder)
    ended = dry_run(*SHORT, "--json", "--run-dir", str(folder / "deep" / "run"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert snapshot(folder) == before
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """The same campaign, really run."""
    run = Campaign(tmp_path_factory.mktemp("ran") / "run", *SHORT, "--report")
    assert run.wait() == 0, run.err
    return run


def test_segments_frames_and_tasks_are_those_of_the_run(planned: dict[str, Any], ran: Campaign) -> None:
    summary = ran.summary()
    for name in ("segments", "frames", "inferences"):
        assert planned[name] == summary[name], name
    assert planned["trainings"] == summary["model_versions"] == 2
    assert planned["simulated_ns"] == pytest.approx(summary["simulated_ns"])


def test_bytes_on_disk_are_those_of_the_run(planned: dict[str, Any], ran: Campaign) -> None:
    disk = planned["disk_bytes"]
    assert disk["trajectories"] == size_of(ran, "trajectories/*")
    assert disk["models"] == pytest.approx(size_of(ran, "models/model-*"), rel=0.02)
    assert disk["references"] == pytest.approx(size_of(ran, "models/reference-*"), rel=0.3)
    assert disk["ledger"] == pytest.approx(size_of(ran, "ledger.sqlite"), rel=0.3)
    assert disk["traces"] == pytest.approx(size_of(ran, "*.jsonl"), rel=0.3)
    assert disk["total"] == sum(size for name, size in disk.items() if name not in ("total", "free"))
    report = size_of(ran, "report.html")
    assert disk["report"] == pytest.approx(report, rel=0.1)
    left_over = sum(disk.values()) - sum(disk[name] for name in ("total", "free", "stores", "report"))
    assert left_over == pytest.approx(size_of(ran, "**/*") - report, rel=0.3)


def test_bytes_through_the_stores_are_those_of_the_run(
    planned: dict[str, Any], ran: Campaign, alanine: PreparedSystem
) -> None:
    # The system and where walkers begin lie in the first topic's store, and are in no trace.
    system = len(pack(alanine.to_arrays())) + len(pack(alanine.basis()))
    for topic, trace, beside in (
        ("simulate", "simulation", system),
        ("infer", "inference", 0),
        ("train", "training", 0),
    ):
        infos = [line["task_info"] for line in ran.traces(trace)]
        through = sum(info["payload_bytes"] for info in infos if info["proxied"]) + beside
        store = planned["store_bytes"][topic]
        assert store["kind"] == "file"
        assert store["total"] == pytest.approx(through, rel=0.2), topic
        assert 0 < store["peak"] <= store["total"]
    through = ran.summary()["thinker_bytes_per_segment"]
    assert (through["sent"] + through["received"]) * 40 <= planned["thinker_bytes"]


def test_the_timing_is_told_as_such(planned: dict[str, Any]) -> None:
    timing = planned["timing"]
    assert timing["host"]
    assert timing["platform"] == "Reference"
    assert timing["ps_per_s"] > 1
    assert planned["wall_s"] > 40 * timing["seconds_per_segment"] / timing["at_once"]
    assert planned["fits"] is True


@pytest.mark.slow
def test_a_short_table_for_people() -> None:
    ended = dry_run("--max-minutes", "2", "--simulate-site", "example-slurm")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) < 15
    assert "site example-slurm may differ" in ended.stdout
    assert "only time ends this campaign" in ended.stdout


def test_more_than_the_disk_holds_is_refused_before_anything_starts(tmp_path: Path) -> None:
    sentence = refuse(tmp_path, "--max-ns", "1e8", "--run-dir", str(tmp_path / "run"))
    assert f"on the disk of {tmp_path / 'run'}" in sentence
    for remedy in ("trajectories", "--store", "--frame-ps", "xtc", "fewer ns", "--run-dir"):
        assert remedy in sentence


def test_what_a_start_refuses_a_dry_run_refuses(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert "exists already" in refuse(tmp_path, "--dry-run", "--json", "--run-dir", str(tmp_path / "run"))


def test_a_signal_during_the_timing_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py"), "--dry-run", "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "--frame-ps", "1e6", "--segment-ps", "1e6", "--system", "chignolin"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "timing").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=15)
    assert (process.returncode, out) == (143, b"")
    assert list(tmp_path.iterdir()) == []


def size_of(run: Campaign, pattern: str) -> int:
    """Bytes of the files that match."""
    return sum(path.stat().st_size for path in run.run_dir.glob(pattern) if path.is_file())
