"""What a worker that learns keeps from one task to the next: systems as it looks at them, and models."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from tasks.indices import Indices
from tasks.messages import Ref
from tasks.models import Model, load_model
from tasks.transport import fetch

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_KEPT = 4

_indices: dict[str, Indices] = {}
_models: dict[tuple[str, ...], Model] = {}


def warm_indices(system: Ref, system_id: str) -> Indices:
    """Return what is looked at of a prepared system, fetched if this worker does not have it yet."""
    return kept(_indices, system_id, lambda: Indices.from_arrays(fetch(system)))


def warm_model(model: Ref) -> Model:
    """Return a model, fetched if this worker does not have it yet."""
    if model.data is not None:
        return _load(model)
    return kept(_models, (model.store.name, *model.key), lambda: _load(model))


def _load(model: Ref) -> Model:
    return load_model(fetch(model)["model"].tobytes())


def kept(cache: dict[K, T], key: K, make: Callable[[], T]) -> T:
    """Return what a cache holds, which is made if it does not; of the oldest it lets go."""
    if key not in cache:
        cache[key] = make()
        while len(cache) > _KEPT:
            del cache[next(iter(cache))]
    return cache[key]
