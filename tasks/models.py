"""The models that turn frames into embeddings: an adversarial autoencoder, and principal components as its ablation.

A model carries the structure that its inputs are aligned to and the scale that they are divided by, so its bytes are
all that a site needs. Only an autoencoder needs torch, which is imported when the first one is loaded.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from MDAnalysis.lib.qcprot import CalcRMSDRotationalMatrix

from tasks.errors import BadInput
from tasks.selection import MIN_FEATURES

if TYPE_CHECKING:
    from tasks.aae import Autoencoder

# The mean structure needs no more frames than this, and settles within a few rounds.
_ALIGNMENT_FRAMES = 200
_ALIGNMENT_ROUNDS = 3

# Components with less than this part of the largest standard deviation are rounding, not motion.
_SMALLEST_DEVIATION = 1e-5

# What zip, npz and torch files that were cut, altered or made by others are known to raise.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


class Model(Protocol):
    """What inference asks of a model."""

    @property
    def alignment(self) -> Alignment:
        """How inputs are brought to a common orientation and size."""
        ...

    @property
    def latent(self) -> int:
        """Dimensions of the embedding."""
        ...

    def embed(self, points: np.ndarray) -> np.ndarray:
        """Return the embedding of each frame, a function of that frame alone.

        Parameters
        ----------
        points : ndarray of shape (n_frames, n_points, 3), float32
            Selected coordinates in nm, unwrapped, neither aligned nor scaled.

        Returns
        -------
        ndarray of shape (n_frames, latent), float32
        """
        ...

    def to_bytes(self) -> bytes:
        """Return what `load_model` reads."""
        ...


def align(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return frames centred and rotated onto a structure, each with the least RMSD.

    Parameters
    ----------
    points : ndarray of shape (n_frames, n_points, 3), float32
        Coordinates in nm; three points or more that do not lie on a line.
    reference : ndarray of shape (n_points, 3), float
        Structure in nm; the frames are centred at the origin wherever it lies.

    Returns
    -------
    ndarray of shape (n_frames, n_points, 3), float64

    Raises
    ------
    ValueError
        When frames and reference differ in their number of points, or have fewer than three.
    """
    n_points = len(reference)
    if points.shape[1:] != (n_points, 3) or n_points < MIN_FEATURES:
        raise ValueError(f"frames of shape {points.shape[1:]} cannot be aligned to {n_points} points: give 3 or more")
    target = reference.astype(np.float64)
    target -= target.mean(axis=0)
    centred = points.astype(np.float64)
    centred -= centred.mean(axis=1, keepdims=True)
    rotations = np.empty((len(points), 9))
    # Not MDAnalysis.analysis.align.rotation_matrix, whose checks take ten times as long as the rotation itself.
    for frame, rotation in zip(centred, rotations, strict=True):
        CalcRMSDRotationalMatrix(target, frame, n_points, rotation, None)
    # qcprot yields the rotation for row vectors.
    return centred @ rotations.reshape(-1, 3, 3)


def _laid(points: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """Return frames aligned to a structure, or moved by it where there are too few points for an orientation."""
    if len(structure) < MIN_FEATURES and points.shape[1:] == structure.shape:
        # A particle in a potential has no shape; what it has is a place.
        return np.asarray(points.astype(np.float64) - structure)
    return align(points, structure)


@dataclass(frozen=True, eq=False, slots=True)
class Alignment:
    """How a model's inputs are brought to a common orientation and unit variance.

    Attributes
    ----------
    structure : ndarray of shape (n_points, 3), float64
        In nm; centred, unless there are too few points for an orientation: then it is where they are on average.
    scale
        In nm: the standard deviation of all aligned training coordinates.
    """

    structure: np.ndarray
    scale: float

    @property
    def n_points(self) -> int:
        """Points of a frame."""
        return len(self.structure)

    def standardize(self, points: np.ndarray) -> np.ndarray:
        """Return aligned and scaled frames (n_frames, n_points, 3), float32, without unit."""
        return (_laid(points, self.structure) / self.scale).astype(np.float32)


def fit_alignment(points: np.ndarray) -> Alignment:
    """Return the mean structure of frames, iterated from the first one, and the spread about the origin.

    Parameters
    ----------
    points : ndarray of shape (n_frames, n_points, 3), float32
        Coordinates in nm.
    """
    sample = points[:: -(-len(points) // _ALIGNMENT_FRAMES)]
    if points.shape[1] < MIN_FEATURES:
        structure = sample.mean(axis=0, dtype=np.float64)
        # One frame alone says nothing of the spread.
        return Alignment(structure, float(_laid(sample, structure).std()) or 1.0)
    structure = points[0].astype(np.float64)
    for _ in range(_ALIGNMENT_ROUNDS):
        structure = align(sample, structure).mean(axis=0)
    return Alignment(structure, float(align(sample, structure).std()))


@dataclass(frozen=True, eq=False, slots=True)
class PCAModel:
    """Principal components of aligned coordinates, each of unit variance in the training frames.

    Attributes
    ----------
    mean : ndarray of shape (3 * n_points,), float64
    components : ndarray of shape (3 * n_points, latent), float64
        Divided by their standard deviations; zero beyond what the training frames determine.
    """

    alignment: Alignment
    mean: np.ndarray
    components: np.ndarray

    @property
    def latent(self) -> int:
        """Dimensions of the embedding."""
        return int(self.components.shape[1])

    def embed(self, points: np.ndarray) -> np.ndarray:
        """Return the embedding (n_frames, latent), float32, of coordinates in nm."""
        flat = _flatten(self.alignment.standardize(points))
        return np.asarray(((flat - self.mean) @ self.components).astype(np.float32))

    def to_bytes(self) -> bytes:
        """Return an npz file."""
        file = io.BytesIO()
        np.savez(
            file,
            structure=self.alignment.structure,
            scale=np.float64(self.alignment.scale),
            mean=self.mean,
            components=self.components,
        )
        return file.getvalue()


@dataclass(frozen=True, eq=False, slots=True)
class AAEModel:
    """The encoder of an adversarial autoencoder, with the other networks that training goes on with."""

    alignment: Alignment
    network: Autoencoder

    @property
    def latent(self) -> int:
        """Dimensions of the embedding."""
        return self.network.architecture.latent

    def embed(self, points: np.ndarray) -> np.ndarray:
        """Return the embedding (n_frames, latent), float32, of coordinates in nm."""
        from tasks import aae

        return aae.encode(self.network, self.alignment.standardize(points))

    def to_bytes(self) -> bytes:
        """Return a torch file of tensors and plain values."""
        import torch

        file = io.BytesIO()
        content = {
            "architecture": asdict(self.network.architecture),
            "structure": torch.from_numpy(self.alignment.structure),
            "scale": self.alignment.scale,
            "weights": {name: tensor.cpu() for name, tensor in self.network.state_dict().items()},
        }
        torch.save(content, file)
        return file.getvalue()


def fit_pca(points: np.ndarray, latent: int, alignment: Alignment | None = None) -> PCAModel:
    """Return the whitened principal components of frames.

    Parameters
    ----------
    points : ndarray of shape (n_frames, n_points, 3), float32
        Coordinates in nm.
    latent
        Columns of the embedding; those that too few frames leave undetermined are zero.
    alignment
        That of an earlier model, to stay comparable with it; by default one is fitted.
    """
    alignment = alignment or fit_alignment(points)
    flat = _flatten(alignment.standardize(points))
    mean = flat.mean(axis=0)
    _, singular, directions = np.linalg.svd(flat - mean, full_matrices=False)
    deviations = singular / np.sqrt(max(len(flat) - 1, 1))
    determined = deviations > _SMALLEST_DEVIATION * max(deviations[0], 1.0)
    n_kept = min(latent, int(determined.sum()))
    components = np.zeros((flat.shape[1], latent))
    components[:, :n_kept] = directions[:n_kept].T / deviations[:n_kept]
    # The sign of a component is free; fixed by its largest entry, equal frames give equal models anywhere.
    largest = np.abs(components).argmax(axis=0)
    components *= np.where(components[largest, np.arange(latent)] < 0, -1.0, 1.0)
    return PCAModel(alignment, mean, components)


def load_model(data: bytes) -> Model:
    """Return the model in some bytes, which may come from anyone: no code in them is run.

    Raises
    ------
    BadInput
        When they are no model that `to_bytes` wrote.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            # Torch does not compare checksums itself, and one altered byte would pass as another weight.
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")
        # Both kinds are zip files: npz holds npy members, torch a restricted pickle.
        if any(name.endswith(".npy") for name in names):
            return _read_pca(data)
        return _read_aae(data)
    except _UNREADABLE as error:
        # Torch explains itself over many lines, of which the first says what is wrong.
        reason = (str(error).splitlines() or [""])[0]
        raise BadInput(
            f"{len(data)} bytes of model weights cannot be read ({type(error).__name__}: {reason}): "
            "give a file that a campaign left in its folder models/"
        ) from error


def require_shape(model: Model, n_points: int, latent: int) -> None:
    """Refuse a model that was made for other points or another latent.

    Raises
    ------
    BadInput
        Naming both shapes.
    """
    if (model.alignment.n_points, model.latent) != (n_points, latent):
        raise BadInput(
            f"model weights are for {model.alignment.n_points} points and {model.latent} latent dimensions, but this "
            f"campaign has {n_points} points and {latent} latent dimensions: choose the selection and the latent "
            "that they were trained with, or other weights"
        )


def check_model(data: bytes, n_points: int, latent: int) -> None:
    """Refuse weights that this campaign cannot use, before anything starts; no GPU is touched.

    Raises
    ------
    BadInput
        When the bytes are no model, or one of another shape.
    """
    require_shape(load_model(data), n_points, latent)


def _read_pca(data: bytes) -> PCAModel:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        alignment = _checked_alignment(arrays["structure"], float(arrays["scale"]))
        mean, components = arrays["mean"], arrays["components"]
    n_flat = 3 * alignment.n_points
    if mean.shape != (n_flat,) or components.ndim != 2 or len(components) != n_flat:
        raise ValueError(f"mean {mean.shape} and components {components.shape} do not fit {n_flat} coordinates")
    if not (np.isfinite(mean).all() and np.isfinite(components).all()):
        raise ValueError("the components are not finite")
    return PCAModel(alignment, mean, components)


def _read_aae(data: bytes) -> AAEModel:
    import torch

    from tasks import aae

    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    alignment = _checked_alignment(content["structure"].numpy(), float(content["scale"]))
    architecture = aae.Architecture(**content["architecture"])
    if architecture.n_points != alignment.n_points:
        raise ValueError(f"{architecture.n_points} points in the networks, {alignment.n_points} in the alignment")
    network = aae.new_autoencoder(architecture, seed=0)
    network.load_state_dict(content["weights"])
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise ValueError("the weights are not finite")
    return AAEModel(alignment, network)


def _checked_alignment(structure: np.ndarray, scale: float) -> Alignment:
    if structure.ndim != 2 or structure.shape[1] != 3 or not len(structure) or not np.isfinite(structure).all():
        raise ValueError(f"an alignment structure of shape {structure.shape}, with NaN or infinity or no points")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"a scale of {scale} nm")
    return Alignment(structure.astype(np.float64), scale)


def _flatten(standardized: np.ndarray) -> np.ndarray:
    return standardized.reshape(len(standardized), 3 * standardized.shape[1]).astype(np.float64)
