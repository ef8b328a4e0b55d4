"""One of the user's hooks: a function of a module of theirs, or a command, about a segment or the campaign."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from tasks.errors import HookFailed
from tasks.messages import HookResult, HookSpec
from tasks.named import NotFound, import_named, is_name, told
from tasks.transport import SECRETS
from tasks.user_code import TimeIsUp, bounded, is_number, numbers

# What `--continue-until` returns is kept under this name.
REACHED = "reached"

# Of what a command printed, so much of the end is looked at, in bytes.
_TAIL = 65536


def run_hook(spec: HookSpec) -> HookResult:
    """Return the numbers that a hook has for a segment, or for the campaign.

    A function is called in this process, ``f(run, segment)``, and `continue-until` as ``f(segment)``. A command gets
    ``WAYFINDER_RUN_DIR`` and ``WAYFINDER_SEGMENT`` (JSON of a `SegmentSummary`, unless it is about the campaign) in
    its environment, and the last line that it prints, where that is a JSON object of numbers, is what it returns.

    Raises
    ------
    HookFailed
        When it cannot be imported, raises, exits with another code than 0, takes longer than ``timeout_s``, or
        returns what cannot be kept.
    """
    began = time.monotonic()
    values = _call(spec) if is_name(spec.hook) else _run_command(spec)
    return HookResult(spec.task_id, spec.attempt, values, {"run": time.monotonic() - began})


def _call(spec: HookSpec) -> dict[str, float]:
    try:
        with bounded(spec.timeout_s):
            function: Callable[..., Any] = import_named(spec.hook, spec.here)
            if spec.moment == "continue-until":
                return _answer(spec, function(spec.segment))
            return _numbers(spec, function(Path(spec.run_dir), spec.segment))
    except TimeIsUp:
        raise _too_long(spec) from None
    except NotFound as error:
        raise _failed(spec, f"cannot be used, for {error}") from error
    except HookFailed:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(spec, f"raised {told(error)}") from error


def _answer(spec: HookSpec, returned: object) -> dict[str, float]:
    if not isinstance(returned, bool | np.bool_):
        raise _failed(spec, f"returned {returned!r:.200}: return True or False")
    return {REACHED: float(returned)}


def _numbers(spec: HookSpec, returned: object) -> dict[str, float]:
    try:
        return numbers(returned)
    except TypeError as error:
        raise _failed(spec, str(error)) from None


def _run_command(spec: HookSpec) -> dict[str, float]:
    # Into files: a process that the command leaves behind may hold a pipe open for ever.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                shlex.split(spec.hook),
                cwd=spec.here,
                env=_environment(spec),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as error:
            raise _failed(spec, f"cannot be run ({error})") from error
        try:
            code = process.wait(spec.timeout_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise _too_long(spec) from None
        if code != 0:
            raise _failed(spec, f"ended with exit code {code}: {_last_line(err) or 'it said nothing'}")
        return _printed(_last_line(out))


def _environment(spec: HookSpec) -> dict[str, str]:
    ours = (*SECRETS, "WAYFINDER_SEGMENT")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["WAYFINDER_RUN_DIR"] = spec.run_dir
    if spec.segment is not None:
        environment["WAYFINDER_SEGMENT"] = json.dumps(asdict(spec.segment))
    return environment


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a command with all that it started."""
    os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own, and was not waited for
    process.wait()


def _last_line(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:2000] if lines else ""


def _printed(line: str) -> dict[str, float]:
    """Return the numbers in a line of JSON; none where it is anything else."""
    try:
        told_values = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(told_values, dict) or not all(map(is_number, told_values.values())):
        return {}
    return {name: float(value) for name, value in told_values.items()}


def _too_long(spec: HookSpec) -> HookFailed:
    return _failed(spec, f"took longer than --hook-timeout {spec.timeout_s:g} s")


def _failed(spec: HookSpec, what: str) -> HookFailed:
    return HookFailed(f"--{spec.moment} {spec.hook} {what}")
