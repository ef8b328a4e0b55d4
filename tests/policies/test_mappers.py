"""WESTPA's mappers: where points lie, and that their pickles need nothing of ours."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from policies.bins import parse_bins
from policies.mappers import build, choose_centres
from policies.target import parse_target
from tasks.errors import BadInput

XY = ("x", "y")
TARGET = "x > 0.5 and -0.5 < y < 0.5"
BINS = ("rectilinear:-0.5,0,0.5;0", "mab:4,3", "voronoi:7")
COORDINATES = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(2)), elements=st.floats(-2, 2, width=32))


def space(bins, target=TARGET):
    points = np.random.default_rng(1).uniform(-1, 1, (300, 2))
    box = None if target is None else parse_target(target, XY)
    return build(parse_bins(bins, XY), box, 2, choose_centres(points, 7))


@pytest.mark.parametrize("bins", BINS)
@given(points=COORDINATES)
@settings(deadline=None, max_examples=40)
def test_the_target_alone_is_its_bin(bins, points):
    made = space(bins)
    assigned, _ = made.assign(points, np.full(len(points), 1 / len(points)))
    np.testing.assert_array_equal(assigned == made.target_bin, made.target.contains(points))
    assert assigned.min() >= 0
    assert assigned.max() < made.n_bins


@pytest.mark.parametrize("bins", BINS)
def test_without_target_the_bins_alone(bins):
    made = space(bins, None)
    assert made.target_bin is None
    assert type(made.mapper).__name__ in ("RectilinearBinMapper", "MABBinMapper", "VoronoiBinMapper")
    assert made.n_bins == {"r": 8, "m": 4 * 3 + 8, "v": 7}[bins[0]]


@pytest.mark.parametrize("target", [TARGET, None])
@pytest.mark.parametrize("bins", BINS)
def test_the_pickle_opens_without_us_and_maps_the_same(bins, target, tmp_path: Path):
    made, points = space(bins, target), np.random.default_rng(2).uniform(-2, 2, (200, 2)).astype(np.float32)
    np.savez(tmp_path / "points.npz", points=points, wanted=made.mapper.assign(points))
    pickled, hashed = made.mapper.pickle_and_hash()
    assert hashed == space(bins, target).mapper.pickle_and_hash()[1]
    assert not any(" at 0x" in label for label in made.mapper.labels), "another process has another hash"
    (tmp_path / "mapper").write_bytes(pickled)
    code = (
        "import pickle, numpy as np; data = np.load('points.npz'); mapper = pickle.load(open('mapper', 'rb'));"
        "assert (mapper.assign(data['points']) == data['wanted']).all(); import importlib.util as u;"
        "assert u.find_spec('policies') is None, 'ours can be imported'"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bins", BINS)
def test_westpas_analysis_may_assign_segments_with_it(bins):
    # As w_assign does: each segment's points by themselves, into a given array. Adaptive bins mean nothing there, but
    # the target does.
    made = space(bins)
    mapper = pickle.loads(pickle.dumps(made.mapper, pickle.HIGHEST_PROTOCOL))  # noqa: S301
    segments = np.random.default_rng(3).uniform(-1, 1, (20, 5, 2)).astype(np.float32)
    output = np.empty((20, 5), np.uint16)
    for segment, row in zip(segments, output, strict=True):
        mapper.assign(segment, np.ones(5, bool), row)
    np.testing.assert_array_equal(output == made.target_bin, made.target.contains(segments))


def test_voronoi_centres_are_nearest():
    made, points = space("voronoi:7", None), np.random.default_rng(4).uniform(-1, 1, (200, 2)).astype(np.float32)
    wanted = cdist(points, made.mapper.centers).argmin(axis=1)
    np.testing.assert_array_equal(made.assign(points, np.ones(200))[0], wanted)


@given(points=COORDINATES, n=st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_centres_are_different_points_that_map_to_themselves(points, n):
    centres = choose_centres(points, n)
    assert len(centres) <= min(n, len(np.unique(points, axis=0)))
    assert {tuple(centre) for centre in centres} <= {tuple(point) for point in points}
    made = build(parse_bins(f"voronoi:{n}", XY), None, 2, centres)
    np.testing.assert_array_equal(made.assign(centres, np.ones(len(centres)))[0], np.arange(len(centres)))


def test_all_points_become_centres_where_there_are_too_few():
    assert len(choose_centres(np.array([[0.0], [1.0], [1.0], [2.0]]), 9)) == 3


def test_centres_spread_over_what_was_reached_not_over_where_most_points_are():
    rng = np.random.default_rng(5)
    points = np.concatenate([rng.normal(0, 0.01, (1000, 1)), np.linspace(-1, 1, 21)[:, None]])
    assert np.diff(np.sort(choose_centres(points, 9), axis=0), axis=0).min() > 0.15


def test_adaptive_bins_hold_walkers_alone_that_lead_lag_or_wait_before_a_barrier():
    made = build(parse_bins("mab:4", ("x",)), None, 1)
    ends = np.linspace(-1, 1, 21)[:, None]
    weights = np.full(21, 1.0)
    weights[13] = 1e4  # the last of any weight before a barrier
    bins, (start,) = made.assign(ends, weights / weights.sum(), np.array([[-1.5]]))
    alone = [walker for walker in range(21) if np.count_nonzero(bins == bins[walker]) == 1]
    assert {0, 13, 20} <= set(alone)
    assert sorted(set(bins[bins < 4])) == [0, 1, 2, 3]
    # WESTPA alone would put a recycled walker into the last of the bins, beside the leading walkers.
    assert start == 0
    assert made.mapper.assign(np.array([[-1.5]], np.float32))[0] == 3


def test_adaptive_bins_keep_quiet_about_weights_of_nothing(recwarn, capfd):
    made = build(parse_bins("mab:4", ("x",)), None, 1)
    made.assign(np.linspace(0, 1, 9)[:, None], np.array([1.0, *([1e-200] * 8)]))
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_more_bins_than_westpa_numbers():
    with pytest.raises(BadInput, match="--bins makes 90008 bins, and WESTPA numbers 65535 at most"):
        build(parse_bins("mab:300,300", XY), None, 2)
    edges = ",".join(map(str, range(130)))
    with pytest.raises(BadInput, match="85806 bins, 17161 in each of 5 cells around the target: give at most 13107"):
        build(parse_bins(f"rectilinear:{edges};{edges}", XY), parse_target(TARGET, XY), 2)
