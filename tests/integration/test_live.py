"""Functions of a user's that look at segments while they run, in real campaigns."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import MDAnalysis
import pytest

from tests.integration.conftest import ROOT, Campaign

Start = Callable[..., Campaign]

SHORT = ("--embedding", "pca", "--segment-ps", "1", "--walkers", "2", "--seed", "5", "--stream-every-ps", "0.5")

MINE = """
from tasks.live import Stop


def settled(frames, times_ps, box):
    span = float(abs(frames[:, 0] - frames[0, 0]).max())
    return Stop({"span_nm": span}) if int(1e6 * span) % 2 else {"span_nm": span}


def stop(frames, times_ps, box):
    return Stop


def slip(frames, times_ps, box):
    return {"x": 1 / 0}
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "mine_of_live.py").write_text(MINE)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}


def n_frames(run: Campaign, segment_id: int) -> int:
    universe = MDAnalysis.Universe(
        str(run.run_dir / "topology.pdb"), str(run.run_dir / f"trajectories/{segment_id:08d}.dcd")
    )
    return len(universe.trajectory)


def test_segments_that_are_ended_early_count_as_long_as_they_ran(campaign: Start, env: dict[str, str]) -> None:
    flags = (*SHORT, "--max-ns", "0.012", "--on-frames", "mine_of_live:settled")
    run = campaign(*flags, env=env | {"WAYFINDER_KILL_AT": "after-commit:12"})
    assert run.wait() == -9
    resumed = subprocess.run(
        [sys.executable, "run.py", "resume", str(run.run_dir)],
        cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    summary = run.summary()
    told = {
        line["task_info"]["segment_id"]: line["task_info"] for line in run.traces("simulation") if line["success"]
    }
    assert len(told) == summary["segments"]
    watched = [info["watched"] for info in told.values()]
    n_stopped = sum(each["stopped"] for each in watched)
    # Nearly all would be by chance if none or all were.
    assert 0 < n_stopped < len(told)
    n_batches = sum(each["n_batches"] for each in watched)
    assert summary["on_frames"] == {"batches": n_batches, "failed": 0, "stopped": n_stopped}
    assert n_batches == sum(len(each["seen"]) for each in watched)
    for segment_id, info in told.items():
        whole = 4 if not info["watched"]["stopped"] or info["watched"]["n_batches"] == 2 else 2
        assert info["n_frames"] == n_frames(run, segment_id) == whole
        assert info["simulated_ps"] == pytest.approx(0.248 * whole)
    assert summary["frames"] == sum(info["n_frames"] for info in told.values())
    # The limit is of time that was simulated, so there are more segments than whole ones would be.
    assert 0.012 <= summary["simulated_ns"] + 1e-9 < 0.012 + 2 * 0.000992
    assert summary["segments"] > 12
    assert "segments ended early" in resumed.stdout


@pytest.mark.parametrize(
    ("function", "flags", "said"),
    [
        ("slip", (), "mine_of_live:slip raised ZeroDivisionError: division by zero"),
        (
            "stop",
            ("--policy", "weighted-ensemble", "--pcoord", "phi-psi", "--bins", "mab:2,2", "--max-iterations", "2"),
            "mine_of_live:stop returned Stop, which would bias a weighted ensemble",
        ),
    ],
)
def test_a_function_that_fails_ends_no_segment(
    campaign: Start, env: dict[str, str], function: str, flags: tuple[str, ...], said: str
) -> None:
    end = () if flags else ("--max-segments", "5")
    run = campaign(*SHORT, *end, *flags, "--on-frames", f"mine_of_live:{function}", env=env)
    assert run.wait() == 0, run.err
    summary = run.summary()
    n = 2 * summary["segments"]
    assert summary["on_frames"] == {"batches": n, "failed": n, "stopped": 0}
    assert summary["frames"] == 2 * n
    assert summary["failures"] == {}
    assert run.out.count(said) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--on-frames", "mine_of_live:gone"), "--on-frames mine_of_live:gone cannot be used, for module"),
        (("--on-frames", "echo"), "it names no function"),
        (("--stream-every-ps", "0.5"), "--stream-every-ps 0.5 is how often --on-frames is called"),
        (("--on-frames", "mine_of_live:stop", "--stream-every-ps", "0.3"), "give --stream-every-ps 0.25 (1 frames)"),
        (("--on-frames", "mine_of_live:stop", "--stream-every-ps", "3"), "is longer than --segment-ps 2"),
    ],
)
def test_what_cannot_look_is_refused(campaign: Start, env: dict[str, str], flags: tuple[str, ...], said: str) -> None:
    run = campaign(*flags, env=env)
    assert run.wait(60) == 2
    assert said in run.err
    assert len(run.err.splitlines()) == 1
    assert not run.run_dir.exists()
