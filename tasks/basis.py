"""Basis states: the structures in a folder, each with the probability that a walker begins there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tasks.errors import BadInput
from tasks.reading import said_of

# WESTPA's own list of basis states.
LIST = "bstates.txt"

_FLAG = "--basis-states"


def read_basis_states(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Return the files of basis states, and the probability of each.

    They are those that the folder's ``bstates.txt`` lists, as WESTPA reads it (label, probability and file on a line,
    ``#`` begins a comment), in its order; without one all files in order of their names, hidden ones left out, each
    as probable as any other. Probabilities are divided by their sum.

    Returns
    -------
    list of Path, ndarray of shape (n_states,), float64

    Raises
    ------
    BadInput
        When there is no such folder, no state in it, or a line that says something else.
    """
    with said_of(f"{_FLAG} {folder}", "give a folder of PDB files or OpenMM's States"):
        found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    listed = folder / LIST
    if listed in found:
        paths, told = _read_list(listed)
    else:
        paths, told = found, [1.0] * len(found)
    if not paths:
        raise BadInput(f"{_FLAG} {folder} is a folder without basis states: put PDB files or OpenMM's States into it")
    probabilities = np.array(told)
    return paths, probabilities / probabilities.sum()


def _read_list(path: Path) -> tuple[list[Path], list[float]]:
    with said_of(f"{_FLAG} {path}", "give a text file"):
        lines = path.read_text(encoding="utf-8").splitlines()
    paths: list[Path] = []
    probabilities: list[float] = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{_FLAG} {path}, line {number}"
        if len(words) != 3:
            raise BadInput(f"{where} has {len(words)} words: give a label, a probability and a file")
        paths.append(_listed_file(where, path.parent / words[2]))
        probabilities.append(_probability(where, words[1]))
    return paths, probabilities


def _listed_file(where: str, path: Path) -> Path:
    if not path.is_file():
        raise BadInput(f"{where} names {path}, which is no file: put it there, or remove the line")
    return path


def _probability(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{where} has probability {text}: give a number above 0, or remove the line")
    return value
