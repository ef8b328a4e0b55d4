"""How much of this machine other people's processes took while something was measured."""

from __future__ import annotations

import os
import threading
from types import TracebackType

import psutil

# In the environment of a benchmark and of all that it starts; a campaign has a WAYFINDER_RUN of its own making.
MARK = "WAYFINDER_BENCHMARK"

_LOOK_EVERY_S = 1.0


class Load:
    """A span of time in which the CPU of others is counted: all that was busy, less what our own processes took.

    Own are this process and all that carry the mark of the benchmark; they are looked at every second, so one of ours
    that ends takes at most its last second to the account of the others.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._is_own: dict[psutil.Process, bool] = {}
        self._first: dict[psutil.Process, float] = {}
        self._last: dict[psutil.Process, float] = {}
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="load", daemon=True)

    def __enter__(self) -> Load:
        self._look(starting=True)
        self._began = _machine()
        self._watching.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._watching.join()
        self._look()
        self._ended = _machine()

    @property
    def others(self) -> float:
        """Share of the machine's CPU time that others took, from 0 to 1; known when the span is over."""
        busy, total = (end - start for start, end in zip(self._began, self._ended, strict=True))
        own = sum(last - self._first.get(process, 0.0) for process, last in self._last.items())
        return min(1.0, max(0.0, busy - own) / total) if total > 0 else 0.0

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self, *, starting: bool = False) -> None:
        for process in psutil.process_iter():
            try:
                if process not in self._is_own:
                    self._is_own[process] = self._is_marked(process)
                if self._is_own[process]:
                    times = process.cpu_times()
                    self._last[process] = times.user + times.system
            except psutil.Error:  # it has ended, and is counted as it was last seen
                continue
        if starting:
            self._first = dict(self._last)

    def _is_marked(self, process: psutil.Process) -> bool:
        if process.pid == os.getpid():
            return True
        try:
            return process.environ().get(MARK) == self._mark
        except OSError:  # of a kernel thread
            return False


def _machine() -> tuple[float, float]:
    """Return the CPU seconds that were busy and all there were, over all cores (guests are in ``user`` already)."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return busy, busy + times.idle + times.iowait
