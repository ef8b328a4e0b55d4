"""Run directories that were grown from a real one."""

import numpy as np

from benchmarks.synthetic import grow
from campaign.trace import Run
from campaign.trajectories import read_positions, trajectory_files
from tests.integration.conftest import Campaign


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
