"""A molecular system as it is shipped: prepared once, packed as named arrays, told by its digest.

Building a system takes seconds and many libraries; a `PreparedSystem` is plain data that any worker turns
into a Context within milliseconds (`tasks.engine`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tasks.errors import TaskFailed


@dataclass(frozen=True, eq=False)
class PreparedSystem:
    """All that a worker needs to run a system, as plain data.

    Attributes
    ----------
    system_xml
        OpenMM's serialised System.
    topology_pdb
        PDB text of the atoms that trajectories keep.
    positions : ndarray of shape (n_atoms, 3), float64
        In nm, minimised unless the user did not want that.
    feature_indices : ndarray of shape (n_features,), int64
        Atoms that the model sees.
    stored_indices : ndarray of shape (n_stored,), int64
        Atoms that trajectories keep: everything but water and its salt, unless the user chose.
    restrained_indices : ndarray of shape (n_restrained,), int64
        Atoms that equilibration holds in place at first: the heavy ones of all but water and its salt.
    phi_indices, psi_indices : ndarray of shape (n, 4), int64
        Atoms of the backbone dihedrals of each residue that has both.
    platform
        Name of the OpenMM platform chosen.
    box : ndarray of shape (3, 3), float64
        Box vectors in nm; None where the system is not periodic.
    feature_tree : ndarray of shape (n_features - 1, 2), int64
        How the atoms that the model sees, counted from 0, hang together (`tasks.periodic.make_whole`); None where the
        system is not periodic.
    starts : ndarray of shape (n_starts, n_atoms, 3), float64
        Where walkers begin, in nm; None for ``positions`` alone.
    start_boxes : ndarray of shape (n_starts, 3, 3), float64
        Their boxes in nm; None where there are no starts or no box.
    start_names : tuple of str
        Their files; None where there are no starts.
    start_probabilities : ndarray of shape (n_starts,), float64
        How probable it is that a walker begins at each; None where each is as probable as any other.
    target : ndarray of shape (n_features, 3), float64
        Where the atoms that the model sees are in a structure to steer to, in nm; None where there is none.
    digest
        SHA-256 of all of the above, hexadecimal.
    """

    name: str
    system_xml: str
    topology_pdb: str
    positions: np.ndarray
    feature_indices: np.ndarray
    stored_indices: np.ndarray
    restrained_indices: np.ndarray
    phi_indices: np.ndarray
    psi_indices: np.ndarray
    platform: str
    box: np.ndarray | None = None
    feature_tree: np.ndarray | None = None
    starts: np.ndarray | None = None
    start_boxes: np.ndarray | None = None
    start_names: tuple[str, ...] | None = None
    start_probabilities: np.ndarray | None = None
    target: np.ndarray | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(self._contents()))

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.positions)

    @property
    def n_starts(self) -> int:
        """Number of structures that walkers begin from."""
        return 1 if self.starts is None else len(self.starts)

    @property
    def basis_names(self) -> tuple[str, ...]:
        """Names of these structures: their files, or the system's."""
        return (self.name,) * self.n_starts if self.start_names is None else self.start_names

    @property
    def basis_probabilities(self) -> np.ndarray:
        """How probable it is that a walker begins at each (n_starts,), float64; their sum is one."""
        if self.start_probabilities is None:
            return np.full(self.n_starts, 1.0 / self.n_starts)
        return self.start_probabilities

    def basis(self) -> dict[str, np.ndarray]:
        """Return where walkers begin, as segments take it: ``positions`` (n_starts, n_atoms, 3) and any ``box``."""
        if self.starts is None:
            return {"positions": self.positions[None]}
        return {"positions": self.starts, **({} if self.start_boxes is None else {"box": self.start_boxes})}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the contents as named arrays that `tasks.transport` carries; text as uint8 (UTF-8)."""
        return {**self._contents(), "digest": _to_bytes(self.digest)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PreparedSystem:
        """Return the system that `to_arrays` packed.

        Raises
        ------
        TaskFailed
            When the arrays do not match the digest that travelled with them.
        """
        prepared = cls(
            name=_to_text(arrays["name"]),
            system_xml=_to_text(arrays["system_xml"]),
            topology_pdb=_to_text(arrays["topology_pdb"]),
            positions=arrays["positions"],
            feature_indices=arrays["feature_indices"],
            stored_indices=arrays["stored_indices"],
            restrained_indices=arrays["restrained_indices"],
            phi_indices=arrays["phi_indices"],
            psi_indices=arrays["psi_indices"],
            platform=_to_text(arrays["platform"]),
            box=arrays.get("box"),
            feature_tree=arrays.get("feature_tree"),
            starts=arrays.get("starts"),
            start_boxes=arrays.get("start_boxes"),
            start_names=tuple(_to_text(arrays["start_names"]).split("\0")) if "start_names" in arrays else None,
            start_probabilities=arrays.get("start_probabilities"),
            target=arrays.get("target"),
        )
        sent = _to_text(arrays["digest"])
        if prepared.digest != sent:
            raise TaskFailed(
                f"prepared system {prepared.name!r} arrived with digest {prepared.digest[:12]} where "
                f"{sent[:12]} was sent: prepare it again with the version of tasks that runs here"
            )
        return prepared

    def _contents(self) -> dict[str, np.ndarray]:
        optional = {
            "box": self.box,
            "feature_tree": self.feature_tree,
            "starts": self.starts,
            "start_boxes": self.start_boxes,
            # No path holds a NUL.
            "start_names": None if self.start_names is None else _to_bytes("\0".join(self.start_names)),
            "start_probabilities": self.start_probabilities,
            "target": self.target,
        }
        return {
            "name": _to_bytes(self.name),
            "system_xml": _to_bytes(self.system_xml),
            "topology_pdb": _to_bytes(self.topology_pdb),
            "positions": self.positions,
            "feature_indices": self.feature_indices,
            "stored_indices": self.stored_indices,
            "restrained_indices": self.restrained_indices,
            "phi_indices": self.phi_indices,
            "psi_indices": self.psi_indices,
            "platform": _to_bytes(self.platform),
            **{name: array for name, array in optional.items() if array is not None},
        }


def _to_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _to_text(array: np.ndarray) -> str:
    return array.tobytes().decode()


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
