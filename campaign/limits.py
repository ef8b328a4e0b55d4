"""What ends or holds a campaign from the outside: the time that a scheduler gives it, and the room on its disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

_SCHEDULER_ANSWERS_S = 10.0


def end_of_time(walltime_min: float | None, began: float, environ: Mapping[str, str] = os.environ) -> float | None:
    """Return when the command will be ended (monotonic); None where nobody says.

    Parameters
    ----------
    walltime_min
        From the command's beginning, in minutes, as the user says.
    began
        Monotonic.
    environ
        In which a scheduler names the job that this command is.
    """
    ends = [] if walltime_min is None else [began + 60 * walltime_min]
    job_ends = _job_ends(environ)
    if job_ends is not None:
        ends.append(time.monotonic() + job_ends - time.time())
    return min(ends, default=None)


def _job_ends(environ: Mapping[str, str]) -> float | None:
    """Return when the Slurm job that this process belongs to will be ended, in UNIX seconds."""
    told = environ.get("SLURM_JOB_END_TIME", "")
    if told.isdecimal():
        return float(told)
    job = environ.get("SLURM_JOB_ID", "")
    if not job.isdecimal():
        return None
    # Versions of Slurm before 23.02 do not say it in the environment.
    asked = ["squeue", "--noheader", "--job", job, "--format", "%e"]
    try:
        answer = subprocess.run(
            asked, capture_output=True, text=True, timeout=_SCHEDULER_ANSWERS_S, check=True
        ).stdout
        return datetime.fromisoformat(answer.strip()).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def too_full(folders: Iterable[Path], min_free_bytes: int) -> str | None:
    """Return a sentence on the first disk that has less free than asked for; None where all have enough."""
    for folder in folders:
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            continue  # of a store that is gone; whoever writes there will tell
        if free < min_free_bytes:
            return (
                f"the disk of {folder} has {free / 1e6:.0f} MB free, and --min-free-mb asks for "
                f"{min_free_bytes / 1e6:.0f}"
            )
    return None
