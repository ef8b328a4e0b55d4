"""The data plane: named arrays in and out of ProxyStore, packed without pickle.

A `Ref` is what travels; arrays are packed in the format of safetensors (a JSON header and raw bytes), so that reading
data from a store never runs code. Each process opens a store once.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from proxystore.connectors.file import FileConnector, FileKey
from proxystore.connectors.redis import RedisConnector, RedisKey
from proxystore.store.base import Store
from redis import RedisError, StrictRedis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from tasks.errors import BadInput, Damaged, TooLarge, Unreachable
from tasks.messages import MoveResult, MoveSpec, Ref, StoreSpec

Arrays = Mapping[str, np.ndarray]

# Kinds of store that a worker's site reaches, comma-separated; unset where there is no such bound.
REACHES_VARIABLE = "WAYFINDER_REACHES"

# Password of the Redis server; in the environment, for messages and files hold no secrets.
PASSWORD_VARIABLE = "WAYFINDER_REDIS_PASSWORD"

# What both ends of a stream know that meet at a port, for the same reason.
TOKEN_VARIABLE = "WAYFINDER_STREAM_TOKEN"

# What no command of the user's is given.
SECRETS = (PASSWORD_VARIABLE, TOKEN_VARIABLE)

# What ports of the submit host's loopback are called on this one, whose tunnel leads there: ``6379=24510,...``.
FORWARDED_VARIABLE = "WAYFINDER_FORWARDED"

# Colmena doubles bytes (pickle, then hex), and a pipe carries 32 MiB.
MAX_INLINE_BYTES = 8_000_000

# Of a store that is none, where something else carries the messages.
MAX_INLINE_OPTION = "max_bytes"

# What safetensors calls numbers of each kind, little-endian.
_KINDS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}

# A buffer begins with the size of its header; numbers begin at a multiple of the widest.
_SIZE_BYTES = _ALIGNMENT = 8

_REDIS_ANSWERS_S = 30.0
_REDIS_CONNECTS_S = 10.0

_TRANSFERRED_WITHIN_S = 600


class NamespacedRedisConnector(RedisConnector):
    """Redis connector whose keys begin with the store's name, so that a campaign can find and empty its own.

    Waits are bounded: a server that does not answer raises instead of holding a worker for ever. What refuses
    connections is tried again for some seconds, for tunnels are restarted; silence is not, where redis-py would wait
    eleven times.
    """

    def __init__(self, hostname: str, port: int, namespace: str) -> None:
        super().__init__(hostname, port, clear=False)
        self.namespace = namespace
        self._redis_client = StrictRedis(
            host=hostname,
            port=port,
            password=os.environ.get(PASSWORD_VARIABLE),
            socket_timeout=_REDIS_ANSWERS_S,
            socket_connect_timeout=_REDIS_CONNECTS_S,
            retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=1.0), 10, (RedisConnectionError,)),
        )

    def config(self) -> dict[str, Any]:
        """Return what rebuilds the connector."""
        return {"hostname": self.hostname, "port": self.port, "namespace": self.namespace}

    def new_key(self, obj: Any = None) -> RedisKey:
        """Return a fresh key in the namespace."""
        return RedisKey(redis_key=f"{self.namespace}:{uuid.uuid4()}")

    def put(self, obj: Any) -> RedisKey:
        """Store an object under a fresh key."""
        key = self.new_key()
        self.set(key, obj)
        return key

    def all_keys(self) -> list[bytes]:
        """Return the keys of the namespace that the server holds."""
        return list(self._redis_client.scan_iter(match=f"{self.namespace}:*", count=1000))

    def clear_namespace(self) -> int:
        """Delete what the namespace still holds, and nothing else; return how many objects that was."""
        found = self.all_keys()
        return int(self._redis_client.delete(*found)) if found else 0


@lru_cache(maxsize=64)
def open_store(spec: StoreSpec) -> Store[Any]:
    """Return this process's handle on a store (made once; nothing is deleted when the process ends).

    Raises
    ------
    Unreachable
        For a kind that this site does not reach.
    ValueError
        For ``inline``, which is no store.
    """
    reached = os.environ.get(REACHES_VARIABLE)
    if reached is not None and spec.kind not in reached.split(","):
        raise Unreachable(f"store {spec.name} is of kind {spec.kind}, and this site reaches only {reached}")
    options = dict(spec.options)
    connector: Any
    if spec.kind == "file":
        connector = FileConnector(options["store_dir"], clear=False)
    elif spec.kind == "redis":
        connector = NamespacedRedisConnector(options["hostname"], port_here(options["port"]), spec.name)
    elif spec.kind == "globus":
        connector = _globus_connector(options["endpoints"])
    elif spec.kind == "endpoint":
        from tasks.endpoint_store import BoundedEndpointConnector

        connector = BoundedEndpointConnector(options["endpoints"].split(","))
    else:
        raise ValueError(f"a store of kind {spec.kind} cannot be opened")
    return Store(spec.name, connector, serializer=_identity, deserializer=_identity, cache_size=0, register=False)


def port_here(port: str) -> int:
    """Return the port under which a server answers here."""
    told = os.environ.get(FORWARDED_VARIABLE, "")
    return int(dict(pair.split("=") for pair in told.split(",") if pair).get(port, port))


def pack(arrays: Arrays) -> bytes:
    """Return arrays as one buffer in the format of safetensors.

    That library copies all bytes three times to write and once to read them; here it is once and never.

    Raises
    ------
    TypeError
        For a kind of number that the format does not know.
    """
    layout: dict[str, dict[str, Any]] = {}
    parts: list[memoryview] = []
    end = 0
    # Wider numbers first, so that each array begins at a multiple of its items' size, as the format has it.
    for name, given in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        array = np.ascontiguousarray(given, dtype=given.dtype.newbyteorder("<"))
        if array.dtype not in _NAMES:
            raise TypeError(f"array {name} is of {array.dtype}, which safetensors cannot hold")
        begin, end = end, end + array.nbytes
        layout[name] = {"dtype": _NAMES[array.dtype], "shape": given.shape, "data_offsets": [begin, end]}
        parts.append(array.reshape(-1).view(np.uint8).data)
    header = json.dumps(layout).encode()
    header += b" " * (-(_SIZE_BYTES + len(header)) % _ALIGNMENT)
    return b"".join([len(header).to_bytes(_SIZE_BYTES, "little"), header, *parts])


def unpack(data: bytes | memoryview) -> dict[str, np.ndarray]:
    """Return the arrays of a buffer made by `pack`; they are views of it, and read-only.

    Raises
    ------
    Damaged
        When the buffer is none, or not whole.
    """
    try:
        begin = _SIZE_BYTES + int.from_bytes(data[:_SIZE_BYTES], "little")
        layout = json.loads(bytes(data[_SIZE_BYTES:begin]))
        return {name: _view(memoryview(data)[begin:], **about) for name, about in layout.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{len(data)} bytes are not whole arrays ({error}): what wrote them was stopped") from error


def _view(data: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    begin, end = data_offsets
    return np.frombuffer(data[begin:end], _KINDS[dtype]).reshape(shape)


def ship(arrays: Arrays, spec: StoreSpec, *, always: bool = True) -> Ref:
    """Put arrays where ``spec`` says and return their address.

    Parameters
    ----------
    always
        False lets what is smaller than the store's threshold travel inside the message.

    Raises
    ------
    TooLarge
        When the bytes would have to travel inline and a message cannot carry them.
    """
    data = pack(arrays)
    if spec.kind == "inline" or (not always and len(data) < spec.threshold):
        most = int(dict(spec.options).get(MAX_INLINE_OPTION, MAX_INLINE_BYTES))
        if len(data) > most:
            raise TooLarge(
                f"{len(data)} bytes without a store exceed the {most} that a message carries: "
                "choose a ProxyStore backend (file, redis, globus or endpoint) for this topic"
            )
        return Ref(spec, (), len(data), data)
    return put(data, spec)


def put(data: bytes, spec: StoreSpec) -> Ref:
    """Put packed bytes in a store and return their address.

    Raises
    ------
    Unreachable
        When the store does not answer.
    """
    with _reaching(spec):
        key = open_store(spec).put(data)
    return Ref(spec, _key(spec, key), len(data))


def fetch(ref: Ref) -> dict[str, np.ndarray]:
    """Return the arrays at an address.

    Raises
    ------
    Unreachable
        When the store does not answer, or no longer holds them.
    """
    return unpack(read(ref))


def copy(ref: Ref, spec: StoreSpec) -> Ref:
    """Put what lies at an address in another store as well, without looking at it; return its address there.

    Raises
    ------
    Unreachable
        When one of the stores does not answer, or the first no longer holds it.
    """
    return put(read(ref), spec)


def read(ref: Ref) -> bytes:
    """Return the packed bytes at an address.

    Raises
    ------
    Unreachable
        When the store does not answer, or no longer holds them.
    """
    if ref.data is not None:
        return ref.data
    with _reaching(ref.store):
        data = open_store(ref.store).get(_connector_key(ref))
    if data is None:
        raise Unreachable(f"store {ref.store.name} ({ref.store.kind}) no longer holds {ref.key}")
    return bytes(data)


def evict(ref: Ref) -> None:
    """Remove the arrays at an address; nothing happens where they are gone already."""
    if ref.data is None:
        with _reaching(ref.store):
            open_store(ref.store).evict(_connector_key(ref))


def move(spec: MoveSpec) -> MoveResult:
    """Put arrays again in another store (a task of the submit host, which reaches both)."""
    return MoveResult(spec.task_id, spec.attempt, ship(fetch(spec.source), spec.store), {})


def keys(spec: StoreSpec, known: Collection[tuple[str, ...]] = ()) -> list[tuple[str, ...]]:
    """Return the keys of our objects in a store; none where it cannot tell.

    Parameters
    ----------
    known
        Keys to ask for where a store can be asked and lists nothing, as an endpoint.
    """
    if spec.kind == "file":
        return [(path.stem,) for path in Path(dict(spec.options)["store_dir"]).glob("*.ready")]
    if spec.kind == "redis":
        with _reaching(spec):
            return [(key.decode(),) for key in open_store(spec).connector.all_keys()]
    if spec.kind == "endpoint" and known:
        with _reaching(spec):
            return list(open_store(spec).connector.present(known))
    return []


def clear(spec: StoreSpec) -> None:
    """Remove all objects of ours from a store that lists them, and nothing else; a file store's directory as well."""
    if spec.kind == "file":
        shutil.rmtree(dict(spec.options)["store_dir"], ignore_errors=True)
    elif spec.kind == "redis":
        with _reaching(spec):
            open_store(spec).connector.clear_namespace()


@contextmanager
def _reaching(spec: StoreSpec) -> Iterator[None]:
    """Turn a store's own errors into one sentence."""
    try:
        yield
    except _errors_of(spec) as error:
        raise Unreachable(f"store {spec.name} ({spec.kind}) does not answer: {error}") from error


def _errors_of(spec: StoreSpec) -> tuple[type[Exception], ...]:
    if spec.kind != "globus":
        return OSError, RedisError
    from globus_sdk import GlobusError

    # No host_regex matches this host; a transfer took too long.
    return OSError, GlobusError, ValueError, RuntimeError


def _key(spec: StoreSpec, key: Any) -> tuple[str, ...]:
    """Return a connector's key as texts: of Globus the file, and the transfers that bring it to the other hosts."""
    return (key.filename, *key.task_id) if spec.kind == "globus" else tuple(key)


def _connector_key(ref: Ref) -> Any:
    if ref.store.kind == "file":
        return FileKey(*ref.key)
    if ref.store.kind == "redis":
        return RedisKey(*ref.key)
    if ref.store.kind == "endpoint":
        from proxystore.connectors.endpoint import EndpointKey

        return EndpointKey(*ref.key)
    from proxystore.connectors.globus import GlobusKey

    filename, *transfers = ref.key
    return GlobusKey(filename, tuple(transfers))


def _globus_connector(endpoints: str) -> Any:
    """Return a connector that deletes nothing of its own accord, from the content of a file of endpoints.

    The content travels, for a host elsewhere does not have the file.
    """
    from globus_sdk import GlobusError
    from proxystore.connectors.globus import GlobusConnector

    try:
        return GlobusConnector(json.loads(endpoints), clear=False, timeout=_TRANSFERRED_WITHIN_S)
    # It is no JSON, or that of something else.
    except (GlobusError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"the Globus store cannot be opened: {error}; mend the file of --ps-globus-config") from error


def _identity(data: Any) -> Any:
    return data
