"""Progress coordinates: what ``--pcoord`` names, and its values where no model is needed.

What travels (`tasks.messages.Coordinate`) is small; the atoms and the structure that it speaks of are those of the
prepared system, which workers have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.errors import BadInput, CoordinateFailed
from tasks.features import dihedrals_deg, rmsd_nm
from tasks.indices import Indices
from tasks.messages import Coordinate, CoordinateKind, Dynamics
from tasks.named import NotFound, import_named, is_name, told
from tasks.prepared import PreparedSystem

# Of a segment, through the Thinker: half of what all its messages may take.
MAX_PCOORD_BYTES = 4000

_CHOICES = "give aae:0,1 (dimensions of the embedding), phi-psi, rmsd:FILE, position, or module:function"


def coordinate_kind(text: str) -> CoordinateKind:
    """Return what kind of coordinate a user names; nothing is read or imported.

    Raises
    ------
    BadInput
        When it is none.
    """
    if text == "aae" or text.startswith("aae:"):
        latent_dimensions(text)
        return "aae"
    if text in ("phi-psi", "position"):
        return "phi-psi" if text == "phi-psi" else "position"
    if rmsd_file(text) is not None:
        return "rmsd"
    if is_name(text):
        return "function"
    raise BadInput(f"--pcoord {text} is no progress coordinate: {_CHOICES}")


def rmsd_file(text: str) -> Path | None:
    """Return the structure that a coordinate is measured from; None where it is another coordinate.

    It is to be read as the ``target`` of a `tasks.systems.SystemSpec`.
    """
    file = text.removeprefix("rmsd:")
    return Path(file) if file not in (text, "") else None


def latent_dimensions(text: str) -> tuple[int, ...]:
    """Return the dimensions of the embedding that ``aae:0,1`` names; ``aae`` alone names the first two.

    Raises
    ------
    BadInput
        When they are no whole numbers, or one is there twice.
    """
    told_numbers = text.removeprefix("aae").removeprefix(":").split(",") if ":" in text else ["0", "1"]
    # Not int(), which takes "+1", "1_0" and digits of other scripts.
    if not all(number.isascii() and number.isdigit() for number in told_numbers):
        raise BadInput(
            f"--pcoord {text} names no dimensions of the embedding: give whole numbers from 0, such as aae:0,1"
        )
    dimensions = tuple(map(int, told_numbers))
    if len(set(dimensions)) < len(dimensions):
        raise BadInput(f"--pcoord {text} names a dimension twice: give each once")
    return dimensions


def parse_coordinate(text: str, prepared: PreparedSystem, *, latent: int, here: str) -> Coordinate:
    """Return the progress coordinate that a user names, tried on the system where it needs no model.

    Parameters
    ----------
    prepared
        With the structure of ``rmsd:FILE`` (`rmsd_file`) as its target.
    latent
        Dimensions of the embedding.
    here
        Where the campaign is started.

    Raises
    ------
    BadInput
        When there is no such coordinate, or this system has none.
    """
    kind = coordinate_kind(text)
    if kind == "aae":
        return _learned(text, latent)
    if kind == "phi-psi" and not len(prepared.phi_indices):
        raise BadInput(f"--pcoord phi-psi needs a residue with phi and psi and {prepared.name} has none: {_CHOICES}")
    if kind == "rmsd" and prepared.target is None:
        raise BadInput(f"--pcoord {text} was not read with {prepared.name}: prepare the system with it as its target")
    if kind == "function":
        return _users(text, prepared, here)
    coordinate = Coordinate(kind, {"phi-psi": ("phi", "psi"), "rmsd": ("rmsd",), "position": ("x",)}[kind])
    _try_on(coordinate, prepared)
    return coordinate


def _learned(text: str, latent: int) -> Coordinate:
    dimensions = latent_dimensions(text)
    if max(dimensions) >= latent:
        raise BadInput(
            f"--pcoord {text} asks for dimension {max(dimensions)} of an embedding whose {latent} dimensions count "
            f"from 0: choose lower ones, or give --latent {max(dimensions) + 1}"
        )
    return Coordinate("aae", tuple(f"z{number}" for number in dimensions), dimensions)


def _users(text: str, prepared: PreparedSystem, here: str) -> Coordinate:
    """Return the coordinate of a user's function, whose number of dimensions its value at the starts tells."""
    try:
        returned = _call(text, here, prepared.basis()["positions"].astype(np.float32))
        coordinate = Coordinate("function", tuple(f"x{k}" for k in range(returned.shape[1])), (), text, here)
        checked(coordinate, returned)
    except CoordinateFailed as error:
        raise BadInput(f"{error}, at a structure to start from") from error
    return coordinate


def _try_on(coordinate: Coordinate, prepared: PreparedSystem) -> None:
    basis = prepared.basis()
    positions, boxes = basis["positions"].astype(np.float32), basis.get("box")
    if boxes is None and prepared.box is not None:
        boxes = np.broadcast_to(prepared.box, (len(positions), 3, 3))
    try:
        values(coordinate, positions, boxes, Indices.from_arrays(prepared.to_arrays()))
    except CoordinateFailed as error:
        raise BadInput(f"{error}, at a structure to start from") from error


def require_small(coordinate: Coordinate, dynamics: Dynamics) -> None:
    """Refuse segments of so many frames that their coordinates are no small message any more.

    Raises
    ------
    BadInput
        Naming how many frames there may be.
    """
    most = MAX_PCOORD_BYTES // (4 * coordinate.n_dimensions) - 1
    if dynamics.n_frames > most:
        raise BadInput(
            f"--frame-ps {dynamics.frame_ps:g} makes {dynamics.n_frames} frames of a segment, and a progress "
            f"coordinate of {coordinate.n_dimensions} dimensions is kept for {most} at most: keep fewer frames, or "
            "make segments shorter"
        )


def values(coordinate: Coordinate, positions: np.ndarray, boxes: np.ndarray | None, indices: Indices) -> np.ndarray:
    """Return a progress coordinate that needs no model.

    Parameters
    ----------
    positions : ndarray of shape (n_frames, n_atoms, 3), float32
        All atoms, in nm.
    boxes : ndarray of shape (n_frames, 3, 3)
        Box vectors in nm; None where the system is not periodic.

    Returns
    -------
    ndarray of shape (n_frames, n_dimensions), float32
        Degrees for phi and psi of the first residue that has both, within -180 and 180; nm for the RMSD of the atoms
        that a model would see from the system's target, once superposed, and for x of the first atom.

    Raises
    ------
    CoordinateFailed
        When a value is not finite, or the user's function fails.
    """
    if coordinate.kind == "phi-psi":
        torsions = np.concatenate([indices.phi[:1], indices.psi[:1]])
        rows = dihedrals_deg(positions, torsions)
    elif coordinate.kind == "rmsd":
        assert indices.target is not None  # parse_coordinate refuses a system without
        rows = rmsd_nm(indices.points(positions, boxes), indices.target)[:, None]
    elif coordinate.kind == "position":
        rows = positions[:, 0, :1]
    elif coordinate.kind == "function":
        assert coordinate.function is not None  # as parse_coordinate makes them
        rows = _call(coordinate.function, coordinate.here or "", positions)
    else:
        raise ValueError("a learned coordinate needs a model: tasks.embed_coordinate computes it")
    return checked(coordinate, rows)


def checked(coordinate: Coordinate, rows: np.ndarray) -> np.ndarray:
    """Return values as float32, or refuse those that no bin holds.

    Raises
    ------
    CoordinateFailed
        When they have another number of dimensions, or are not finite.
    """
    said = coordinate.function or coordinate.kind
    if rows.shape[1] != coordinate.n_dimensions:
        raise CoordinateFailed(
            f"--pcoord {said} has {rows.shape[1]} dimensions, and {coordinate.n_dimensions} of the first structures: "
            "return as many for any frames"
        )
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(rows, dtype=np.float32)
    wrong = ~np.isfinite(single)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise CoordinateFailed(
            f"--pcoord {said} has {coordinate.names[column]} = {single[row, column]} in row {row}: a progress "
            "coordinate must be finite for every frame"
        )
    return single


def _call(function: str, here: str, positions: np.ndarray) -> np.ndarray:
    """Return what the user's function makes of frames, (n_frames, n_dimensions)."""
    try:
        # A copy: what it writes into must not be what is kept.
        returned = import_named(function, here)(positions.copy())
        rows = np.asarray(returned)
    except NotFound as error:
        raise CoordinateFailed(f"--pcoord {function} cannot be used, for {error}") from error
    except (Exception, SystemExit) as error:
        raise CoordinateFailed(f"--pcoord {function} raised {told(error)}") from error
    if rows.ndim != 2 or len(rows) != len(positions) or not rows.shape[1] or rows.dtype.kind not in "fiu":
        raise CoordinateFailed(
            f"--pcoord {function} returned {rows.dtype} of shape {rows.shape} for {len(positions)} frames: return "
            f"real numbers of shape ({len(positions)}, dimensions)"
        )
    return rows


def pack_pcoord(rows: np.ndarray) -> bytes:
    """Return values (n_rows, n_dimensions) float32 as they travel."""
    return rows.astype("<f4").tobytes()


def unpack_pcoord(data: bytes, n_dimensions: int) -> np.ndarray:
    """Return the values (n_rows, n_dimensions), float32, that `pack_pcoord` packed."""
    return np.frombuffer(data, dtype="<f4").reshape(-1, n_dimensions)
