"""Runs made by hand: a ledger and traces as a campaign would write them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from campaign.ledger import FIRST_OTHER_ID, Ledger
from campaign.trace_files import FILES
from tests.integration.conftest import ROOT

BEGAN = 1_795_000_000.0

HOLD = """
import sys
from pathlib import Path
from campaign.filesystem import only_process
with only_process(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Made:
    """A run directory, and what adds to it."""

    def __init__(self, path: Path, workers: int | None = 2) -> None:
        path.mkdir(parents=True)
        self.path = path
        self.ledger = Ledger(path / "ledger.sqlite")
        self.told: dict[str, Any] = {
            "segments": 0, "steered": 0, "frames": 0, "simulated_ps": 0.0, "inferences": 0, "model_version": 0,
            "failures": {}, "watched": {}, "fed": {}, "compute_s": [], "span_s": 0.0, "coverage": None,
            "elapsed_s": 0.0,
        }  # fmt: skip
        with self.ledger.transaction():
            self.ledger.set_meta("status", "running")
            self.ledger.set_meta("system", "made")
            self.ledger.set_meta("settings", {"policy": "novelty", "seed": 3})
            self.ledger.set_meta("target", 40)
            if workers is not None:
                self.ledger.set_meta("workers", [["here", "simulate", workers], ["here", "infer", 1]])
        self.begin()

    def begin(self) -> None:
        """Let a process begin, or go on."""
        with self.ledger.transaction():
            processes = self.ledger.meta().get("processes", [])
            self.ledger.set_meta("processes", [*processes, {"started": BEGAN, "host": "here", "pid": 1}])
            self.ledger.set_meta("status", "running")

    def end(self, status: str, reason: str | None = None) -> None:
        """Let it end in order."""
        with self.ledger.transaction():
            self.ledger.set_meta("status", status)
            self.ledger.set_meta("reason", reason)

    def send(self, number: int, kind: str = "simulate") -> None:
        """Begin a task."""
        with self.ledger.transaction():
            self.ledger.add_task(number, kind, "cpu")  # type: ignore[arg-type]
            self.ledger.begin_attempt(number, 1, "here")

    def segment(self, number: int, error: str | None = None) -> str:
        """Let a segment come back, and return its trace line."""
        self.send(number)
        failed = {} if error is None else {"nan": self.told["failures"].get("nan", 0) + 1}
        self.told |= {"failures": self.told["failures"] | failed}
        if error is None:
            self.told["segments"] += 1
            self.told["steered"] += number % 2
            self.told["frames"] += 8
            self.told["simulated_ps"] += 2.0
            self.told["span_s"] = number + 1.0
            self.told["elapsed_s"] = number + 2.0
            self.told["compute_s"] = [["here", "simulate", self.told["segments"] * 0.5]]
        with self.ledger.transaction():
            self.ledger.end_attempt(number, 1, "success" if error is None else "nan", error=error)
            self.ledger.set_state(number, "complete" if error is None else "fizzled")
            self.ledger.keep("state", self.told)
        found = {
            "segment_id": number, "parent_id": None, "parent_frame": None, "walker_id": number % 4, "iteration": 0,
            "steered": bool(number % 2), "novelty": 0.5, "simulated_ps": 2.0, "mean_temperature_K": 300.0,
        }  # fmt: skip
        return self.line("simulate", found, BEGAN + number, error is None)

    def inference(self, number: int, coverage: float) -> str:
        """Let an inference come back, and return its trace line."""
        self.told["inferences"] += 1
        self.told["coverage"] = {"metric": "phi_psi_cells", "value": coverage, "cells_deg": 15}
        with self.ledger.transaction():
            self.ledger.add_task(FIRST_OTHER_ID + number, "infer", "gpu")
            self.ledger.complete(FIRST_OTHER_ID + number)
            self.ledger.keep("state", self.told)
        found = {"n_frames": 8, "coverage": coverage, "novelty": [1.0, None, 3.0]}
        return self.line("infer", found, BEGAN + number, True)

    def line(self, topic: str, found: dict[str, Any], at: float, success: bool) -> str:
        """Return a trace line."""
        times = {
            "created": at, "input_received": at + 0.01, "compute_started": at + 0.1, "compute_ended": at + 0.6,
            "task_received": at + 0.7, "result_received": at + 0.75,
        }  # fmt: skip
        info = {"site": "here", "executor": "cpu", "attempt": 1, "seconds": {"fetch": 0.1, "ship": 0.1}, **found}
        return json.dumps({
            "topic": topic, "success": success, "timestamp": times, "task_info": info,
            "worker_info": {"hostname": "node", "PARSL_WORKER_RANK": str(int(at) % 2)},
        })  # fmt: skip

    def write(self, topic: str, *lines: str) -> None:
        """Append to a trace."""
        with (self.path / FILES[topic]).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let another process have the run, as a campaign's would; it dies at the end."""
        words = [sys.executable, "-c", HOLD, str(self.path)]
        with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            try:
                yield
            finally:
                process.kill()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Made]]:
    """Make runs."""
    made: list[Made] = []

    def begin(name: str = "run", **given: Any) -> Made:
        made.append(Made(tmp_path / name, **given))
        return made[-1]

    yield begin
    for each in made:
        each.ledger.close()


@pytest.fixture
def run(make: Callable[..., Made]) -> Made:
    """A run in which nothing has happened."""
    return make()


def until(there: Callable[[], bool], within_s: float = 20) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + within_s
    while not there():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)
