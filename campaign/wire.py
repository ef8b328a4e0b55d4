"""Specs and results as JSON, for the ledger: what a later process of the campaign reads back, without pickle.

Stores are told by their names alone: another process finds the same data at another address (a private Redis server
gets a new port each time).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError

from tasks.errors import BadInput
from tasks.messages import Ref, StoreSpec

T = TypeVar("T")

Stores = Mapping[str, StoreSpec]

# A store's name, and the key in it.
Address = tuple[str, tuple[str, ...]]

_REF, _STORE, _BYTES = "$ref", "$store", "$bytes"


def encode(value: object) -> str:
    """Return a message, or a plain structure that holds some, as JSON."""
    return json.dumps(value, default=_plain, separators=(",", ":"))


def plain(value: object) -> Any:
    """Return it as `json` would read back what `encode` wrote: dictionaries, lists, texts and numbers."""
    return json.loads(encode(value))


def decode(kind: type[T], told: str | object, stores: Stores) -> T:
    """Return the message that `encode` (or `plain`) told.

    Parameters
    ----------
    stores
        This process' stores, by name.

    Raises
    ------
    BadInput
        When it is not of this kind, or lies in a store that is not there.
    """
    value = json.loads(told) if isinstance(told, str) else told
    try:
        made: T = _adapter(cast(Any, kind)).validate_python(_revive(value, stores))
        return made
    except (ValidationError, KeyError, TypeError) as error:
        raise BadInput(f"the ledger tells of a {kind.__name__} that cannot be read: {error}") from error


def address(ref: Ref) -> Address:
    """Return where data lie."""
    return ref.store.name, ref.key


def addresses(told: str) -> Iterator[Address]:
    """Yield the addresses in something that `encode` wrote, without those of data that travel in messages."""
    for name, key, _, data in _refs(json.loads(told)):
        if data is None:
            yield name, tuple(key)


def readdress(told: str, moved: Mapping[Address, Ref]) -> str:
    """Return the same with other addresses."""
    value = json.loads(told)
    for ref in _refs(value):
        name, key, n_bytes, data = ref
        after = moved.get((name, tuple(key)))
        if after is not None and data is None:
            ref[:] = [after.store.name, list(after.key), n_bytes, None]
    return encode(value)


def _refs(value: Any) -> Iterator[list[Any]]:
    if isinstance(value, dict):
        if _REF in value:
            yield value[_REF]
        else:
            yield from chain.from_iterable(map(_refs, value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_refs, value))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _plain(value: object) -> Any:
    if isinstance(value, Ref):
        data = None if value.data is None else base64.b64encode(value.data).decode()
        return {_REF: [value.store.name, value.key, value.n_bytes, data]}
    if isinstance(value, StoreSpec):
        return {_STORE: value.name}
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, np.integer | np.floating | np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} cannot be kept")


def _revive(value: Any, stores: Stores) -> Any:
    if isinstance(value, list):
        return [_revive(item, stores) for item in value]
    if not isinstance(value, dict):
        return value
    if _REF in value:
        name, key, n_bytes, data = value[_REF]
        return Ref(stores[name], tuple(key), n_bytes, None if data is None else base64.b64decode(data))
    if _STORE in value:
        return stores[value[_STORE]]
    if _BYTES in value:
        return base64.b64decode(value[_BYTES])
    return {name: _revive(item, stores) for name, item in value.items()}
