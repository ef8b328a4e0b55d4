"""The target of a weighted ensemble: a box in the progress coordinate, read from ``--target "EXPR"``."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from tasks.errors import BadInput

_EXAMPLE = '"phi > 40 and -60 < psi < 60"'

# `a < b` read from right to left.
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}


@dataclass(frozen=True, slots=True)
class Target:
    """A box; walkers that end in it are recycled.

    Attributes
    ----------
    expression : str
        As the user wrote it.
    low, high : tuple of float, one for each dimension
        A coordinate x lies inside where ``low <= x < high``, all being float32 as WESTPA compares them; infinite
        where the box is open. ``x > 5`` and ``x <= 5`` differ by the float32 next to 5, so both are exact.
    """

    expression: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def point(self) -> tuple[float, ...]:
        """Return a point inside: what ``west.h5`` names a target state by."""
        return tuple(inside(low, high) for low, high in zip(self.low, self.high, strict=True))

    def contains(self, pcoord: np.ndarray) -> np.ndarray:
        """Return which points lie inside.

        Parameters
        ----------
        pcoord : ndarray of shape (..., n_dimensions)

        Returns
        -------
        ndarray of shape (...), bool
        """
        single, low, high = (np.asarray(each).astype(np.float32) for each in (pcoord, self.low, self.high))
        within: np.ndarray = np.all((single >= low) & (single < high), axis=-1)
        return within


def inside(low: float, high: float) -> float:
    """Return a number x of ``low <= x < high``."""
    if math.isfinite(low):
        return low
    return float(np.float32(high - max(1.0, abs(high)))) if math.isfinite(high) else 0.0


def parse_target(expression: str, names: Sequence[str]) -> Target:
    """Return the box that an expression describes; it is read, never evaluated.

    Parameters
    ----------
    expression
        Comparisons of one dimension with numbers, joined by ``and``, as in ``phi > 40 and -60 < psi < 60``.
    names
        Of the dimensions of the progress coordinate.

    Raises
    ------
    BadInput
        When it is something else, names what is no dimension, or describes an empty box.
    """
    low, high = dict.fromkeys(names, -math.inf), dict.fromkeys(names, math.inf)
    for name, operator, bound in _bounds(expression, names):
        # A half-open box of float32: beyond `>` and `<=` it begins and ends with the next number.
        edge = np.float32(bound)
        if operator in (ast.Gt, ast.LtE):
            edge = np.nextafter(edge, np.float32(np.inf))
        side, tighter = (low, max) if operator in (ast.Gt, ast.GtE) else (high, min)
        side[name] = tighter(side[name], float(edge))
    for name in names:
        if low[name] >= high[name]:
            _refuse(expression, f"nothing satisfies what it asks of {name}", "widen its bounds")
    return Target(expression, tuple(low.values()), tuple(high.values()))


def _bounds(expression: str, names: Sequence[str]) -> Iterator[tuple[str, type[ast.cmpop], float]]:
    """Yield ``(name, operator, bound)``, the name on the left."""
    for comparison in _comparisons(expression):
        operands = [comparison.left, *comparison.comparators]
        for left, operation, right in zip(operands, comparison.ops, operands[1:], strict=False):
            operator = type(operation)
            if operator not in _MIRRORED:
                _refuse(expression, f"{ast.unparse(comparison)} bounds nothing", "compare with <, <=, > or >=")
            if isinstance(right, ast.Name) and not isinstance(left, ast.Name):
                left, operator, right = right, _MIRRORED[operator], left
            if not isinstance(left, ast.Name):
                _refuse(expression, f"{ast.unparse(comparison)} names no dimension", f"name one of {_listed(names)}")
            if left.id not in names:
                _refuse(expression, f"{left.id} is no dimension", f"name one of {_listed(names)}")
            yield left.id, operator, _number(expression, right)


def _comparisons(expression: str) -> list[ast.Compare]:
    try:
        body = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        _refuse(expression, "it cannot be read", f"write comparisons joined by and, as in {_EXAMPLE}")
    joined = body.values if isinstance(body, ast.BoolOp) and isinstance(body.op, ast.And) else [body]
    comparisons = [each for each in joined if isinstance(each, ast.Compare)]
    if len(comparisons) != len(joined):
        _refuse(expression, "it is more than a box", f"write comparisons joined by and, as in {_EXAMPLE}")
    return comparisons


def _number(expression: str, node: ast.expr) -> float:
    sign, operand = 1, node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign, operand = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
    # A bool is an int, and an int can be too long for a float.
    value = operand.value if isinstance(operand, ast.Constant) else None
    if type(value) not in (int, float) or not abs(value) <= np.finfo(np.float32).max:  # type: ignore[arg-type]
        _refuse(expression, f"{ast.unparse(node)} is no finite number", "compare one dimension with numbers")
    return sign * float(value)  # type: ignore[arg-type]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _refuse(expression: str, reason: str, remedy: str) -> NoReturn:
    raise BadInput(f'--target "{expression}" cannot be used, for {reason}: {remedy}')
