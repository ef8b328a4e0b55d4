"""What weighted ensemble is worth, and that it is right: rates of a double well, and resampling that biases nothing.

**Truth.** The double well of `benchmarks.double_well`, with friction 50/ps (diffusive) and 5/ps (inertial: a
coordinate without velocity tells little of who will cross, and weighted ensemble is known to gain little or nothing).
The reference is brute force. 20 ensembles, seeds 2001 to 2020, which nothing was tuned on, each simulating three mean
first passage times in all, over all walkers; of their rates, from the last 70 % of the iterations, the 95 % interval
is to cover the reference in 17, with a median half-width of ln k of at most 0.7. Gain: the variance of ln k that
brute force would have for the same time, one over the passages expected in it, over that of the ensembles; wanted 3.

**Unbiased.** One resampling of the same walkers, repeated: the weight that each of them passes on is in the mean what
it had, hence so is every observable. Largest z of all walkers and of some observables, which is to stay below 4.

**Speed.** CPU time of one resampling (a single thread's, so the time that it takes on an idle core).

**Molecule**, **utilisation**, **coordinate**, **kills**: `benchmarks.ensemble_molecule`, `ensemble_utilisation`,
`ensemble_coordinate`, `ensemble_kills`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks import (
    double_well,
    ensemble_coordinate,
    ensemble_kills,
    ensemble_molecule,
    ensemble_utilisation,
    unbiased,
)
from benchmarks.double_well import SEGMENT_PS, DoubleWell
from benchmarks.harness import Figure, Figures, Session, Wanted, interval, median, run
from policies.rates import Rate, rate

PARTS = ("truth", "unbiased", "speed", "molecule", "utilisation", "coordinate", "kills")

# What five minutes have room for; kills are in the tests as well.
_QUICK_PARTS = PARTS[:-2]
SEEDS = tuple(range(2001, 2021))
FRICTIONS = (50.0, 5.0)
N_PASSAGES = 3.0

_REFERENCE_SEED = 1999

# A variance of fewer has no interval worth telling.
_FEWEST_SEEDS = 10


@dataclass(frozen=True, slots=True)
class Truth:
    """Ensembles against brute force.

    Attributes
    ----------
    seen : int
        Passages that brute force waited for, in ``waited_ps``.
    """

    friction: float
    seen: int
    waited_ps: float
    rates: tuple[Rate | None, ...]

    @property
    def per_ps(self) -> float:
        """Return the reference."""
        return self.seen / self.waited_ps


def measure(session: Session) -> Figures:
    """Return the figures of the parts that were asked for."""
    parts, figures = session.options.parts or (_QUICK_PARTS if session.quick else PARTS), {}
    if "truth" in parts:
        for friction in session.options.frictions or FRICTIONS:
            figures.update(truth_figures(_truth(session, friction)))
    if "unbiased" in parts:
        figures.update(unbiased_figures(session))
    if "speed" in parts:
        figures.update(speed_figures(session))
    if "molecule" in parts:
        figures.update(ensemble_molecule.figures(session))
    if "utilisation" in parts:
        figures.update(ensemble_utilisation.figures(session))
    if "coordinate" in parts:
        figures.update(ensemble_coordinate.figures(session))
    if "kills" in parts:
        figures.update(ensemble_kills.figures(session))
    return figures


def truth_figures(truth: Truth) -> dict[str, Figure]:
    """Return what ensembles found, and what they gained."""
    found = [each for each in truth.rates if each is not None]
    n, judged, label = len(truth.rates), truth.friction == 50, f"friction {truth.friction:g}"
    covering = sum(
        each.low is not None and each.high is not None and each.low <= truth.per_ps <= each.high for each in found
    )
    widths = [
        math.log(each.high / each.low) / 2 if each and each.low and each.high else math.inf for each in truth.rates
    ]
    middle = median(widths)
    low, high = (truth.waited_ps / (truth.seen + sign * 1.96 * math.sqrt(truth.seen)) / 1000 for sign in (1, -1))
    return {
        f"{label}: mean first passage": Figure(truth.waited_ps / truth.seen / 1000, low, high, "ns"),
        f"{label}: brute-force passages": Figure(truth.seen, None, None, "passages"),
        f"{label}: rate / reference": interval((each.per_ps / truth.per_ps for each in found), "ratio"),
        f"{label}: intervals that cover it": Figure(
            covering, None, None, f"of {n}", Wanted(at_least=17 * n // 20) if judged else None
        ),
        f"{label}: half-width of ln k": Figure(
            middle if math.isfinite(middle) else None, None, None, "median", Wanted(at_most=0.7) if judged else None
        ),
        f"{label}: gain": gain([each.per_ps for each in found], n, Wanted(at_least=3) if judged else None),
    }


def gain(rates: Sequence[float], n: int, wanted: Wanted | None) -> Figure:
    """Return the variance of ln k by brute force over that of ensembles, bootstrapped over these.

    An ensemble without any flux has no ln k: then there is no gain to tell.
    """
    if len(rates) < n or n < 3:
        return Figure(None, None, None, "times", wanted)
    logs = np.log(rates)
    value = float(1 / (logs.var(ddof=1) * N_PASSAGES))
    if n < _FEWEST_SEEDS:
        return Figure(value, None, None, "times", wanted)
    drawn = np.random.default_rng(0).choice(logs, size=(10_000, n)).var(axis=1, ddof=1)
    low, high = (float(1 / (variance * N_PASSAGES)) for variance in np.quantile(drawn, [0.975, 0.025]))
    return Figure(value, low, high, "times", wanted)


def unbiased_figures(session: Session) -> dict[str, Figure]:
    """Return the largest z for each kind of bins."""
    n = session.options.repeats or (2000 if session.quick else 20_000)
    figures = {}
    for kind in unbiased.KINDS:
        _say(session, f"unbiased, {kind}: {n} resamplings")
        z = unbiased.deviations(unbiased.Case.of(kind, seed=1), n, np.random.default_rng(2))
        figures[f"unbiased, {kind}: largest z of {len(z)}"] = Figure(
            float(np.max(np.abs(z))), None, None, f"in {n}", Wanted(at_most=4)
        )
    return figures


def speed_figures(session: Session) -> dict[str, Figure]:
    """Return the time of one resampling."""
    figures = {}
    for n_walkers, most in ((200, 20.0), (2000, 200.0)):
        for kind in unbiased.KINDS:
            case = unbiased.Case.of(kind, seed=1, n_walkers=n_walkers)
            n = 3 if session.quick else 10
            timed = session.rounds(f"{n_walkers} walkers, {kind}", {kind: partial(_milliseconds, case)}, n)
            figures[f"resampling of {n_walkers}, {kind}"] = interval(
                (each[kind] for each in timed), "ms", Wanted(at_most=most)
            )
    return figures


def _milliseconds(case: unbiased.Case) -> float:
    rng, taken = np.random.default_rng(3), []
    for _ in range(5):
        began = time.process_time()
        case.resample(rng)
        taken.append(1000 * (time.process_time() - began))
    return median(taken)


def _truth(session: Session, friction: float) -> Truth:
    well, label = DoubleWell(friction), f"friction {friction:g}"
    n = session.options.passages or (300 if session.quick else 2000)
    _say(session, f"{label}: {n} passages by brute force")
    seen, waited = double_well.passages(well, n, np.random.default_rng(_REFERENCE_SEED))
    seeds = session.options.seeds or (SEEDS[:4] if session.quick else SEEDS)
    return Truth(friction, seen, waited, tuple(_rates(session, well, seeds, N_PASSAGES * waited / seen)))


def _rates(session: Session, well: DoubleWell, seeds: Sequence[int], simulated_ps: float) -> Iterator[Rate | None]:
    for seed in seeds:
        flux = double_well.fluxes(well, seed, simulated_ps)
        found = rate([flux], SEGMENT_PS, np.random.default_rng(seed))
        told = "no flux" if found is None else f"{found.mfpt_ps / 1000:.3g} ns, blocks of {found.block}"
        session.kept += 1
        _say(session, f"friction {well.friction:g}, seed {seed}: {len(flux)} iterations, {told}")
        yield found


def _say(session: Session, what: str) -> None:
    session.console.print(what, highlight=False)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these (--quick: all but the last two)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="instead of those of a part (quick: fewer)")
    parser.add_argument("--frictions", type=float, nargs="+", metavar="X", help="instead of 50 and 5 per ps")
    molecules = ensemble_coordinate.MOLECULES
    parser.add_argument("--molecules", nargs="+", choices=molecules, help="of the part coordinate (default: both)")
    parser.add_argument("--passages", type=int, metavar="N", help="by brute force (default: 2000, quick 300)")
    parser.add_argument("--repeats", type=int, metavar="N", help="of one resampling (default: 20 000, quick 2 000)")


if __name__ == "__main__":
    sys.exit(run("weighted_ensemble", __doc__, measure, _options))
