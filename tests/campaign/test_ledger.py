"""What the ledger keeps, and what it keeps of a decision that did not come to its end."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from campaign.ledger import FIRST_OTHER_ID, SCHEMA_VERSION, Ledger, read_ledger
from tasks.errors import BadInput
from tasks.messages import FileRecord

# Columns of the contract; others may be added to these.
CONTRACT = {
    "task": {"id", "kind", "state", "category", "parent_id", "parent_frame", "iteration", "created"},
    "attempt": {"task_id", "number", "site", "host", "worker", "started", "ended", "outcome", "error"},
    "artifact": {"id", "task_id", "kind", "path", "sha256", "bytes"},
    "meta": {"key", "value"},
    "hook_value": {"task_id", "segment_id", "hook", "name", "value"},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    opened = Ledger(path)
    yield opened
    opened.close()


@pytest.fixture
def rows(path, ledger):
    """Query the file as a reader of its own does, in another connection."""
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    yield lambda sql: reader.execute(sql).fetchall()
    reader.close()


@pytest.mark.parametrize("table", CONTRACT)
def test_columns_are_those_of_the_contract(rows, table):
    assert {column[1] for column in rows(f"PRAGMA table_info({table})")} >= CONTRACT[table]


def test_the_schema_has_a_version(rows):
    assert rows("SELECT value FROM meta WHERE key = 'schema_version'") == [(json.dumps(SCHEMA_VERSION),)]


def test_an_attempts_life(ledger, rows):
    before = time.time()
    with ledger.transaction():
        ledger.add_task(4, "simulate", "cpu", parent_id=1, parent_frame=7, walker_id=2, steered=True)
        ledger.begin_attempt(4, 1, "local")
    assert rows("SELECT id, kind, state, category, parent_id, parent_frame, iteration FROM task") == [
        (4, "simulate", "running", "cpu", 1, 7, 0)
    ]
    assert rows("SELECT walker_id, steered FROM task") == [(2, 1)]
    assert rows("SELECT host, worker, ended, outcome, error FROM attempt") == [(None,) * 5]
    with ledger.transaction():
        ledger.end_attempt(4, 1, "nan", error="energy became NaN", host="node", worker="3")
        ledger.begin_attempt(4, 2, "local")
        ledger.end_attempt(4, 2, "success", host="node", worker="1")
        ledger.set_state(4, "complete")
    assert rows("SELECT number, site, host, worker, outcome, error FROM attempt ORDER BY number") == [
        (1, "local", "node", "3", "nan", "energy became NaN"),
        (2, "local", "node", "1", "success", None),
    ]
    assert rows("SELECT state FROM task") == [("complete",)]
    created, started, ended = rows("SELECT created, started, ended FROM task JOIN attempt ON id = task_id")[0]
    assert before <= created <= started <= ended <= time.time()


def test_a_root_segment_has_no_parent(ledger, rows):
    with ledger.transaction():
        ledger.add_task(0, "simulate", "cpu")
    assert rows("SELECT parent_id, parent_frame FROM task") == [(None, None)]


def test_only_a_lost_attempt_becomes_late(ledger, rows):
    with ledger.transaction():
        for task, outcome in enumerate(["lost", "success", "nan"]):
            ledger.add_task(task, "simulate", "cpu")
            ledger.begin_attempt(task, 1, "local")
            ledger.end_attempt(task, 1, outcome, error="reason")
            ledger.mark_late(task, 1, host="node", worker="1")
    assert rows("SELECT outcome, host, error FROM attempt ORDER BY task_id") == [
        ("late", "node", "reason"),
        ("success", None, "reason"),
        ("nan", None, "reason"),
    ]


def test_artifacts_are_added_and_dropped_by_path(ledger, rows):
    with ledger.transaction():
        ledger.add_task(FIRST_OTHER_ID, "infer", "gpu")
        for number in (1, 2):
            ledger.add_artifact(
                FIRST_OTHER_ID, "reference", FileRecord(f"models/{number}.npz", "ab" * 32, 10 * number)
            )
        ledger.drop_artifact("models/1.npz")
    assert rows("SELECT task_id, kind, path, sha256, bytes FROM artifact") == [
        (FIRST_OTHER_ID, "reference", "models/2.npz", "ab" * 32, 20)
    ]


def test_a_task_is_recorded_once(ledger, rows):
    with ledger.transaction():
        ledger.add_task(1, "train", "gpu")
        ledger.begin_attempt(1, 1, "local")
    with pytest.raises(sqlite3.IntegrityError), ledger.transaction():
        ledger.add_task(1, "train", "gpu")
    with pytest.raises(sqlite3.IntegrityError), ledger.transaction():
        ledger.begin_attempt(1, 1, "local")
    assert rows("SELECT count(*) FROM task") == [(1,)]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_kept_of_a_decision_that_failed(ledger, rows, error):
    with ledger.transaction():
        ledger.add_task(1, "train", "gpu")

    def decide():
        with ledger.transaction():
            ledger.add_task(2, "infer", "gpu")
            ledger.set_state(1, "complete")
            ledger.set_meta("key", "value")
            raise error

    with pytest.raises(error):
        decide()
    assert rows("SELECT id, state FROM task") == [(1, "running")]
    assert rows("SELECT count(*) FROM meta") == [(1,)]
    with ledger.transaction():
        ledger.set_state(1, "fizzled")
    assert rows("SELECT id, state FROM task") == [(1, "fizzled")]


def test_readers_see_a_decision_whole_and_are_never_locked_out(ledger, rows):
    with ledger.transaction():
        ledger.add_task(1, "train", "gpu")
        assert rows("SELECT count(*) FROM task") == [(0,)]
        ledger.begin_attempt(1, 1, "local")
        assert rows("SELECT count(*) FROM attempt") == [(0,)]
    assert rows("SELECT count(*) FROM task JOIN attempt ON id = task_id") == [(1,)]


def test_a_reader_in_the_midst_of_reading_holds_nobody_up(path, ledger):
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM task").fetchone() == (0,)
    began = time.monotonic()
    with ledger.transaction():
        ledger.add_task(1, "train", "gpu")
    assert time.monotonic() - began < 5
    assert reader.execute("SELECT count(*) FROM task").fetchone() == (0,)
    reader.execute("COMMIT")
    assert reader.execute("SELECT count(*) FROM task").fetchone() == (1,)
    reader.close()


def test_a_full_disk_leaves_the_ledger_usable(ledger, rows):
    with ledger.transaction():
        ledger.add_task(1, "train", "gpu")
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count={pages}")

    def decide():
        with ledger.transaction():
            ledger.set_state(1, "complete")
            ledger.set_meta("key", "x" * 100_000)

    with pytest.raises(sqlite3.OperationalError, match="full"):
        decide()
    ledger._db.execute(f"PRAGMA max_page_count={pages + 100}")
    ledger.abandon_running()
    assert rows("SELECT id, state FROM task") == [(1, "ready")]


def test_a_commit_that_fails_is_rolled_back(path, rows, ledger):
    """A transaction left open would hold every later decision, and the ending with it."""
    real = ledger._db

    class FailingOnce:
        failed = False

        def execute(self, statement, *values):
            if statement == "COMMIT" and not self.failed:
                self.failed = True
                raise sqlite3.OperationalError("disk I/O error")
            return real.execute(statement, *values)

        @property
        def in_transaction(self):
            return real.in_transaction

        def close(self):
            real.close()

    ledger._db = FailingOnce()
    with pytest.raises(sqlite3.OperationalError, match="I/O"), ledger.transaction():
        ledger.add_task(1, "train", "gpu")
    with ledger.transaction():
        ledger.add_task(2, "train", "gpu")
    assert rows("SELECT id FROM task") == [(2,)]


def test_what_was_out_at_the_end_is_ready_to_be_sent_again(ledger, rows):
    with ledger.transaction():
        for task in (1, 2, 3):
            ledger.add_task(task, "simulate", "cpu")
            ledger.begin_attempt(task, 1, "local")
        ledger.end_attempt(1, 1, "success")
        ledger.set_state(1, "complete")
        ledger.end_attempt(2, 1, "nan", error="reason")
        ledger.set_state(2, "quarantined")
    ledger.abandon_running()
    assert rows("SELECT id, state FROM task ORDER BY id") == [(1, "complete"), (2, "quarantined"), (3, "ready")]
    assert rows("SELECT task_id, outcome FROM attempt ORDER BY task_id") == [
        (1, "success"),
        (2, "nan"),
        (3, "abandoned"),
    ]
    assert rows("SELECT count(*) FROM attempt WHERE ended IS NULL") == [(0,)]


def test_threads_decide_one_after_the_other(ledger, rows):
    errors = []

    def decide(first):
        try:
            for task in range(first, first + 50):
                with ledger.transaction():
                    ledger.add_task(task, "move", "host")
                    ledger.begin_attempt(task, 1, "host")
        except sqlite3.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=decide, args=(100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert rows("SELECT count(*) FROM task JOIN attempt ON id = task_id") == [(200,)]


def test_a_ledger_is_opened_again_as_it_was_left(path):
    first = Ledger(path)
    with first.transaction():
        first.add_task(1, "train", "gpu")
        first.set_meta("seed", 5)
    first.close()
    assert not path.with_name("ledger.sqlite-wal").exists(), "the write-ahead log was not folded in"
    second = Ledger(path)
    with second.transaction():
        second.set_meta("seed", 6)
    second.close()
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT id, state FROM task").fetchall() == [(1, "running")]
    assert dict(reader.execute("SELECT key, value FROM meta")) == {"schema_version": str(SCHEMA_VERSION), "seed": "6"}
    reader.close()


WRITER = """
import sys
from pathlib import Path
from campaign.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for number in range(10):
    with ledger.transaction():
        ledger.add_task(number, "simulate", "cpu")
        ledger.begin_attempt(number, 1, "local")
"""


@pytest.mark.parametrize(("point", "kept"), [("before-commit", 3), ("after-commit", 4)])
def test_a_killed_writer_leaves_whole_decisions(tmp_path, path, point, kept):
    # The first passage is that of the schema.
    environment = {**os.environ, "WAYFINDER_KILL_AT": f"{point}:5"}
    ended = subprocess.run([sys.executable, "-c", WRITER, str(path)], env=environment, timeout=30, check=False)
    assert ended.returncode == -signal.SIGKILL
    reader = sqlite3.connect(path)
    assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert reader.execute("SELECT count(*) FROM task JOIN attempt ON id = task_id").fetchone() == (kept,)
    assert reader.execute("SELECT count(*) FROM task").fetchone() == (kept,)
    reader.close()


# ---- what a later process needs


def test_what_is_kept_is_written_with_the_transaction_or_not_at_all(path, ledger):
    with ledger.transaction():
        ledger.keep("walker/1", {"turn": 3})
        ledger.keep("frames/7", [1, 2])
        ledger.keep("frames/8", 8)

    def break_down() -> None:
        with ledger.transaction():
            ledger.keep("walker/1", "never")
            ledger.forget("frames/7")
            for _ in range(2):
                ledger.begin_attempt(1, 1, "local")

    with pytest.raises(sqlite3.Error):
        break_down()
    with ledger.transaction():
        pass
    assert ledger.kept() == {"walker/1": {"turn": 3}, "frames/7": [1, 2], "frames/8": 8}
    with ledger.transaction():
        ledger.keep("frames/7", "again")  # in its old place
        ledger.keep("passing", 1)
        ledger.forget("passing")
        ledger.forget("walker/1")
    assert list(ledger.kept("frames/").items()) == [("7", "again"), ("8", 8)]
    assert ledger.kept() == {"frames/7": "again", "frames/8": 8}


def test_open_tasks_tell_how_often_they_failed(ledger):
    with ledger.transaction():
        ledger.add_task(3, "simulate", "cpu", steered=True, novelty=0.5, bundle=4, spec="{}")
        for number, outcome in enumerate(["nan", "abandoned", "manager_lost", "late"], start=1):
            ledger.begin_attempt(3, number, "local")
            ledger.end_attempt(3, number, outcome, error=None if outcome == "abandoned" else f"{outcome} it is")
        ledger.add_task(1, "simulate", "cpu", spec="{}")
        ledger.add_task(2, "simulate", "cpu", spec="{}")
        ledger.complete(2)
    first, second = ledger.open_tasks("running")
    assert (first.id, first.attempts, first.failures) == (1, 0, ())
    assert (second.id, second.attempts, second.steered, second.novelty, second.bundle) == (3, 4, True, 0.5, 4)
    assert second.failures == (("nan", "nan it is"), ("manager_lost", "manager_lost it is"), ("late", "late it is"))
    assert ledger.open_tasks("fizzled") == []


def test_on_a_network_file_system_there_is_no_write_ahead_log(path, monkeypatch):
    monkeypatch.setattr("campaign.ledger.network_file_system", lambda path: "nfs4")
    ledger = Ledger(path)
    with ledger.transaction():
        ledger.add_task(1, "train", "gpu")
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert reader.execute("SELECT count(*) FROM task").fetchone() == (1,)
    assert reader.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert not path.with_name("ledger.sqlite-wal").exists()
    reader.close()
    ledger.close()
    # A ledger that was written on a local disk is taken over.
    local = path.with_name("local.sqlite")
    monkeypatch.undo()
    Ledger(local).close()
    monkeypatch.setattr("campaign.ledger.network_file_system", lambda path: "nfs4")
    Ledger(local).close()
    with sqlite3.connect(local) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    db.close()


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + bytes(200)])
def test_what_is_no_ledger_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"ledger .*ledger\.sqlite (cannot be read|has schema None)"):
        Ledger(path)
    assert path.read_bytes() == content


def test_an_older_ledger_can_be_read_and_not_gone_on_with(path, ledger):
    with ledger.transaction():
        ledger.set_meta("schema_version", 1)
    ledger.close()
    with pytest.raises(BadInput, match="has schema 1, which keeps too little to go on with"):
        Ledger(path)
    with read_ledger(path) as db:
        assert db.execute("SELECT count(*) FROM task").fetchone() == (0,)
