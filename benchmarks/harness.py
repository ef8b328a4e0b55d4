"""What all benchmarks share: arguments, repeats that alternate what is compared, intervals, table and JSON file.

A benchmark is a function from a `Session` to named figures::

    if __name__ == "__main__":
        sys.exit(run("transport", __doc__, measure))
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from benchmarks.load import MARK, Load
from campaign.processes import RUN_VARIABLE, new_run_id
from campaign.rundir import host_info
from tasks.errors import BadInput

ROOT = Path(__file__).parents[1]

# Exit code where nothing could be measured for what the command line said, as of run.py.
BAD_INPUT = 2

# A repeat does not count if others took more of the CPU than this.
MOST_OF_OTHERS = 0.10

_N_RESAMPLES = 10_000

# A Unix socket's path has 107 characters at most; multiprocessing appends 32.
_LONGEST_FOLDER = 75

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The mark that a figure is to reach.

    Attributes
    ----------
    low_above
        The lower end of the 95 % interval must lie above this.
    """

    at_least: float | None = None
    at_most: float | None = None
    low_above: float | None = None

    def __str__(self) -> str:
        marks = ((">=", self.at_least), ("<=", self.at_most), ("low >", self.low_above))
        return ", ".join(f"{sign} {mark:g}" for sign, mark in marks if mark is not None)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure, its 95 % interval, and what is wanted of it; None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None
    unit: str
    wanted: Wanted | None = None

    @property
    def ok(self) -> bool | None:
        """Whether the mark is reached (not if nothing was measured); None where there is no mark."""
        if self.wanted is None:
            return None
        return (
            self.value is not None
            and (self.wanted.at_least is None or self.value >= self.wanted.at_least)
            and (self.wanted.at_most is None or self.value <= self.wanted.at_most)
            and (self.wanted.low_above is None or (self.low is not None and self.low > self.wanted.low_above))
        )

    def as_dict(self) -> dict[str, float | str | bool | None]:
        """Return what the JSON file holds."""
        wanted = None if self.wanted is None else str(self.wanted)
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "wanted": wanted,
            "ok": self.ok,
        }


Figures = Mapping[str, Figure]


def interval(values: Iterable[float], unit: str, wanted: Wanted | None = None) -> Figure:
    """Return the mean of repeats with its 95 % interval, by bootstrap over the repeats.

    One repeat has no interval, none no value. Resampling is seeded: equal repeats give an equal interval.
    """
    repeats = np.array(list(values), dtype=float)
    if len(repeats) == 0:
        return Figure(None, None, None, unit, wanted)
    mean = float(repeats.mean())
    if len(repeats) == 1:
        return Figure(mean, None, None, unit, wanted)
    drawn = np.random.default_rng(0).choice(repeats, size=(_N_RESAMPLES, len(repeats)))
    low, high = (float(bound) for bound in np.quantile(drawn.mean(axis=1), [0.025, 0.975]))
    return Figure(mean, low, high, unit, wanted)


@dataclass(slots=True)
class Session:
    """One run of a benchmark.

    Attributes
    ----------
    folder
        For whatever it writes; removed at its end.
    mark
        In the environment of all its processes.
    kept, discarded
        Repeats that counted, and those in which other processes took too much of the CPU.
    """

    options: argparse.Namespace
    folder: Path
    mark: str
    kept: int = 0
    discarded: int = 0
    console: Console = field(default_factory=lambda: Console(stderr=True))

    @property
    def quick(self) -> bool:
        """Whether a few minutes must be enough."""
        return bool(self.options.quick)

    def measured(self, what: str, measure: Callable[[], T]) -> T | None:
        """Return a repeat, or None if others took too much of the CPU while it ran."""
        began = time.monotonic()
        with Load(self.mark) as load:
            result = measure()
        keep = load.others <= MOST_OF_OTHERS or self.options.keep_busy
        self.kept += keep
        self.discarded += not keep
        told = f"{what}: {time.monotonic() - began:.1f} s, others took {100 * load.others:.0f} % of the CPU"
        self.console.print(told if keep else f"{told}: discarded", highlight=False)
        return result if keep else None

    def rounds(self, what: str, arms: Mapping[str, Callable[[], T]], n: int) -> list[dict[str, T]]:
        """Return up to ``n`` repeats; in each all arms run, one after the other, in alternating order.

        A repeat that is discarded is made again, but there are at most ``2 n`` tries, or ``n`` with ``--quick``.
        """
        kept: list[dict[str, T]] = []
        for attempt in range(n if self.quick else 2 * n):
            names = list(arms) if attempt % 2 == 0 else list(arms)[::-1]
            repeat = self.measured(what, partial(_each, arms, names))
            if repeat is not None:
                kept.append(repeat)
            if len(kept) == n:
                break
        return kept


Measure = Callable[[Session], Figures]
AddOptions = Callable[[argparse.ArgumentParser], None]


def run(name: str, description: str | None, measure: Measure, add_options: AddOptions | None = None) -> int:
    """Run a benchmark as a command and return its exit code."""
    _settle()
    options = parse(name, description, add_options, sys.argv[1:])
    # A SIGTERM unwinds like Ctrl-C, so that campaigns are ended and folders removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix=f"wayfinder-{name}-") as folder:
        # Worker pools that are killed leave temporary folders of their own, with sockets in them.
        os.environ["TMPDIR"] = folder
        if len(folder) > _LONGEST_FOLDER:
            raise SystemExit(f"{folder} is too long a path for sockets in it: set TMPDIR to a shorter one")
        session = Session(options, Path(folder), os.environ[MARK])
        try:
            figures = measure(session)
        except BadInput as error:
            print(f"{name}: {error}", file=sys.stderr)
            return BAD_INPUT
    return conclude(name, session, figures)


def parse(name: str, description: str | None, add_options: AddOptions | None, argv: list[str]) -> argparse.Namespace:
    """Return a benchmark's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a rough answer within 5 minutes on two cores")
    parser.add_argument("--check", action="store_true", help="exit 1 when a wanted figure is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--keep-busy",
        action="store_true",
        help="keep repeats although others used the machine (to try a benchmark out: such figures mean little)",
    )
    if add_options is not None:
        add_options(parser)
    return parser.parse_args(argv)


def conclude(name: str, session: Session, figures: Figures) -> int:
    """Print the table, write the JSON file, and return the exit code."""
    content = {
        "benchmark": name,
        "machine": machine(),
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "repeats": session.kept,
        "discarded": session.discarded,
        "figures": {label: figure.as_dict() for label, figure in figures.items()},
    }
    Console(width=None if sys.stdout.isatty() else 120).print(_table(name, session, figures))
    if session.options.json is not None:
        part = session.options.json.with_name(f".{session.options.json.name}.part")
        part.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(part, session.options.json)
    missed = any(figure.ok is False for figure in figures.values())
    return 1 if session.options.check and missed else 0


def machine() -> dict[str, Any]:
    """Return what figures must be quoted with: host, processor, cores, memory, versions."""
    return {**host_info(), "processor": _processor()}


def two_cores() -> tuple[int, int]:
    """Return two cores that this process may use."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this benchmark pins processes to two cores, and only one may be used")
    return cores[0], cores[1]


def median(values: Sequence[float]) -> float:
    """Return the median as a plain number."""
    return float(np.median(values))


def _each(arms: Mapping[str, Callable[[], T]], names: Sequence[str]) -> dict[str, T]:
    return {name: arms[name]() for name in names}


def _settle() -> None:
    """Start over with an environment fit for workers, and with a mark that tells our processes."""
    if MARK in os.environ:
        return
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.execve(
        sys.executable,
        sys.orig_argv,
        {
            **os.environ,
            **threads,
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
            # Workers import what they run from `benchmarks`, which is not installed.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            MARK: new_run_id(),
            RUN_VARIABLE: new_run_id(),  # by which workers that are not a campaign's are ended
            "SPT_NOENV": "1",
        },
    )


def _table(name: str, session: Session, figures: Figures) -> Table:
    table = Table(
        Column("figure", no_wrap=True),
        "value",
        "95 % interval",
        "unit",
        "wanted",
        "",
        title=f"{name}{' (quick)' if session.quick else ''}",
        caption=f"{session.kept} repeats, {session.discarded} more discarded: others took over 10 % of the CPU",
    )
    for label, figure in figures.items():
        ends = "" if figure.low is None else f"{figure.low:.4g} .. {figure.high:.4g}"
        verdict = {True: "ok", False: "missed", None: ""}[figure.ok]
        value = "-" if figure.value is None else f"{figure.value:.4g}"
        table.add_row(label, value, ends, figure.unit, str(figure.wanted or ""), verdict)
    return table


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
