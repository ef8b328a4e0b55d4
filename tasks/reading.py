"""Structure files by MDAnalysis, and what readers raise as sentences; OpenMM is not needed."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import BadInput

# What readers raise for a file that is not what its name says: they do not check, they stumble.
STUMBLES: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def said_of(file: str, remedy: str, stumbles: tuple[type[Exception], ...] = STUMBLES) -> Iterator[None]:
    """Turn what a reader raises into a sentence on its file."""
    try:
        yield
    except stumbles as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise BadInput(f"{file} cannot be used ({reason[:200] or type(error).__name__}): {remedy}") from error


@contextmanager
def reading(said: str, remedy: str = "give a structure file such as PDB or GRO") -> Iterator[None]:
    """Turn what MDAnalysis raises into a sentence on a structure file, and hear no warnings."""
    with said_of(said, remedy), warnings.catch_warnings():
        # Of what a structure file leaves out, and we do not need.
        warnings.simplefilter("ignore")
        yield


def open_atoms(path: Path) -> Any:
    """Return the atoms of a structure file as MDAnalysis has them; within `reading`."""
    import MDAnalysis

    require_file(path)
    return MDAnalysis.Universe(str(path)).atoms


def require_file(path: Path) -> None:
    """Raise what opening a file would, where there is none: MDAnalysis says it in its own ways."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def box_around(atoms: Any) -> np.ndarray | None:
    """Return the box (3, 3) of MDAnalysis' atoms in nm, float64; None where they have none."""
    from MDAnalysis.lib.mdamath import triclinic_vectors

    # GROMACS writes zeros where there is no box.
    if atoms.dimensions is None or not np.all(atoms.dimensions[:3] > 0):
        return None
    return np.asarray(triclinic_vectors(atoms.dimensions), dtype=np.float64) / 10
