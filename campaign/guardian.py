"""The guardian: a small process that outlives the campaign's main process only to end what that left behind.

It holds the read end of a pipe whose write end the main process alone has; however that dies, the pipe ends.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from campaign.processes import reap

ROOT = Path(__file__).parents[1]


class Guardian:
    """Started by the main process before anything else of the run."""

    def __init__(self, run_id: str, private_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "campaign.guardian", run_id, str(private_dir)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def life_line(self) -> int:
        """File descriptor of the pipe, which a forked child must close."""
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def dismiss(self) -> None:
        """End the guardian, once there is nothing left to guard."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


def main(run_id: str, private_dir: str) -> None:
    """Wait for the main process to end; then remove its keys and end its processes."""
    # What ends the campaign in order must not end its guardian first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    shutil.rmtree(private_dir, ignore_errors=True)
    reap(run_id, grace_s=0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
