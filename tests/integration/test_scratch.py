"""Campaigns whose trajectories wait on a node's scratch: gathered, killed, robbed of it, and read."""

import hashlib
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import MDAnalysis as mda
import pytest

from campaign.archives import trajectory_path
from tests.integration.conftest import Campaign
from tests.integration.test_resuming import assert_refused, command, resume

Start = Callable[..., Campaign]

QUICK = ("--min-segment-seconds", "0.05", "--retrain-every", "20", "--first-epochs", "3", "--epochs", "1")


def kept_on(scratch: Path, *flags: str) -> tuple[str, ...]:
    return (*QUICK, "--scratch", str(scratch), "--gather-every", "5", *flags)


def assert_gathered(run: Campaign, segments: int, scratch: Path) -> None:
    """Every segment is complete once, and its trajectory opens as what was committed; nothing is left on scratch."""
    assert run.ask(
        "SELECT state, count(*) FROM task WHERE kind = 'simulate' AND state IN ('complete', 'computed') GROUP BY 1"
    ) == [("complete", segments)]
    assert run.ask("SELECT task_id FROM attempt WHERE outcome = 'success' GROUP BY 1 HAVING count(*) > 1") == []
    files = run.ask("SELECT task_id, path, sha256 FROM artifact WHERE kind = 'trajectory'")
    assert len({segment for segment, *_ in files}) == len(files) == segments
    for segment, path, digest in files:
        assert path.startswith("archives/")
        assert hashlib.sha256(trajectory_path(run.run_dir, segment).read_bytes()).hexdigest() == digest
    for path, digest in run.ask("SELECT path, sha256 FROM artifact WHERE kind = 'archive'"):
        assert hashlib.sha256((run.run_dir / path).read_bytes()).hexdigest() == digest
    assert list((run.run_dir / "trajectories").iterdir()) == []
    assert list(scratch.iterdir()) == []


def kill(run: Campaign) -> None:
    run_id = run.run_id
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 15
    while run.processes(run_id) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.processes(run_id) == []


def test_a_campaign_on_scratch_leaves_archives_that_open(campaign: Start, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    run = campaign("--max-segments", "43", *kept_on(scratch))
    assert run.wait() == 0, run.err
    assert_gathered(run, 43, scratch)
    assert run.summary()["status"] == "complete"
    # Of 43 by five, the rest at the end.
    assert len(list((run.run_dir / "archives").glob("*.tar.gz"))) == len(
        list((run.run_dir / "archives").glob("*.json"))
    )
    assert run.ask("SELECT count(*) FROM artifact WHERE kind = 'archive'")[0][0] >= 5
    universe = mda.Universe(run.run_dir / "topology.pdb", trajectory_path(run.run_dir, 42), to_guess=())
    assert len(universe.trajectory) == 8
    damaged = next((run.run_dir / "archives").glob("*.tar.gz"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert_refused(resume(run.run_dir, "--max-segments", "60"), str(damaged), "is missing or damaged", "--segment ")


@pytest.mark.slow
def test_a_node_that_is_lost_between_two_processes_costs_its_segments_another_run(
    campaign: Start, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    run = campaign("--max-segments", "60", *kept_on(scratch, "--gather-every", "25"))
    run.until_segments(32)
    kill(run)
    shutil.rmtree(scratch)
    lost = run.ask("SELECT id FROM task WHERE state = 'computed'")
    assert lost
    scratch.mkdir()
    ended = resume(run.run_dir)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "were lost with the scratch of their node: they run again" in ended.stdout
    assert_gathered(run, 60, scratch)
    assert run.summary()["segments"] == 60
    again = run.ask("SELECT DISTINCT task_id FROM attempt WHERE outcome = 'lost'")
    assert sorted(again) == sorted(lost)


@pytest.mark.slow
def test_what_a_kill_left_is_gathered_by_hand_or_by_the_next_process(campaign: Start, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    run = campaign("--max-segments", "60", *kept_on(scratch, "--gather-every", "50"))
    run.until_segments(20)
    kill(run)
    computed = run.ask("SELECT count(*) FROM task WHERE state = 'computed'")[0][0]
    assert computed >= 19
    ended = command("gather", str(run.run_dir))
    assert ended.returncode == 0, ended.stderr
    assert f"{computed} segments are complete" in ended.stdout
    assert list(scratch.iterdir()) == []
    assert "nothing was to gather" in command("gather", str(run.run_dir)).stdout
    ended = resume(run.run_dir)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert_gathered(run, 60, scratch)
    assert run.ask("SELECT count(*) FROM attempt WHERE outcome = 'lost'") == [(0,)]


def test_a_signal_brings_everything_home(campaign: Start, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    run = campaign("--max-segments", "5000", *kept_on(scratch, "--gather-every", "1000"))
    run.until_segments(12)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(40) == 143
    assert_gathered(run, run.summary()["segments"], scratch)


@pytest.mark.slow
def test_a_run_without_scratch_has_nothing_to_gather(short_run: Campaign) -> None:
    assert_refused(command("gather", str(short_run.run_dir)), "was begun without --scratch")
