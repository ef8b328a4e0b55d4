"""Real campaigns for benchmarks: ``python run.py`` in a process of its own, and what it left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import ROOT, Session
from campaign.processes import RUN_VARIABLE
from campaign.trace_files import FILES

_TICK_S = 0.25
_TIMEOUT_S = 3600.0
_ORDERLY_END_S = 20.0


@dataclass(frozen=True, slots=True)
class Campaign:
    """A run directory.

    Attributes
    ----------
    pid
        Of the main process while it runs.
    """

    path: Path
    pid: int

    @property
    def summary(self) -> dict[str, Any]:
        """Content of ``summary.json``."""
        return dict(json.loads((self.path / "summary.json").read_text()))

    def trace(self, topic: str) -> list[dict[str, Any]]:
        """Return the records of a topic, in the order of their arrival."""
        return [json.loads(line) for line in (self.path / FILES[topic]).read_text().splitlines()]

    def workers(self, executor: str) -> list[int]:
        """Return the process ids of an executor's workers that have begun, from the names that Parsl logs."""
        logs = self.path.glob(f"logs/parsl/000/{executor}/block-*/*/worker_*.log")
        found = (re.search(r" HTEX-Worker-\d+-(\d+) ", log.read_text()) for log in logs)
        return [int(match[1]) for match in found if match is not None]

    def frames(self, segment_ids: Iterable[int]) -> Iterator[np.ndarray]:
        """Yield the frames of segments, (n_frames, n_atoms, 3) float32 in nm; without water, that is every atom."""
        import MDAnalysis as mda

        universe = mda.Universe(str(self.path / "topology.pdb"), to_guess=())
        for segment_id in segment_ids:
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # on every DCD that is opened
                universe.load_new(str(self.path / f"trajectories/{segment_id:08d}.dcd"))
            yield np.array([frame.positions / 10.0 for frame in universe.trajectory], dtype=np.float32)


Watch = Callable[[Campaign], None]


@contextmanager
def campaign(
    session: Session, *flags: str, cores: set[int] | None = None, watch: Watch | None = None
) -> Iterator[Campaign]:
    """Run a campaign to its end and lend its run directory, which is removed afterwards.

    Parameters
    ----------
    cores
        That all its processes start on; None for any.
    watch
        Called four times a second while it runs.

    Raises
    ------
    SystemExit
        When it does not complete.
    """
    name = f"run-{uuid.uuid4().hex[:12]}"
    path, output = session.folder / name, session.folder / f"{name}.out"
    try:
        with output.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "run.py"), "--run-dir", str(path), "--no-control", "--no-report", *flags],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name != RUN_VARIABLE},  # it makes its own
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which ends the campaign itself
            )
        ran = Campaign(path, process.pid)
        try:
            if cores is not None:
                os.sched_setaffinity(process.pid, cores)
            _wait(process, ran, watch)
        finally:
            _end(process)
        if process.returncode != 0:
            told = output.read_text(errors="replace").strip()
            raise SystemExit(f"campaign {' '.join(flags)} ended with exit code {process.returncode}: {told}")
        yield ran
    finally:
        shutil.rmtree(path, ignore_errors=True)


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process on one core; those it starts later inherit it."""
    try:
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, {core})
    except (psutil.NoSuchProcess, ProcessLookupError):  # it ended in the meantime
        return


def _wait(process: subprocess.Popen[bytes], ran: Campaign, watch: Watch | None) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"the campaign in {ran.path} did not end within {_TIMEOUT_S:g} s")
        if watch is not None:
            watch(ran)
        time.sleep(_TICK_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a campaign that is still going; its guardian ends what a killed one leaves."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_ORDERLY_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
