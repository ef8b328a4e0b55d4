"""A command of the user's that runs beside a segment, on its node, and reads it by IMD (``--stream-command``)."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from tasks.imd import ImdServer
from tasks.messages import SegmentSpec
from tasks.transport import SECRETS

# For the command to connect; a segment does not begin before, or there would be nothing left to see of a short one.
CONNECT_S = 30.0
# From the segment's end until it is asked to go, and from then until it is killed.
GRACE_S = 5.0
TERM_S = 2.0

_LOOK_EVERY_S = 0.1


class Companion:
    """Starts the command once the server listens, and ends it with the segment.

    What it prints goes to ``seg_logs/{iteration:06d}-{segment:06d}_analysis.log`` in the run directory.
    """

    def __init__(self, command: str, spec: SegmentSpec, imd: ImdServer) -> None:
        self._imd = imd
        self._how: str | None = None
        assert spec.run_dir is not None  # refused elsewhere
        run_dir = Path(spec.run_dir)
        log = run_dir / "seg_logs" / f"{spec.iteration:06d}-{spec.segment_id:06d}_analysis.log"
        log.parent.mkdir(exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        with log.open("ab") as out:
            try:
                self._process = subprocess.Popen(
                    shlex.split(command),
                    cwd=None if spec.watch is None else spec.watch.here,
                    env=_environment(spec, imd, run_dir),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                self._how = f"cannot be run ({error})"

    def wait_until_it_listens(self) -> None:
        """Let it connect, within a bound; no longer than it lives."""
        until = time.monotonic() + CONNECT_S
        while self._process is not None and self._process.poll() is None and time.monotonic() < until:
            if self._imd.wait_for_listeners(1, _LOOK_EVERY_S):
                return

    def leave(self) -> None:
        """End it, once the server has let go of it: it may finish first, within a bound."""
        if self._process is None or self._how is not None:
            return
        self._how = self._awaited(self._process)

    @property
    def how(self) -> str | None:
        """How it ended, in words; None while it has not."""
        return self._how

    @staticmethod
    def _awaited(process: subprocess.Popen[bytes]) -> str:
        try:
            code = process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGTERM)
            try:
                process.wait(TERM_S)
                code = -signal.SIGTERM
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                code = process.wait()
        # Whatever it started and left.
        _signal(process, signal.SIGKILL)
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _environment(spec: SegmentSpec, imd: ImdServer, run_dir: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    return environment | {
        "WAYFINDER_IMD_HOST": imd.host,
        "WAYFINDER_IMD_PORT": str(imd.port),
        "WAYFINDER_ITERATION": str(spec.iteration),
        "WAYFINDER_SEGMENT_ID": str(spec.segment_id),
        "WAYFINDER_RUN_DIR": str(run_dir),
    }


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal it with all that it started; it leads a session of its own."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # nobody is left
        return
