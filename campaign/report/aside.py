"""Reports at the end of campaigns, made by a process of their own: what becomes of it harms nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from campaign.report import REPORT

_ROOT = Path(__file__).parents[2]

_LOOK_EVERY_S = 0.1

# The longest that reports may take, and what each one adds.
_PATIENCE_S, _PATIENCE_EACH_S = 60.0, 120.0


def report_aside(runs: Sequence[Path], interrupted: Callable[[], bool]) -> str | None:
    """Write ``report.html`` into run directories, and return what is to be said of it; None if it was interrupted."""
    command = [sys.executable, "-m", "campaign.report", *map(str, runs)]
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        for _ in range(round((_PATIENCE_S + _PATIENCE_EACH_S * len(runs)) / _LOOK_EVERY_S)):
            try:
                told, trouble = child.communicate(timeout=_LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                if interrupted():
                    child.kill()
                    return None
        else:
            child.kill()
            return (
                f"report: not made in {_PATIENCE_S + _PATIENCE_EACH_S * len(runs):.0f} s; `python run.py report RUN`"
            )
    if child.returncode == 0:
        return "report: " + ", ".join(str(run / REPORT) for run in runs)
    if interrupted():
        return None  # the terminal told the child as well
    lines = told.splitlines() or trouble.splitlines()[-1:] or [f"its process ended ({child.returncode})"]
    return f"report: {'; '.join(lines)}"
