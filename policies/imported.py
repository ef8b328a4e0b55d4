"""A policy that the user wrote, named as ``module:Policy``: checked when it is imported, and whenever it chooses."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.protocol import Policy, PolicyFailed
from tasks.errors import BadInput
from tasks.messages import Candidates
from tasks.named import NotFound, import_named, told

# The target that `nearest` needs belongs to `rmsd:FILE`.
_CANDIDATES = ("novel", "uniform", "none")

_REMEDY = "a policy has candidates, learns and choose(scores, used, rng), as CONTRIBUTING.md shows"


@dataclass(frozen=True, slots=True)
class Imported:
    """A user's policy, whose mistakes become `PolicyFailed` with its name."""

    name: str
    theirs: Policy

    @property
    def candidates(self) -> Candidates:
        """Return which frames it wants offered."""
        return self.theirs.candidates

    @property
    def learns(self) -> bool:
        """Return whether it needs a model."""
        return self.theirs.learns

    def choose(self, scores: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> int | None:
        """Return the row it chooses, or None.

        Raises
        ------
        PolicyFailed
            When it raises, or returns what is no row.
        """
        try:
            row = self.theirs.choose(scores, used, rng)
        except Exception as error:
            raise PolicyFailed(
                f"--policy {self.name} raised {type(error).__name__}: {error}; runtime.log has its traceback"
            ) from error
        if row is None:
            return None
        if not isinstance(row, int | np.integer) or isinstance(row, bool) or not 0 <= row < len(scores):
            raise PolicyFailed(
                f"--policy {self.name} chose {row!r} of {len(scores)} candidates: return the row of one, or None"
            )
        return int(row)


def import_policy(name: str) -> Imported:
    """Return the policy that ``module:Policy`` names, a class (made without arguments) or an instance.

    The current directory is importable, after everything else.

    Raises
    ------
    BadInput
        When it cannot be imported or made, or is no policy.
    """
    try:
        found = import_named(name, str(Path.cwd()))
    except NotFound as error:
        raise _refusal(name, error.reason, error.remedy) from error
    try:
        theirs = found() if isinstance(found, type) else found
    except Exception as error:
        raise _refusal(name, f"{told(error)} when it was made without arguments", _REMEDY) from error
    _check(name, theirs)
    return Imported(name, theirs)


def _check(name: str, theirs: Any) -> None:
    for attribute in ("candidates", "learns", "choose"):
        if not hasattr(theirs, attribute):
            raise _refusal(name, f"it has no {attribute}", _REMEDY)
    if theirs.candidates not in _CANDIDATES:
        raise _refusal(name, f"its candidates are {theirs.candidates!r}", f"give one of {', '.join(_CANDIDATES)}")
    if not isinstance(theirs.learns, bool):
        raise _refusal(name, f"its learns is {theirs.learns!r}", "give True or False")
    if theirs.candidates == "novel" and not theirs.learns:
        raise _refusal(name, "no frame is novel without a model", "let learns be True, or ask for uniform candidates")
    try:
        inspect.signature(theirs.choose).bind("scores", "used", "rng")
    except (TypeError, ValueError) as error:
        raise _refusal(name, f"its choose does not take three arguments ({error})", _REMEDY) from error


def _refusal(name: str, reason: str, remedy: str) -> BadInput:
    return BadInput(f"--policy {name} cannot be used, for {reason}: {remedy}")
