"""What the streaming benchmark makes of traces and of runs."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.stream_delay import delays
from benchmarks.stream_stops import figures_of
from tests.benchmarks.conftest import run_benchmark


def glance(segment_id: int, made: float, embedded: float, n_frames: int = 2, success: bool = True) -> dict:
    info = {"batches": [[segment_id, 0, n_frames]], "made": [made], "embedded": embedded}
    return {"success": success, "task_info": info}


def test_every_frame_counts_from_its_own_making() -> None:
    glances = [glance(1, 10.0, 10.2), glance(2, 11.0, 11.5, 1), glance(1, 12.0, 12.1, success=False)]
    inferences = [{"success": True, "task_info": {"segment_ids": [1, 2]}, "timestamp": {"compute_ended": 30.0}}]
    streamed, waited = delays(glances, inferences, 0.25)
    np.testing.assert_allclose(streamed, [0.2, 0.45, 0.5])
    np.testing.assert_allclose(waited, [20.0, 20.25, 19.0])


def test_a_segment_that_no_inference_looked_at_does_not_count() -> None:
    streamed, waited = delays([glance(5, 1.0, 2.0)], [], 0.25)
    assert len(streamed) == len(waited) == 0


def test_stops_are_compared_by_seed() -> None:
    def run(cells: float, stopped: float) -> dict[str, float]:
        return {"cells": cells, "stopped": stopped, "ns": 0.4}

    found = figures_of({"never": [run(100, 0), run(200, 0)], "below 0.5": [run(110, 0.2), run(180, 0.4)]}, "20 ps")
    assert found["stops, 20 ps, below 0.5 / never"].value == pytest.approx((1.1 + 0.9) / 2)
    assert found["stops, 20 ps, below 0.5: segments stopped"].value == pytest.approx(0.3)
    assert found["stops, 20 ps, never: cells"].value == 150


@pytest.mark.slow
def test_cost_in_small(folder: Path) -> None:
    done = run_benchmark("streaming", folder, "--quick", "--keep-busy", "--parts", "cost", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert "learning, each frame" in done.stdout
