"""Run directories that were grown from a real one."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.synthetic import grow
from campaign.trace import Run
from campaign.trajectories import read_positions, trajectory_files
from tests.integration.conftest import ROOT, Campaign


def test_a_grown_run_has_every_segment_its_trajectory_and_failures(short_run: Campaign, tmp_path) -> None:
    grow(short_run.run_dir, tmp_path / "grown", 500, np.random.default_rng(3))
    run = Run(tmp_path / "grown")
    assert run.segments.index.tolist() == list(range(500))
    assert (run.segments.parent_id.dropna() < run.segments.index[run.segments.parent_id.notna()]).all()
    assert run.inferences.segments.iloc[-1] == 500
    assert (run.attempts.outcome == "error").sum() == 6
    files = trajectory_files(run.path, range(500))
    assert len(files) == 500
    assert read_positions(files[499][0]).shape[1:] == (22, 3)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("report",), ("export", "--perfetto", "trace.json")])
def test_a_signal_ends_a_look_and_leaves_nothing_half_written(short_run: Campaign, tmp_path, words) -> None:
    run = tmp_path / "grown"
    grow(short_run.run_dir, run, 20_000, np.random.default_rng(3))
    before = {path.name for path in run.iterdir()}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), words[0], str(run), *words[1:]],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(2.0)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    # The system ends it before Python has begun to take signals.
    assert process.returncode in (143, -signal.SIGTERM), err
    assert (out, err) == (b"", b"")
    assert {path.name for path in run.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["grown"]
