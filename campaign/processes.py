"""The processes of a run: each carries the run's id in its environment, so that none can be left behind."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Collection, Iterable

import psutil

RUN_VARIABLE = "WAYFINDER_RUN"


def new_run_id() -> str:
    """Return an id that no other run has."""
    return uuid.uuid4().hex


def processes_of(run_id: str, spare: Collection[int] = ()) -> list[psutil.Process]:
    """Return the living processes that carry a run's id, without this one, its ancestors, and ``spare``."""
    own = {process.pid for process in [psutil.Process(), *psutil.Process().parents()]} | set(spare)
    return [process for process in psutil.process_iter() if process.pid not in own and _carries(process, run_id)]


def reap(run_id: str, grace_s: float = 2.0, spare: Collection[int] = ()) -> int:
    """End every process of a run: ask, wait for ``grace_s``, then kill; return how many there were.

    Parameters
    ----------
    spare
        Processes that are left alive.
    """
    found = processes_of(run_id, spare)
    _signal(found, signal.SIGTERM)
    psutil.wait_procs(found, timeout=grace_s)
    deadline = time.monotonic() + 10.0
    # A process that is being killed may have started another in the meantime.
    while (left := processes_of(run_id, spare)) and time.monotonic() < deadline:
        _signal(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=1.0)
    return len(found)


def _carries(process: psutil.Process, run_id: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(RUN_VARIABLE) == run_id
    except (psutil.Error, OSError):
        return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
