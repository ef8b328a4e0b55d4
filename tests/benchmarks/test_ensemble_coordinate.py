"""What is made of what ensembles saw by one coordinate or another."""

import numpy as np
import pytest

from benchmarks.ensemble_coordinate import (
    Reference,
    Step,
    alanine_figures,
    chignolin_figures,
    free_energy_off,
    visited,
    weight_across,
    within,
)
from benchmarks.ensemble_molecule import CELL_DEG, cells

N_CELLS = (360 // CELL_DEG) ** 2
OFTEN, RARE, NEVER = (cells(np.array(point)) for point in ([-70, -40], [-150, 150], [60, 40]))


def step(weights, *ends, n_frames: int = 2) -> Step:
    """Return walkers that stay where they are."""
    points = np.repeat(np.array(ends, float)[:, None], n_frames, axis=1)
    return Step(np.array(weights, float), points)


@pytest.fixture
def reference() -> Reference:
    pieces = np.zeros((4, N_CELLS))
    pieces[:, OFTEN], pieces[:, RARE] = 0.99, 0.01
    pieces[0, NEVER] = 1e-6
    return Reference.of(pieces, fewest_pieces=2)


def test_cells_are_told_by_how_often_plain_md_met_them(reference: Reference):
    assert np.flatnonzero(reference.often).tolist() == [OFTEN]
    assert np.flatnonzero(reference.rarely).tolist() == [RARE]
    assert reference.free[RARE] == pytest.approx(np.log(99))


def test_free_energies_are_of_weights_and_of_the_later_iterations(reference: Reference):
    wrong = step([1.0, 0.0], [-70, -40], [-150, 150])
    right = step([0.99, 0.01], [-70, -40], [-150, 150])
    doubled = step([0.98, 0.02], [-70, -40], [-150, 150])
    assert free_energy_off([wrong, right, right], reference) == pytest.approx((0, 0), abs=1e-12)
    often, rarely = free_energy_off([wrong, doubled, doubled], reference)
    assert often == pytest.approx(0, abs=1e-12)
    assert rarely == pytest.approx(np.log(0.02 / 0.98 * 99))


def test_cells_that_no_walker_met_are_infinitely_far(reference: Reference):
    steps = [step([1.0], [-70, -40])] * 3
    assert free_energy_off(steps, reference)[1] == np.inf
    assert alanine_figures([steps, steps], reference)["off, rarely met"].value is None


def test_walkers_beyond_the_barrier_are_weighed(reference: Reference):
    across, stayed = step([0.25, 0.75], [60, 40], [-70, -40]), step([1.0], [-70, -40])
    # Beyond 120 degrees is the near side again.
    assert weight_across(step([0.25, 0.75], [170, 40], [-70, -40])) == 0
    told = alanine_figures([[stayed, across, stayed], [across, across, across], [stayed] * 3], reference)
    assert told["reached phi > 0"].value == 2
    assert told["weight at phi > 0"].value == pytest.approx(0.25 / 3)
    assert told["molecular time"].value == 6.0


def test_a_cell_counts_once_whatever_its_weight():
    steps = [step([1.0, 0.0], [-180, 180], [180, -180]), step([1.0], [0, 0]), step([1.0], [0, 14])]
    assert visited(steps) == 2


def test_what_goes_beyond_the_simulated_time_is_left_out():
    four = step([0.25] * 4, *[[0, 0]] * 4)
    assert len(list(within(iter([four] * 5), 16.0))) == 2
    assert len(list(within(iter([four] * 5), 22.9))) == 2
    assert len(list(within(iter([four] * 2), 100.0))) == 2


def test_the_nearest_is_of_any_frame():
    near = Step(np.ones(1), np.array([[[0.9, 1.0], [0.31, 0.7], [0.6, 0.8]]]))
    far = Step(np.ones(1), np.array([[[0.9, 1.0], [0.91, 1.01], [0.6, 0.8]]]))
    told = chignolin_figures([[near, far], [far]])
    assert told["nearest"].value == pytest.approx((0.31 + 0.6) / 2)
    assert told["cells"].value == pytest.approx((3 + 2) / 2)
