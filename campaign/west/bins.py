"""Bins of a west.h5, for WESTPA's tools, which import this module where west.cfg names it.

Imports WESTPA, so that nothing else should import it before it is needed.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from westpa.core.binning import MABBinMapper, RectilinearBinMapper, RecursiveBinMapper
from westpa.core.binning.assign import BinMapper
from westpa.tools.binning import mapper_from_hdf5

# Bins per dimension of the grid that stands for bins that move.
_FINE = 20


class StoredBins(BinMapper):
    """The bins that a west.h5 was resampled by last, as `stored_bins`; a class, as west.cfg can name no function."""

    def __new__(cls, west_data_file: str) -> Any:
        """Return a mapper of the kind that is stored, which is no instance of this class."""
        return stored_bins(west_data_file)


def stored_bins(west_data_file: str) -> Any:
    """Return the bin mapper of the last iteration, with a fixed grid in place of bins that move (MAB).

    An analysis needs bins that are the same in every iteration. The grid is laid over all that the last iteration's
    walkers visited. West.h5 holds pickles, as WESTPA has it: this, as any of its tools, is for runs that one trusts.
    """
    with h5py.File(west_data_file, "r") as file:
        current = int(file.attrs["west_current_iteration"])
        digest = file[f"iterations/iter_{current:08d}"].attrs["binhash"]
        mapper = mapper_from_hdf5(file["bin_topologies"], digest)[0]
        pcoord = file[f"iterations/iter_{max(1, current - 1):08d}/pcoord"][...]
    return _fixed(mapper, pcoord.reshape(-1, pcoord.shape[-1]))


def as_yaml(mapper: Any, west_data_file: str) -> dict[str, Any]:
    """Return how west.cfg tells the bins: grids, also one in another, by their boundaries, others by their file.

    Boundaries need no Wayfinder where the tools run.
    """
    told = _in_words(mapper)
    return told or {"type": f"{StoredBins.__module__}.StoredBins", "west_data_file": west_data_file}


def _in_words(mapper: Any) -> dict[str, Any] | None:
    if isinstance(mapper, RectilinearBinMapper):
        boundaries = [[float(x) if np.isfinite(x) else str(x) for x in axis] for axis in mapper.boundaries]
        return {"type": "RectilinearBinMapper", "boundaries": boundaries}
    if not isinstance(mapper, RecursiveBinMapper):
        return None
    base = _in_words(mapper.base_mapper)
    inner = {number: _in_words(child) for number, child in mapper._recursion_targets.items()}
    if base is None or not inner:
        return base
    mappers = [{"at": _point(mapper.base_mapper, number), **told} for number, told in inner.items() if told]
    if len(mappers) < len(inner) or "boundaries" not in base:
        return None
    return {"type": "RecursiveBinMapper", "base": base, "mappers": mappers}


def _point(grid: Any, number: int) -> list[float]:
    """Return a point in a bin of a grid: its lower edge, which belongs to it, where it has one."""
    cell = np.unravel_index(number, [len(axis) - 1 for axis in grid.boundaries])
    edges = [(float(axis[i]), float(axis[i + 1])) for axis, i in zip(grid.boundaries, cell, strict=True)]
    return [low if np.isfinite(low) else _below(high) for low, high in edges]


def _below(edge: float) -> float:
    return edge - max(1, abs(edge)) if np.isfinite(edge) else 0.0


def _fixed(mapper: Any, points: np.ndarray) -> Any:
    if isinstance(mapper, MABBinMapper):
        return RectilinearBinMapper([_grid(axis) for axis in points.T])
    if not isinstance(mapper, RecursiveBinMapper):
        return mapper
    fixed = RecursiveBinMapper(_fixed(mapper.base_mapper, points))
    for number, child in mapper._recursion_targets.items():
        fixed._recursion_map[number] = True
        fixed._recursion_targets[number] = inner = _fixed(child, points)
        fixed.nbins += inner.nbins - 1
    fixed.start_index = mapper.start_index  # numbers all bins anew
    return fixed


def _grid(values: np.ndarray) -> list[float]:
    low, high = values.min(), values.max()
    inner = np.linspace(low, high, _FINE - 1) if high > low else [low]
    return [-np.inf, *np.unique(np.asarray(inner, np.float32)).tolist(), np.inf]
