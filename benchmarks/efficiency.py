"""How much of bare OpenMM's speed a campaign reaches, without learning.

A campaign (``--policy plain --infer-every 0``; ledger, checksums and traces on) and bare OpenMM loops, which write
the same frames to the same format, take turns. Two layouts: (a) one worker with a core of its own and everything else
on another; the bare loop has that core too. (b) Two workers that share two cores with everything else; two bare
loops. There are 16 walkers for each worker, so that short segments can be bundled; with two ("few walkers") each
travels alone. The rate is taken between the first and the last segment's end, so starting up does not count. Wanted
for alanine dipeptide: 0.70, 0.97, 0.98 for segments of 2, 20, 100 ps in (a), and 0.55, 0.88, 0.92 in (b). On
chignolin, with two slots on two cores as in (b), DeepDriveMD reaches 0.57 at 2 ps and 0.83 at 10 ps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.campaigns import Campaign, campaign, pin
from benchmarks.harness import ROOT, Figure, Figures, Session, Wanted, interval, run, two_cores
from campaign.settings import Settings
from tasks.messages import Dynamics
from tasks.prepared import PreparedSystem
from tasks.systems import named_system, prepare
from tasks.transport import pack


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison.

    Attributes
    ----------
    layout
        ``a``: one worker has a core of its own; ``b``: two workers share two cores with everything else.
    """

    system: str
    segment_ps: float
    layout: str
    wanted: float | None = None
    walkers_per_worker: int = 16

    @property
    def name(self) -> str:
        """As the table and ``--only`` call it."""
        few = ", few walkers" if self.walkers_per_worker == 2 else ""
        return f"{self.system} {self.segment_ps:g} ps ({self.layout}{few})"

    @property
    def n_workers(self) -> int:
        """Segments that run at once."""
        return 1 if self.layout == "a" else 2


CASES = (
    Case("alanine-dipeptide", 2, "a", 0.70),
    Case("alanine-dipeptide", 20, "a", 0.97),
    Case("alanine-dipeptide", 100, "a", 0.98),
    Case("alanine-dipeptide", 2, "b", 0.55),
    Case("alanine-dipeptide", 20, "b", 0.88),
    Case("alanine-dipeptide", 100, "b", 0.92),
    Case("alanine-dipeptide", 2, "a", walkers_per_worker=2),
    Case("alanine-dipeptide", 2, "b", walkers_per_worker=2),
    Case("chignolin", 2, "a"),
    Case("chignolin", 10, "a"),
    Case("chignolin", 2, "b"),
    Case("chignolin", 10, "b"),
)
QUICK = (CASES[0], CASES[3])


def measure(session: Session) -> Figures:
    """Return the campaign's rate over the bare one, and both rates, for each case."""
    cases: tuple[Case, ...] = QUICK if session.quick else CASES
    if session.options.only:
        cases = tuple(case for case in CASES if session.options.only in case.name)
    worker_core, other_core = two_cores()
    figures: dict[str, Figure] = {}
    for case in cases:
        # In (a) this process, too, leaves the worker alone; in (b) everything shares everything.
        os.sched_setaffinity(0, {other_core} if case.layout == "a" else {worker_core, other_core})
        figures |= _measure_case(session, case, (worker_core, other_core))
    return figures


def rate(ends: Sequence[Sequence[float]], segment_ps: float) -> float:
    """Return ps per second of several workers, in the time in which all of them are under way.

    Parameters
    ----------
    ends
        When each segment ended, of each worker; between two ends it is taken to advance evenly.
    """
    start, stop = max(each[0] for each in ends), min(each[-1] for each in ends)
    done = sum(np.diff(np.interp([start, stop], each, np.arange(len(each))))[0] for each in ends)
    return float(done * segment_ps / (stop - start))


def _measure_case(session: Session, case: Case, cores: tuple[int, int]) -> dict[str, Figure]:
    prepared = prepare(named_system(case.system))
    settings = Settings(system=case.system, segment_ps=case.segment_ps)  # type: ignore[arg-type]
    dynamics = settings.dynamics(prepared.platform)
    seconds = session.options.seconds or (6.0 if session.quick else 30.0)
    bare = partial(_bare_rate, session, prepared, dynamics, set(cores[: case.n_workers]))
    # The campaign gets as many segments as fill about the same time.
    n_segments = max(5 * case.n_workers, round(bare(2.0) * seconds / dynamics.segment_ps))
    rounds = session.rounds(
        case.name,
        {
            "campaign": lambda: _campaign_rate(session, case, dynamics, n_segments, cores),
            "bare": lambda: bare(seconds),
        },
        session.options.pairs or (2 if session.quick else 5),
    )
    wanted = None if case.wanted is None else Wanted(at_least=case.wanted)
    return {
        case.name: interval((r["campaign"] / r["bare"] for r in rounds), "of bare OpenMM", wanted),
        f"{case.name}: campaign": interval((r["campaign"] for r in rounds), "ps/s"),
        f"{case.name}: bare": interval((r["bare"] for r in rounds), "ps/s"),
    }


def _campaign_rate(
    session: Session, case: Case, dynamics: Dynamics, n_segments: int, cores: tuple[int, int]
) -> float:
    worker_core, other_core = cores
    flags = {
        "--system": case.system,
        "--policy": "plain",
        "--infer-every": "0",
        "--segment-ps": f"{case.segment_ps:g}",
        "--simulate-workers": str(case.n_workers),
        "--walkers": str(case.walkers_per_worker * case.n_workers),
        "--max-segments": str(n_segments),
    }
    words = [word for flag in flags.items() for word in flag]

    def move_workers(running: Campaign) -> None:
        for pid in running.workers("cpu"):
            pin(pid, worker_core)

    if case.layout == "a":
        ran = campaign(session, *words, cores={other_core}, watch=move_workers)
    else:
        ran = campaign(session, *words)
    with ran as done:
        return rate(_ends_by_worker(done), dynamics.segment_ps)


def _ends_by_worker(done: Campaign) -> list[list[float]]:
    ends: dict[str, list[float]] = {}
    for record in done.trace("simulate"):
        ends.setdefault(record["worker_info"]["PARSL_WORKER_RANK"], []).append(record["timestamp"]["compute_ended"])
    return [sorted(each) for each in ends.values()]


def _bare_rate(
    session: Session, prepared: PreparedSystem, dynamics: Dynamics, cores: set[int], seconds: float
) -> float:
    """Return ps per second of loops that run at once, as many as cores; they share these."""
    system = session.folder / f"{prepared.digest[:12]}.system"
    system.write_bytes(pack(prepared.to_arrays()))
    outputs = [session.folder / f"bare-{number}.dcd" for number in range(len(cores))]
    loops = [_start_loop(system, dynamics, seconds, output, cores) for output in outputs]
    try:
        ends = [json.loads(loop.communicate()[0]) for loop in loops]
    finally:
        for loop in loops:
            with suppress(ProcessLookupError):
                loop.kill()
    for output in outputs:
        output.unlink()
    return rate(ends, dynamics.segment_ps)


def _start_loop(
    system: Path, dynamics: Dynamics, seconds: float, output: Path, cores: set[int]
) -> subprocess.Popen[bytes]:
    words = [str(system), json.dumps(asdict(dynamics)), str(seconds), str(output)]
    loop = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare", *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    os.sched_setaffinity(loop.pid, cores)
    return loop


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="TEXT", help='only cases whose name holds this, as "2 ps (a)"')
    parser.add_argument("--pairs", type=int, metavar="N", help="repeats of each case (default: 5, quick 2)")
    parser.add_argument("--seconds", type=float, metavar="X", help="of dynamics in each arm (default: 30, quick 6)")


if __name__ == "__main__":
    sys.exit(run("efficiency", __doc__, measure, _options))
