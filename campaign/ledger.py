"""The ledger: every task, attempt and artifact of a campaign, committed before anything is acknowledged.

One SQLite file. A decision (a result, and the tasks that follow from it) is one transaction, so whatever dies, the
file tells one consistent story. Beside that story it keeps what a later process needs to go on: of every task that is
not done its spec, and under names (`keep`) what the agents know.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from campaign.faults import reach
from campaign.filesystem import network_file_system
from campaign.wire import Address, addresses, encode, readdress
from tasks.errors import BadInput
from tasks.messages import Archive, FileRecord, Ref

SCHEMA_VERSION = 2

Kind = Literal["equilibrate", "simulate", "infer", "glance", "coordinate", "train", "move", "gather", "hook"]
State = Literal["waiting", "ready", "running", "computed", "complete", "fizzled", "quarantined"]
ArtifactKind = Literal["trajectory", "end_state", "reference", "model", "archive"]

# A segment's id is its task's id, from 0 without gaps; tasks of other kinds are numbered from here.
FIRST_OTHER_ID = 2**40

# How an attempt may end that is nobody's failure: its process ended, or another attempt came back before it.
NO_FAILURES = ("success", "abandoned", "outpaced")

# Failures of the site, not of the task: its workers are gone, or did not answer in time.
OF_THE_SITE = frozenset({"manager_lost", "lost", "late", "site_gone"})

_SCHEMA = """
CREATE TABLE task (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, category TEXT NOT NULL,
    parent_id INTEGER, parent_frame INTEGER, iteration INTEGER NOT NULL, created REAL NOT NULL,
    walker_id INTEGER, steered INTEGER, novelty REAL, bundle INTEGER, spec TEXT
);
CREATE INDEX task_kind_state ON task (kind, state);
CREATE INDEX task_open ON task (state) WHERE spec IS NOT NULL;
CREATE TABLE attempt (
    task_id INTEGER NOT NULL REFERENCES task (id), number INTEGER NOT NULL, site TEXT NOT NULL,
    host TEXT, worker TEXT, started REAL NOT NULL, ended REAL, outcome TEXT, error TEXT,
    PRIMARY KEY (task_id, number)
);
CREATE TABLE artifact (
    id INTEGER PRIMARY KEY, task_id INTEGER NOT NULL REFERENCES task (id), kind TEXT NOT NULL,
    path TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL
);
CREATE INDEX artifact_task ON artifact (task_id);
CREATE TABLE record (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, task_id INTEGER NOT NULL, number INTEGER NOT NULL,
    line TEXT NOT NULL
);
CREATE TABLE hook_value (
    task_id INTEGER NOT NULL REFERENCES task (id), segment_id INTEGER, hook TEXT NOT NULL, name TEXT NOT NULL,
    value REAL NOT NULL, PRIMARY KEY (task_id, name)
);
CREATE INDEX hook_value_segment ON hook_value (segment_id);
CREATE TABLE kept (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

# Trajectories in archives whose segments have not come back yet, and iterations of weighted ensembles that ended
# (`campaign.iterations`). Not among the tables above: ledgers of the same version may be without them.
_ADDED = """
CREATE TABLE IF NOT EXISTS archived (
    segment_id INTEGER NOT NULL, path TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (segment_id, path)
);
CREATE INDEX IF NOT EXISTS artifact_archive ON artifact (path) WHERE kind = 'archive';
CREATE TABLE IF NOT EXISTS iteration (
    replica INTEGER NOT NULL, iteration INTEGER NOT NULL, model_version INTEGER NOT NULL,
    n_walkers INTEGER NOT NULL, n_dimensions INTEGER NOT NULL, flux REAL NOT NULL, ended REAL NOT NULL,
    PRIMARY KEY (replica, iteration)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS initial_state (
    replica INTEGER NOT NULL, iteration INTEGER NOT NULL, number INTEGER NOT NULL, basis INTEGER NOT NULL,
    PRIMARY KEY (replica, iteration, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS walker (
    replica INTEGER NOT NULL, iteration INTEGER NOT NULL, walker INTEGER NOT NULL, segment_id INTEGER NOT NULL,
    weight REAL NOT NULL, parent INTEGER NOT NULL, lineage TEXT NOT NULL, endpoint INTEGER NOT NULL,
    bin INTEGER NOT NULL, recycled_to INTEGER, seconds REAL NOT NULL, pcoord BLOB NOT NULL,
    PRIMARY KEY (replica, iteration, walker)
) WITHOUT ROWID;
"""

# Path of a trajectory that is on a node's scratch; in an archive it is the archive's, and its name there.
ON_SCRATCH = "scratch:"

_FORGOTTEN = object()

_KEEP = "INSERT INTO kept (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task that is not done.

    Attributes
    ----------
    spec
        As it was given to `Ledger.add_task`.
    attempts
        How many there were.
    failures
        Of these the failed ones, oldest first: kind and error.
    """

    id: int
    kind: Kind
    state: State
    steered: bool
    novelty: float | None
    bundle: int | None
    spec: str
    attempts: int
    failures: tuple[tuple[str, str | None], ...]


class Ledger:
    """Write access to a campaign's ledger; safe to use from several threads.

    Where the file lies on a network file system, which has no shared memory between hosts, a rollback journal takes
    the place of the write-ahead log, and every commit is synced.

    Parameters
    ----------
    path
        The file; made, with its schema, if it is not there.

    Raises
    ------
    BadInput
        When the file is no ledger, damaged, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._unsaved: dict[str, object] = {}
        self._gathers = False
        fresh = not path.exists()
        if not fresh:
            check_ledger(path)
        self.network = network_file_system(path)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        if self.network is None:
            self._db.execute("PRAGMA journal_mode=WAL")
            # In WAL mode NORMAL survives the death of any process; only a power cut can lose the last commits.
            self._db.execute("PRAGMA synchronous=NORMAL")
        else:
            self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.execute("PRAGMA synchronous=FULL")
        if fresh:
            with self.transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self.set_meta("schema_version", SCHEMA_VERSION)
        for statement in _ADDED.split(";"):
            self._db.execute(statement)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what happens inside as one, or nothing of it."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._save_kept()
                if self._gathers:
                    reach("before-gather")
                reach("before-commit")
                self._db.execute("COMMIT")
            except BaseException:
                self._gathers = False
                self._unsaved.clear()
                # On a full disk SQLite may have rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            gathered, self._gathers = self._gathers, False
            reach("after-commit")
            if gathered:
                reach("after-gather")

    def add_task(
        self,
        task_id: int,
        kind: Kind,
        category: str,
        *,
        parent_id: int | None = None,
        parent_frame: int | None = None,
        iteration: int = 0,
        walker_id: int | None = None,
        steered: bool | None = None,
        novelty: float | None = None,
        bundle: int | None = None,
        spec: str | None = None,
        state: State = "running",
    ) -> None:
        """Record a task that is about to be sent, or waits for others, with all that is needed to send it again."""
        origin = (parent_id, parent_frame, iteration, time.time(), walker_id, steered, novelty, bundle)
        self._db.execute(
            "INSERT INTO task VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (task_id, kind, state, category, *origin, spec),
        )

    def begin_attempt(self, task_id: int, number: int, site: str, category: str | None = None) -> None:
        """Record a try at a task that is about to be sent, and its category, if that may be another than before."""
        if category is not None:
            told = "UPDATE task SET category = ? WHERE id = ? AND category <> ?"
            self._db.execute(told, (category, task_id, category))
        self._db.execute(
            "INSERT INTO attempt (task_id, number, site, started) VALUES (?, ?, ?, ?)",
            (task_id, number, site, time.time()),
        )

    def end_attempt(
        self,
        task_id: int,
        number: int,
        outcome: str,
        *,
        error: str | None = None,
        host: str | None = None,
        worker: str | None = None,
    ) -> None:
        """Record how a try ended: ``success``, or a kind of failure (``lost`` where it was given up)."""
        self._db.execute(
            "UPDATE attempt SET ended = ?, outcome = ?, error = ?, host = ?, worker = ?"
            " WHERE task_id = ? AND number = ?",
            (time.time(), outcome, error, host, worker, task_id, number),
        )

    def mark_late(self, task_id: int, number: int, *, host: str | None = None, worker: str | None = None) -> None:
        """Record that a try came back after it was given up for ``lost``; how any other ended stays as it is."""
        self._db.execute(
            "UPDATE attempt SET ended = ?, outcome = 'late', host = ?, worker = ?"
            " WHERE task_id = ? AND number = ? AND outcome = 'lost'",
            (time.time(), host, worker, task_id, number),
        )

    def set_state(self, task_id: int, state: State) -> None:
        """Move a task to another state."""
        self._db.execute("UPDATE task SET state = ? WHERE id = ?", (state, task_id))

    def complete(self, task_id: int) -> None:
        """Record that a task is done: it will not be sent again."""
        self._db.execute("UPDATE task SET state = 'complete', spec = NULL WHERE id = ?", (task_id,))

    def computed(self, segment_id: int, file: FileRecord) -> None:
        """Record that a segment is done, and its trajectory on a node's scratch; its spec is kept."""
        self.set_state(segment_id, "computed")
        self.add_artifact(segment_id, "trajectory", replace(file, path=f"{ON_SCRATCH}{file.node}/{file.path}"))

    def n_computed(self) -> int:
        """Return how many segments are done whose trajectories are not in the run directory."""
        return int(self._db.execute("SELECT count(*) FROM task WHERE state = 'computed'").fetchone()[0])

    def computed_on(self) -> dict[int, str]:
        """Return on which node's scratch the trajectories are that are not in the run directory, by segment."""
        rows = self._db.execute(
            "SELECT task.id, path FROM task JOIN artifact ON task_id = task.id"
            " WHERE state = 'computed' AND artifact.kind = 'trajectory'"
        )
        return {segment_id: path.removeprefix(ON_SCRATCH).partition("/")[0] for segment_id, path in rows}

    def add_found(self, task_id: int, category: str, site: str, archive: Archive) -> list[int]:
        """Record an archive with a task of its own, which nobody had to send; return as `add_archive`."""
        self.add_task(task_id, "gather", category)
        self.begin_attempt(task_id, 1, site)
        self.end_attempt(task_id, 1, "success", host=archive.node)
        self.complete(task_id)
        return self.add_archive(task_id, archive)

    def add_archive(self, task_id: int, archive: Archive) -> list[int]:
        """Record an archive and return the segments that are complete with it.

        Trajectories of segments that have not come back yet are kept in mind until they do; those of attempts that
        never counted are not.
        """
        self._gathers = True
        self.add_artifact(task_id, "archive", archive.file)
        self._db.executemany(
            "INSERT OR REPLACE INTO archived VALUES (?, ?, ?)",
            [(each.segment_id, f"{archive.file.path}/{each.name}", each.sha256) for each in archive.members],
        )
        segments = sorted({each.segment_id for each in archive.members})
        return [segment_id for segment_id in segments if self.claim(segment_id)]

    def knows_archive(self, path: str) -> bool:
        """Return whether an archive is recorded."""
        told = "SELECT 1 FROM artifact WHERE path = ? AND kind = 'archive'"
        return self._db.execute(told, (path,)).fetchone() is not None

    def next_task_id(self) -> int:
        """Return the next id of a task that is no segment, where no agent counts them; one in a transaction."""
        told = self.kept("state")[""]
        self.keep("state", {**told, "next_other_id": told["next_other_id"] + 1})
        return int(told["next_other_id"])

    def claim(self, segment_id: int) -> bool:
        """Make a segment complete if it is computed and an archive has its trajectory; return whether that is so."""
        state = self.state_of(segment_id)
        row = self._db.execute(
            "SELECT archived.path FROM archived JOIN artifact ON task_id = segment_id"
            " WHERE segment_id = ? AND artifact.kind = 'trajectory' AND artifact.sha256 = archived.sha256",
            (segment_id,),
        ).fetchone()
        claimed = state == "computed" and row is not None
        if claimed:
            self._gathers = True
            self._db.execute(
                "UPDATE artifact SET path = ? WHERE task_id = ? AND kind = 'trajectory'", (row[0], segment_id)
            )
            self.complete(segment_id)
        if claimed or state in ("complete", "fizzled", "quarantined"):
            self._db.execute("DELETE FROM archived WHERE segment_id = ?", (segment_id,))
        return claimed

    def lose(self, segment_id: int, reason: str) -> None:
        """Take back that a segment is computed, for its trajectory is lost: it is ready to run once more."""
        self.set_state(segment_id, "ready")
        self._lose_trajectory(segment_id, reason)

    def add_artifact(self, task_id: int, kind: ArtifactKind, file: FileRecord) -> None:
        """Record a file that a task left in the run directory."""
        self._db.execute(
            "INSERT INTO artifact (task_id, kind, path, sha256, bytes) VALUES (?, ?, ?, ?, ?)",
            (task_id, kind, file.path, file.sha256, file.n_bytes),
        )

    def add_hook_values(self, task_id: int, segment_id: int | None, hook: str, values: Mapping[str, float]) -> None:
        """Record the numbers that a hook returned, by name."""
        rows = [(task_id, segment_id, hook, name, value) for name, value in values.items()]
        self._db.executemany("INSERT INTO hook_value VALUES (?, ?, ?, ?, ?)", rows)

    def n_tasks(self, kind: Kind, state: State) -> int:
        """Return how many tasks of a kind are in a state."""
        told = "SELECT count(*) FROM task WHERE kind = ? AND state = ?"
        return int(self._db.execute(told, (kind, state)).fetchone()[0])

    def drop_artifact(self, path: str) -> None:
        """Forget a file that a later one replaced."""
        self._db.execute("DELETE FROM artifact WHERE path = ?", (path,))

    def add_record(self, topic: str, task_id: int, number: int, line: str) -> None:
        """Keep a trace line, so that the trace files can be made again from the ledger."""
        self._db.execute(
            "INSERT INTO record (topic, task_id, number, line) VALUES (?, ?, ?, ?)", (topic, task_id, number, line)
        )

    def abandon_running(self) -> None:
        """Mark what was still out when the campaign ended: tried in vain, ready to be sent again."""
        with self.transaction():
            self._db.execute(
                "UPDATE attempt SET ended = ?, outcome = 'abandoned' WHERE outcome IS NULL", (time.time(),)
            )
            self._db.execute("UPDATE task SET state = 'ready' WHERE state = 'running'")

    def state_of(self, task_id: int) -> State | None:
        """Return the state of a task; None where there is none of that id."""
        row = self._db.execute("SELECT state FROM task WHERE id = ?", (task_id,)).fetchone()
        return None if row is None else row[0]

    def give_up(self, segment_id: int, reason: str) -> None:
        """Take back that a segment is complete."""
        self.set_state(segment_id, "fizzled")
        self._lose_trajectory(segment_id, reason)
        told = self.kept("state")[""]
        self.keep("state", {**told, "segments": told["segments"] - 1})

    def _lose_trajectory(self, segment_id: int, reason: str) -> None:
        self._db.execute("DELETE FROM artifact WHERE task_id = ? AND kind = 'trajectory'", (segment_id,))
        self._db.execute(
            "UPDATE attempt SET outcome = 'lost', error = ? WHERE task_id = ? AND outcome = 'success'",
            (reason, segment_id),
        )

    def open_tasks(self, *states: State) -> list[OpenTask]:
        """Return the tasks in these states whose spec is known, in the order of their ids."""
        marks = ", ".join("?" * len(states))
        rows = self._db.execute(
            f"SELECT id, kind, state, steered, novelty, bundle, spec FROM task WHERE state IN ({marks})"
            " AND spec IS NOT NULL ORDER BY id",
            states,
        ).fetchall()
        return [
            OpenTask(task_id, kind, state, bool(steered), novelty, bundle, spec, *self._attempts(task_id))
            for task_id, kind, state, steered, novelty, bundle, spec in rows
        ]

    def _attempts(self, task_id: int) -> tuple[int, tuple[tuple[str, str | None], ...]]:
        rows = self._db.execute(
            "SELECT number, outcome, error FROM attempt WHERE task_id = ? ORDER BY number", (task_id,)
        ).fetchall()
        failures = [(outcome, error) for _, outcome, error in rows if outcome and outcome not in NO_FAILURES]
        return max((number for number, *_ in rows), default=0), tuple(failures)

    def quarantined(self, kind: Kind) -> set[tuple[int | None, int | None]]:
        """Return where quarantined tasks of a kind began: segment and frame."""
        told = "SELECT DISTINCT parent_id, parent_frame FROM task WHERE kind = ? AND state = 'quarantined'"
        return set(self._db.execute(told, (kind,)).fetchall())

    def chosen_since(self, segment_id: int) -> dict[tuple[int, int], int]:
        """Return how often each frame was chosen as a start by segments from ``segment_id`` on."""
        told = (
            "SELECT parent_id, parent_frame, count(*) FROM task"
            f" WHERE id >= ? AND id < {FIRST_OTHER_ID} AND steered GROUP BY parent_id, parent_frame"
        )
        return {(parent, frame): n for parent, frame, n in self._db.execute(told, (segment_id,))}

    def artifacts(self, *kinds: ArtifactKind) -> list[FileRecord]:
        """Return the files of these kinds, in the order in which they were recorded."""
        marks = ", ".join("?" * len(kinds))
        rows = self._db.execute(
            f"SELECT path, sha256, bytes FROM artifact WHERE kind IN ({marks}) ORDER BY id", kinds
        )
        return [FileRecord(*row) for row in rows]

    def records(self, topic: str) -> Iterator[str]:
        """Yield the trace lines of a topic, in the order of their commits."""
        with closing(self._db.execute("SELECT line FROM record WHERE topic = ? ORDER BY id", (topic,))) as rows:
            for (line,) in rows:
                yield line

    def last_record(self, topic: str, task_id: int, word: str) -> str | None:
        """Return the newest trace line of a task with that word in it; None where there is none."""
        told = "SELECT line FROM record WHERE topic = ? AND task_id = ? AND instr(line, ?) ORDER BY id DESC LIMIT 1"
        row = self._db.execute(told, (topic, task_id, word)).fetchone()
        return None if row is None else str(row[0])

    def n_records(self, topic: str) -> int:
        """Return how many trace lines a topic has."""
        return int(self._db.execute("SELECT count(*) FROM record WHERE topic = ?", (topic,)).fetchone()[0])

    def keep(self, key: str, value: object) -> None:
        """Keep messages or plain data for a later process, under a name; written when the transaction commits."""
        self._unsaved[key] = value

    def forget(self, key: str) -> None:
        """Keep it no more."""
        self._unsaved[key] = _FORGOTTEN

    def kept(self, prefix: str = "") -> dict[str, Any]:
        """Return what is kept under names that begin so, by the rest of the name, in the order of first keeping."""
        rows = self._db.execute("SELECT key, value FROM kept WHERE key GLOB ? || '*' ORDER BY id", (prefix,))
        return {key.removeprefix(prefix): json.loads(value) for key, value in rows}

    def insert(self, table: str, rows: Iterable[Sequence[object]]) -> None:
        """Add whole rows to a table of the schema, within the open transaction."""
        rows = list(rows)
        if rows:
            places = ", ".join("?" * len(rows[0]))
            self._db.executemany(f"INSERT INTO {table} VALUES ({places})", rows)

    def select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def referenced(self) -> set[Address]:
        """Return the addresses of all data that a later process needs."""
        return {address for _, _, told in self._tellings() for address in addresses(told)}

    def readdress(self, moved: Mapping[Address, Ref]) -> None:
        """Note that data lie elsewhere now."""
        for table, row, told in self._tellings():
            after = readdress(told, moved)
            if after != told:
                column = "value" if table == "kept" else "spec"
                self._db.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (after, row))

    def _tellings(self) -> list[tuple[str, int, str]]:
        kept = self._db.execute("SELECT 'kept', id, value FROM kept").fetchall()
        return [*kept, *self._db.execute("SELECT 'task', id, spec FROM task WHERE spec IS NOT NULL").fetchall()]

    def _save_kept(self) -> None:
        for key, value in self._unsaved.items():
            if value is _FORGOTTEN:
                self._db.execute("DELETE FROM kept WHERE key = ?", (key,))
            else:
                self._db.execute(_KEEP, (key, encode(value)))
        self._unsaved.clear()

    def set_meta(self, key: str, value: object) -> None:
        """Keep a value of the campaign as a whole."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def meta(self) -> dict[str, Any]:
        """Return the values of the campaign as a whole."""
        return meta_of(self._db)

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it."""
        with self._lock:
            self._db.close()


@contextmanager
def read_ledger(path: Path) -> Iterator[sqlite3.Connection]:
    """Lend a connection that cannot write, also while the campaign runs.

    Raises
    ------
    BadInput
        When the file is missing, no ledger, or of a version that is not known.
    """
    if not path.is_file():
        raise BadInput(f"{path.parent} is no run: it has no {path.name}; name the directory of a campaign")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            version = meta_of(db).get("schema_version")
            if not isinstance(version, int) or version > SCHEMA_VERSION:
                raise BadInput(
                    f"ledger {path} has schema {version}, and this Wayfinder knows up to {SCHEMA_VERSION}: "
                    "use the version that wrote it, or a newer one"
                )
            yield db
    except sqlite3.Error as error:
        raise BadInput(f"ledger {path} cannot be read ({error}): restore it from a copy") from error


def check_ledger(path: Path) -> None:
    """Refuse a ledger that no campaign can go on with, and change nothing in it.

    Raises
    ------
    BadInput
        When it is damaged, or of another version.
    """
    with read_ledger(path) as db:
        version = meta_of(db)["schema_version"]
        if version < SCHEMA_VERSION:
            raise BadInput(
                f"ledger {path} has schema {version}, which keeps too little to go on with: use the version that "
                "wrote it, or start a new campaign"
            )
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise BadInput(f"ledger {path} is damaged ({verdict}): restore it from a copy")


def meta_of(db: sqlite3.Connection) -> dict[str, Any]:
    """Return the values of a campaign as a whole."""
    return {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}
