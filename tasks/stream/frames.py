"""Frames for a stream when nobody brings their own, and the functions of those who do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from tasks.errors import BadInput, HookFailed
from tasks.named import NotFound, import_named, is_name, told

Generate = Callable[[int, int, int], Any]
Analyze = Callable[[np.ndarray], Any]

# Between neighbours, as of alpha carbons.
_STEP_NM = 0.38


def generate(number: int, n_atoms: int, stream: int) -> np.ndarray:
    """Return a frame of a random chain, (n_atoms, 3) float32 in nm; the same whenever it is asked for."""
    rng = np.random.default_rng([stream, number])
    steps = rng.normal(scale=_STEP_NM / np.sqrt(3), size=(n_atoms, 3))
    return np.asarray(steps.cumsum(axis=0), dtype=np.float32)


def analyze(positions: np.ndarray) -> dict[str, float]:
    """Return the radius of gyration in nm of equal masses.

    Parameters
    ----------
    positions : ndarray of shape (n_atoms, 3), float32
        In nm.
    """
    centred = positions - positions.mean(axis=0, dtype=np.float64)
    return {"radius_of_gyration_nm": float(np.sqrt((centred**2).sum(axis=1).mean()))}


def function_named(flag: str, name: str, here: str) -> Callable[..., Any]:
    """Return the function that a flag names.

    Raises
    ------
    BadInput
        When there is none.
    """
    if not is_name(name):
        raise BadInput(f"{flag} {name} names no function: write module:function")
    try:
        found = import_named(name, here)
    except NotFound as error:
        raise BadInput(f"{flag} {name} cannot be used, for {error}") from error
    if not callable(found):
        raise BadInput(f"{flag} {name} is a {type(found).__name__}, which cannot be called: name a function")
    return found  # type: ignore[no-any-return]


def generated(function: Generate, number: int, n_atoms: int, stream: int) -> dict[str, np.ndarray]:
    """Return the arrays that a function makes of a frame; a lone array is its positions.

    Raises
    ------
    HookFailed
        When it raises, or returns no arrays.
    """
    with _called(f"--generate, for frame {number}"):
        made = function(number, n_atoms, stream)
        arrays = made if isinstance(made, Mapping) else {"positions": made}
        return {str(name): np.asarray(array) for name, array in arrays.items()}


def analyzed(function: Analyze, arrays: Mapping[str, np.ndarray], number: int) -> dict[str, float]:
    """Return the numbers that a function makes of a frame's positions, or of all arrays if it has none.

    Raises
    ------
    HookFailed
        When it raises, or returns no numbers.
    """
    with _called(f"--analyze, for frame {number}"):
        made = function(arrays.get("positions", arrays))  # type: ignore[arg-type]
        values = {} if made is None else {"value": made} if isinstance(made, Real) else made
        return {str(name): float(value) for name, value in values.items()}


class _called:  # noqa: N801  # reads as a word of the with statement
    """Turn what a user's function raises, or what it returned does, into one sentence."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            raise HookFailed(f"the function of {self._what}, failed: {told(error)}") from error
