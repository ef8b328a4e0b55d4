"""Functions of a user's that look at segments while they run, in real campaigns."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import MDAnalysis
import numpy as np
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


READ = """
import sys
import MDAnalysis
import numpy as np

universe = MDAnalysis.Universe(sys.argv[1], sys.argv[2])
frames = [(frame.time, frame.positions.copy()) for frame in universe.trajectory]
np.savez(sys.argv[3], times_ps=[time for time, _ in frames], positions=[positions for _, positions in frames])
"""


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
        (("--imd-host", "127.0.0.1"), "--imd-host 127.0.0.1 is where --imd listens"),
        (("--stream-when-slow", "wait"), "is about --imd and --stream: add one of these"),
        (("--stop-below", "0.5"), "--stop-below 0.5 judges what --stream sends: add that"),
        (("--stream", "--stop-below", "2"), "--stop-below 2"),
        (("--stream", "--stop-below", "0.5", "--lockstep"), "which --lockstep must not depend on"),
        (("--stream", "--policy", "plain"), "and --policy plain learns nothing"),
        (("--stream", "--infer-every", "0"), "and --infer-every 0 learns nothing"),
        (("--stream", "--no-proxystore"), "into the store of segments, and there is none"),
        (
            ("--stream", "--policy", "weighted-ensemble", "--pcoord", "phi-psi", "--bins", "mab:2,2"),
            "which biases it",
        ),
        (("--imd", "--imd-host", "cluster"), "--imd-host cluster is no address"),
        (("--stream-command", "no-such-program --now"), "there is no program no-such-program: give a command whose"),
        (("--imd", "--simulate-site", "ssh", "--ssh-host", "nobody"), "does not share the run directory"),
    ],
)
def test_what_cannot_look_is_refused(campaign: Start, env: dict[str, str], flags: tuple[str, ...], said: str) -> None:
    run = campaign(*flags, env=env)
    assert run.wait(60) == 2
    assert said in run.err
    assert len(run.err.splitlines()) == 1
    assert not run.run_dir.exists()


def served(run: Campaign, after: int = -1) -> dict[str, Any]:
    """Return a segment beyond that one that `status` tells is live."""
    found: list[dict[str, Any]] = []

    def is_live() -> bool:
        words = [sys.executable, str(ROOT / "run.py"), "status", str(run.run_dir), "--json"]
        told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        found[:] = json.loads(told.stdout)["live"] if told.returncode == 0 else []
        return bool(found) and found[0]["segment_id"] > after

    run.until(is_live, 90)
    return found[0]


@pytest.mark.slow
def test_a_running_segment_is_read_by_mdanalysis_and_ended_by_a_client(campaign: Start, tmp_path: Path) -> None:
    run = campaign(
        "--embedding", "pca", "--segment-ps", "10", "--frame-ps", "0.1", "--walkers", "1", "--simulate-workers", "1",
        "--max-segments", "4", "--min-segment-seconds", "15", "--imd", "--seed", "5",
    )  # fmt: skip
    first = served(run)
    assert first["host"] == "127.0.0.1"
    words = [sys.executable, "-c", READ, str(run.run_dir / "topology.pdb"), first["url"], str(tmp_path / "read.npz")]
    reading = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert reading.returncode == 0, reading.stderr
    read = np.load(tmp_path / "read.npz")
    assert len(read["positions"]) > 10
    # KILL: the segment ends with what it has, and is none the worse for it.
    second = served(run, after=first["segment_id"])
    with socket.create_connection((second["host"], second["port"]), timeout=20) as client:
        client.sendall(struct.pack("!ii", 3, 0) + struct.pack("!ii", 5, 0))
        while client.recv(2**16):
            pass
    assert run.wait() == 0, run.err
    told = {line["task_info"]["segment_id"]: line["task_info"] for line in run.traces("simulation")}
    whole, ended = told[first["segment_id"]], told[second["segment_id"]]
    trajectory = MDAnalysis.Universe(
        str(run.run_dir / "topology.pdb"), str(run.run_dir / f"trajectories/{first['segment_id']:08d}.dcd")
    ).trajectory
    written = np.array([frame.positions.copy() for frame in trajectory])
    numbers = np.rint(read["times_ps"] / 0.1).astype(int) - 1
    # Every frame from when it came on, each once, as it was written.
    np.testing.assert_array_equal(numbers, np.arange(numbers[0], 100))
    np.testing.assert_allclose(read["positions"], written[numbers], atol=1e-5)
    assert (whole["n_frames"], whole["watched"]["stopped"]) == (100, False)
    assert whole["watched"]["imd"]["n_sent"] == len(numbers)
    assert whole["watched"]["imd"]["n_dropped"] == 0
    assert ended["watched"]["stopped"]
    assert ended["watched"]["imd"]["killed"]
    assert ended["n_frames"] == n_frames(run, second["segment_id"]) < 100
    assert run.summary()["segments"] == 4
    assert run.summary()["on_frames"]["stopped"] == 1
    assert not (run.run_dir / "live").exists()
    assert "--imd has no authentication: whoever reaches 127.0.0.1" in run.out


BESIDE = """
import os
import MDAnalysis

run = os.environ["WAYFINDER_RUN_DIR"]
host, port = os.environ["WAYFINDER_IMD_HOST"], os.environ["WAYFINDER_IMD_PORT"]
universe = MDAnalysis.Universe(f"{run}/topology.pdb", f"imd://{host}:{port}")
print("frames", sum(1 for _ in universe.trajectory))
"""


@pytest.mark.slow
def test_a_command_beside_each_segment_reads_all_of_it(campaign: Start, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(BESIDE)
    run = campaign(
        *SHORT[:6], "--max-segments", "3", "--simulate-workers", "1",
        "--stream-command", f"{sys.executable} {tmp_path / 'beside.py'}",
    )  # fmt: skip
    assert run.wait() == 0, run.err
    told = [line["task_info"] for line in run.traces("simulation")]
    assert [info["watched"]["command"] for info in told] == ["exit code 0"] * 3
    logs = sorted((run.run_dir / "seg_logs").glob("*_analysis.log"))
    assert [log.name for log in logs] == [
        f"{info['iteration']:06d}-{info['segment_id']:06d}_analysis.log"
        for info in sorted(told, key=lambda info: (info["iteration"], info["segment_id"]))
    ]
    # It connected before the first frame, and missed none.
    assert [log.read_text().splitlines()[-1] for log in logs] == ["frames 4"] * 3
