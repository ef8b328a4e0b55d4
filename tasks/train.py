"""Refine the model on a reference set and make it the next version."""

from __future__ import annotations

import time

import numpy as np

from tasks.errors import NotFinite
from tasks.files import stage
from tasks.messages import Ref, TrainResult, TrainSpec
from tasks.models import AAEModel, Model, fit_alignment, fit_pca, load_model, require_shape
from tasks.transport import fetch, ship

Losses = dict[str, tuple[float, ...]]


def train(spec: TrainSpec) -> TrainResult:
    """Return the address of a new model version, trained on the points of a reference set.

    Raises
    ------
    BadInput
        When the weights to start from are no model, or one of another shape.
    NotFinite
        When points or losses are NaN or infinite.
    """
    began = time.perf_counter()
    points = fetch(spec.reference)["points"]
    old = None if spec.model is None else _fetch_model(spec.model, points.shape[1], spec.latent)
    fetched = time.perf_counter()
    if not np.isfinite(points).all():
        raise NotFinite("coordinates of the reference set are NaN or infinite: no model can be trained on them")
    model, losses, device = (
        _refit_pca(spec, points, old) if spec.embedding == "pca" else _train_aae(spec, points, old)
    )
    trained = time.perf_counter()
    data = model.to_bytes()
    suffix = "npz" if spec.embedding == "pca" else "pt"
    path = f"models/model-{spec.model_version:06d}.{suffix}"
    # The file before the store: where the disk is full, no object is left behind that nobody knows to evict.
    model_file = None if spec.run_dir is None else stage(spec.run_dir, path, data, spec.attempt)
    address = ship({"model": np.frombuffer(data, dtype=np.uint8)}, spec.store, always=False)
    shipped = time.perf_counter()
    return TrainResult(
        task_id=spec.task_id,
        attempt=spec.attempt,
        model_version=spec.model_version,
        model=address,
        model_file=model_file,
        n_frames=len(points),
        device=device,
        losses=losses,
        seconds={"fetch": fetched - began, "train": trained - fetched, "ship": shipped - trained},
    )


def _fetch_model(address: Ref, n_points: int, latent: int) -> Model:
    model = load_model(fetch(address)["model"].tobytes())
    require_shape(model, n_points, latent)
    return model


def _refit_pca(spec: TrainSpec, points: np.ndarray, old: Model | None) -> tuple[Model, Losses, str]:
    return fit_pca(points, spec.latent, old.alignment if old else None), {}, "cpu"


def _train_aae(spec: TrainSpec, points: np.ndarray, old: Model | None) -> tuple[Model, Losses, str]:
    """Train the old autoencoder further, or a new one, in the orientation of the old model whatever its kind."""
    import torch

    from tasks import aae

    # Weights learned for one orientation and scale are worth nothing for another.
    alignment = old.alignment if old else fit_alignment(points)
    if isinstance(old, AAEModel):
        network = old.network
    else:
        network = aae.new_autoencoder(aae.Architecture(points.shape[1], spec.latent), spec.seed)
    rng = torch.Generator().manual_seed(spec.seed)
    device = aae.pick_device()
    losses = aae.train_epochs(network, alignment.standardize(points), spec.epochs, spec.batch, rng, device)
    return AAEModel(alignment, network), losses, str(device)
