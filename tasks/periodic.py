"""Molecules across the faces of a periodic box: minimum images, and atoms put together again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def minimum_image(vectors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return vectors by their shortest periodic image.

    Parameters
    ----------
    vectors : ndarray of shape (n_frames, n, 3)
        In nm.
    boxes : ndarray of shape (n_frames, 3, 3)
        Box vectors in nm, in rows, in OpenMM's reduced form: a along x, b in the plane of x and y.
    """
    images = vectors.copy()
    for axis in (2, 1, 0):
        turns = np.round(images[:, :, axis] / boxes[:, None, axis, axis])
        images -= turns[:, :, None] * boxes[:, None, axis]
    return images


def make_whole(positions: np.ndarray, boxes: np.ndarray, tree: np.ndarray) -> np.ndarray:
    """Return positions in which every atom is the image nearest to its parent in a tree.

    Parameters
    ----------
    positions : ndarray of shape (n_frames, n_atoms, 3)
        In nm.
    boxes : ndarray of shape (n_frames, 3, 3)
        Box vectors in nm.
    tree : ndarray of shape (n_edges, 2), int64
        Child and parent, parents before their children; an atom that is nobody's child stays where it is.
    """
    child, parent = tree[:, 0], tree[:, 1]
    apart = positions[:, child] - positions[:, parent]
    shifts = np.zeros_like(positions)
    shifts[:, child] = minimum_image(apart, boxes) - apart
    for one, other in tree:
        shifts[:, one] += shifts[:, other]
    return np.asarray(positions + shifts)


def nearest_tree(positions: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the shortest tree that joins points by minimum images (Prim 1957), as `make_whole` takes it.

    Its edges are as short as they can be (bonds, neighbours in a chain), so that none comes near half a box, where
    the minimum image is no longer the right one.

    Parameters
    ----------
    positions : ndarray of shape (n_points, 3)
        In nm.
    box : ndarray of shape (3, 3)

    Returns
    -------
    ndarray of shape (n_points - 1, 2), int64
    """
    n_points = len(positions)
    distance, nearest = np.full(n_points, np.inf), np.zeros(n_points, np.int64)
    outside = np.ones(n_points, dtype=bool)
    newest, edges = 0, []
    for _ in range(n_points - 1):
        outside[newest] = False
        to_newest = np.linalg.norm(minimum_image((positions - positions[newest])[None], box[None])[0], axis=1)
        closer = to_newest < distance
        distance[closer], nearest[closer] = to_newest[closer], newest
        newest = int(np.argmin(np.where(outside, distance, np.inf)))
        edges.append((newest, int(nearest[newest])))
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


def bond_tree(n_atoms: int, bonds: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return a tree for each molecule along its bonds, as `make_whole` takes it.

    Returns
    -------
    ndarray of shape (n_atoms - n_molecules, 2), int64
    """
    partners: list[list[int]] = [[] for _ in range(n_atoms)]
    for one, other in bonds:
        partners[one].append(other)
        partners[other].append(one)
    edges, seen = [], [False] * n_atoms
    for root in range(n_atoms):
        if seen[root]:
            continue
        seen[root], waiting = True, [root]
        while waiting:
            parent = waiting.pop()
            for child in partners[parent]:
                if not seen[child]:
                    seen[child] = True
                    edges.append((child, parent))
                    waiting.append(child)
    return np.array(edges, dtype=np.int64).reshape(-1, 2)
