"""What is made of a molecule's weights, of ensembles that were killed, and of an iteration's end."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import ensemble_kills, ensemble_utilisation
from benchmarks.ensemble_molecule import CELL_DEG, cells, compare, histogram, in_blocks, in_pieces, iteration_share
from campaign.iterations import Past
from policies.iteration import Iteration

N_CELLS = (360 // CELL_DEG) ** 2


def past(number: int, weights, pcoord=None, segment_ids=None) -> Past:
    """Return an iteration as the ledger has it; walkers go on one by one."""
    n = len(weights)
    walkers = np.arange(n)
    iteration = Iteration(number, np.array(weights, float), walkers, tuple((walker,) for walker in walkers.tolist()))
    points = np.zeros((n, 3, 2), np.float32) if pcoord is None else pcoord
    ids = tuple(100 * number + walkers) if segment_ids is None else segment_ids
    ones = np.ones(n)
    return Past(iteration, ids, 0, points, ones.astype(np.uint8), walkers, (), ones)


def test_both_ends_of_an_angle_are_one_cell():
    points = np.array([[-180.0, -180.0], [180.0, 180.0], [-180.0, 180.0], [179.9, -150.1], [0.0, 0.0]])
    side = 360 // CELL_DEG
    assert cells(points).tolist() == [0, 0, 0, (side - 1) * side, side // 2 * side + side // 2]


def test_weights_give_the_density_that_points_were_not_drawn_from():
    rng = np.random.default_rng(1)
    points = rng.uniform(-180, 180, (400_000, 2))
    density = np.exp(-2 * np.cos(np.radians(points[:, 0])) - np.cos(np.radians(points[:, 1] - 40)))
    middles = -180 + CELL_DEG * (np.arange(360 // CELL_DEG) + 0.5)
    phi, psi = np.meshgrid(middles, middles, indexing="ij")
    expected = np.exp(-2 * np.cos(np.radians(phi)) - np.cos(np.radians(psi - 40))).ravel()
    free = -np.log(histogram(points, density)) + np.log(expected / expected.sum())
    # Of 2 800 points in a cell, and the cells' middles stand for them.
    assert np.abs(free).max() < 0.1


def test_a_frame_counts_with_its_walkers_weight_and_starts_do_not_count():
    pcoord = np.array([[[100, 100], [0, 0], [0, 0]], [[100, 100], [0, 0], [-90, 0]]], np.float32)
    share = iteration_share(past(1, [0.25, 0.75], pcoord))
    assert share[cells(np.array([0, 0]))] == pytest.approx(0.625)
    assert share[cells(np.array([-90, 0]))] == pytest.approx(0.375)
    assert share.sum() == pytest.approx(1)


def test_blocks_are_of_the_newest_iterations():
    shares = np.arange(100.0)[:, None]
    blocks = in_blocks(shares, n_blocks=10, discard=0.3)
    assert blocks[:, 0].tolist() == [33 + 7 * number for number in range(10)]
    # 68 are left, of which eight are too many.
    assert in_blocks(shares[:98], n_blocks=10, discard=0.3)[0, 0] == pytest.approx(38 + 2.5)
    with pytest.raises(ValueError, match="do not make 10 blocks"):
        in_blocks(shares[:10])


def test_pieces_leave_out_what_comes_first():
    still = np.zeros((9000, 2))
    still[:1000] = 100
    pieces = in_pieces([still, still])
    assert pieces.shape == (4, N_CELLS)
    assert (pieces[:, cells(np.array([0, 0]))] == 1).all()


def shares(rng: np.random.Generator, n: int, mean: np.ndarray, spread: float) -> np.ndarray:
    """Return scattered shares of cells in blocks, with that mean."""
    return mean * rng.lognormal(-(spread**2) / 2, spread, (n, len(mean)))


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_intervals_hold_what_they_promise(spread):
    rng = np.random.default_rng(1)
    mean = np.full(200, 1 / 200)
    agree = [
        compare(shares(rng, 10, mean, spread), shares(rng, 16, mean, spread), 10, rng).agrees.mean()
        for _ in range(10)
    ]
    # 2 000 cells; skewed ones cost a little.
    assert 0.93 < np.mean(agree) < 0.985


def test_what_differs_does_not_agree():
    rng = np.random.default_rng(1)
    mean = np.full(200, 1 / 200)
    found = compare(shares(rng, 10, 2 * mean, 0.1), shares(rng, 16, mean, 0.1), 10, rng)
    assert not found.agrees.any()
    assert found.difference == pytest.approx(-np.log(2), abs=0.2)


def test_a_cell_that_the_ensemble_never_met_does_not_agree():
    rng = np.random.default_rng(1)
    blocks, pieces = np.tile([1.0, 0.0, 0.0], (10, 1)), np.tile([0.5, 0.5, 0.0], (16, 1))
    pieces[:7, 1] = 0
    found = compare(blocks, pieces, 10, rng)
    assert found.well.tolist() == [True, False, False]
    assert compare(blocks, pieces, 9, rng).well.tolist() == [True, True, False]
    assert found.agrees.tolist() == [False, False, False]


def test_an_ensemble_is_told_from_that_of_its_seed():
    series = [past(number, [0.25, 0.75]) for number in range(1, 4)]
    assert list(ensemble_kills.differences(series, series)) == []
    off = [series[0], past(2, [0.25 + 2**-54, 0.75]), series[2]]
    assert list(ensemble_kills.differences(off, series)) == ["iteration 2: weights are not those of the seed"]
    assert list(ensemble_kills.differences(series[:2], series)) == ["2 iterations, not 3"]
    moved = [*series[:2], past(3, [0.25, 0.75], np.ones((2, 3, 2), np.float32))]
    assert list(ensemble_kills.differences(moved, series)) == ["iteration 3: coordinates are not those of the seed"]


def test_weights_that_are_lost_and_walkers_that_are_there_twice_are_found():
    assert list(ensemble_kills.oddities([past(1, [0.5, 0.5]), past(2, [0.5, 0.5 + 1e-13])])) == []
    found = list(
        ensemble_kills.oddities([past(1, [0.5, 0.5 - 1e-11], segment_ids=(1, 2)), past(2, [1.0], None, (2,))])
    )
    assert found == ["iteration 1: weights sum to one -1.0e-11", "segments [2] are of two walkers"]


def test_segments_of_each_worker_are_counted_once_they_ended():
    records = [
        {"success": ok, "worker_info": {"PARSL_WORKER_RANK": rank}, "timestamp": {"compute_ended": at}}
        for ok, rank, at in [(True, "0", 3.0), (True, "1", 2.0), (False, "1", 2.5), (True, "0", 1.0)]
    ]
    ran = SimpleNamespace(trace=lambda topic: records)
    assert ensemble_utilisation.ends_by_worker(ran) == [[1.0, 3.0], [2.0]]


def test_the_end_of_an_iteration_is_timed_with_all_walkers(tmp_path):
    spent = ensemble_utilisation.spent(tmp_path, 24, (2, 3), 2)
    assert spent.n_walkers == 24
    assert 0 < spent.west < spent.wall
    assert list(tmp_path.iterdir()) == []
