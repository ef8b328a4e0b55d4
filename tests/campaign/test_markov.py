"""Markov models of segments whose dynamics, and what is probable in them, are known."""

import numpy as np
import pandas as pd
import pytest

from campaign import markov

# A chain that is mostly in state 0, and reversible.
PROBABILITY = np.array([0.7, 0.2, 0.1])
CHAIN = np.array([[0.95, 0.05, 0.0], [0.175, 0.725, 0.1], [0.0, 0.2, 0.8]])


def walk(start, n, rng):
    path = [start]
    while len(path) < n:
        path.append(rng.choice(3, p=CHAIN[path[-1]]))
    return np.array(path)


def segments(**columns):
    n = len(columns["parent_id"])
    given = {"steered": [False] * n, "iteration": [0] * n, "n_frames": [8] * n} | columns
    return pd.DataFrame(given).astype({"parent_id": "Int64", "parent_frame": "Int64"})


def test_segments_that_carry_on_make_a_stretch():
    found = markov.stretches(segments(parent_id=[None, None, 0, 2], parent_frame=[None, None, 7, 7]))
    assert found == [[0, 2, 3], [1]]


def test_what_was_steered_or_began_within_its_parent_is_on_its_own():
    found = markov.stretches(segments(parent_id=[None, 0, 0], parent_frame=[0, 7, 3], steered=[False, True, False]))
    assert found == [[0], [1], [2]]


def test_frames_of_a_parent_are_in_one_stretch_only():
    assert markov.stretches(segments(parent_id=[None, 0, 0], parent_frame=[0, 7, 7])) == [[0, 1], [2]]


def test_segments_of_a_weighted_ensemble_are_on_their_own():
    assert markov.stretches(segments(parent_id=[None, 0], parent_frame=[None, 7], iteration=[1, 2])) == [[0], [1]]


def test_pairs_are_within_stretches():
    paths = {0: np.array([0, 1, 2]), 1: np.array([3, 4]), 2: np.array([5, 6])}
    pairs = markov.lagged(paths, [[0, 1], [2]], 2)
    assert list(zip(pairs.start, pairs.end, pairs.segment, strict=True)) == [(0, 2, 0), (1, 3, 0), (2, 4, 0)]


def test_a_missing_segment_cuts_its_stretch():
    paths = {0: np.array([0, 1]), 2: np.array([4, 5])}
    pairs = markov.lagged(paths, [[0, 1, 2]], 1)
    assert list(zip(pairs.start, pairs.end, strict=True)) == [(0, 1), (4, 5)]


@pytest.mark.parametrize("lag", [3, 4, 9])
def test_no_stretch_that_is_not_longer_than_the_lag_has_pairs(lag):
    assert len(markov.lagged({0: np.array([0, 1, 2])}, [[0]], lag)) == 0


def test_without_segments_there_are_no_pairs():
    pairs = markov.lagged({}, [], 1)
    assert len(pairs) == 0
    assert markov.resampled(pairs, 3, 5, np.random.default_rng(0)) == []


def test_counts_are_of_pairs_and_their_weights():
    pairs = markov.Pairs(np.array([0, 0, 2]), np.array([1, 1, 0]), np.array([5, 6, 6]))
    assert markov.count(pairs, 3).tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]
    assert markov.count(pairs, 3, np.array([2.0, 0.5, 1.0])).tolist() == [[0, 2.5, 0], [0, 0, 0], [1, 0, 0]]


def test_what_is_probable_does_not_hang_on_where_segments_began():
    rng = np.random.default_rng(5)
    # Steered to the rare state nearly always.
    starts = rng.choice(3, 1500, p=[0.05, 0.15, 0.8])
    paths = {number: walk(start, 8, rng) for number, start in enumerate(starts)}
    pairs = markov.lagged(paths, [[number] for number in paths], 2)
    shares = np.bincount(np.concatenate(list(paths.values()))) / (8 * len(paths))
    assert shares[2] > 0.4
    assert markov.stationary(markov.count(pairs, 3)) == pytest.approx(PROBABILITY, abs=0.03)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = []
    for _ in range(20):
        paths = {number: walk(rng.integers(3), 6, rng) for number in range(200)}
        pairs = markov.lagged(paths, [[number] for number in paths], 1)
        drawn = [markov.stationary(counts) for counts in markov.resampled(pairs, 3, 60, rng)]
        low, high = markov.interval(drawn)
        held += ((low <= PROBABILITY) & (high >= PROBABILITY)).tolist()
    assert 0.8 <= np.mean(held) <= 1.0


def test_timescales_are_those_of_the_chain():
    rng = np.random.default_rng(2)
    paths = {number: walk(number % 3, 20, rng) for number in range(1000)}
    counts = markov.count(markov.lagged(paths, [[number] for number in paths], 1), 3)
    slowest = -0.5 / np.log(np.sort(np.linalg.eigvals(CHAIN).real)[::-1][1:])
    assert markov.timescales(counts, 0.5, 2) == pytest.approx(slowest, rel=0.1)


def test_states_beyond_the_connected_ones_are_not_told():
    counts = np.array([[5.0, 2.0, 0.0], [2.0, 5.0, 1.0], [0.0, 0.0, 3.0]])
    probability = markov.stationary(counts)
    assert probability[:2] == pytest.approx([0.5, 0.5])
    assert np.isnan(probability[2])


@pytest.mark.parametrize("counts", [np.zeros((3, 3)), np.diag([4.0, 2.0, 0.0])])
def test_where_nothing_connects_nothing_is_told(counts):
    assert np.isnan(markov.stationary(counts)).all()
    assert np.isnan(markov.timescales(counts, 1.0, 2)).all()


def test_going_to_and_fro_is_no_timescale():
    counts = np.array([[0.0, 3.0], [3.0, 0.0]])
    assert np.isnan(markov.timescales(counts, 1.0, 1)).all()


def test_probabilities_among_some_states_sum_to_one_over_these():
    found = markov.among(np.array([0.2, np.nan, 0.6, 0.2]), np.array([True, False, True, False]))
    assert found[[0, 2]] == pytest.approx([0.25, 0.75])
    assert np.isnan(found[[1, 3]]).all()


def test_a_value_that_few_drawings_have_gets_no_interval():
    drawn = [np.array([1.0, np.nan]), np.array([2.0, np.nan]), np.array([3.0, 7.0])]
    low, high = markov.interval(drawn)
    assert (low[0], high[0]) == pytest.approx((1.05, 2.95))
    assert np.isnan([low[1], high[1]]).all()


def test_frames_that_are_apart_and_stay_apart_are_different_states_in_all_runs():
    rng = np.random.default_rng(3)
    one = {k: np.array([[-1.0 if k % 2 else 1.0, 0.0]]) + 0.05 * rng.normal(size=(10, 2)) for k in range(20)}
    other = {0: np.array([[-1.0, 0.0], [1.0, 0.0]])}
    pairs = markov.lagged(one, [[k] for k in one], 1)
    (states, of_other), n_states = markov.states_of([one, other], pairs, 2, seed=0)
    assert n_states == 2
    assert {tuple(np.unique(states[k])) for k in range(0, 20, 2)} | {
        tuple(np.unique(states[k])) for k in range(1, 20, 2)
    } == {(0,), (1,)}
    assert of_other[0].tolist() == [states[1][0], states[0][0]]


def test_few_frames_make_few_states():
    rng = np.random.default_rng(4)
    paths = {0: rng.normal(size=(60, 2))}
    _, n_states = markov.states_of([paths], markov.lagged(paths, [[0]], 1), 20, seed=0)
    assert n_states == 3
