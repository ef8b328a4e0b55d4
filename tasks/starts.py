"""Structures for walkers to begin at: read, checked against the system, put together and minimised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openmm
from openmm import unit

from tasks.errors import BadInput
from tasks.inputs import Molecule
from tasks.minimise import minimise
from tasks.periodic import bond_tree, make_whole
from tasks.structures import read_structure

_CALLED = {"--start": "starting structure", "--basis-states": "basis state"}


@dataclass(frozen=True, slots=True, eq=False)
class Starts:
    """What `tasks.prepared.PreparedSystem` has of them under ``start_...``; nothing where there are none."""

    positions: np.ndarray | None = None
    boxes: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    probabilities: np.ndarray | None = None


def read_starts(
    paths: list[Path],
    molecule: Molecule,
    flag: Literal["--start", "--basis-states"],
    *,
    max_steps: int,
    probabilities: np.ndarray | None = None,
) -> Starts:
    """Return structures of files, each with every atom of the molecule, minimised by at most so many steps.

    Raises
    ------
    BadInput
        When a file cannot be read or simulated, or holds other atoms; it names the file.
    """
    tree = bond_tree(len(molecule.positions), bonds_of(molecule))
    names = [atom.name for atom in molecule.topology.atoms()]
    starts, boxes = [], []
    for path in paths:
        positions, box = read_structure(path, names, flag)
        source = f"{_CALLED[flag]} {path}"
        if molecule.box is not None:
            box = molecule.box if box is None else box
            check_box(molecule.system, box, source)
            positions = make_whole(positions[None], box[None], tree)[0]
            boxes.append(box)
        starts.append(minimise(molecule.system, positions, source, box, max_steps=max_steps))
    return Starts(
        np.stack(starts), np.stack(boxes) if boxes else None, tuple(path.name for path in paths), probabilities
    )


def check_box(system: Any, box: np.ndarray, source: str) -> None:
    """Refuse a box in which an atom would meet itself within the cutoff."""
    cutoffs = [
        force.getCutoffDistance().value_in_unit(unit.nanometer)
        for force in system.getForces()
        if isinstance(force, openmm.NonbondedForce) and force.usesPeriodicBoundaryConditions()
    ]
    width = float(box.diagonal().min())
    if cutoffs and width < 2 * max(cutoffs):
        raise BadInput(
            f"{source} has a box {width:.3g} nm wide, less than twice the cutoff of {max(cutoffs):g} nm: "
            "take a larger box (--padding-nm where water is added)"
        )


def bonds_of(molecule: Molecule) -> Iterator[tuple[int, int]]:
    """Yield pairs of atoms that hang together, as the topology or the force field says: neither need say all."""
    for one, other in molecule.topology.bonds():
        yield one.index, other.index
    for i in range(molecule.system.getNumConstraints()):
        one, other, _ = molecule.system.getConstraintParameters(i)
        yield one, other
    for force in molecule.system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for i in range(force.getNumBonds()):
                one, other, _, _ = force.getBondParameters(i)
                yield one, other
