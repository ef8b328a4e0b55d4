"""Policies: arrays in, a row out."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from policies import CHOICES, POLICIES, measure, policy, target_file
from tasks.errors import BadInput

USED = st.lists(st.integers(0, 5), min_size=1, max_size=40).map(lambda used: np.array(used, np.int64))


@pytest.mark.parametrize(
    ("name", "candidates", "learns"),
    [
        ("novelty", "novel", True),
        ("random", "uniform", False),
        ("plain", "none", False),
        ("least-counts", "novel", True),
        ("lof", "novel", True),
        ("rmsd:native.pdb", "nearest", True),
    ],
)
def test_what_a_policy_asks_of_inference(name, candidates, learns):
    assert (policy(name).candidates, policy(name).learns) == (candidates, learns)


@pytest.mark.parametrize("name", ["greedy", "", ":", "rmsd", "rmsd:", "module:", ":Policy"])
def test_an_unknown_policy_is_refused_with_those_there_are(name):
    with pytest.raises(BadInput) as refused:
        policy(name)
    assert str(refused.value) == f"policy {name} is not known: choose one of {', '.join(CHOICES)}"


def test_two_policies_are_named_after_their_measure():
    assert [measure(name) for name in POLICIES] == [None, None, None, "least-counts", "lof", None]
    assert measure("rmsd:lof") is None


def test_a_policy_may_steer_to_a_file():
    assert target_file("rmsd:/some:where/native.pdb") == Path("/some:where/native.pdb")
    assert [name for name in (*POLICIES, "rmsd:", "my.rmsd:Policy") if target_file(name)] == []


@pytest.mark.parametrize("name", POLICIES)
def test_without_candidates_a_walker_carries_on(name):
    rng = np.random.default_rng(1)
    before = rng.bit_generator.state
    assert policy(name).choose(np.empty(0), np.empty(0, np.int64), rng) is None
    assert rng.bit_generator.state == before


@given(used=USED, seed=st.integers(0, 2**32))
def test_one_of_the_least_used_is_chosen_and_equal_generators_choose_alike(used, seed):
    scores = np.linspace(1, 0, len(used))
    kept = used.copy()
    chosen = policy("novelty").choose(scores, used, np.random.default_rng(seed))
    assert isinstance(chosen, int)
    assert used[chosen] == used.min()
    assert chosen == policy("novelty").choose(scores, used, np.random.default_rng(seed))
    np.testing.assert_array_equal(used, kept)


@given(n=st.integers(1, 20), rounds=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_candidates_are_used_evenly(n, rounds, seed):
    rng = np.random.default_rng(seed)
    used = np.zeros(n, np.int64)
    for _ in range(n * rounds):
        used[policy("novelty").choose(np.ones(n), used, rng)] += 1
    assert (used == rounds).all()


def test_the_least_used_have_equal_chances():
    rng = np.random.default_rng(20240501)
    used = np.array([0, 3, 0, 0, 1], np.int64)
    counts = Counter(policy("random").choose(np.arange(5.0), used, rng) for _ in range(3000))
    assert set(counts) == {0, 2, 3}
    assert stats.chisquare([counts[row] for row in (0, 2, 3)]).pvalue > 1e-3
