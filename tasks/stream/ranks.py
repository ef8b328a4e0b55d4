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
from pathlib import Path
from typing import Any

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
            codes = [process.wait() for process in processes]
        finally:
            _end(processes)
        reports = [json.loads(file.read_text()) for file in files if file.exists()]
    return reports, max(code if code >= 0 else 128 - code for code in codes)


def _start(words: list[str]) -> subprocess.Popen[bytes]:
    # A session of its own, for Ctrl-C reaches the whole group of a terminal, and this process hands signals on.
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.stream", *words], stdin=subprocess.PIPE, start_new_session=True
    )


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
        assert process.stdin is not None
        process.stdin.close()


def end_with_parent() -> None:
    """End this process, in order, once its parent is gone: its standard input, a pipe, ends then."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
