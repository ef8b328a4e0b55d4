"""Campaigns whose segments are looked at while they run, with kills of whoever takes part."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import MDAnalysis
import psutil
import pytest

from tasks.transport import TOKEN_VARIABLE
from tests.integration.conftest import ROOT, Campaign

Start = Callable[..., Campaign]

# Segments of 1 s: long enough that a batch is looked at while they run.
LOOKED_AT = (
    "--stream", "--embedding", "pca", "--infer-every", "2", "--min-segment-seconds", "1", "--walkers", "2",
    "--segment-ps", "2",
)  # fmt: skip


def glanced(run: Campaign) -> list[tuple[int, float, float]]:
    """Segment, rarity, and seconds from made to embedded, of each batch that was looked at."""
    found = []
    for line in run.traces("glance"):
        info = line["task_info"]
        if line["success"]:
            each = zip(info["batches"], info["rarity"], info["made"], strict=True)
            found += [(batch[0], rarity, info["embedded"] - made) for batch, rarity, made in each]
    return found


def told(run: Campaign) -> dict[int, dict[str, Any]]:
    """What the trace tells of each segment that is complete."""
    lines = (line for line in run.traces("simulation") if line["success"])
    return {line["task_info"]["segment_id"]: line["task_info"] for line in lines}


def assert_whole(run: Campaign) -> None:
    """Whatever ended segments, their trajectories have the frames that they count, and nothing is left."""
    summary, segments = run.summary(), told(run)
    assert summary["proxies"]["left"] == 0
    assert summary["frames"] == sum(info["n_frames"] for info in segments.values())
    assert summary["stream"]["stopped"] == sum(info["watched"]["fed"]["stopped"] for info in segments.values())
    for segment_id, info in segments.items():
        file = run.run_dir / f"trajectories/{segment_id:08d}.dcd"
        assert len(MDAnalysis.Universe(str(run.run_dir / "topology.pdb"), str(file)).trajectory) == info["n_frames"]


def test_batches_are_embedded_before_their_segments_end(campaign: Start) -> None:
    run = campaign(*LOOKED_AT, "--max-segments", "10")
    run.until(lambda: len(run.traces("glance")) > 0, 90)
    (token,) = {told for each in run.processes(run.run_id) if (told := _token(each)) is not None}
    assert run.wait() == 0, run.err
    assert_whole(run)
    summary = run.summary()
    assert summary["stream"]["embedded"] == len(glanced(run)) > 10
    assert summary["stream"]["stopped"] == 0
    ended = {line["task_info"]["segment_id"]: line["timestamp"]["compute_ended"] for line in run.traces("simulation")}
    early = [
        line["task_info"]["embedded"] < ended[batch[0]]
        for line in run.traces("glance")
        for batch in line["task_info"]["batches"]
    ]
    assert sum(early) > len(early) / 2
    assert all(0 <= rarity <= 1 and seconds > 0 for _, rarity, seconds in glanced(run))
    assert len(token) == 64
    assert not [path for path in run.run_dir.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


def test_segments_with_nothing_new_end_early_and_others_take_their_slots(campaign: Start) -> None:
    run = campaign(*LOOKED_AT, "--stop-below", "1", "--max-ns", "0.016")
    assert run.wait() == 0, run.err
    assert_whole(run)
    summary, segments = run.summary(), told(run)
    assert summary["stream"]["stopped"] > 0
    assert summary["simulated_ns"] == pytest.approx(sum(info["simulated_ps"] for info in segments.values()) / 1000)
    assert 0.016 - 1e-9 <= summary["simulated_ns"] < 0.016 + 0.002 * 4
    assert len(segments) > 8, "what stopped segments left undone was not simulated"
    assert "segments ended early" in run.out


@pytest.mark.slow
def test_killed_workers_cost_their_segments_alone(campaign: Start) -> None:
    run = campaign(*LOOKED_AT, "--stop-below", "0.9", "--max-segments", "16", "--simulate-workers", "2")
    run.until(lambda: len(run.traces("glance")) >= 2, 90)
    workers = [process for process in run.processes(run.run_id) if _is_worker(process)]
    assert workers
    for process in workers:
        process.send_signal(signal.SIGKILL)
    assert run.wait() == 0, run.err
    assert_whole(run)
    assert run.summary()["segments"] == 16
    assert set(run.summary()["failures"]) <= {"worker_lost", "manager_lost"}


@pytest.mark.slow
def test_a_killed_campaign_goes_on_without_the_batches_of_its_segments(campaign: Start) -> None:
    run = campaign(*LOOKED_AT, "--stop-below", "0.9", "--max-segments", "14")
    run.until(lambda: len(run.traces("glance")) >= 3, 90)
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    resumed = subprocess.run(
        [sys.executable, "run.py", "resume", str(run.run_dir)],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert_whole(run)
    assert len(told(run)) == run.summary()["segments"] == 14
    assert run.ask("SELECT count(*) FROM task WHERE state = 'running'") == [(0,)]


def _token(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(TOKEN_VARIABLE)
    except psutil.Error:
        return None


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline()) and process.cpu_times().user > 0.5
    except psutil.Error:
        return False
