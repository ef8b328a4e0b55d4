"""A small run that was never run: a ledger and traces, in which everything that can happen to an attempt does."""

import json

import pytest

from campaign.ledger import FIRST_OTHER_ID, Ledger
from campaign.rundir import LEDGER
from campaign.trace_files import FILES

BEGAN = 1_795_000_000.0


def line(task_id, attempt, start, end, *, site="here", executor="cpu", rank="0", pool="p0", error=None, **info):
    """Return a trace line; times in seconds after the campaign began, None where no worker ran it."""
    times = {"compute_started": start, "compute_ended": end}
    times = {name: None if value is None else BEGAN + value for name, value in times.items()}
    name = "segment_id" if task_id < FIRST_OTHER_ID else "task_id"
    worker = {"hostname": "node", "PARSL_WORKER_RANK": rank, "PARSL_WORKER_POOL_ID": pool}
    return {
        "success": error is None,
        "task_info": {name: task_id, "attempt": attempt, "executor": executor, "site": site, **info},
        "worker_info": None if start is None else worker,
        "failure_info": error and {"exception": error, "traceback": "..."},
        "message_sizes": {"inputs": 1, "value": 2},
        "timestamp": {
            "created": BEGAN + (0 if start is None else start - 0.5),
            "input_received": BEGAN + 0.1,
            "task_received": BEGAN + 9,
            "result_received": BEGAN + (9 if end is None else end + 0.1),
            **times,
        },
    }


def segment(segment_id, start, end, **more):
    """Return the line of a segment that ended well."""
    told = {"parent_id": None, "parent_frame": None, "walker_id": 0, "replica": 0, "iteration": 0, "steered": False}
    findings = {"n_frames": 8, "n_atoms": 22, "simulated_ps": 2.0, "payload_bytes": 10, "proxied": False}
    return line(segment_id, more.pop("attempt", 1), start, end, **{**told, **findings, **more})


class Told:
    """A run directory that is written by hand."""

    def __init__(self, path):
        path.mkdir()
        self.path = path
        self.ledger = Ledger(path / LEDGER)
        process = {"run_id": "r", "started": BEGAN - 5, "host": "here", "pid": 7, "run_dir": str(path)}
        with self.ledger.transaction():
            self.ledger.set_meta("processes", [process])
        (path / "params.json").write_text(json.dumps({"system": "alanine-dipeptide", "policy": "novelty"}))

    def add(self, topic, told, outcome="success"):
        """Tell of an attempt in the ledger and the trace."""
        info = told["task_info"]
        task_id = info.get("segment_id", info.get("task_id"))
        self.attempt(topic, task_id, info["attempt"], outcome, (told["failure_info"] or {}).get("exception"))
        with self.ledger.transaction():
            self.ledger.add_record(topic, task_id, info["attempt"], json.dumps(told))
        with (self.path / FILES[topic]).open("a") as file:
            file.write(json.dumps(told) + "\n")

    def attempt(self, topic, task_id, number, outcome, error=None):
        """Tell of an attempt in the ledger alone; without outcome it is out."""
        with self.ledger.transaction():
            if self.ledger.state_of(task_id) is None:
                self.ledger.add_task(task_id, topic, "cpu")
            self.ledger.begin_attempt(task_id, number, "here")
            if outcome:
                self.ledger.end_attempt(task_id, number, outcome, error=error and f"{error}\nTraceback: ...")
        # As if it had been then.
        when = "UPDATE attempt SET started = ?, ended = CASE WHEN outcome IS NULL THEN NULL ELSE ? END"
        with self.ledger.transaction():
            self.ledger._db.execute(f"{when} WHERE task_id = ? AND number = ?", (BEGAN, BEGAN + 9, task_id, number))


@pytest.fixture
def told(tmp_path):
    """An empty run."""
    made = Told(tmp_path / "told")
    yield made
    made.ledger.close()


@pytest.fixture
def eventful(told):
    """A run with children, a bundle, two pools, failures of all kinds, an inference and two trainings."""
    seconds = {"prepare": 0.2, "integrate": 0.7, "write": 0.1}
    told.add("simulate", segment(0, 1, 2, seconds=seconds, worker_rss_bytes=100_000_000))
    # Of a bundle: the end of the first is written while the second integrates.
    told.add("simulate", segment(1, 2.1, 2.5, rank="1", seconds={"prepare": 0.1, "integrate": 0.25, "write": 0.3}))
    told.add("simulate", segment(2, 2.5, 3, rank="1", worker_rss_bytes=90_000_000))
    told.add("simulate", segment(3, 4, 5, parent_id=0, parent_frame=7, worker_rss_bytes=150_000_000))
    # A worker of the same name, of another pool, at the same time.
    told.add("simulate", segment(4, 4, 5, parent_id=0, parent_frame=1, pool="p1"))
    told.add("simulate", line(5, 1, 5, 6, error="NotFinite('energy')\nmore"), "nan")
    told.add("simulate", segment(5, 6, 7, attempt=2, parent_id=3, parent_frame=2))
    told.add("simulate", line(6, 1, None, None, error="WorkerLost()"), "worker_lost")
    told.attempt("simulate", 6, 2, "lost", "no result within 60 s")
    told.attempt("simulate", 6, 3, None)
    looked = {"segment_ids": [0, 1, 2], "reference_number": 1, "n_frames": 24, "n_reference": 24, "coverage": 5.0}
    gpu = {"site": "there", "executor": "gpu"}
    other = FIRST_OTHER_ID
    told.add("infer", line(other, 1, 3.5, 4, model_version=0, novelty=[1.0, None, 3.0], **looked, **gpu))
    losses = {"reconstruction": [3.0, 2.0], "critic": [0.5, 0.25]}
    told.add("train", line(other + 1, 1, 5, 6, model_version=1, n_frames=24, losses=losses, **gpu))
    looked |= {"segment_ids": [3, 4], "reference_number": 2, "coverage": 7.0}
    told.add("infer", line(other + 2, 1, 7, 7.5, model_version=1, novelty=[2.0, 1.0], **looked, **gpu))
    told.add("train", line(other + 3, 1, 8.5, 8.6, model_version=2, n_frames=40, losses=losses, **gpu))
    return told.path
