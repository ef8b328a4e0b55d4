"""Traces: one JSON line per result, for notebooks; a view of what the ledger has committed."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from campaign.ledger import Ledger

logger = logging.getLogger(__name__)

FILES = {
    "equilibrate": "equilibration-results.jsonl",
    "simulate": "simulation-results.jsonl",
    "infer": "inference-results.jsonl",
    "glance": "glance-results.jsonl",
    "coordinate": "coordinate-results.jsonl",
    "train": "training-results.jsonl",
    "move": "move-results.jsonl",
    "gather": "gather-results.jsonl",
    "hook": "hook-results.jsonl",
}

# When a result's life had come so far: at the Thinker, the task server, a worker, and back.
TIMES = ("created", "input_received", "compute_started", "compute_ended", "task_received", "result_received")


def worker_of(line: Mapping[str, Any]) -> str | None:
    """Return the worker that a trace line is of, as ``host/rank``; None where none had the task."""
    told = line.get("worker_info") or {}
    host = told.get("hostname")
    return None if host is None else f"{host}/{told.get('PARSL_WORKER_RANK', '0')}"


def mend_traces(ledger: Ledger, folder: Path) -> None:
    """Make trace files anew that do not tell what the ledger has committed."""
    for topic, name in FILES.items():
        lines = ledger.n_records(topic)
        path = folder / name
        if lines == (_count_lines(path) if path.exists() else 0):
            continue
        logger.info("%s is made anew from the ledger", name)
        part = path.with_name(f".{name}.part")
        with part.open("w") as file:
            file.writelines(f"{line}\n" for line in ledger.records(topic))
        part.replace(path)


def _count_lines(path: Path) -> int | None:
    """Return the number of lines; None where the last is not whole."""
    lines, whole = 0, True
    with path.open("rb") as file:
        for line in file:
            lines += 1
            whole = line.endswith(b"\n")
    return lines if whole else None


class Traces:
    """The trace files of a run directory, opened for appending."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        for topic in ("simulate", "infer", "train"):
            self._open(topic)

    def write(self, topic: str, line: str) -> None:
        """Append one line in one write, so that lines of several threads never mix.

        Only a SIGKILL in the midst of that write can leave half a line, as the file's last; `mend_traces` makes it
        whole.
        """
        os.write(self._open(topic), line.encode() + b"\n")

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> Traces:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, topic: str) -> int:
        if topic not in self._files:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._files[topic] = os.open(self._folder / FILES[topic], flags, 0o644)
        return self._files[topic]
