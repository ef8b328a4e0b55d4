"""Parsl's worker pool, in which a worker that dies takes nothing else with it: run as Parsl's own, with its flags.

Parsl's workers wait for their next task with the lock of its queue in hand. One that is killed while idle (as the
kernel does when memory is short) takes the lock with it: its replacement never gets a task, and whatever is sent
waits until its time is over. Results are sent by a thread of the worker's, after the task counts as done: who dies in
between loses one that nobody misses. And the process that remembers who has which task may die like any other, after
which no dead worker is noticed.

A pool looks where its interchange answers with one connection, and goes on with another of the same name. Where the
interchange hears of the second before it has heard that the first is gone, it does not listen to it (ZeroMQ lets no
two of one name in), and the pool waits for its first answer for ever, in a block that counts as one that runs.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import runpy
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fcntl import LOCK_EX, LOCK_UN, lockf
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.managers import SyncManager
from multiprocessing.reduction import DupFd
from typing import Any

import zmq

_PARSLS = "parsl.executors.high_throughput.process_worker_pool"

# A pool waits for its first answer so many times the silence after which it would count as lost.
_PATIENCE = 3


class _Turn:
    """A lock between processes and threads, which the kernel frees when its holder dies."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = _nameless_file() if fd is None else fd
        self._threads = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., _Turn], tuple[Any]]:
        return _turn_here, (DupFd(self._fd),)

    def __enter__(self) -> None:
        self._threads.acquire()
        lockf(self._fd, LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        lockf(self._fd, LOCK_UN)
        self._threads.release()


class SturdyQueue:
    """What Parsl needs of a `multiprocessing.Queue`, whose ends may be killed.

    The process that made it puts through a thread, for a pool must go on beating while a pipe is full; others put at
    once, so that what they put outlives them. (One that is killed within the system call that writes a large message
    still spoils the pipe.)
    """

    def __init__(self) -> None:
        self._reader, self._writer = multiprocessing.Pipe(duplex=False)
        self._reading, self._writing = _Turn(), _Turn()
        self._outbox: queue.SimpleQueue[Any] | None = queue.SimpleQueue()
        threading.Thread(target=self._deliver, name="queue-delivery", daemon=True).start()

    def __getstate__(self) -> tuple[Connection, Connection, _Turn, _Turn]:
        return self._reader, self._writer, self._reading, self._writing

    def __setstate__(self, state: tuple[Connection, Connection, _Turn, _Turn]) -> None:
        self._reader, self._writer, self._reading, self._writing = state
        self._outbox = None

    def put(self, item: Any) -> None:
        """Append one."""
        if self._outbox is None:
            self._send(item)
        else:
            self._outbox.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the next one.

        Raises
        ------
        queue.Empty
            When there is none within ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            # Whoever waits holds nothing; of those who wake together, one finds it.
            left = None if end is None else max(0.0, end - time.monotonic())
            if not self._reader.poll(left if block else 0):
                raise queue.Empty
            with self._reading:
                if self._reader.poll(0):
                    return self._reader.recv()

    def qsize(self) -> int:
        """Return how many wait to be sent; what is in the pipe is not counted, and Parsl but logs it."""
        return 0 if self._outbox is None else self._outbox.qsize()

    def _send(self, item: Any) -> None:
        with self._writing:
            self._writer.send(item)

    def _deliver(self) -> None:
        assert self._outbox is not None
        while True:
            self._send(self._outbox.get())


def main() -> None:
    """Run Parsl's program with what is mended."""
    context = multiprocessing.get_context("spawn")  # the very object that Parsl makes its queues and processes with
    over = threading.Event()
    context.Queue = SturdyQueue  # type: ignore[method-assign, assignment]
    context.Manager = lambda: _minded(context, over)  # type: ignore[method-assign]
    _look_without_a_name()
    _bound_first_answer(sys.argv)
    try:
        runpy.run_module(_PARSLS, run_name="__main__", alter_sys=True)
    finally:
        over.set()


def _minded(context: SpawnContext, over: threading.Event) -> SyncManager:
    """Return the manager of shared objects; once its process dies this pool ends, and its block is restarted."""
    manager = SyncManager(ctx=context)
    manager.start()
    server = manager._process  # type: ignore[attr-defined]

    def mind() -> None:
        server.join()
        if not over.is_set():
            print(f"pid {server.pid} kept the books of this worker pool and died: the pool ends", file=sys.stderr)
            os._exit(1)

    threading.Thread(target=mind, name="manager-minder", daemon=True).start()
    return manager


def _look_without_a_name() -> None:
    from parsl.executors.high_throughput import probe

    found = probe.probe_addresses
    probe.probe_addresses = lambda *given, identity=None, **named: found(*given, **named)


def _bound_first_answer(words: list[str]) -> None:
    """Let the pool end, so that its block is restarted, when the interchange does not answer."""
    from parsl.curvezmq import ClientContext

    silence_s = next(float(word.partition("=")[2]) for word in words if word.startswith("--hb_threshold="))
    made = ClientContext.socket

    def socket(self: ClientContext, kind: int, *given: Any, **named: Any) -> zmq.Socket[bytes]:
        opened: zmq.Socket[bytes] = made(self, kind, *given, **named)
        # Of all that Parsl receives there, it is only the first answer that it has not seen coming.
        if kind == zmq.DEALER:
            opened.setsockopt(zmq.RCVTIMEO, round(1000 * _PATIENCE * silence_s))
        return opened

    def ended(what: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(what)
        if issubclass(what.exc_type, zmq.Again):
            print(f"no answer from the interchange in {_PATIENCE * silence_s:g} s: the pool ends", file=sys.stderr)
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(1)

    ClientContext.socket = socket
    threading.excepthook = ended


def _turn_here(fd: Any) -> _Turn:
    return _Turn(fd.detach())


def _nameless_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


if __name__ == "__main__":
    # Workers unpickle the queue by its module's name, which is not `__main__`.
    from tasks import worker_pool

    worker_pool.main()
