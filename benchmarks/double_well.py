"""A particle in a double well: long enough to wait for by brute force, so the truth about its rate is known.

40 amu in ``V = 8 kT ((x/a)^2 - 1)^2 + 100 kJ/mol/nm^2 (y^2 + z^2)``, a = 0.3 nm, 300 K. Neither y nor z occurs in x's
force, nor in the source or the target, so only x is integrated. The integrator is OpenMM's LangevinMiddleIntegrator
(https://doi.org/10.1021/acs.jpca.9b02771), over many particles at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from policies.bins import parse_bins
from policies.iteration import BasisStates, Iteration, Resampled
from policies.mappers import build
from policies.target import parse_target
from policies.weighted_ensemble import Rule

KT = 8.31446261815324e-3 * 300
MASS = 40.0
A = 0.3
TIMESTEP_PS = 0.01
SEGMENT_PS = 0.5

SOURCE = -A
TARGET = 0.9 * A
N_STEPS = round(SEGMENT_PS / TIMESTEP_PS)

# For seconds of a run to go into arithmetic rather than into calls: the arrays of so many fit a core's cache.
_N_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class DoubleWell:
    """The dynamics along x; friction in 1/ps."""

    friction: float

    def advance(self, x: np.ndarray, v: np.ndarray, rng: np.random.Generator, n_steps: int = N_STEPS) -> None:
        """Move particles in place.

        Parameters
        ----------
        x, v : ndarray of shape (n_particles,), float64
            In nm and nm/ps.
        """
        kept = math.exp(-self.friction * TIMESTEP_PS)
        kick, noise = 32 * KT / (A * A * MASS) * TIMESTEP_PS, math.sqrt(KT / MASS * (1 - kept * kept))
        work, drawn = np.empty_like(x), np.empty_like(x)
        for _ in range(n_steps):
            np.multiply(x, x, out=work)
            work *= -kick / (A * A)
            work += kick
            work *= x
            v += work
            # Half a drift before the thermostat and half after it.
            rng.standard_normal(out=drawn)
            drawn *= noise
            np.multiply(v, 0.5 * TIMESTEP_PS, out=work)
            x += work
            v *= kept
            v += drawn
            np.multiply(v, 0.5 * TIMESTEP_PS, out=work)
            x += work


def velocities(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return thermal velocities, in nm/ps, as a basis state without velocities begins with."""
    return rng.normal(0, math.sqrt(KT / MASS), n)


def passages(well: DoubleWell, n: int, rng: np.random.Generator) -> tuple[int, float]:
    """Return how many passages from source to target were waited for, at least ``n``, and in how long (ps).

    Particles that are in the target at the end of 0.5 ps, as an ensemble sees it, begin anew at the source; time
    over passages is the mean first passage time, up to the few ps that all of them need at the start.
    """
    x, v = np.full(_N_AT_ONCE, SOURCE), velocities(_N_AT_ONCE, rng)
    seen = rounds = 0
    while seen < n:
        well.advance(x, v, rng)
        rounds += 1
        arrived = np.flatnonzero(x > TARGET)
        x[arrived], v[arrived] = SOURCE, velocities(len(arrived), rng)
        seen += len(arrived)
    return seen, rounds * _N_AT_ONCE * SEGMENT_PS


def rule() -> Rule:
    """Return the resampling of issue 6: 30 bins from -1.05 a to 0.85 a, 4 walkers each."""
    edges = ",".join(f"{edge:.9g}" for edge in np.linspace(-1.05 * A, 0.85 * A, 31))
    return Rule(build(parse_bins(f"rectilinear:{edges}", ("x",)), parse_target(f"x > {TARGET}", ("x",)), 1), 4)


@dataclass(slots=True)
class Ensemble:
    """A weighted ensemble in the double well, whose walkers are resampled by the campaign's policy.

    Attributes
    ----------
    x, v : ndarray of shape (n_walkers,)
        Where the walkers begin.
    """

    well: DoubleWell
    rule: Rule
    iteration: Iteration
    x: np.ndarray
    v: np.ndarray
    dynamics: np.random.Generator
    resampling: np.random.Generator
    n_initial: int
    simulated_ps: float = 0.0

    @classmethod
    def begin(cls, well: DoubleWell, seed: int) -> Ensemble:
        """Return an ensemble at the source."""
        dynamics, resampling = (np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(2))
        first = rule().begin(BASIS, resampling)
        n = len(first.weights)
        # Copies of one initial state have its velocity in common.
        v = velocities(len(first.initial), dynamics)[-1 - first.parents]
        return cls(well, rule(), first, np.full(n, SOURCE), v, dynamics, resampling, len(first.initial))

    def advance(self) -> Resampled:
        """Run and resample one iteration."""
        x, v = self.x.copy(), self.v.copy()
        self.well.advance(x, v, self.dynamics)
        self.simulated_ps += len(x) * SEGMENT_PS
        pcoord = np.stack([self.x, x], axis=1)[:, :, None]
        resampled = self.rule.resample(self.iteration, pcoord, BASIS, self.resampling, self.n_initial)
        self.iteration = following = resampled.following
        fresh = velocities(len(following.initial), self.dynamics)
        new = following.parents < 0
        parents, starts = np.where(new, 0, following.parents), -1 - following.parents[new] - self.n_initial
        self.x, self.v = np.where(new, SOURCE, x[parents]), v[parents]
        self.v[new] = fresh[starts]
        self.n_initial += len(following.initial)
        return resampled


BASIS = BasisStates(("source",), np.ones(1), np.array([[SOURCE]]))


def fluxes(well: DoubleWell, seed: int, simulated_ps: float) -> np.ndarray:
    """Return the weight that reached the target in each iteration of an ensemble that simulates so long in all.

    Returns
    -------
    ndarray of shape (n_iterations,), float64
    """
    ensemble, flux = Ensemble.begin(well, seed), []
    while ensemble.simulated_ps < simulated_ps:
        flux.append(ensemble.advance().flux)
    return np.array(flux)
