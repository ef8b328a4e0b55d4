"""Several tasks of one kind as one: what a scheduler costs by the task is paid once for all of them.

What goes wrong with one of them is data, and the others go on.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tasks.errors import TaskFailed
from tasks.messages import Done, TaskError

Finish = Callable[[], Any]


def run_bundle(task: Callable[[Any], Any], specs: Sequence[Any]) -> tuple[Done, ...]:
    """Return what became of each spec, in their order.

    Parameters
    ----------
    task
        Takes one spec. A function that it returns is the rest of its work, which is done beside the next spec's.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="finish") as beside:
        finish = beside.submit if len(specs) > 1 else _now
        begun = [_begin(task, spec, finish) for spec in specs]
        return tuple(each.done() for each in begun)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A task whose result may still be on its way; its time ends where the worker turns to the next."""

    result: Future[Any]
    started: float
    ended: float
    rss_bytes: int

    def done(self) -> Done:
        """Return its result, or its error as data."""
        told = (self.started, self.ended, os.environ.get("CUDA_VISIBLE_DEVICES"), self.rss_bytes)
        try:
            return Done(self.result.result(), None, *told)
        except Exception as error:  # noqa: BLE001  # whatever it is, it goes into the ledger
            kind = error.kind if isinstance(error, TaskFailed) else "error"
            story = "".join(traceback.format_exception(error))
            return Done(None, TaskError(kind, repr(error), story), *told)


def _begin(task: Callable[[Any], Any], spec: Any, finish: Callable[[Finish], Future[Any]]) -> _Begun:
    started = time.time()
    result = _now(lambda: task(spec))
    if result.exception() is None and callable(result.result()):
        result = finish(result.result())
    return _Begun(result, started, time.time(), _most_memory())


def _most_memory() -> int:
    """Return the most bytes that this process has had resident so far."""
    # Linux counts in kilobytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _now(function: Finish) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001  # raised again by whoever asks for the result
        future.set_exception(error)
    return future
