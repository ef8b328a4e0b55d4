"""Resampling: weight is conserved, bins are filled, lineage holds, the generator alone decides, nothing is biased."""

import gc
import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import unbiased
from policies.bins import parse_bins
from policies.iteration import BasisStates, BrokenEnsemble, Endpoint, Iteration
from policies.mappers import build, choose_centres
from policies.target import parse_target
from policies.weighted_ensemble import Rule, carry_on
from tasks.errors import BadInput

ROOT = Path(__file__).parents[2]
XY = ("x", "y")
BINS = ("rectilinear:-0.5,0,0.5;0", "mab:4,3", "voronoi:7")
BASIS = BasisStates(("a", "b", "c"), np.array([0.2, 0.5, 0.3]), np.array([[-0.9, 0.0], [-0.8, 0.4], [-0.8, 0.4]]))
CENTRES = choose_centres(np.random.default_rng(1).uniform(-1, 1, (300, 2)), 7)


def rule(bins: str = BINS[0], target: str | None = "x > 0.6", walkers_per_bin: int = 4) -> Rule:
    box = None if target is None else parse_target(target, XY)
    return Rule(build(parse_bins(bins, XY), box, 2, CENTRES), walkers_per_bin)


def walkers(n: int, seed: int, decades: float = 20) -> tuple[Iteration, np.ndarray]:
    """Return an iteration of walkers of very unequal weights, and where they went."""
    rng = np.random.default_rng(seed)
    weights = 10 ** rng.uniform(-decades, 0, n)
    iteration = Iteration(3, weights / weights.sum(), np.arange(n), tuple((walker,) for walker in range(n)))
    return iteration, rng.uniform(-1, 1, (n, 3, 2))


def digest(bins: str, seed: int) -> str:
    iteration, pcoord = walkers(60, seed)
    made = rule(bins).resample(iteration, pcoord, BASIS, np.random.default_rng(seed), 5)
    told = (made.following.weights.tolist(), made.following.parents.tolist(), made.following.lineage)
    return hashlib.sha256(repr((*told, made.recycled, made.endpoints.tolist())).encode()).hexdigest()


CASES = {
    "bins": st.sampled_from(BINS),
    "target": st.sampled_from(["x > 0.6", "-0.3 < y < 0.3 and x > 0", None]),
    "n": st.integers(1, 60),
    "per_bin": st.integers(1, 6),
    "seed": st.integers(0, 2**32),
}


@given(**CASES)
@settings(deadline=None, max_examples=150)
def test_a_resampling_is_in_order(bins, target, n, per_bin, seed):
    made_by, (iteration, pcoord) = rule(bins, target, per_bin), walkers(n, seed)
    kept = iteration.weights.copy(), pcoord.copy()
    made = made_by.resample(iteration, pcoord, BASIS, np.random.default_rng(seed), 17)
    following = made.following
    np.testing.assert_array_equal(iteration.weights, kept[0])
    np.testing.assert_array_equal(pcoord, kept[1])

    # Weight: none is lost, neither in all nor of those that were recycled.
    assert following.number == 4
    assert abs(following.weights.sum() - 1) < 1e-12
    gone = made.bins == made_by.space.target_bin if target else np.zeros(n, bool)
    assert made.flux == pytest.approx(iteration.weights[gone].sum(), rel=1e-12)
    assert sorted(each.walker for each in made.recycled) == np.flatnonzero(gone).tolist()

    # Lineage: every walker's weight is carried by someone, and a parent's by its child.
    assert set().union(*following.lineage) == set(range(n))
    for parent, carried in zip(following.parents.tolist(), following.lineage, strict=True):
        assert parent in carried or (parent < 0 and any(gone[list(carried)]))
        assert parent < 0 or not gone[parent]

    # Bins: as many walkers as are wanted, or none, and none in the target.
    starts = {each.number: BASIS.pcoord[each.basis] for each in following.initial}
    assert list(starts) == [17 + each for each in range(int(gone.sum()))]
    assert [each.initial for each in made.recycled] == list(starts)
    ends, start_bins = made_by.space.assign(pcoord[:, -1], iteration.weights, BASIS.pcoord)
    np.testing.assert_array_equal(made.bins, ends)
    begin = [
        ends[parent] if parent >= 0 else start_bins[following.initial[-1 - parent - 17].basis]
        for parent in following.parents.tolist()
    ]
    reached, counts = np.unique(begin, return_counts=True)
    assert (counts == per_bin).all()
    assert set(reached) == set(ends[~gone]) | {int(start_bins[each.basis]) for each in following.initial}

    # Endpoints.
    for walker in range(n):
        wanted = Endpoint.CONTINUES if walker in following.parents else Endpoint.MERGED
        assert made.endpoints[walker] == (Endpoint.RECYCLED if gone[walker] else wanted)


@given(n=st.integers(1, 40), per_bin=st.integers(1, 6), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_the_first_iteration(n, per_bin, seed):
    first = rule(walkers_per_bin=per_bin).begin(BASIS, np.random.default_rng(seed), n)
    first.check()
    assert [each.number for each in first.initial] == list(range(n))
    assert first.number == 1
    assert first.lineage == tuple((parent,) for parent in first.parents.tolist())
    bins, _ = rule().space.assign(BASIS.pcoord[[first.initial[-1 - p].basis for p in first.parents]], first.weights)
    assert (np.unique(bins, return_counts=True)[1] == per_bin).all()


def test_initial_states_are_drawn_by_their_probabilities():
    rng, weights = np.random.default_rng(20240501), np.zeros(3)
    for _ in range(400):
        first = rule().begin(BASIS, rng, 10)
        for parent, weight in zip(first.parents.tolist(), first.weights.tolist(), strict=True):
            weights[first.initial[-1 - parent].basis] += weight / 400
    # 4 000 draws, and some more noise by merging.
    np.testing.assert_allclose(weights, BASIS.probabilities, atol=0.05)


@pytest.mark.parametrize("bins", BINS)
def test_the_state_of_the_generator_alone_decides(bins):
    wanted = [digest(bins, seed) for seed in range(10)]
    assert len(set(wanted)) == 10
    np.random.seed(1)  # noqa: NPY002
    littered = [object() for _ in range(10_001)]
    del littered[::3]
    gc.collect()
    assert [digest(bins, seed) for seed in range(10)] == wanted


def test_another_process_finds_the_same():
    code = f"from tests.policies.test_weighted_ensemble import *; print(*(digest(bins, 1) for bins in {BINS!r}))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, capture_output=True, text=True, timeout=100, env={"PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert done.stdout.split() == [digest(bins, 1) for bins in BINS], done.stderr


def test_nothing_global_is_drawn_from_or_seeded():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    digest(BINS[0], 1)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_weights_sum_to_one_after_many_iterations():
    made_by, rng = rule("rectilinear:0;0"), np.random.default_rng(4)
    iteration, n_initial = made_by.begin(BASIS, rng), 4
    for _ in range(300):
        pcoord = rng.uniform(-1, 1, (len(iteration.weights), 2, 2))
        iteration = made_by.resample(iteration, pcoord, BASIS, rng, n_initial).following
        n_initial += len(iteration.initial)
        assert abs(float(np.sum(iteration.weights)) - 1) < 1e-14


@pytest.mark.parametrize(
    "kind", ["rectilinear", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mab", "voronoi"))]
)
def test_no_observable_moves(kind):
    z = unbiased.deviations(unbiased.Case.of(kind, seed=1, n_walkers=24), 2000, np.random.default_rng(20240501))
    assert np.abs(z).max() < 4


def test_an_only_walker_is_not_split_by_rounding():
    # WESTPA splits what is heavier than one.
    weight = np.nextafter(1.0, 2)
    iteration = Iteration(1, np.array([weight]), np.array([0]), ((0,),))
    made = rule(target=None, walkers_per_bin=1).resample(
        iteration, np.zeros((1, 2, 2)), BASIS, np.random.default_rng(1), 0
    )
    assert made.following.weights.tolist() == [1.0]


def test_a_walker_split_and_merged_again_continues():
    # WESTPA marks such a walker as merged although a copy of it goes on; some of these seeds have one.
    for seed in range(40):
        iteration, pcoord = walkers(24, seed, 3)
        made = rule().resample(iteration, pcoord, BASIS, np.random.default_rng(seed), 0)
        goes_on = np.isin(np.arange(24), made.following.parents)
        np.testing.assert_array_equal(goes_on, made.endpoints == Endpoint.CONTINUES)


@given(n=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_carrying_on_changes_nothing(n, seed):
    iteration, _ = walkers(n, seed)
    following = carry_on(iteration)
    np.testing.assert_array_equal(following.weights, iteration.weights)
    assert following.parents.tolist() == list(range(n))
    assert (following.number, following.initial) == (4, ())


def test_a_basis_state_in_the_target_is_refused():
    basis = replace(BASIS, pcoord=np.array([[-0.9, 0], [0.7, 0], [0, 0]]))
    iteration, pcoord = walkers(5, 1)
    said = 'basis state b lies in the target "x > 0.6": walkers would be recycled without end; move the target'
    with pytest.raises(BadInput, match=said):
        rule().begin(basis, np.random.default_rng(1))
    with pytest.raises(BadInput, match=said):
        rule().resample(iteration, pcoord, basis, np.random.default_rng(1), 0)


def test_no_walker_per_bin_is_refused():
    with pytest.raises(BadInput, match="--walkers-per-bin 0 keeps no walker: give at least 1"):
        rule(walkers_per_bin=0)


def test_coordinates_that_do_not_fit_stop_the_ensemble():
    iteration, pcoord = walkers(5, 1)
    rng = np.random.default_rng(1)
    with pytest.raises(
        BrokenEnsemble, match=r"iteration 3: a progress coordinate of shape \(4, 3, 2\) does not fit 5"
    ):
        rule().resample(iteration, pcoord[:4], BASIS, rng, 0)
    for lost in (np.nan, np.inf, 1e39):
        pcoord[2, -1, 1] = lost
        with pytest.raises(BrokenEnsemble, match="iteration 3: the progress coordinate of walker 2 is not finite"):
            rule().resample(iteration, pcoord, BASIS, rng, 0)


def test_weights_that_do_not_sum_to_one_stop_the_ensemble():
    iteration, pcoord = walkers(5, 1)
    with pytest.raises(BrokenEnsemble, match=r"weights sum to one \+1"):
        rule().resample(replace(iteration, weights=2 * iteration.weights), pcoord, BASIS, np.random.default_rng(1), 0)


def test_counts_are_what_west_h5_keeps():
    made_by = rule()
    assert made_by.counts.shape == (made_by.space.n_bins,)
    assert np.flatnonzero(made_by.counts == 0).tolist() == [made_by.space.target_bin]
