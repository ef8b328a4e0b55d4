"""What steering is worth: coverage of alanine dipeptide's phi/psi plane for equal simulated time.

Policies ``novelty``, ``random``, ``plain``, and ``novelty`` with principal components (``pca``); 1 ns each in
segments of 2 ps with frames every 0.25 ps, 4 walkers, each run in a fresh process, seeds 1001 to 1016, which were not
used for tuning. Segments are padded to 0.1 s in all arms, standing for a realistic engine; the unpadded ratio of
novelty stands beside. Coverage counts 15-degree cells; policy and model see no dihedral. Wanted: mean ratio
novelty / plain 1.25, its 95 % interval above 1.15; 0.9 of its segments steered.

Steered ensembles are unweighted, and the win is per simulated nanosecond: learning costs CPU time of its own.

With ``--json FILE`` each run is appended to ``FILE.runs`` as it ends. A benchmark that was stopped goes on there,
unless settings or code have changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.campaigns import campaign
from benchmarks.harness import ROOT, Figure, Figures, Session, Wanted, interval, run

ARMS: Mapping[str, tuple[str, ...]] = {
    "plain": ("--policy", "plain"),
    "novelty": ("--policy", "novelty"),
    "random": ("--policy", "random"),
    "pca": ("--policy", "novelty", "--embedding", "pca"),
}
PADDED = ("--min-segment-seconds", "0.1")
SEEDS = tuple(range(1001, 1017))

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One campaign.

    Attributes
    ----------
    command
        Its flags.
    code
        Digest of the program that ran.
    keep_busy
        Made with ``--keep-busy``, so others may have used the machine.
    """

    arm: str
    padded: bool
    seed: int
    command: str
    code: str
    keep_busy: bool
    coverage: float
    steered_fraction: float


def measure(session: Session) -> Figures:
    """Return ratios of coverage to plain MD over seeds, and the fractions of segments steered."""
    arms = session.options.arms or list(ARMS)
    seeds = session.options.seeds or (SEEDS[:2] if session.quick else SEEDS)
    journal = Journal(session.options.json)
    runs = [
        found
        for turn, seed in enumerate(seeds)
        for arm, padded in _in_turn(arms, turn)
        if (found := _run(session, journal, arm, padded, seed)) is not None
    ]
    return figures_of(runs, arms)


def figures_of(runs: Sequence[Run], arms: Sequence[str]) -> dict[str, Figure]:
    """Return the figures of finished runs; only seeds of which both arms are there make a ratio."""
    cells = {(each.arm, each.padded, each.seed): each for each in runs}
    figures: dict[str, Figure] = {}
    for padded, label in ((True, ""), (False, ", not padded")):
        for arm in arms if padded else _unpadded(arms):
            done = [each for each in runs if (each.arm, each.padded) == (arm, padded)]
            figures[f"{arm}{label}: cells"] = interval((each.coverage for each in done), "cells")
            if arm == "plain":
                continue
            pairs = [(each, cells[key]) for each in done if (key := ("plain", padded, each.seed)) in cells]
            main = arm == "novelty" and padded
            figures[f"{arm} / plain{label}"] = interval(
                (steered.coverage / plain.coverage for steered, plain in pairs),
                "ratio",
                Wanted(at_least=1.25, low_above=1.15) if main else None,
            )
            figures[f"{arm}{label}: segments steered"] = interval(
                (each.steered_fraction for each in done), "of all", Wanted(at_least=0.9) if main else None
            )
    return figures


class Journal:
    """Runs that are done, one JSON line each, in a file beside the figures; nothing is kept without one."""

    def __init__(self, figures: Path | None) -> None:
        self._path = None if figures is None else figures.with_name(f"{figures.name}.runs")
        self._runs: list[Run] = []
        if self._path is not None and self._path.exists():
            self._runs = [Run(**json.loads(line)) for line in self._path.read_text().splitlines()]

    def find(self, command: str, code: str, keep_busy: bool) -> Run | None:
        """Return the run of these flags, if it was done by this code (and on an idle machine if that matters)."""
        for done in self._runs:
            if (done.command, done.code) == (command, code) and (keep_busy or not done.keep_busy):
                return done
        return None

    def add(self, done: Run) -> None:
        """Append a run."""
        self._runs.append(done)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(done)) + "\n")


def code_digest() -> str:
    """Return the digest of the program's source, so that runs of another one are not taken for its own."""
    digest = hashlib.sha256()
    packages = (path for name in ("agents", "campaign", "sites", "tasks") for path in (ROOT / name).rglob("*.py"))
    for path in sorted([ROOT / "run.py", ROOT / "config.py", *packages]):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _in_turn(arms: Sequence[str], turn: int) -> list[tuple[str, bool]]:
    """Return the runs of a seed (arm, padded), in an order that alternates."""
    runs = [(arm, True) for arm in arms] + [(arm, False) for arm in _unpadded(arms)]
    return runs if turn % 2 == 0 else runs[::-1]


def _unpadded(arms: Sequence[str]) -> list[str]:
    return [arm for arm in arms if arm in ("plain", "novelty")]


def _run(session: Session, journal: Journal, arm: str, padded: bool, seed: int) -> Run | None:
    """Return a run, made now or found in the journal; None if others used the machine too much each time."""
    flags = [
        *("--system", "alanine-dipeptide", "--segment-ps", "2", "--frame-ps", "0.25", "--walkers", "4"),
        *("--max-ns", f"{session.options.ns or (0.1 if session.quick else 1.0):g}", "--seed", str(seed)),
        *ARMS[arm],
        *(PADDED if padded else ()),
    ]
    command, code, keep_busy = " ".join(flags), code_digest(), session.options.keep_busy
    if (found := journal.find(command, code, keep_busy)) is not None:
        session.kept += 1
        return found

    def one() -> Run:
        with campaign(session, *flags) as ran:
            summary = ran.summary
        coverage, steered = summary["coverage"]["value"], summary["steered_fraction"]
        return Run(arm, padded, seed, command, code, keep_busy, coverage, steered)

    for _ in range(1 if session.quick else _TRIES):
        made = session.measured(f"{arm}, seed {seed}{'' if padded else ', not padded'}", one)
        if made is not None:
            journal.add(made)
            return made
    return None


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="instead of 1001 to 1016 (quick: two)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="only these (plain belongs to any ratio)")
    parser.add_argument("--ns", type=float, metavar="X", help="simulated time of each run (default: 1, quick 0.1)")


if __name__ == "__main__":
    sys.exit(run("sampling", __doc__, measure, _options))
