"""How campaigns stand, read from their ledgers; nothing is written, and a campaign may run meanwhile."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from campaign.filesystem import in_use_by
from campaign.ledger import FIRST_OTHER_ID, OF_THE_SITE, meta_of, read_ledger
from campaign.rundir import LEDGER
from tasks.announce import announced
from tasks.errors import BadInput

# Failures are told by the newest so many.
_N_ERRORS = 5

# Outcomes of attempts that never came to an end.
_LOST = OF_THE_SITE | {"worker_lost"}

# The rate is that of the last so many segments.
_RATE_OVER = 200


@dataclass(frozen=True, slots=True)
class Status:
    """How a campaign stands.

    Attributes
    ----------
    status
        ``running``, ``complete``, ``interrupted``, ``failed``, or ``died`` where a process ended without a word.
    tasks
        States of the tasks, by kind and category: how many are in each.
    attempts
        Outcomes of attempts, by kind of task.
    lost
        Attempts whose worker or site was lost, or whose deadline passed.
    segments_per_hour
        Of the last segments, while there are at least two.
    iterations
        Of each weighted ensemble that ended; empty for other campaigns.
    errors
        The newest failures: task, attempt, site, kind and first line of the error.
    """

    run: str
    status: str
    reason: str | None
    system: str
    policy: str
    seed: int
    segments: int
    simulated_ns: float
    target: int | None
    processes: int
    tasks: dict[str, dict[str, dict[str, int]]]
    attempts: dict[str, dict[str, int]]
    lost: int
    quarantined_starts: int
    segments_per_hour: float | None
    errors: list[dict[str, Any]]
    iterations: list[int]
    live: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"schema": 1, **{name: getattr(self, name) for name in self.__slots__}}

    def line(self) -> str:
        """Return the campaign in a line."""
        of = "" if self.target is None else f"/{self.target}"
        rate = "" if self.segments_per_hour is None else f", {self.segments_per_hour:.0f} segments/h"
        return (
            f"{Path(self.run).name}: {self.status}, {self.system}, {self.policy}, {self.segments}{of} segments, "
            f"{self.simulated_ns:.3f} ns{rate}"
        )

    def lines(self) -> Iterator[str]:
        """Yield the campaign in words."""
        yield self.line()
        if self.reason is not None:
            yield f"  {self.reason}"
        for kind, categories in self.tasks.items():
            for category, states in categories.items():
                told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
                yield f"  {kind} on {category}: {told}"
        for kind, outcomes in self.attempts.items():
            told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
            yield f"  attempts at {kind}: {told}"
        if self.iterations:
            yield f"  iterations that ended: {', '.join(map(str, self.iterations))}"
        for served in self.live:
            yield f"  segment {served['segment_id']} is live at {served['url']}"
        yield (
            f"  {self.lost} lost runs, {self.quarantined_starts} quarantined starts, "
            f"{self.processes} processes so far"
        )
        for error in self.errors:
            what = f"{error['kind']} task {error['task_id']}, attempt {error['attempt']} on {error['site']}"
            yield f"  {what}: {error['error']}"


def status(run: Path) -> Status:
    """Return how a campaign stands.

    Raises
    ------
    BadInput
        When there is none.
    """
    # Before all else: what a process that is gone by now wrote last is read below.
    in_use = in_use_by(run) is not None
    with read_ledger(run / LEDGER) as db:
        db.execute("BEGIN")
        return _status(run, db, in_use)


def statuses(path: Path) -> list[Status]:
    """Return how a campaign stands, or all campaigns in a folder, oldest first.

    Raises
    ------
    BadInput
        When there is none.
    """
    if (path / LEDGER).exists():
        return [status(path)]
    runs = sorted(path.glob(f"*/{LEDGER}"), key=lambda ledger: ledger.stat().st_mtime) if path.is_dir() else []
    if not runs:
        raise BadInput(f"{path} is no run and holds none: name a run directory, or a folder of them")
    return [status(ledger.parent) for ledger in runs]


def _status(run: Path, db: sqlite3.Connection, in_use: bool) -> Status:
    meta = meta_of(db)
    settings = meta.get("settings", {})
    told = kept_state(db)
    tasks: dict[str, dict[str, dict[str, int]]] = {}
    for kind, category, state, count in db.execute(
        "SELECT kind, category, state, count(*) FROM task GROUP BY kind, category, state"
    ):
        tasks.setdefault(kind, {}).setdefault(category, {})[state] = count
    attempts: dict[str, dict[str, int]] = {}
    for kind, outcome, count in db.execute(
        "SELECT kind, ifnull(outcome, 'running'), count(*) FROM attempt JOIN task ON id = task_id"
        " GROUP BY kind, outcome"
    ):
        attempts.setdefault(kind, {})[outcome] = count
    lost = sum(count for outcomes in attempts.values() for outcome, count in outcomes.items() if outcome in _LOST)
    return Status(
        run=str(run),
        status=status_word(meta.get("status", "running"), in_use),
        reason=meta.get("reason"),
        system=meta.get("system", ""),
        policy=settings.get("policy", ""),
        seed=settings.get("seed", 0),
        segments=told.get("segments", 0),
        simulated_ns=told.get("simulated_ps", 0.0) / 1000,
        target=meta.get("target"),
        processes=len(meta.get("processes", [])),
        tasks=tasks,
        attempts=attempts,
        lost=lost,
        quarantined_starts=quarantined_starts(db),
        segments_per_hour=segments_per_hour(db, meta),
        errors=[{**error, "error": error["error"].partition("\n")[0]} for error in newest_errors(db, _N_ERRORS)],
        iterations=_iterations(db),
        live=live_segments(run, db),
    )


def live_segments(run: Path, db: sqlite3.Connection) -> list[dict[str, Any]]:
    """Return the attempts of segments that are out, and served to IMD clients."""
    out = "SELECT 1 FROM attempt WHERE task_id = ? AND number = ? AND outcome IS NULL"
    return [
        {**asdict(served), "url": served.url}
        for served in announced(run)
        if db.execute(out, (served.segment_id, served.attempt)).fetchone()
    ]


def status_word(noted: str, in_use: bool) -> str:
    """Return a campaign's status; one that is noted as running, and that no process has, died."""
    return "died" if noted == "running" and not in_use else noted


def kept_state(db: sqlite3.Connection) -> dict[str, Any]:
    """Return the numbers of the campaign as its newest decision left them; empty before there is any."""
    rows = rows_of(db, "kept", "SELECT value FROM kept WHERE key = 'state'")
    return dict(json.loads(rows[0][0])) if rows else {}


def rows_of(db: sqlite3.Connection, table: str, query: str) -> list[Any]:
    """Return the rows of a query; none where an earlier version's ledger has no such table."""
    known = db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    return db.execute(query).fetchall() if known else []


def quarantined_starts(db: sqlite3.Connection) -> int:
    """Return how many starts are quarantined."""
    (count,) = db.execute(
        "SELECT count(*) FROM (SELECT DISTINCT parent_id, parent_frame FROM task"
        " WHERE kind IN ('simulate', 'equilibrate') AND state = 'quarantined')"
    ).fetchone()
    return int(count)


def segments_per_hour(db: sqlite3.Connection, meta: Mapping[str, Any]) -> float | None:
    """Return segments per hour over the newest ones of the last process; without it no work was done."""
    began = max((each["started"] for each in meta.get("processes", ())), default=0.0)
    newest = db.execute(
        "SELECT started, ended FROM attempt WHERE outcome = 'success' AND task_id < ? ORDER BY rowid DESC LIMIT ?",
        (FIRST_OTHER_ID, _RATE_OVER),
    )
    ended: list[float] = [end for start, end in newest if start >= began]
    if len(ended) < 2 or max(ended) <= min(ended):
        return None
    return 3600 * (len(ended) - 1) / (max(ended) - min(ended))


def _iterations(db: sqlite3.Connection) -> list[int]:
    rows = rows_of(db, "iteration", "SELECT max(iteration) FROM iteration GROUP BY replica ORDER BY replica")
    return [n for (n,) in rows]


def newest_errors(db: sqlite3.Connection, count: int) -> list[dict[str, Any]]:
    """Return the newest failures, with their tracebacks."""
    rows = db.execute(
        "SELECT kind, task_id, number, site, outcome, error FROM attempt JOIN task ON id = task_id"
        " WHERE error IS NOT NULL ORDER BY attempt.ended DESC LIMIT ?",
        (count,),
    )
    return [
        {
            "kind": kind,
            "task_id": task_id,
            "attempt": number,
            "site": site,
            "outcome": outcome,
            "error": error,
        }
        for kind, task_id, number, site, outcome, error in rows
    ]
