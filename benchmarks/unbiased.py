"""One resampling of the same walkers again and again: what each passes on is in the mean what it had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.bins import Voronoi, parse_bins
from policies.iteration import BasisStates, Iteration
from policies.mappers import build, choose_centres
from policies.target import parse_target
from policies.weighted_ensemble import Rule

KINDS = ("rectilinear", "mab", "voronoi")

_NAMES = ("x", "y")

# Two, of which the second is met more often.
_BASIS = BasisStates(("a", "b"), np.array([0.3, 0.7]), np.array([[-0.9, -0.5], [-0.9, 0.5]]))


@dataclass(frozen=True, slots=True)
class Case:
    """Walkers in two dimensions, some of them in the target, some alone in their bin, some in a crowd."""

    rule: Rule
    iteration: Iteration
    pcoord: np.ndarray

    @classmethod
    def of(cls, kind: str, seed: int, n_walkers: int = 40) -> Case:
        """Return walkers of weights that span a decade and a half, in about a fourth as many bins."""
        rng = np.random.default_rng(seed)
        ends = np.column_stack([rng.uniform(-1, 1, n_walkers), rng.normal(0, 0.5, n_walkers)])
        weights = 10 ** rng.uniform(-1.5, 0, n_walkers)
        side = max(2, round((n_walkers / 4) ** 0.5))
        edges = ",".join(f"{edge:.6g}" for edge in np.linspace(-0.8, 0.8, side - 1))
        text = {"rectilinear": f"{edges};{edges}", "mab": f"{side},{side}", "voronoi": str(n_walkers // 4)}[kind]
        bins = parse_bins(f"{kind}:{text}", _NAMES)
        centres = choose_centres(ends, bins.n) if isinstance(bins, Voronoi) else None
        rule = Rule(build(bins, parse_target("x > 0.85", _NAMES), 2, centres), 4)
        number = np.arange(n_walkers)
        iteration = Iteration(7, weights / weights.sum(), number, tuple((walker,) for walker in number.tolist()))
        return cls(rule, iteration, np.stack([ends - 0.1, ends], axis=1))

    def resample(self, rng: np.random.Generator) -> np.ndarray:
        """Return the weight that each walker passed on, then that which began anew at each basis state."""
        following = self.rule.resample(self.iteration, self.pcoord, _BASIS, rng, 100).following
        n = len(self.pcoord)
        basis = np.array([each.basis for each in following.initial], np.int64)
        # A parent -1 - i began at initial state i, which are numbered from 100.
        new = following.parents < 0
        came = following.parents.copy()
        came[new] = n + basis[-1 - following.parents[new] - 100]
        return np.bincount(came, following.weights, minlength=n + len(_BASIS.names))

    @property
    def wanted(self) -> np.ndarray:
        """Return the mean of what `resample` returns if it is unbiased."""
        weights = self.iteration.weights
        recycled = self.rule.space.target.contains(self.pcoord[:, -1])  # type: ignore[union-attr]
        fresh = weights[recycled].sum() * _BASIS.probabilities
        return np.concatenate([np.where(recycled, 0, weights), fresh])

    @property
    def observables(self) -> np.ndarray:
        """Return functions of a walker, shape (n_observables, n_places): whether it is a certain one, x, y, ..."""
        x, y = np.concatenate([self.pcoord[:, -1], _BASIS.pcoord]).T
        return np.vstack([np.eye(len(x)), x, y, x * x, y * y, x * y, x > 0, y > 0, np.abs(x - y)])


def deviations(case: Case, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return by how many standard errors the mean of each observable moved in ``n`` resamplings.

    Returns
    -------
    ndarray of shape (n_observables,), float64
        0 where it never varied and stayed; infinite where it never varied and moved.
    """
    functions, wanted = case.observables, case.observables @ case.wanted
    total, square = np.zeros(len(functions)), np.zeros(len(functions))
    for _ in range(n):
        moved = functions @ case.resample(rng) - wanted
        total += moved
        square += moved * moved
    mean = total / n
    error = np.sqrt(np.maximum(square / n - mean * mean, 0) / n)
    # Less than rounding is no variance.
    steady = error < 1e-15
    z: np.ndarray = np.where(steady, np.where(np.abs(mean) < 1e-12, 0, np.inf), mean / np.where(steady, 1, error))
    return z
