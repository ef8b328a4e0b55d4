"""What people and WESTPA's tools read of weighted ensembles: west.h5, logs of segments, rates on the screen."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from agents.ensemble import EnsembleWalkers
from campaign.iterations import Boundary, Past, fluxes, n_ended, past
from campaign.method import Method
from campaign.summary import EnsembleSummary
from campaign.west.file import WestBusy, WestFile
from campaign.west.record import Binning, Ended, Layout, Target
from campaign.west.replay import replay
from policies.iteration import BasisStates, BrokenEnsemble
from policies.rates import Rate, rate

# Iterations of an ensemble between two lines on the screen; a rate takes longer the more iterations it is of, so from
# the thousandth on there are fewer lines.
_TELL_EVERY = 10

_LOGS = "seg_logs"

logger = logging.getLogger(__name__)


class Chronicle:
    """Follows what the ledger has committed; whatever becomes of these files, the ledger makes them anew.

    Parameters
    ----------
    tell
        Tells the user.
    """

    def __init__(self, folder: Path, walkers: EnsembleWalkers, method: Method, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._walkers = walkers
        self._method = method
        self._tell = tell
        self._lock = threading.Lock()
        self._files: dict[int, WestFile] = {}

    def note(self, boundaries: Sequence[Boundary]) -> None:
        """Write iterations that ended, and tell of them now and then."""
        if not boundaries:
            return
        with self._lock:
            for boundary in boundaries:
                self._write(boundary)
                if _is_told(boundary.ended.iteration.number):
                    self._tell(self._sentence(boundary))

    def log(self, line: str) -> None:
        """Keep what became of an attempt of a segment, in a file of its own."""
        told = json.loads(line)
        info = told["task_info"]
        path = self._folder / _LOGS / f"{info['iteration']:06d}-{info['segment_id']:06d}.log"
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as log:
                log.writelines(_story(told))
        except OSError as error:  # a full disk; the trace has it all
            logger.warning("%s could not be written: %s", path, error)

    def catch_up(self) -> None:
        """Let west.h5 hold all that the ledger holds."""
        with self._lock:
            for replica in self._walkers.replicas:
                if n_ended(self._walkers.state.ledger, replica.number):
                    self._guarded(replica.number, self._follow)

    def summary(self) -> EnsembleSummary:
        """Return what the ensembles have come to."""
        state = self._walkers.state
        numbers = [replica.number for replica in self._walkers.replicas]
        found = self._rate() if self._method.target is not None else None
        return EnsembleSummary(
            iterations=[n_ended(state.ledger, number) for number in numbers],
            walkers=[len(replica.members) for replica in self._walkers.replicas],
            pcoord=state.settings.pcoord or "",
            target=state.settings.target,
            flux_per_ps=None if found is None else found.per_ps,
            rate_per_s=None if found is None else _per_s(found.per_ps),
            rate_low_per_s=None if found is None else _per_s(found.low),
            rate_high_per_s=None if found is None else _per_s(found.high),
            mfpt_ps=None if found is None else found.mfpt_ps,
            averaged_iterations=0 if found is None else found.n_iterations,
        )

    # West.h5 ----------------------------------------------------------------------------------------------------

    def _write(self, boundary: Boundary) -> None:
        replica, number = boundary.replica, boundary.ended.iteration.number

        def append(of: int) -> None:
            west = self._file(of)
            if number == 1:
                west.begin(boundary.ended.iteration, boundary.ended.binning)
            if west.last == number - 1:
                west.append(boundary.ended)
            elif west.last < number:
                self._follow(of)

        self._guarded(replica, append)

    def _guarded(self, replica: int, step: Callable[[int], None]) -> None:
        try:
            step(replica)
        except WestBusy as error:
            logger.info("%s: it is brought up to date later", error)
        # Of a full disk, of HDF5 about a file that is not whole, or of what the ledger has.
        except (OSError, RuntimeError, KeyError, ValueError, BrokenEnsemble):
            logger.exception("west.h5 could not be written, and is made again from the ledger when the campaign ends")

    def _follow(self, replica: int) -> None:
        ledger, current = self._walkers.state.ledger, self._walkers.replicas[replica].iteration
        assert current is not None

        def series(first: int) -> Iterator[Ended]:
            return replay(ledger, replica, current, self._binning, first)

        first = next(past(ledger, replica))
        (last,) = series(n_ended(ledger, replica))
        self._file(replica).follow(first.iteration, self._binning(first), last, series)

    def _binning(self, told: Past) -> Binning:
        rule = self._method.rule(told.pcoord[:, -1])
        return Binning(rule.space.mapper, rule.counts)

    def _file(self, replica: int) -> WestFile:
        if replica not in self._files:
            name = "west.h5" if replica == 0 else f"west-{replica}.h5"
            self._files[replica] = WestFile(self._folder / name, self._layout())
        return self._files[replica]

    def _layout(self) -> Layout:
        method, walkers = self._method, self._walkers
        n_dimensions = method.coordinate.n_dimensions
        # Of a model that is trained on, the first version that they were seen by.
        pcoord = next(iter(walkers.basis_at.values()), np.zeros((len(method.names), n_dimensions)))
        basis = BasisStates(method.names, method.probabilities, pcoord)
        target = method.target
        targets = () if target is None else (Target("target", np.array(target.point)),)
        return Layout(n_dimensions, walkers.state.dynamics.n_frames + 1, basis, targets)

    # Rates ------------------------------------------------------------------------------------------------------

    def _rate(self) -> Rate | None:
        state = self._walkers.state
        each = [fluxes(state.ledger, replica.number) for replica in self._walkers.replicas]
        return rate(each, state.dynamics.segment_ps, np.random.default_rng(state.settings.seed))

    def _sentence(self, boundary: Boundary) -> str:
        ended = boundary.ended
        n_bins, n = len(np.unique(ended.resampled.bins)), len(ended.iteration.weights)
        of = f" of ensemble {boundary.replica}" if len(self._walkers.replicas) > 1 else ""
        told = f"iteration {ended.iteration.number}{of}: {n} walkers in {n_bins} bins"
        if self._method.target is None:
            return told
        found = self._rate()
        return f"{told}, {'nothing has reached the target yet' if found is None else describe(found)}"


def _is_told(number: int) -> bool:
    step = _TELL_EVERY
    while number >= 100 * step:
        step *= 10
    return number % step == 0


def describe(found: Rate) -> str:
    """Return a rate in words."""
    interval = "no interval yet"
    if found.low is not None and found.high is not None:
        interval = f"95 % interval {_per_s(found.low):.3g} to {_per_s(found.high):.3g}"
    return f"rate {_per_s(found.per_ps):.3g} /s ({interval}; {found.n_iterations} iterations)"


def _per_s(per_ps: float | None) -> float | None:
    return None if per_ps is None else per_ps * 1e12


def _story(told: dict[str, object]) -> Iterator[str]:
    """Yield what became of an attempt, as lines."""
    info, worker = told["task_info"], told.get("worker_info") or {}
    assert isinstance(info, dict)
    assert isinstance(worker, dict)
    yield (
        f"attempt {info['attempt']} at {info['site']} on {worker.get('hostname', 'unknown')}: walker "
        f"{info['walker_id']} of iteration {info['iteration']}, from segment {info['parent_id']}\n"
    )
    if told.get("success"):
        for name in ("simulated_ps", "n_frames", "mean_temperature_K", "potential_energy_kj_mol", "seconds"):
            yield f"  {name} {info.get(name)}\n"
        return
    yield f"  failed: {json.dumps(told.get('failure_info'))}\n"
