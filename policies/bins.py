"""The bins of a weighted ensemble as ``--bins`` names them; `policies.mappers` makes WESTPA's mapper of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from policies.target import Target
from tasks.errors import BadInput

# WESTPA numbers bins with 16 bits, the last number standing for none.
MOST_BINS = 65_535

_FORMS = "rectilinear:E0,E1,...[;E0,E1,...], mab:N[,N] or voronoi:N"


@dataclass(frozen=True, slots=True)
class Rectilinear:
    """A grid.

    Attributes
    ----------
    edges : tuple of tuple of float
        For each dimension, rising from -inf to inf.
    """

    edges: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Bins that follow the walkers (minimal adaptive binning, https://doi.org/10.1021/acs.jpca.0c10724).

    Attributes
    ----------
    n : tuple of int
        Bins between the first and the last walker, for each dimension; WESTPA adds bins of their own for both, and
        for the walkers before bottlenecks.
    """

    n: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Voronoi:
    """Cells of ``n`` centres, which are chosen from coordinates that were reached."""

    n: int


Bins = Rectilinear | Adaptive | Voronoi


def parse_bins(text: str, names: Sequence[str]) -> Bins:
    """Return the bins that ``--bins`` names.

    Parameters
    ----------
    text
        ``rectilinear:E0,E1,...[;E0,E1,...]``, ``mab:N[,N]`` or ``voronoi:N``.
    names
        Of the dimensions of the progress coordinate.

    Raises
    ------
    BadInput
        When it cannot be read, has other dimensions, or edges that do not rise.
    """
    kind, colon, values = (part.strip() for part in text.partition(":"))
    if not colon or kind not in ("rectilinear", "mab", "voronoi"):
        _refuse(text, "it is none of the kinds there are", f"write {_FORMS}")
    if kind == "voronoi":
        return Voronoi(_count(text, values))
    each = values.split(";" if kind == "rectilinear" else ",")
    if len(each) != len(names):
        _refuse(
            text,
            f"it has {len(each)} dimension{'s' * (len(each) != 1)} and the progress coordinate {len(names)}",
            f"give {'edges' if kind == 'rectilinear' else 'a number'} for each of {', '.join(names)}",
        )
    if kind == "mab":
        return Adaptive(tuple(_count(text, n) for n in each))
    grid = Rectilinear(tuple(_edges(text, name, edges) for name, edges in zip(names, each, strict=True)))
    if (n_bins := math.prod(len(edges) - 1 for edges in grid.edges)) > MOST_BINS:
        _refuse(text, f"it makes {n_bins} bins", f"give edges for at most {MOST_BINS}")
    return grid


def outside(bins: Bins, target: Target, names: Sequence[str]) -> str | None:
    """Return a warning where the target lies so far from the grid that nothing leads walkers there; None if not.

    The way to a target beyond the outermost edge lies in one open bin, which may be as long as the bin beside it.
    """
    if not isinstance(bins, Rectilinear):
        return None
    for name, edges, low, high in zip(names, bins.edges, target.low, target.high, strict=True):
        finite = [edge for edge in edges if math.isfinite(edge)]
        if not finite:
            continue
        first, last = (finite[1] - finite[0], finite[-1] - finite[-2]) if len(finite) > 1 else (0.0, 0.0)
        if low - finite[-1] > last or finite[0] - high > first:
            return (
                f'--target "{target.expression}" lies outside the bins of {name}, which end at {finite[0]:g} and '
                f"{finite[-1]:g}: walkers are not led there; add edges up to it"
            )
    return None


def _edges(text: str, name: str, values: str) -> tuple[float, ...]:
    try:
        given = [float(value) for value in values.split(",")]
    except ValueError:
        _refuse(text, f"the edges of {name} are no numbers", "give numbers, -inf or inf")
    if any(math.isnan(edge) for edge in given):
        _refuse(text, f"an edge of {name} is nan", "give numbers, -inf or inf")
    edges = [*([] if given[0] == -math.inf else [-math.inf]), *given, *([] if given[-1] == math.inf else [math.inf])]
    # WESTPA keeps edges in float32, so they must differ there.
    with np.errstate(over="ignore"):
        single = np.array(edges, np.float32).tolist()
    for (left, right), (below, above) in zip(itertools.pairwise(edges), itertools.pairwise(single), strict=True):
        if not below < above:
            _refuse(text, f"bins of {name} overlap ({left:g} comes before {right:g})", "give rising edges")
    return tuple(edges)


def _count(text: str, value: str) -> int:
    try:
        n = int(value)
    except ValueError:
        n = 0
    if not 1 <= n <= MOST_BINS:
        _refuse(text, f"{value.strip() or 'nothing'} is no number of bins", f"give one from 1 to {MOST_BINS}")
    return n


def _refuse(text: str, reason: str, remedy: str) -> NoReturn:
    raise BadInput(f"--bins {text} cannot be used, for {reason}: {remedy}")
