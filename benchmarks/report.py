"""What a report costs: seconds, megabytes and memory at 100 to 100 000 segments.

Run directories are made from a real campaign of 120 segments of alanine dipeptide that learnt, told again under other
ids (`benchmarks.synthetic`), so lines and files are as in real ones. Measured is `python -m campaign.report RUN`, as
at the end of a campaign, its start included. Wanted: at most 10 s and 30 MB at 10 000 segments, and no worse than
linear above: ten times the segments take at most ten times as long.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.campaigns import campaign
from benchmarks.harness import ROOT, Figure, Figures, Session, Wanted, interval, run
from benchmarks.synthetic import grow
from campaign.report import REPORT

SIZES = (100, 1_000, 10_000, 100_000)
_QUICK_SIZES = (100, 1_000, 10_000)

_WANTED_AT = 10_000
_WANTED_S, _WANTED_MB = Wanted(at_most=10.0), Wanted(at_most=30.0)

_PATIENCE_S = 600.0

_CAMPAIGN = (
    "--max-segments",
    "120",
    "--retrain-every",
    "40",
    "--first-epochs",
    "4",
    "--epochs",
    "2",
    "--seed",
    "8001",
)

# As `python -m campaign.report`. What the system tells of a child's memory counts that of its parent before it began.
_PROGRAM = """
import sys
from campaign.report.__main__ import main
failed = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
sys.exit(failed)
"""


@dataclass(frozen=True, slots=True)
class _Cost:
    seconds: float
    megabytes: float
    memory_mb: float


def measure(session: Session) -> Figures:
    """Return what reports cost, by size."""
    sizes = session.options.sizes or (_QUICK_SIZES if session.quick else SIZES)
    runs = {}
    with campaign(session, *_CAMPAIGN) as real:
        for size in sizes:
            runs[size] = session.folder / f"grown-{size}"
            grow(real.path, runs[size], size, np.random.default_rng(size))
        arms = {str(size): partial(_report, path) for size, path in runs.items()}
        rounds = session.rounds("reports", arms, 1 if session.quick else 3)
    figures: dict[str, Figure] = {}
    for size in sizes:
        costs = [each[str(size)] for each in rounds]
        at = size == _WANTED_AT
        figures |= {
            f"{size} segments": interval((cost.seconds for cost in costs), "s", _WANTED_S if at else None),
            f"{size} segments, page": interval((cost.megabytes for cost in costs), "MB", _WANTED_MB if at else None),
            f"{size} segments, memory": interval((cost.memory_mb for cost in costs), "MB"),
        }
    for size in sizes:
        if size > _WANTED_AT and _WANTED_AT in sizes:
            ratios = (each[str(size)].seconds / each[str(_WANTED_AT)].seconds for each in rounds)
            wanted = Wanted(at_most=size / _WANTED_AT)
            figures[f"{size} / {_WANTED_AT} segments"] = interval(ratios, "ratio", wanted)
    return figures


def _report(path: Path) -> _Cost:
    began = time.perf_counter()
    made = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(path)],
        cwd=ROOT,
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_PATIENCE_S,
    )
    seconds = time.perf_counter() - began
    if made.returncode != 0:
        raise SystemExit(f"the report of {path} could not be made: {made.stdout}")
    return _Cost(seconds, (path / REPORT).stat().st_size / 1e6, int(made.stdout) / 1e3)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="segments, instead of 100 to 100 000")


if __name__ == "__main__":
    sys.exit(run("report", __doc__, measure, _options))
