"""The ledger: every task, attempt and artifact of a campaign, committed before anything is acknowledged.

One SQLite file. A decision (a result, and the tasks that follow from it) is one transaction, so whatever dies, the
file tells one consistent story.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from campaign.faults import reach
from tasks.messages import FileRecord

SCHEMA_VERSION = 1

Kind = Literal["equilibrate", "simulate", "infer", "train", "move", "gather", "hook"]
State = Literal["waiting", "ready", "running", "computed", "complete", "fizzled", "quarantined"]
ArtifactKind = Literal["trajectory", "end_state", "reference", "model", "archive"]

# A segment's id is its task's id, from 0 without gaps; tasks of other kinds are numbered from here.
FIRST_OTHER_ID = 2**40

_SCHEMA = """
CREATE TABLE task (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, category TEXT NOT NULL,
    parent_id INTEGER, parent_frame INTEGER, iteration INTEGER NOT NULL, created REAL NOT NULL,
    walker_id INTEGER, steered INTEGER
);
CREATE INDEX task_kind_state ON task (kind, state);
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
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Ledger:
    """Write access to a campaign's ledger; safe to use from several threads.

    Parameters
    ----------
    path
        The file; made, with its schema, if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        fresh = not path.exists()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode=WAL")
        # In WAL mode NORMAL survives the death of any process; only a power cut can lose the last commits.
        self._db.execute("PRAGMA synchronous=NORMAL")
        if fresh:
            with self.transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self.set_meta("schema_version", SCHEMA_VERSION)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what happens inside as one, or nothing of it."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                reach("before-commit")
                self._db.execute("COMMIT")
            except BaseException:
                # On a full disk SQLite may have rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            reach("after-commit")

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
    ) -> None:
        """Record a task that is about to be sent."""
        self._db.execute(
            "INSERT INTO task VALUES (?, ?, 'running', ?, ?, ?, ?, ?, ?, ?)",
            (task_id, kind, category, parent_id, parent_frame, iteration, time.time(), walker_id, steered),
        )

    def begin_attempt(self, task_id: int, number: int, site: str) -> None:
        """Record a try at a task that is about to be sent."""
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

    def add_artifact(self, task_id: int, kind: ArtifactKind, file: FileRecord) -> None:
        """Record a file that a task left in the run directory."""
        self._db.execute(
            "INSERT INTO artifact (task_id, kind, path, sha256, bytes) VALUES (?, ?, ?, ?, ?)",
            (task_id, kind, file.path, file.sha256, file.n_bytes),
        )

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

    def set_meta(self, key: str, value: object) -> None:
        """Keep a value of the campaign as a whole."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def close(self) -> None:
        """Close the file; the write-ahead log is folded into it."""
        with self._lock:
            self._db.close()
