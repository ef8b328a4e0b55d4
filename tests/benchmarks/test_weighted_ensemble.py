"""The double well that ensembles are judged by, and what is made of their rates."""

import math

import numpy as np
import pytest

from benchmarks import double_well, unbiased
from benchmarks.double_well import KT, MASS, SOURCE, TARGET, DoubleWell, Ensemble
from benchmarks.weighted_ensemble import Truth, gain, truth_figures
from policies.rates import Rate


@pytest.mark.parametrize("friction", [5.0, 50.0])
def test_the_dynamics_sample_the_boltzmann_distribution(friction):
    rng = np.random.default_rng(1)
    x, v = np.full(4000, SOURCE), double_well.velocities(4000, rng)
    DoubleWell(friction).advance(x, v, rng, 3000)
    grid = np.linspace(-0.5, 0.0, 2001)
    density = np.exp(-8 * ((grid / 0.3) ** 2 - 1) ** 2)
    left = x[x < 0]
    assert len(left) > 3900
    assert left.mean() == pytest.approx(np.average(grid, weights=density), abs=4 * left.std() / 60)
    assert left.std() == pytest.approx(math.sqrt(np.cov(grid, aweights=density)), rel=0.05)
    assert v.var() == pytest.approx(KT / MASS, rel=0.1)


def test_brute_force_counts_passages():
    seen, waited = double_well.passages(DoubleWell(5.0), 20, np.random.default_rng(1))
    assert 20 <= seen < 40
    # About 4 900 ps, of 20 passages.
    assert 2000 < waited / seen < 12_000


def test_an_ensemble_starts_at_the_source_and_is_repeatable():
    first, again = (double_well.fluxes(DoubleWell(5.0), 3, 300.0) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    ensemble = Ensemble.begin(DoubleWell(5.0), 3)
    assert (ensemble.x == SOURCE).all()
    for _ in range(60):
        resampled = ensemble.advance()
        new = resampled.following.parents < 0
        assert (ensemble.x[new] == SOURCE).all()
        assert (ensemble.x <= TARGET).all()
        assert len(ensemble.x) == len(ensemble.v) == len(resampled.following.weights)


def some(*rates: float) -> tuple[Rate, ...]:
    return tuple(Rate(each, each / 2, each * 2, 100, 5) for each in rates)


def test_figures_of_ensembles():
    figures = truth_figures(Truth(50.0, 100, 1e5, (*some(1e-3, 1.5e-3, 1e-2), Rate(1e-3, None, None, 9, 1))))
    assert figures["friction 50: mean first passage"].value == pytest.approx(1.0)
    assert figures["friction 50: mean first passage"].low < 1 < figures["friction 50: mean first passage"].high
    assert (
        figures["friction 50: intervals that cover it"].value,
        figures["friction 50: intervals that cover it"].ok,
    ) == (
        2,
        False,
    )
    assert figures["friction 50: half-width of ln k"].value == pytest.approx(math.log(2))
    assert all(figure.wanted is None for figure in truth_figures(Truth(5.0, 1, 1.0, some(1))).values())


def test_gain_is_the_ratio_of_variances():
    rates = np.exp(np.random.default_rng(1).normal(0, 1 / 3, 2000))
    figure = gain(list(rates), 2000, None)
    assert figure.value == pytest.approx(3, rel=0.1)
    assert figure.low < figure.value < figure.high


def test_without_flux_there_is_no_gain():
    found = (*some(1e-3, 2e-3, 3e-3), None)
    figures = truth_figures(Truth(50.0, 100, 1e5, found))
    assert figures["friction 50: gain"].value is None
    assert figures["friction 50: gain"].ok is False


@pytest.mark.parametrize("kind", unbiased.KINDS)
def test_what_is_resampled_splits_merges_and_recycles(kind):
    case = unbiased.Case.of(kind, seed=1)
    passed = case.resample(np.random.default_rng(1))
    assert passed.sum() == pytest.approx(1)
    assert case.wanted.sum() == pytest.approx(1)
    assert case.wanted[-2:].min() > 0
    assert 0 < np.count_nonzero(passed[:-2] == 0) < 40
