"""Rates of a steady-state ensemble: the flux into the target, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What is left out at the beginning, where the ensemble is not yet steady.
DISCARD = 0.3

# The interval that is given leaves out so much.
_ALPHA = 0.05

_N_RESAMPLES = 4000
_N_SHUFFLED = 400

# Of each replica: correlation too weak to be seen at any one lag adds up over many, and longer blocks contain it
# (Schmeiser, https://doi.org/10.1287/opre.30.3.556: beyond 30 blocks nothing is gained).
_MOST_BLOCKS = 20

# With fewer that have any flux a bootstrap says little.
_FEWEST_BLOCKS = 5


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate from basis states to target, with its 95 % interval.

    Attributes
    ----------
    per_ps : float
        Mean flux over the time of an iteration; its inverse is the mean first passage time (Hill's relation).
    low, high : float or None
        None where there is too little flux, or it is correlated over too much of its time, to tell.
    n_iterations : int
        That were averaged, over all replicas.
    block : int
        Iterations whose flux was averaged before it was taken as independent.
    """

    per_ps: float
    low: float | None
    high: float | None
    n_iterations: int
    block: int

    @property
    def mfpt_ps(self) -> float:
        """Return the mean first passage time."""
        return 1 / self.per_ps


def rate(
    fluxes: Sequence[np.ndarray], iteration_ps: float, rng: np.random.Generator, discard: float = DISCARD
) -> Rate | None:
    """Return the rate; None where no weight reached the target in the iterations that count.

    No flux bounds no rate from above: it is not known how much weight an arrival would have carried.

    The interval comes from a Monte Carlo bootstrap of block means, as WESTPA's `w_direct` does it after Huber and Kim
    (https://doi.org/10.1016/S0006-3495(96)79552-8): blocks are at least as long as the flux is correlated. Two things
    differ, without which intervals of 95 % were seen to hold 85 %: blocks are not shorter than a twentieth of a
    replica, and of the logarithm of each resampled mean, how many of its own standard errors it is off is taken
    (the bootstrap-t of Efron and Tibshirani, chapter 12), since the flux comes in rare bursts and block means are
    skewed. WESTPA's `mcbs_ci_correl` is not called: it draws from numpy's global generator and from one that cannot
    be seeded, and takes the correlation of the running mean.

    Parameters
    ----------
    fluxes : sequence of ndarray of shape (n_iterations,), float64
        Weight that reached the target in each iteration, of one replica each. An iteration of any replica stands for
        the same time of an ensemble of the same weight, so all count alike; replicas are independent, so blocks of
        all are drawn from together, and none reaches over two of them.
    iteration_ps
        Time of one iteration.
    discard
        Fraction of each replica's iterations that is left out at its beginning.
    """
    kept = [np.asarray(flux, float)[math.ceil(discard * len(flux)) :] for flux in fluxes]
    kept = [flux for flux in kept if len(flux)]
    n = sum(len(flux) for flux in kept)
    total = float(sum(flux.sum() for flux in kept))
    if total <= 0:
        return None
    # The slowest replica decides: a short block makes an interval that is too narrow.
    block = max(max(correlated(flux, rng), len(flux) // _MOST_BLOCKS) for flux in kept)
    means = np.concatenate([_block_means(flux, block) for flux in kept])
    per_ps = total / n / iteration_ps
    if np.count_nonzero(means) < _FEWEST_BLOCKS:
        return Rate(per_ps, None, None, n, block)
    low, high = _factors(means, rng)
    return Rate(per_ps, per_ps * low, per_ps * high, n, block)


def correlated(series: np.ndarray, rng: np.random.Generator) -> int:
    """Return after how many points a series is independent of itself: the first lag at which it looks shuffled.

    Parameters
    ----------
    series : ndarray of shape (n_points,), float64

    Returns
    -------
    int
        1 where neighbours are independent; ``n_points`` where no lag up to half of them is.
    """
    n = len(series)
    if n < 4 or np.ptp(series) == 0:
        return 1
    shuffled = np.array([_autocorrelation(rng.permutation(series)) for _ in range(_N_SHUFFLED)])
    low, high = np.quantile(shuffled, [_ALPHA / 2, 1 - _ALPHA / 2], axis=0)
    found = _autocorrelation(series)
    alike = np.flatnonzero((low < found) & (found < high))
    return int(alike[0]) + 1 if len(alike) else n


def _autocorrelation(series: np.ndarray) -> np.ndarray:
    """Return the autocorrelation at lags from 1 to half the series."""
    n = len(series)
    spectrum = np.fft.rfft(series - series.mean(), 2 * n)
    products = np.fft.irfft(spectrum * spectrum.conj(), 2 * n)[: n // 2 + 1]
    correlation: np.ndarray = products[1:] / products[0] * n / np.arange(n - 1, n - n // 2 - 1, -1)
    return correlation


def _block_means(flux: np.ndarray, block: int) -> np.ndarray:
    """Return the means of blocks; what is left over is left out where it is oldest."""
    n = len(flux) // block
    means: np.ndarray = flux[len(flux) - n * block :].reshape(n, block).mean(axis=1)
    return means


def _factors(means: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return by what to multiply the mean for the ends of its interval: a bootstrap-t of its logarithm."""
    n = len(means)
    drawn = rng.choice(means, (_N_RESAMPLES, n))
    mean, error = drawn.mean(axis=1), drawn.std(axis=1, ddof=1) / math.sqrt(n)
    told = (mean > 0) & (error > 0)
    own = means.std(ddof=1) / math.sqrt(n) / means.mean()
    if not own or not np.any(told):
        return 1.0, 1.0
    off = np.log(mean[told] / means.mean()) / (error[told] / mean[told])
    low, high = np.quantile(off, [_ALPHA / 2, 1 - _ALPHA / 2])
    return math.exp(-high * own), math.exp(-low * own)
