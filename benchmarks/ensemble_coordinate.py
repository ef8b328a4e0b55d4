"""Which progress coordinate serves a weighted ensemble better, a learned one or a known one, and where.

All arms of a molecule simulate equally long in all, over all walkers, with segments of 2 ps and frames every 0.5 ps;
what goes beyond with the last iteration is left out. Plain MD with four walkers is the control. Adaptive bins (MAB)
serve all ensembles alike, so that only the coordinate differs; the grid is what one chooses who knows the molecule.
The autoencoder is trained as the campaign goes, on what its walkers have seen so far; it costs CPU time of its own,
which equal simulated time does not show. Seeds were used for nothing else.

**Alanine dipeptide**, equilibrium, from one structure: phi and psi on the grid and with adaptive bins, the first two
of the eight dimensions of the embedding (the campaign's default), and an embedding of two dimensions in all. Told is

- how many cells of 15 degrees were visited, by any weight: what an ensemble is led to;
- how far free energies are from those of the molecule part's plain MD, in its well sampled cells of 30 degrees: the
  median over cells, below and above 3 kT, the first 30 % of the time left out; none to tell where half of the cells
  were never met. Equally long simulation means more molecular time for four walkers than for a hundred, so what
  relaxes slowly is not what is judged here;
- how many ensembles reached 0 < phi < 120, and the weight there in the last iteration. Without a target it is not
  a rate, and arms differ in molecular time.

**Chignolin** (CLN025), from an extended chain: RMSD of its CA atoms from the native structure against the learned
coordinates, which do not know it. Told is the nearest that an arm came to it, and how many cells of RMSD and radius
of gyration (0.05 nm) were visited. It folds in a microsecond: no arm folds it, and what is seen is collapse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import ensemble_molecule
from benchmarks.campaigns import Campaign, campaign
from benchmarks.ensemble_molecule import DISCARD, histogram
from benchmarks.harness import Figure, Session, interval
from campaign.iterations import past
from campaign.ledger import Ledger
from tasks.coordinate import parse_coordinate, values
from tasks.features import CELL_DEG
from tasks.indices import Indices
from tasks.peptides import peptide_pdb
from tasks.systems import SystemSpec, named_system, prepare

SEGMENT_PS: Final = 2.0
FRAME_PS: Final = 0.5
SEEDS: Final = tuple(range(6001, 6009))
CHIGNOLIN_SEEDS: Final = tuple(range(6101, 6105))

MOLECULES: Final = ("alanine-dipeptide", "chignolin")

# Free energies above the lowest, in kT: what plain MD meets often, and what it does not.
RARE_KT = 3.0

# Of CLN025's native state, in degrees: PDB entry 2RVD; the first phi and the last psi bend nothing.
NATIVE_PHI = (-60, -81, -111, -92, -102, -136, 80, -142, -88, -77)
NATIVE_PSI = (154, 155, 108, 4, -11, 1, 69, 132, 83, 140)

_CELL_NM = 0.05
_N_WALKERS = 4
_PLAIN = ("--policy", "plain", "--walkers", str(_N_WALKERS), "--infer-every", "0")
_ENSEMBLE = ("--policy", "weighted-ensemble", "--walkers-per-bin", "4")
_GRID = "rectilinear:-120,-60,0,60,120;-120,-60,0,60,120"
_LEARNED = ("--pcoord", "aae:0,1", "--bins", "mab:4,4")

ALANINE: Mapping[str, tuple[str, ...]] = {
    "plain": _PLAIN,
    "phi-psi, grid": (*_ENSEMBLE, "--pcoord", "phi-psi", "--bins", _GRID),
    "phi-psi": (*_ENSEMBLE, "--pcoord", "phi-psi", "--bins", "mab:4,4"),
    "learned": (*_ENSEMBLE, *_LEARNED),
    "learned, 2 of 2": (*_ENSEMBLE, *_LEARNED, "--latent", "2"),
}
# In so short a time there is room for few walkers, and the campaign's own first training would come at its half.
_FEW = ("--policy", "weighted-ensemble", "--walkers-per-bin", "2")
_LEARNED_SOON = (*_FEW, "--pcoord", "aae:0,1", "--bins", "mab:3,3", "--retrain-every", "25")
CHIGNOLIN: Mapping[str, tuple[str, ...]] = {
    "plain": _PLAIN,
    "rmsd": (*_FEW, "--pcoord", "rmsd:{native}", "--bins", "mab:9"),
    "learned": _LEARNED_SOON,
    "learned, 2 of 2": (*_LEARNED_SOON, "--latent", "2"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What the walkers of an iteration went through.

    Attributes
    ----------
    weights : ndarray of shape (n_walkers,), float64
        They sum to one.
    points : ndarray of shape (n_walkers, n_frames, n_dimensions)
        Not their starts.
    """

    weights: np.ndarray
    points: np.ndarray


def figures(session: Session) -> dict[str, Figure]:
    """Return what each coordinate was worth."""
    chosen = session.options.molecules or MOLECULES
    found: dict[str, Figure] = {}
    if "alanine-dipeptide" in chosen:
        found |= _alanine(session)
    if "chignolin" in chosen:
        found |= _chignolin(session)
    return found


# Alanine dipeptide ------------------------------------------------------------------------------------------------


def _alanine(session: Session) -> dict[str, Figure]:
    length = ensemble_molecule.QUICK if session.quick else ensemble_molecule.FULL
    reference = Reference.of(ensemble_molecule.plain_pieces(session, length), length.fewest_pieces)
    seeds, total_ps = (SEEDS[:2], 300.0) if session.quick else (SEEDS, 3000.0)
    seeds = session.options.seeds or seeds
    prepared = prepare(named_system("alanine-dipeptide"))
    coordinate = parse_coordinate("phi-psi", prepared, latent=1, here=str(Path.cwd()))
    indices = Indices.from_arrays(prepared.to_arrays())

    def look(positions: np.ndarray) -> np.ndarray:
        return values(coordinate, positions, None, indices)

    seen = _runs(session, "alanine-dipeptide", ALANINE, seeds, total_ps, look)
    return {
        f"alanine dipeptide, {arm}: {what}": figure
        for arm, runs in seen.items()
        for what, figure in alanine_figures(runs, reference).items()
    }


@dataclass(frozen=True, slots=True)
class Reference:
    """What plain MD says of the cells that it sampled well.

    Attributes
    ----------
    free : ndarray of shape (n_cells,), float64
        In kT, the lowest at zero.
    often, rarely : ndarray of shape (n_cells,), bool
        The well sampled ones below and above `RARE_KT`.
    """

    free: np.ndarray
    often: np.ndarray
    rarely: np.ndarray

    @classmethod
    def of(cls, pieces: np.ndarray, fewest_pieces: int) -> Reference:
        """Return it, of the shares of cells in pieces of plain MD, (n_pieces, n_cells)."""
        well = np.count_nonzero(pieces, axis=0) >= fewest_pieces
        with np.errstate(divide="ignore"):
            free = -np.log(pieces.mean(axis=0))
        free -= free.min()
        return cls(free, well & (free < RARE_KT), well & (free >= RARE_KT))


def alanine_figures(runs: Sequence[Sequence[Step]], reference: Reference) -> dict[str, Figure]:
    """Return what ensembles of one coordinate, of a seed each, saw of the plane of phi and psi."""
    ends = [weight_across(steps[-1]) for steps in runs]
    offs = [free_energy_off(steps, reference) for steps in runs]
    return {
        "cells": interval((visited(steps) for steps in runs), f"of {CELL_DEG} degrees"),
        "off, often met": _off([often for often, _ in offs], reference.often),
        "off, rarely met": _off([rarely for _, rarely in offs], reference.rarely),
        "reached phi > 0": Figure(
            float(sum(any(map(weight_across, steps)) for steps in runs)), None, None, _of(runs)
        ),
        "weight at phi > 0": interval(ends, "at the end"),
        "molecular time": interval((len(steps) * SEGMENT_PS for steps in runs), "ps"),
    }


def _off(each: Sequence[float], chosen: np.ndarray) -> Figure:
    unit = f"kT, {int(chosen.sum())} cells"
    return interval(each, unit) if np.isfinite(each).all() else Figure(None, None, None, unit)


def visited(steps: Sequence[Step]) -> int:
    """Return how many cells of 15 degrees any walker was in."""
    turns = [
        np.floor((step.points.reshape(-1, 2) + 180) / CELL_DEG).astype(int) % (360 // CELL_DEG) for step in steps
    ]
    return len(np.unique(np.concatenate(turns), axis=0))


def weight_across(step: Step) -> float:
    """Return the weight of the walkers that end beyond the slow barrier, where 0 < phi < 120."""
    phi = step.points[:, -1, 0]
    return float(step.weights[(phi > 0) & (phi < 120)].sum())


def free_energy_off(steps: Sequence[Step], reference: Reference) -> tuple[float, float]:
    """Return by how much free energies are off, in kT: the median over cells that are met often, and rarely.

    What is the same for all cells is no difference: their mean, over the cells that are met often, is left out.
    """
    kept = steps[math.ceil(DISCARD * len(steps)) :]
    share = np.mean([_share(step) for step in kept], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # cells that one or both never met
        off = -np.log(share) - reference.free
    shared = off[reference.often & np.isfinite(off)]
    off = np.abs(off - (shared.mean() if len(shared) else 0.0))
    return float(np.median(off[reference.often])), float(np.median(off[reference.rarely]))


def _share(step: Step) -> np.ndarray:
    n_frames = step.points.shape[1]
    return histogram(step.points.reshape(-1, 2), np.repeat(step.weights, n_frames))


# Chignolin --------------------------------------------------------------------------------------------------------


def _chignolin(session: Session) -> dict[str, Figure]:
    native = session.folder / "native.pdb"
    native.write_text(peptide_pdb("YYDPETGTWY", phi_deg=NATIVE_PHI, psi_deg=NATIVE_PSI))
    seeds, total_ps = (CHIGNOLIN_SEEDS[:1], 40.0) if session.quick else (CHIGNOLIN_SEEDS, 400.0)
    seeds = session.options.seeds or seeds
    prepared = prepare(
        SystemSpec("chignolin", sequence="YYDPETGTWY", features="name CA", target=str(native), target_flag="--pcoord")
    )
    indices = Indices.from_arrays(prepared.to_arrays())
    coordinate = parse_coordinate(f"rmsd:{native}", prepared, latent=1, here=str(Path.cwd()))

    def look(positions: np.ndarray) -> np.ndarray:
        points = indices.points(positions, None)
        spread = points - points.mean(axis=1, keepdims=True)
        gyration = np.sqrt(np.square(spread).sum(axis=2).mean(axis=1))
        return np.column_stack([values(coordinate, positions, None, indices)[:, 0], gyration])

    arms = {
        arm: (*(flag.format(native=native) for flag in flags), "--features", "name CA")
        for arm, flags in CHIGNOLIN.items()
    }
    seen = _runs(session, "chignolin", arms, seeds, total_ps, look)
    return {
        f"chignolin, {arm}: {what}": figure
        for arm, runs in seen.items()
        for what, figure in chignolin_figures(runs).items()
    }


def chignolin_figures(runs: Sequence[Sequence[Step]]) -> dict[str, Figure]:
    """Return what ensembles of one coordinate saw of RMSD and radius of gyration, in nm."""
    return {
        "nearest": interval((min(float(step.points[..., 0].min()) for step in steps) for steps in runs), "nm RMSD"),
        "cells": interval((_compact_cells(steps) for steps in runs), "of RMSD and Rg"),
        "molecular time": interval((len(steps) * SEGMENT_PS for steps in runs), "ps"),
    }


def _compact_cells(steps: Sequence[Step]) -> int:
    each = [np.floor(step.points.reshape(-1, 2) / _CELL_NM).astype(int) for step in steps]
    return len(np.unique(np.concatenate(each), axis=0))


# Campaigns --------------------------------------------------------------------------------------------------------

Look = Callable[[np.ndarray], np.ndarray]


def _runs(
    session: Session,
    system: str,
    arms: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    total_ps: float,
    look: Look,
) -> dict[str, list[list[Step]]]:
    """Return what the campaigns of each arm saw, of a seed each, in an order that alternates."""
    seen: dict[str, list[list[Step]]] = {arm: [] for arm in arms}
    for turn, seed in enumerate(seeds):
        for arm in list(arms)[:: 1 if turn % 2 == 0 else -1]:
            flags = (
                *("--system", system, "--segment-ps", f"{SEGMENT_PS:g}", "--frame-ps", f"{FRAME_PS:g}"),
                *("--simulate-workers", "2", "--max-ns", f"{total_ps / 1000:g}", "--seed", str(seed), *arms[arm]),
            )
            with campaign(session, *flags) as ran:
                steps = list(within(_steps(ran, look), total_ps))
            seen[arm].append(steps)
            session.kept += 1
            told = f"{len(steps)} iterations, {sum(len(step.weights) for step in steps)} segments"
            session.console.print(f"{system}, {arm}, seed {seed}: {told}", highlight=False)
    return seen


def within(steps: Iterator[Step], total_ps: float) -> Iterator[Step]:
    """Yield iterations as long as all walkers together have not gone on for longer."""
    simulated_ps = 0.0
    for step in steps:
        simulated_ps += len(step.weights) * SEGMENT_PS
        if simulated_ps > total_ps + SEGMENT_PS / 2:
            return
        yield step


def _steps(ran: Campaign, look: Look) -> Iterator[Step]:
    ledger = Ledger(ran.path / "ledger.sqlite")
    try:
        weighted = [(each.iteration.weights, each.segment_ids) for each in past(ledger, 0)]
        rows = ledger.select("SELECT id FROM task WHERE kind = 'simulate' AND state = 'complete' ORDER BY id")
    finally:
        ledger.close()
    for weights, segments in weighted or _in_turn([segment for (segment,) in rows]):
        yield Step(weights, np.stack([look(frames) for frames in ran.frames(segments)]))


def _in_turn(segments: Sequence[int]) -> Iterator[tuple[np.ndarray, Sequence[int]]]:
    """Yield the segments of walkers that all weigh the same, a segment of each at a time."""
    for first in range(0, len(segments) - _N_WALKERS + 1, _N_WALKERS):
        yield np.full(_N_WALKERS, 1 / _N_WALKERS), segments[first : first + _N_WALKERS]


def _of(runs: Sequence[object]) -> str:
    return f"of {len(runs)}"
