"""Rates: what they are of a known flux, and that an interval of 95 % holds about that often."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.rates import correlated, rate


def smooth(rng: np.random.Generator, n: int, length: int) -> np.ndarray:
    """Return positive noise that is correlated over so many points, whose mean is 1."""
    return np.convolve(rng.exponential(1, n + length - 1), np.ones(length) / length, "valid")


def test_the_rate_is_the_mean_flux_over_the_time():
    flux = np.concatenate([np.full(30, 9.0), np.random.default_rng(2).permutation(np.tile([1e-6, 3e-6], 35))])
    found = rate([flux], 0.5, np.random.default_rng(1))
    assert found.per_ps == pytest.approx(4e-6)
    assert found.mfpt_ps == pytest.approx(2.5e5)
    assert found.n_iterations == 70
    assert found.low <= found.per_ps <= found.high


def test_replicas_count_by_their_iterations():
    one, other = np.full(100, 1.0), np.full(300, 2.0)
    found = rate([one, other, np.empty(0)], 1.0, np.random.default_rng(1), discard=0)
    assert found.per_ps == pytest.approx(1.75)


def test_replicas_narrow_the_interval():
    rng = np.random.default_rng(3)
    fluxes = [smooth(rng, 1000, 5) for _ in range(8)]
    widths = [math.log(found.high / found.low) for found in (rate(fluxes[:n], 1.0, rng) for n in (1, 8))]
    assert 2 < widths[0] / widths[1] < 5


@pytest.mark.parametrize("fluxes", [[], [np.zeros(100)], [np.zeros(3), np.zeros(50)], [np.array([1.0, 0, 0, 0])]])
def test_without_flux_there_is_no_rate(fluxes):
    assert rate(fluxes, 0.5, np.random.default_rng(1)) is None


def test_a_single_burst_gives_a_rate_without_interval():
    flux = np.zeros(400)
    flux[300] = 1e-5
    found = rate([flux], 1.0, np.random.default_rng(1))
    assert found.per_ps == pytest.approx(1e-5 / 280)
    assert (found.low, found.high) == (None, None)


def test_a_flux_that_only_rises_gives_no_interval():
    assert rate([np.linspace(0, 1, 200)], 1.0, np.random.default_rng(1)).low is None


@pytest.mark.parametrize("length", [1, 5, 20])
def test_correlation_is_found(length):
    rng = np.random.default_rng(6)
    found = np.median([correlated(smooth(rng, 2000, length), rng) for _ in range(11)])
    assert 0.5 * length <= found <= 1.5 * length


@pytest.mark.parametrize("length", [1, 20])
def test_the_interval_holds_about_as_often_as_it_says(length):
    rng = np.random.default_rng(7)
    found = [rate([smooth(rng, 1000, length)], 1.0, rng) for _ in range(100)]
    # 95 of 100, give or take 2.2: three standard errors either way, and a little for the block length being guessed.
    assert sum(each.low <= 1 <= each.high for each in found) >= 87


@given(flux=st.lists(st.floats(0, 1), max_size=60), seed=st.integers(0, 2**32), discard=st.floats(0, 0.9))
@settings(deadline=None, max_examples=60)
def test_any_flux_has_an_ordered_interval_and_equal_generators_agree(flux, seed, discard):
    series = np.array(flux)
    found = rate([series], 2.0, np.random.default_rng(seed), discard)
    assert found == rate([series], 2.0, np.random.default_rng(seed), discard)
    if found is not None and found.low is not None:
        assert 0 <= found.low <= found.per_ps * (1 + 1e-9)
        assert found.per_ps <= found.high * (1 + 1e-9)
