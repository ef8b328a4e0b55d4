"""What the ledger tells of a campaign, asked for so that asking costs next to nothing."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from campaign.ledger import Kind, meta_of, read_ledger
from campaign.rundir import LEDGER
from campaign.status import (
    kept_state,
    live_segments,
    newest_errors,
    quarantined_starts,
    rows_of,
    segments_per_hour,
)
from campaign.watch.bins import MOST_BINS
from campaign.watch.view import Ensemble
from policies.rates import DISCARD
from tasks.announce import FOLDER

_N_ERRORS = 10

# Of a traceback, as a page shows it.
_LONGEST_ERROR = 6000

# What takes long in a large ledger is asked for so seldom that it takes this share of a processor.
_SHARE = 0.002

# A file whose time of change is so near may change again within the same tick of its clock.
_SETTLED_S = 1.0

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Out:
    """Tasks of a kind that are out at a site; those of one bundle, which keep one worker busy, count once.

    Attributes
    ----------
    sent
        When each was, UNIX s, oldest first.
    """

    kind: str
    site: str
    sent: Sequence[float]


@dataclass(frozen=True, slots=True)
class Account:
    """What the ledger tells.

    Attributes
    ----------
    meta, told
        Values of the campaign as a whole, and the numbers as its newest decision left them.
    tasks
        How many are in each state, by kind.
    """

    meta: Mapping[str, Any]
    told: Mapping[str, Any]
    out: Sequence[Out]
    segments_per_hour: float | None
    live: Sequence[Mapping[str, Any]]
    tasks: Mapping[str, Mapping[str, int]]
    errors: Sequence[Mapping[str, Any]]
    quarantined: int
    ensemble: Ensemble | None


class Books:
    """The ledger of a run, read when it has changed."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._seen: tuple[object, ...] = ()
        self._tasks = _Seldom(_tasks)
        self._errors = _Seldom(_newest_errors)
        self._ensemble = _Seldom(_ensemble)
        self._final = False
        self._account: Account  # what `read` returned last

    def read(self, over: bool) -> Account:
        """Return what it tells now.

        Parameters
        ----------
        over
            Whether nobody writes to it any more: then everything is asked for once more, and nothing after that.

        Raises
        ------
        BadInput
            When there is none, or it cannot be read.
        """
        marks = self._marks()
        settled = time.time() - max((mark[0] for mark in marks), default=0.0) / 1e9 > _SETTLED_S
        if (marks, settled) != self._seen or self._final != over or (not over and self._is_due):
            self._account = self._read(now=over)
            self._seen, self._final = (marks, settled), over
        return self._account

    @property
    def _is_due(self) -> bool:
        return any(each.is_due for each in (self._tasks, self._errors, self._ensemble))

    def _marks(self) -> tuple[tuple[int, int, int], ...]:
        """Return what tells that the ledger has not changed."""
        found = []
        # What runs is announced by workers, after it was committed.
        for path in (self._run / LEDGER, self._run / f"{LEDGER}-wal", self._run / FOLDER):
            try:
                told = path.stat()
            except OSError:
                continue
            found.append((told.st_mtime_ns, told.st_size, told.st_ino))
        return tuple(found)

    def _read(self, now: bool) -> Account:
        with read_ledger(self._run / LEDGER) as db:
            db.execute("BEGIN")
            meta, told = meta_of(db), kept_state(db)
            # Failures are looked for where there are any.
            n_failed = sum(told.get("failures", {}).values()), len(meta.get("processes", []))
            return Account(
                meta=meta,
                told=told,
                out=_out(db),
                segments_per_hour=segments_per_hour(db, meta),
                live=live_segments(self._run, db),
                tasks=self._tasks.ask(db, now),
                errors=self._errors.ask(db, now, of=n_failed),
                quarantined=quarantined_starts(db),
                ensemble=self._ensemble.ask(db, now)
                if meta.get("settings", {}).get("policy") == "weighted-ensemble"
                else None,
            )


class _Seldom(Generic[AnswerT]):
    """A question whose answer takes long in a large ledger."""

    def __init__(self, question: Callable[[sqlite3.Connection], AnswerT]) -> None:
        self._question = question
        self._answer: AnswerT | None = None
        self._due = 0.0
        self._asked: object = None
        self._waits = False

    @property
    def is_due(self) -> bool:
        """Whether what was put off may be asked now."""
        return self._waits and time.monotonic() >= self._due

    def ask(self, db: sqlite3.Connection, now: bool, of: object = None) -> AnswerT:
        """Return the answer, or an earlier one while it is too early for another, unless it must be ``now``.

        Parameters
        ----------
        of
            What it hangs on, if it is known: while that is the same, so is the answer.
        """
        if self._answer is not None and not now:
            if of is not None and of == self._asked:
                return self._answer
            if time.monotonic() < self._due:
                self._waits = True
                return self._answer
        began = time.thread_time()
        answer = self._answer = self._question(db)
        self._due = time.monotonic() + (time.thread_time() - began) / _SHARE
        self._asked, self._waits = of, False
        return answer


def _out(db: sqlite3.Connection) -> list[Out]:
    kinds = get_args(Kind)
    rows = db.execute(
        "SELECT task.kind, attempt.site, min(attempt.started) AS sent FROM task JOIN attempt ON task_id = task.id"
        f" WHERE task.kind IN ({', '.join('?' * len(kinds))}) AND task.state = 'running' AND attempt.outcome IS NULL"
        " GROUP BY task.kind, attempt.site, ifnull(task.bundle, task.id) ORDER BY sent",
        kinds,
    )
    found: dict[tuple[str, str], list[float]] = {}
    for kind, site, sent in rows:
        found.setdefault((kind, site), []).append(sent)
    return [Out(kind, site, sent) for (kind, site), sent in found.items()]


def _tasks(db: sqlite3.Connection) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for kind, state, count in db.execute("SELECT kind, state, count(*) FROM task GROUP BY kind, state"):
        found.setdefault(kind, {})[state] = count
    return found


def _newest_errors(db: sqlite3.Connection) -> list[dict[str, Any]]:
    found = newest_errors(db, _N_ERRORS)
    for error in found:
        if len(error["error"]) > _LONGEST_ERROR:
            error["error"] = f"{error['error'][:_LONGEST_ERROR]}\n... ({len(error['error'])} characters in all)"
    return found


def _ensemble(db: sqlite3.Connection) -> Ensemble:
    settings, told = meta_of(db)["settings"], kept_state(db)
    last = rows_of(db, "iteration", "SELECT replica, max(iteration), n_walkers FROM iteration GROUP BY replica")
    return Ensemble(
        pcoord=settings.get("pcoord") or "",
        target=settings.get("target"),
        iterations=[number for _, number, _ in last],
        walkers=[n for _, _, n in last],
        flux_per_ps=_flux(db, last, told) if settings.get("target") else None,
        fluxes=_fluxes(db, max(number for _, number, _ in last)) if last else [],
    )


def _flux(db: sqlite3.Connection, last: Sequence[tuple[int, int, int]], told: Mapping[str, Any]) -> float | None:
    """Return the mean flux as `policies.rates.rate` has it."""
    n, total = 0, 0.0
    for replica, number, _ in last:
        counted, weight = db.execute(
            "SELECT count(*), total(flux) FROM iteration WHERE replica = ? AND iteration > ?",
            (replica, math.ceil(DISCARD * number)),
        ).fetchone()
        n, total = n + counted, total + weight
    if total <= 0 or not told.get("segments"):
        return None
    # All segments of an ensemble are equally long, and an iteration is one segment of each walker.
    iteration_ps: float = told["simulated_ps"] / told["segments"]
    return total / n / iteration_ps


def _fluxes(db: sqlite3.Connection, newest: int) -> list[tuple[float, float]]:
    """Return the mean flux over iterations, of several together where there are many."""
    step = math.ceil(newest / MOST_BINS)
    told = "SELECT max(iteration), avg(flux) FROM iteration GROUP BY (iteration - 1) / ? ORDER BY 1"
    return db.execute(told, (step,)).fetchall()
