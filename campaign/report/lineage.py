"""The tree of segments: which began where, laid out to be drawn, thinned where there are too many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

# More are not told apart on a screen.
_MOST_SHOWN = 800


@dataclass(frozen=True, slots=True)
class Tree:
    """Segments to draw.

    Attributes
    ----------
    nodes
        Index ``segment_id``: ``depth_ps`` (time since its basis state, at its end), ``row`` (where to draw it), and
        ``parent`` (the nearest ancestor that is drawn; -1 for none).
    n_segments
        Of the campaign.
    longest_ps
        Of the lineages, in ps.
    """

    nodes: pd.DataFrame
    n_segments: int
    longest_ps: float

    @property
    def is_whole(self) -> bool:
        """Whether each segment is drawn."""
        return len(self.nodes) == self.n_segments


def tree_of(segments: pd.DataFrame, rng: np.random.Generator, most: int = _MOST_SHOWN) -> Tree:
    """Return the tree of segments.

    Where there are more than ``most``, leaves drawn at random, and of their ancestors those from which several come.

    Parameters
    ----------
    segments
        As `campaign.trace.Run.segments`.
    """
    ids = np.sort(segments.index.to_numpy(dtype=np.int64))
    parents = _rows_of_parents(segments.parent_id.reindex(ids), ids)
    depth = _depths(parents, segments.reindex(ids))
    if len(ids) > most:
        shown = _thinned(parents, rng, most)
        parents_shown = _nearest_shown(parents, shown)
    else:
        shown, parents_shown = np.ones(len(ids), bool), parents
    rows = _laid_out(parents_shown, shown)
    nodes = pd.DataFrame(
        {
            "depth_ps": depth[shown],
            "row": rows[shown],
            "parent": np.where(parents_shown[shown] >= 0, ids[parents_shown[shown]], -1),
        },
        index=pd.Index(ids[shown], name="segment_id"),
    )
    return Tree(nodes, len(ids), float(depth.max(initial=0.0)))


def _rows_of_parents(parent_ids: pd.Series, ids: np.ndarray) -> np.ndarray:
    """Return the row of each segment's parent, which has a smaller id; -1 where there is none."""
    wanted = parent_ids.fillna(-1).to_numpy(dtype=np.int64)
    rows = np.searchsorted(ids, wanted)
    found = (wanted >= 0) & (rows < len(ids)) & (ids[np.minimum(rows, len(ids) - 1)] == wanted) if len(ids) else rows
    return np.where(found, rows, -1)


def _depths(parents: np.ndarray, segments: pd.DataFrame) -> np.ndarray:
    """Return the time from its basis state to the end of each segment, which may begin before its parent's end."""
    lengths = segments.simulated_ps.to_numpy(dtype=np.float64)
    frame = segments.parent_frame.fillna(0).to_numpy(dtype=np.float64)
    n_frames = np.maximum(segments.n_frames.to_numpy(dtype=np.float64), 1.0)
    begun = np.zeros(len(lengths))
    for row, parent in enumerate(parents):
        if parent >= 0:
            begun[row] = begun[parent] + lengths[parent] * min(1.0, (frame[row] + 1) / n_frames[parent])
    return np.asarray(begun + lengths)


def _thinned(parents: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """Return which are drawn: leaves, where lineages part, and where they begin."""
    has_children = np.zeros(len(parents), bool)
    has_children[parents[parents >= 0]] = True
    leaves = rng.permutation(np.flatnonzero(~has_children))
    # Of n leaves there are at most n places where they part.
    chosen = leaves[: most // 2]
    marked = np.zeros(len(parents), bool)
    marked[chosen] = True
    children = np.zeros(len(parents), np.int64)
    for row in range(len(parents) - 1, -1, -1):
        if marked[row] and parents[row] >= 0:
            marked[parents[row]] = True
            children[parents[row]] += 1
    is_leaf = np.zeros(len(parents), bool)
    is_leaf[chosen] = True
    return marked & (is_leaf | (children > 1))


def _nearest_shown(parents: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return for each the row of the nearest ancestor that is drawn; -1 where there is none."""
    nearest = np.full(len(parents), -1, np.int64)
    for row, parent in enumerate(parents):
        if parent >= 0:
            nearest[row] = parent if shown[parent] else nearest[parent]
    return nearest


def _laid_out(parents: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return where to draw each: leaves below one another, by lineages, others amid their children."""
    children: dict[int, list[int]] = {}
    for row in np.flatnonzero(shown).tolist():
        children.setdefault(int(parents[row]), []).append(row)
    place = np.full(len(parents), np.nan)
    waiting, n_leaves = list(reversed(children.get(-1, []))), 0
    while waiting:
        row = waiting.pop()
        below = children.get(row, [])
        if below:
            waiting.extend(reversed(below))
        else:
            place[row] = n_leaves
            n_leaves += 1
    for parent in sorted(children, reverse=True):
        if parent >= 0:
            place[parent] = np.mean(place[children[parent]])
    return place
