"""Structures to start from: files of many programs, and OpenMM's States."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import openmm

from tasks.engine import box_of, positions_of
from tasks.errors import BadInput
from tasks.inputs import said_of
from tasks.reading import box_around, open_atoms, reading


def structure_files(paths: Iterable[str]) -> list[Path]:
    """Return the files that paths name, a folder standing for those in it by name, hidden ones left out.

    Raises
    ------
    BadInput
        For a folder without files.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(filter(_is_seen, path.iterdir())) if path.is_dir() else [path]
        if not inside:
            raise BadInput(f"--start {path} is a folder without files: put starting structures into it")
        found += inside
    return found


def _is_seen(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def read_structure(path: Path, names: list[str], flag: str = "--start") -> tuple[np.ndarray, np.ndarray | None]:
    """Return the positions (n_atoms, 3) and any box (3, 3) of a structure, float64 in nm.

    A file ``.xml`` is a State that OpenMM serialised; all others are MDAnalysis' business.

    Parameters
    ----------
    names
        Of the atoms that it must hold, in their order. A State has no names.
    flag
        How messages say where the file is named.

    Raises
    ------
    BadInput
        When the file cannot be read or holds other atoms.
    """
    said = f"{flag} {path}"
    positions, box, named = _read_state(path, said) if path.suffix == ".xml" else _read_by_mdanalysis(path, said)
    if len(positions) != len(names):
        raise BadInput(
            f"{said} has {len(positions)} atoms and the system {len(names)}: "
            "give structures with every atom of the system, hydrogens and water too"
        )
    theirs = names if named is None else named
    wrong = next((i for i, (here, there) in enumerate(zip(names, theirs, strict=True)) if here != there), None)
    if wrong is not None:
        raise BadInput(
            f"{said} has {theirs[wrong]} as atom {wrong + 1} where the system has {names[wrong]}: "
            "give structures whose atoms are in the system's order"
        )
    if not np.isfinite(positions).all():
        raise BadInput(f"{said} holds coordinates that are no numbers: write it again")
    return positions, box


def _read_state(path: Path, said: str) -> tuple[np.ndarray, np.ndarray, None]:
    """Return positions and box of a State, which knows no names."""
    with said_of(said, "give a State with positions that openmm.XmlSerializer wrote"):
        state = openmm.XmlSerializer.deserialize(path.read_text(encoding="utf-8"))
        return positions_of(state), box_of(state), None


def _read_by_mdanalysis(path: Path, said: str) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Return positions, any box, and the atoms' names."""
    with reading(said):
        atoms = open_atoms(path)
        return atoms.positions.astype(np.float64) / 10, box_around(atoms), [str(name) for name in atoms.names]
