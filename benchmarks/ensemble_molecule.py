"""Free energy of alanine dipeptide over phi and psi: a weighted ensemble in equilibrium mode against plain MD.

Both arms use the campaign's own integrator and system. Cells are 30 degrees wide. What they are judged by was laid
down before either arm had run with these seeds:

- Plain MD: eight trajectories, the first 0.5 ns of each left out, the rest cut into pieces of 2 ns. With other seeds
  (71 to 74) phi < 0 relaxed in some 20 ps and the one stay at phi > 0 lasted 1.3 ns: pieces are nearly independent.
- The ensemble: a real campaign, 6 x 6 rectilinear bins, 4 walkers each; the first 30 % of the iterations left out,
  the rest cut into ten blocks. Each frame counts with its walker's weight.
- A cell is well sampled if plain MD met it in at least ten of its 16 pieces (``--quick``: in all of its four).
- The interval of a difference comes from drawing pieces and blocks anew; both deviations are widened by Student's t,
  since ten blocks do not tell their own scatter well.

A weighted ensemble without target only lets the initial distribution relax, at the pace of plain MD (splitting and
merging change no mean), so what it averages over must come after the slowest relaxation that matters: its length in
*molecular* time, iterations times segment, is given beside the total. 0.8 ns do for phi < 0, and hardly for how much
weight there is at phi > 0; cells there are told apart. Neighbouring cells are correlated; that 90 % of
them agree is no test at a level of significance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
from scipy.stats import t as student

from benchmarks.campaigns import campaign
from benchmarks.harness import Figure, Session, Wanted
from campaign.iterations import Past, past
from campaign.ledger import Ledger
from campaign.settings import Settings
from tasks.coordinate import parse_coordinate, values
from tasks.engine import make_context
from tasks.indices import Indices
from tasks.messages import Coordinate, Dynamics
from tasks.prepared import PreparedSystem
from tasks.systems import named_system, prepare

SYSTEM: Final = "alanine-dipeptide"
CELL_DEG = 30
BINS = "rectilinear:-120,-60,0,60,120;-120,-60,0,60,120"
DISCARD = 0.3
N_BLOCKS = 10
WANTED = 0.90

_SEED_MD, _SEED_WE = 3001, 3101
_FRAME_PS = 0.5
_BURN_PS = 500.0
_PIECE_PS = 2000.0
_SEGMENT_PS = 10.0
_N_RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Length:
    """How much is simulated.

    Attributes
    ----------
    trajectory_ps
        Of each of the plain trajectories, with what is left out of it.
    fewest_pieces
        Of plain MD that met a cell which is well sampled.
    """

    n_trajectories: int
    trajectory_ps: float
    fewest_pieces: int
    n_iterations: int


FULL = Length(8, 4500.0, 10, 80)
QUICK = Length(4, 2500.0, 4, 15)


def figures(session: Session) -> dict[str, Figure]:
    """Return in how many of the well sampled cells both agree."""
    length = QUICK if session.quick else FULL
    pieces = plain_pieces(session, length)
    told = _ensemble(session, length)
    return agreement_figures(told, pieces, length.fewest_pieces, quick=session.quick)


def agreement_figures(
    told: Sequence[Past], pieces: np.ndarray, fewest_pieces: int, *, quick: bool = False
) -> dict[str, Figure]:
    """Return what an ensemble's iterations and pieces of plain MD, (n_pieces, n_cells), come to."""
    blocks = in_blocks(np.array([iteration_share(each) for each in told]))
    agreement = compare(blocks, pieces, fewest_pieces, np.random.default_rng(0))
    n, kept_ns = int(agreement.well.sum()), len(pieces) * _PIECE_PS / 1000
    n_segments = sum(len(each.segment_ids) for each in told)
    agree = float(np.mean(agreement.agrees[agreement.well])) if n else None
    unit = f"of {n}" + (" (quick: too short to tell)" if quick else "")
    return {
        "molecule: plain MD kept": Figure(kept_ns, None, None, "ns", None if quick else Wanted(at_least=20)),
        "molecule: ensemble, all walkers": Figure(n_segments * _SEGMENT_PS / 1000, None, None, "ns"),
        "molecule: ensemble, molecular time": Figure(len(told) * _SEGMENT_PS / 1000, None, None, "ns"),
        "molecule: well sampled cells": Figure(float(n), None, None, f"of {agreement.well.size}"),
        "molecule: cells that agree": Figure(agree, None, None, unit, Wanted(at_least=WANTED)),
        **_sides(agreement),
    }


@dataclass(frozen=True, slots=True)
class Agreement:
    """The ensemble's free energies less those of plain MD, for each cell, in kT.

    Attributes
    ----------
    well : ndarray of shape (n_cells,), bool
        Whether plain MD sampled it well.
    difference, low, high : ndarray of shape (n_cells,), float64
        With its 95 % interval; not finite where an arm never was.
    """

    well: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def agrees(self) -> np.ndarray:
        """Return whether the interval contains zero, shape (n_cells,), bool."""
        contains: np.ndarray = np.isfinite(self.difference) & (self.low <= 0) & (self.high >= 0)
        return contains


def cells(phi_psi: np.ndarray) -> np.ndarray:
    """Return the cell of each pair of angles.

    Parameters
    ----------
    phi_psi : ndarray of shape (..., 2)
        In degrees, from -180 to 180; both ends are the same angle.
    """
    side = 360 // CELL_DEG
    each = np.floor((np.asarray(phi_psi, float) + 180) / CELL_DEG).astype(np.int64) % side
    numbers: np.ndarray = each[..., 0] * side + each[..., 1]
    return numbers


def histogram(phi_psi: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the share of each cell, shape (n_cells,), float64; it sums to one.

    Parameters
    ----------
    phi_psi : ndarray of shape (n_points, 2)
    weights : ndarray of shape (n_points,), float64
        Equal by default.
    """
    share = np.bincount(cells(phi_psi), weights, minlength=(360 // CELL_DEG) ** 2).astype(float)
    normalised: np.ndarray = share / share.sum()
    return normalised


def iteration_share(told: Past) -> np.ndarray:
    """Return the share of each cell in an iteration: all points but the walkers' starts, by their weights."""
    points = told.pcoord[:, 1:]
    return histogram(points.reshape(-1, 2), np.repeat(told.iteration.weights, points.shape[1]))


def in_blocks(shares: np.ndarray, n_blocks: int = N_BLOCKS, discard: float = DISCARD) -> np.ndarray:
    """Return the means of consecutive iterations; what is left over is left out where it is oldest.

    Parameters
    ----------
    shares : ndarray of shape (n_iterations, n_cells), float64
    """
    kept = shares[math.ceil(discard * len(shares)) :]
    size = len(kept) // n_blocks
    if size == 0:
        raise ValueError(f"{len(kept)} iterations do not make {n_blocks} blocks")
    blocks: np.ndarray = kept[len(kept) - size * n_blocks :].reshape(n_blocks, size, -1).mean(axis=1)
    return blocks


def compare(blocks: np.ndarray, pieces: np.ndarray, fewest_pieces: int, rng: np.random.Generator) -> Agreement:
    """Return where an ensemble agrees with plain MD.

    Parameters
    ----------
    blocks, pieces : ndarray of shape (n, n_cells), float64
        Shares of each cell, in blocks of the ensemble and in pieces of plain MD.
    """
    ensemble, plain = blocks.mean(axis=0), pieces.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = -np.log(ensemble) + np.log(plain)
    spread = _deviations(pieces, rng) - _deviations(blocks, rng)
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    # A cell that one arm never met has no interval.
    with np.errstate(invalid="ignore"):
        return Agreement(
            np.count_nonzero(pieces, axis=0) >= fewest_pieces, difference, difference + low, difference + high
        )


def _deviations(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return how far the log of a mean is off in each draw, shape (n_draws, n_cells), widened for few blocks."""
    n, mean = len(shares), shares.mean(axis=0)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=_N_RESAMPLES)
    drawn = counts @ shares / n
    # A draw without any block that met the cell is far off, not infinitely.
    lowest = np.where(shares > 0, shares, np.inf).min(axis=0) / n / 2
    lowest[~np.isfinite(lowest)] = 1.0
    widening = float(student.ppf(0.975, n - 1)) / 1.96 * math.sqrt(n / (n - 1))
    off: np.ndarray = widening * np.log(np.maximum(drawn, lowest) / np.where(mean > 0, mean, 1.0))
    return off


def _sides(agreement: Agreement) -> dict[str, Figure]:
    """Return agreement on both sides of the slow barrier, and how far off and how wide intervals are."""
    phi = np.arange(agreement.well.size) // (360 // CELL_DEG) * CELL_DEG - 180
    told: dict[str, Figure] = {}
    for name, side in (("phi < 0", phi < 0), ("phi > 0", phi >= 0)):
        chosen = agreement.well & side
        value = float(np.mean(agreement.agrees[chosen])) if chosen.any() else None
        told[f"molecule: cells that agree, {name}"] = Figure(value, None, None, f"of {int(chosen.sum())}")
    finite = agreement.well & np.isfinite(agreement.difference)
    if finite.any():
        off, width = np.abs(agreement.difference[finite]), (agreement.high[finite] - agreement.low[finite]) / 2
        told["molecule: difference"] = Figure(float(np.median(off)), None, None, "kT, median")
        told["molecule: largest difference"] = Figure(float(off.max()), None, None, "kT")
        told["molecule: half-width"] = Figure(float(np.median(width)), None, None, "kT, median")
    return told


def plain_pieces(session: Session, length: Length) -> np.ndarray:
    """Return the shares of each piece of plain MD, which are written to the session's folder as well."""
    session.console.print(
        f"molecule: {length.n_trajectories} plain trajectories of {length.trajectory_ps / 1000:g} ns", highlight=False
    )
    seeds = range(_SEED_MD, _SEED_MD + length.n_trajectories)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        each = list(pool.map(partial(trajectory, length.trajectory_ps), seeds))
    np.save(session.folder / "reference.npy", np.stack(each))
    session.kept += 1
    return in_pieces(each)


def in_pieces(trajectories: Sequence[np.ndarray]) -> np.ndarray:
    """Return the share of each cell in each piece, shape (n_pieces, n_cells), of phi and psi along trajectories."""
    burn, size = round(_BURN_PS / _FRAME_PS), round(_PIECE_PS / _FRAME_PS)
    found = []
    for each in trajectories:
        kept = each[burn:]
        found += [histogram(kept[at : at + size]) for at in range(0, len(kept) - size + 1, size)]
    return np.array(found)


def trajectory(length_ps: float, seed: int) -> np.ndarray:
    """Return phi and psi along plain MD from the structure that campaigns begin at, (n_frames, 2), in degrees."""
    prepared, dynamics, coordinate = _setting()
    context = make_context(prepared, dynamics)
    integrator = context.getIntegrator()
    integrator.setRandomNumberSeed(seed)
    context.reinitialize(preserveState=True)  # a seed takes effect only then
    context.setVelocitiesToTemperature(dynamics.temperature_K, seed)
    indices, n_frames, at_once = Indices.from_arrays(prepared.to_arrays()), round(length_ps / _FRAME_PS), 500
    found = []
    for begin in range(0, n_frames, at_once):
        positions = []
        for _ in range(min(at_once, n_frames - begin)):
            integrator.step(dynamics.frame_steps)
            positions.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
        found.append(values(coordinate, np.array(positions, np.float32), None, indices))
    return np.concatenate(found)


def _setting() -> tuple[PreparedSystem, Dynamics, Coordinate]:
    prepared = prepare(named_system(SYSTEM))
    settings = Settings(system=SYSTEM, segment_ps=_SEGMENT_PS, frame_ps=_FRAME_PS)
    coordinate = parse_coordinate("phi-psi", prepared, latent=settings.latent, here=str(Path.cwd()))
    return prepared, settings.dynamics(prepared.platform), coordinate


def _ensemble(session: Session, length: Length) -> list[Past]:
    """Return the iterations of a campaign, each checked."""
    flags = {
        "--system": SYSTEM,
        "--policy": "weighted-ensemble",
        "--pcoord": "phi-psi",
        "--bins": BINS,
        "--walkers-per-bin": "4",
        "--segment-ps": f"{_SEGMENT_PS:g}",
        "--frame-ps": f"{_FRAME_PS:g}",
        "--simulate-workers": "2",
        "--max-iterations": str(length.n_iterations),
        "--seed": str(_SEED_WE),
    }
    session.console.print(f"molecule: an ensemble of {length.n_iterations} iterations", highlight=False)
    with campaign(session, *(word for flag in flags.items() for word in flag)) as ran:
        ledger = Ledger(ran.path / "ledger.sqlite")
        try:
            told = list(past(ledger, 0))
        finally:
            ledger.close()
    session.kept += 1
    return told
