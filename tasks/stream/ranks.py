"""Several producers or consumers at once, each a process that ends with this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

_BAD_INPUT = 2

# How long ranks may take to end in order when they are told to.
_ENDS_WITHIN_S = 10.0


def run_ranks(words: Sequence[str], n: int) -> tuple[list[dict[str, Any]], int]:
    """Run the command once for each rank; return what those that got so far report, and the largest exit code.

    Parameters
    ----------
    words
        The command line, to which the rank is added.
    """
    with tempfile.TemporaryDirectory(prefix="wayfinder-ranks-") as folder:
        files = [Path(folder) / f"{rank}.json" for rank in range(n)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, file in enumerate(files):
                processes.append(_start([*words, "--rank", str(rank), "--rank-json", str(file)]))
            codes = _wait(processes)
        finally:
            _end(processes)
        reports = [json.loads(file.read_text()) for file in files if file.exists()]
    worst = _BAD_INPUT if _BAD_INPUT in codes else max(code if code >= 0 else 128 - code for code in codes)
    return reports, worst


def _start(words: list[str]) -> subprocess.Popen[bytes]:
    # A session of its own, for Ctrl-C reaches the whole group of a terminal, and this process hands signals on.
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.stream", *words], stdin=subprocess.PIPE, start_new_session=True
    )


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Return exit codes, once all have ended; where one says that its input is bad, the others need not go on."""
    with ThreadPoolExecutor(len(processes)) as waiting:
        ended = [waiting.submit(process.wait) for process in processes]
        try:
            if any(each.result() == _BAD_INPUT for each in as_completed(ended)):
                _end(processes)
        except BaseException:
            # Or the threads would wait for them, and this process for the threads.
            _end(processes)
            raise
        return [each.result() for each in ended]


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def end_with_parent() -> None:
    """End this process, in order, once its parent is gone: its standard input, a pipe, ends then."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
