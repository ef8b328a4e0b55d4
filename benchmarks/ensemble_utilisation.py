"""What the barrier of weighted ensemble costs: two workers kept busy, and what happens between two iterations.

**Barrier.** Two ensembles (``--replicas 2``) of alanine dipeptide with segments of 20 ps and phi/psi as the
coordinate, against a campaign without barriers (``--policy plain``) of as many segments, with the same frames and as
many walkers as both ensembles have in the mean; both without inference (``--infer-every 0``); alternating. Rate:
segments per second of both workers, from the first end of each to the last, so starting up does not count. Wanted:
0.95 of the plain campaign's. The bins are few (3 x 3, at most 36 walkers an ensemble), since barriers cost most where
iterations are short. On a busy machine (``--keep-busy``) two arms that follow each other do not meet the same load;
the ratio of how busy the workers were, as both summaries tell it, suffers less.

**Bookkeeping.** The campaign's own agent of ensembles and its chronicle, in one process and without queue: results of
made-up segments are handed in one by one, and of the last result of an iteration is timed what only a barrier does:
resampling, the ledger's transaction with its commit, west.h5. The coordinate has 81 points of two dimensions for each
walker, as 20 ps have. Wall time; CPU time stands beside. Sending the next segments is not in it: that is done segment
by segment in any campaign.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from agents.chronicle import Chronicle
from agents.ensemble import EnsembleWalkers
from agents.state import CampaignState, Destination, Molecule
from agents.walkers import Basis
from benchmarks.campaigns import Campaign, campaign
from benchmarks.efficiency import rate
from benchmarks.harness import Figure, Session, Wanted, interval, median
from campaign.ledger import Ledger
from campaign.method import Method
from campaign.settings import Settings
from policies import policy
from policies.bins import parse_bins
from tasks.coordinate import pack_pcoord
from tasks.messages import Coordinate, Ref, SegmentResult, SegmentSpec, StoreSpec

SEGMENT_PS = 20.0
REPLICAS = 2
BINS = "rectilinear:-100,0;-60,60"
WANTED = 0.95
N_ROUNDS = 5

# Walkers, the grid that has a fourth as many bins, and the most milliseconds of an iteration.
SIZES = ((200, (5, 10), 50.0), (2000, (20, 25), 250.0))

_SEED = 4001
_PER_BIN = 4


@dataclass(frozen=True, slots=True)
class Arm:
    """What a campaign did.

    Attributes
    ----------
    per_s
        Segments per second.
    busy
        Its own account of how busy the workers were, from 0 to 1.
    """

    per_s: float
    busy: float
    n_segments: int


@dataclass(frozen=True, slots=True)
class Spent:
    """Milliseconds of the median iteration.

    Attributes
    ----------
    west
        The part of ``wall`` that went into west.h5.
    """

    wall: float
    cpu: float
    west: float
    n_walkers: int


def figures(session: Session) -> dict[str, Figure]:
    """Return what barriers and bookkeeping cost."""
    return {**_barrier(session), **_bookkeeping(session)}


def _barrier(session: Session) -> dict[str, Figure]:
    n_iterations = 3 if session.quick else 8
    session.console.print("utilisation: an ensemble, for its number of segments", highlight=False)
    first = _ensemble(session, n_iterations)  # of equal seed, so all have as many
    n_walkers = max(2, round(first.n_segments / n_iterations))
    rounds = session.rounds(
        "utilisation",
        {
            "ensemble": partial(_ensemble, session, n_iterations),
            "plain": partial(_plain, session, n_walkers, first.n_segments),
        },
        2 if session.quick else N_ROUNDS,
    )
    return {
        "utilisation": interval(
            (each["ensemble"].per_s / each["plain"].per_s for each in rounds),
            "of no barriers",
            Wanted(at_least=WANTED),
        ),
        "utilisation: ensembles": interval((each["ensemble"].per_s for each in rounds), "segments/s"),
        "utilisation: no barriers": interval((each["plain"].per_s for each in rounds), "segments/s"),
        "utilisation: workers busy": interval(
            (each["ensemble"].busy / each["plain"].busy for each in rounds), "of no barriers"
        ),
        "utilisation: workers busy, ensembles": interval((each["ensemble"].busy for each in rounds), "of time"),
        "utilisation: workers busy, no barriers": interval((each["plain"].busy for each in rounds), "of time"),
        "utilisation: walkers": Figure(float(n_walkers), None, None, f"in {REPLICAS} ensembles"),
        "utilisation: segments": Figure(float(first.n_segments), None, None, "an arm"),
    }


_COMMON = {
    "--system": "alanine-dipeptide",
    "--segment-ps": f"{SEGMENT_PS:g}",
    "--infer-every": "0",
    "--simulate-workers": "2",
    "--seed": str(_SEED),
}


def _ensemble(session: Session, n_iterations: int) -> Arm:
    flags = {
        **_COMMON,
        "--policy": "weighted-ensemble",
        "--pcoord": "phi-psi",
        "--bins": BINS,
        "--walkers-per-bin": str(_PER_BIN),
        "--replicas": str(REPLICAS),
        "--max-iterations": str(n_iterations),
    }
    return _arm(session, flags)


def _plain(session: Session, n_walkers: int, n_segments: int) -> Arm:
    flags = {
        **_COMMON,
        "--policy": "plain",
        "--walkers": str(n_walkers),
        "--max-segments": str(n_segments),
    }
    return _arm(session, flags)


def _arm(session: Session, flags: dict[str, str]) -> Arm:
    with campaign(session, *(word for flag in flags.items() for word in flag)) as ran:
        summary = ran.summary
        (busy,) = (of["simulate"] for of in summary["worker_utilisation"].values() if "simulate" in of)
        arm = Arm(rate(ends_by_worker(ran), 1.0), float(busy), int(summary["segments"]))
    session.console.print(
        f"utilisation, {flags['--policy']}: {arm.per_s:.3g} segments/s, {arm.busy:.3f} busy", highlight=False
    )
    return arm


def ends_by_worker(ran: Campaign) -> list[list[float]]:
    """Return when the segments of each worker ended, in order."""
    ends: dict[str, list[float]] = {}
    for record in ran.trace("simulate"):
        if record["success"]:
            ends.setdefault(record["worker_info"]["PARSL_WORKER_RANK"], []).append(
                record["timestamp"]["compute_ended"]
            )
    return [sorted(each) for each in ends.values()]


def _bookkeeping(session: Session) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    n = 2 if session.quick else 5
    for n_walkers, grid, most in SIZES:
        label = f"bookkeeping of {n_walkers}"
        rounds = session.rounds(label, {"all": partial(spent, session.folder, n_walkers, grid, 8)}, n)
        each = [of["all"] for of in rounds]
        figures |= {
            label: interval((of.wall for of in each), "ms wall", Wanted(at_most=most)),
            f"{label}: CPU": interval((of.cpu for of in each), "ms CPU"),
            f"{label}: west.h5": interval((of.west for of in each), "ms wall"),
        }
    return figures


def spent(folder: Path, n_walkers: int, grid: Sequence[int], n_iterations: int) -> Spent:
    """Return what the end of an iteration of so many walkers takes.

    Parameters
    ----------
    grid
        Bins in each dimension, a fourth as many as walkers in all.
    """
    place = Path(tempfile.mkdtemp(dir=folder))
    ledger = Ledger(place / "ledger.sqlite")
    try:
        return _Ensemble(place, ledger, n_walkers, grid).spent(n_iterations)
    finally:
        ledger.close()
        shutil.rmtree(place)


class _Ensemble:
    """The campaign's ensemble without a campaign: it is told how segments ended that nobody ran."""

    def __init__(self, folder: Path, ledger: Ledger, n_walkers: int, grid: Sequence[int]) -> None:
        self.grid, self.n_walkers = grid, n_walkers
        self.rng = np.random.default_rng(_SEED)
        self.folder, self.ledger = folder, ledger
        self.n_segments = 0
        settings = Settings(
            system="alanine-dipeptide", policy="weighted-ensemble", pcoord="phi-psi", segment_ps=SEGMENT_PS,
            walkers_per_bin=_PER_BIN, seed=_SEED,
        )  # fmt: skip
        self.store = StoreSpec("inline", "inline")
        place = Destination("local", "cpu", "simulate", 2, frozenset({"inline"}), self.store, None)
        system = self._ref("system")
        self.state = CampaignState(
            settings,
            policy("plain"),
            settings.dynamics("Reference"),
            Molecule("imagined", "digest", 22, {"simulate": system, "infer": system}),
            {"simulate": place, "infer": place, "train": place},
            ledger,
            {"inline": self.store},
        )
        names = ("phi", "psi")
        edges = ";".join(",".join(f"{edge:.6g}" for edge in self._edges(n)[1:-1]) for n in grid)
        method = Method(
            Coordinate("phi-psi", names), ("start",), np.ones(1), parse_bins(f"rectilinear:{edges}", names), None,
            _PER_BIN,
        )  # fmt: skip
        self.walkers = EnsembleWalkers(self.state, Basis(self.state, system), method, lambda question: None)
        self.walkers.basis_at[0] = np.zeros((1, 2))
        self.chronicle = Chronicle(folder, self.walkers, method, lambda told: None)

    def spent(self, n_iterations: int) -> Spent:
        """Run iterations; those in which there are not all walkers yet are not counted."""
        with self.ledger.transaction():
            self.walkers.advance()
        while len(self.walkers.replicas[0].members) < self.n_walkers:
            self._iterate()
        found = [self._iterate() for _ in range(n_iterations)]
        n = len(self.walkers.replicas[0].members)
        assert n == self.n_walkers
        wall, cpu, west = zip(*found, strict=True)
        return Spent(median(wall), median(cpu), median(west), n)

    def _iterate(self) -> tuple[float, float, float]:
        """Let all walkers end; return wall and CPU milliseconds that the last took, and of these those of west.h5."""
        self.state.outbox.boundaries.clear()
        running = []
        with self.ledger.transaction():
            while self.walkers.n_idle:
                due = self.walkers.next()
                self.walkers.began(due, self.n_segments)
                running.append(self._spec(due.walker_id, due.iteration))
                self.n_segments += 1
        points = self._points(len(running))
        with self.ledger.transaction():
            for row, spec in enumerate(running[:-1]):
                self.walkers.moved(spec, self._result(spec, points[row]))
        result = self._result(running[-1], points[-1])
        began, cpu = time.monotonic(), time.process_time()
        with self.ledger.transaction():
            self.walkers.moved(running[-1], result)
            self.walkers.advance()
        committed = time.monotonic()
        self.chronicle.note(self.state.outbox.boundaries)
        ended = time.monotonic()
        return 1000 * (ended - began), 1000 * (time.process_time() - cpu), 1000 * (ended - committed)

    def _points(self, n: int) -> np.ndarray:
        """Return coordinates of walkers, (n, n_frames + 1, 2): one ends in each bin, the others anywhere."""
        n_bins = self.grid[0] * self.grid[1]
        bins = np.concatenate([np.arange(n_bins), self.rng.integers(n_bins, size=max(0, n - n_bins))])[:n]
        bins = self.rng.permutation(bins)
        where = np.column_stack(np.unravel_index(bins, tuple(self.grid)))
        width = 360 / np.array(self.grid)
        ends = -180 + (where + self.rng.uniform(0.1, 0.9, where.shape)) * width
        n_frames = self.state.dynamics.n_frames
        points = self.rng.uniform(-180, 180, (n, n_frames + 1, 2))
        points[:, -1] = ends
        return points.astype(np.float32)

    def _spec(self, row: int, iteration: int) -> SegmentSpec:
        ref = self._ref("start")
        return SegmentSpec(
            segment_id=self.n_segments, attempt=1, walker_id=row, iteration=iteration, parent_id=None,
            parent_frame=None, system=ref, system_id="digest", start=ref, start_row=0, seed=1,
            dynamics=self.state.dynamics, store=self.store, run_dir=None, coordinate=self.walkers.coordinate,
        )  # fmt: skip

    def _result(self, spec: SegmentSpec, points: np.ndarray) -> SegmentResult:
        end = self._ref(f"end-{spec.segment_id}")
        n_frames = self.state.dynamics.n_frames
        return SegmentResult(
            spec.segment_id, 1, n_frames, 22, SEGMENT_PS, 0.0, 300.0, end, end, None, {"dynamics": 0.2}, None,
            pack_pcoord(points),
        )  # fmt: skip

    def _ref(self, key: str) -> Ref:
        return Ref(self.store, (key,), 0)

    @staticmethod
    def _edges(n: int) -> np.ndarray:
        return np.linspace(-180, 180, n + 1)
