import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from redis import Redis

from sites import redis_server as redis_servers
from sites.redis_server import RedisServer
from tasks import transport
from tasks.errors import BadInput, Damaged, TooLarge, Unreachable
from tasks.messages import MoveSpec, Ref, StoreSpec
from tasks.transport import (
    MAX_INLINE_BYTES,
    MAX_INLINE_OPTION,
    REACHES_VARIABLE,
    clear,
    evict,
    fetch,
    keys,
    move,
    open_store,
    pack,
    ship,
    unpack,
)

INLINE = StoreSpec("inline", "inline")
SOME = {"positions": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest) -> StoreSpec:
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture(params=["file", "redis", "inline"])
def way(request: pytest.FixtureRequest) -> StoreSpec:
    """Any way for arrays to travel."""
    return INLINE if request.param == "inline" else request.getfixturevalue(f"{request.param}_store")


def redis_at(server: RedisServer) -> StoreSpec:
    return StoreSpec("test", "redis", (("hostname", server.host), ("port", str(server.port))))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        array.dtype == other[name].dtype and np.array_equal(array, other[name]) for name, array in one.items()
    )


# ---- round trips


def test_every_kind_of_array_that_travels_comes_back(way: StoreSpec) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "positions": rng.normal(size=(5, 22, 3)).astype(np.float32),
        "velocities": rng.normal(size=(1, 22, 3)),
        "ids": rng.integers(-9, 9, (4, 2)),
        "visited": rng.integers(0, 2, 576).astype(bool),
        "text": np.frombuffer("für Ångström".encode(), dtype=np.uint8),
        "no torsions": np.empty((0, 4), np.int64),
        "no latent": np.empty((30, 0), np.float32),
        "scalar": np.float64(3.0),
        "extremes": np.array([np.nan, -np.inf, 5e-324, -0.0]),
    }
    ref = ship(arrays, way)
    came_back = fetch(ref)
    assert came_back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert came_back[name].dtype == np.asarray(array).dtype
        assert came_back[name].shape == np.shape(array)
        assert came_back[name].tobytes() == np.asarray(array).tobytes()
    assert ref.n_bytes == len(pack(arrays))


def test_views_travel_as_they_look() -> None:
    base = np.arange(24.0).reshape(4, 6)
    views = {"columns": base[:, ::2], "turned": base.T, "back": base[::-1], "swapped": base.astype(">f8")}
    for name, array in unpack(pack(views)).items():
        np.testing.assert_array_equal(array, views[name])


def test_a_million_numbers_come_back(store: StoreSpec) -> None:
    large = {"positions": np.random.default_rng(1).normal(size=(1000, 1000))}
    assert same(fetch(ship(large, store)), large)


def test_an_address_is_small_and_outlives_its_process(store: StoreSpec) -> None:
    message = pickle.dumps(ship({"positions": np.zeros((500, 500))}, store))
    assert len(message) < 500
    open_store.cache_clear()
    ref = pickle.loads(message)  # noqa: S301 - written two lines above
    assert fetch(ref)["positions"].shape == (500, 500)


def test_data_can_be_read_many_times(store: StoreSpec) -> None:
    ref = ship(SOME, store)
    assert all(same(fetch(ref), SOME) for _ in range(3))
    assert len(keys(store)) == 1
    # From the store each time: a process that remembered what it read would grow with the campaign.
    put_raw(ref, pack({"other": np.ones(3)}))
    assert set(fetch(ref)) == {"other"}


# ---- no pickle


def raw_bytes(ref: Ref) -> bytes:
    options = dict(ref.store.options)
    if ref.store.kind == "file":
        return (Path(options["store_dir"]) / ref.key[0]).read_bytes()
    with Redis(options["hostname"], int(options["port"])) as client:
        return client.get(ref.key[0])


def put_raw(ref: Ref, data: bytes) -> None:
    options = dict(ref.store.options)
    if ref.store.kind == "file":
        (Path(options["store_dir"]) / ref.key[0]).write_bytes(data)
        return
    with Redis(options["hostname"], int(options["port"])) as client:
        client.set(ref.key[0], data)


def test_what_lies_in_a_store_is_safetensors(store: StoreSpec) -> None:
    data = raw_bytes(ship(SOME, store))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["positions"] == {"dtype": "F32", "shape": [1, 2, 3], "data_offsets": [0, 24]}
    assert same(safetensors.numpy.load(data), SOME)


class Bomb:
    """What an intruder might put where our arrays lay."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_reading_runs_no_code(store: StoreSpec, tmp_path: Path) -> None:
    target = tmp_path / "went-off"
    ref = ship(SOME, store)
    put_raw(ref, pickle.dumps(Bomb(target)))
    with pytest.raises(Damaged, match="bytes are not whole arrays"):
        fetch(ref)
    assert not target.exists()


def test_the_library_of_the_format_reads_ours_and_we_read_its() -> None:
    arrays = {
        "nothing": np.zeros((0, 3), np.float32), "count": np.arange(5), "flags": np.array([True, False]),
        "bytes": np.frombuffer(b"abc", np.uint8), "wide": np.linspace(0, 1, 12).reshape(3, 4), "one": np.array(3.0),
    }  # fmt: skip
    assert same(safetensors.numpy.load(pack(arrays)), arrays)
    assert same(unpack(safetensors.numpy.save(arrays)), arrays)


def test_a_torn_buffer_is_told_wherever_it_was_torn() -> None:
    data = pack({"positions": np.arange(12.0).reshape(1, 4, 3), "box": np.eye(3, dtype=np.float32)})
    for length in range(len(data)):
        with pytest.raises(Damaged):
            unpack(data[:length])


# ---- inline and the threshold


def test_inline_data_travel_in_the_message() -> None:
    ref = ship(SOME, INLINE)
    assert (ref.key, ref.data) == ((), pack(SOME))
    evict(ref)
    assert same(fetch(ref), SOME)


@pytest.mark.parametrize("always", [True, False])
def test_what_no_message_carries_is_refused(always: bool) -> None:
    too_large = {"positions": np.zeros(MAX_INLINE_BYTES + 1, np.uint8)}
    with pytest.raises(TooLarge, match=r"^8000\d+ bytes without a store exceed .*: choose a ProxyStore backend"):
        ship(too_large, INLINE, always=always)
    header = len(pack(too_large)) - MAX_INLINE_BYTES - 1
    ship({"positions": np.zeros(MAX_INLINE_BYTES - header - 8, np.uint8)}, INLINE, always=always)


def test_the_threshold_holds_for_what_need_not_be_stored(store: StoreSpec) -> None:
    size = len(pack(SOME))
    above, at = (replace(store, threshold=threshold) for threshold in (size + 1, size))
    small = ship(SOME, above, always=False)
    assert small.data is not None
    assert len(keys(store)) == 0
    stored = [ship(SOME, at, always=False), ship(SOME, above)]
    assert [ref.data for ref in stored] == [None, None]
    assert len(keys(store)) == 2
    assert all(same(fetch(ref), SOME) for ref in (small, *stored))


# ---- eviction and clearing


def test_evicted_data_are_gone_and_others_stay(store: StoreSpec) -> None:
    gone, stays = ship(SOME, store), ship(SOME, store)
    evict(gone)
    assert len(keys(store)) == 1
    with pytest.raises(Unreachable, match=r"^store test\S* \((file|redis)\) no longer holds \("):
        fetch(gone)
    assert same(fetch(stays), SOME)
    evict(gone)


def test_clearing_redis_touches_no_foreign_key(redis_server: RedisServer, redis_store: StoreSpec) -> None:
    # A name that begins with ours, and what a queue of Colmena's looks like.
    longer = replace(redis_store, name=f"{redis_store.name}x")
    neighbour = ship(SOME, longer)
    for _ in range(3):
        ship(SOME, redis_store)
    with Redis(redis_server.host, redis_server.port) as client:
        foreign = {f"{redis_store.name}": b"1", f"colmena:{redis_store.name}:x": b"2"}
        client.mset(foreign)
        client.rpush(f"{redis_store.name}_requests", b"3")
        assert len(keys(redis_store)) == 3
        clear(redis_store)
        assert len(keys(redis_store)) == 0
        assert client.mget(list(foreign)) == list(foreign.values())
        assert client.lrange(f"{redis_store.name}_requests", 0, -1) == [b"3"]
    assert same(fetch(neighbour), SOME)


def test_clearing_files_removes_their_directory_only(tmp_path: Path, file_store: StoreSpec) -> None:
    (tmp_path / "topology.pdb").touch()
    ref = ship(SOME, file_store)
    clear(file_store)
    assert [path.name for path in tmp_path.iterdir()] == ["topology.pdb"]
    assert len(keys(file_store)) == 0
    with pytest.raises(Unreachable, match="no longer holds"):
        fetch(ref)
    evict(ref)
    clear(file_store)


def test_no_store_is_opened_twice(store: StoreSpec) -> None:
    assert open_store(store) is open_store(replace(store))


def test_inline_is_no_store() -> None:
    with pytest.raises(ValueError, match="kind inline cannot be opened"):
        open_store(INLINE)
    assert len(keys(INLINE)) == 0
    clear(INLINE)


# ---- stores that do not answer


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may mistreat."""
    server = redis_servers.start(None, tmp_path / "redis.log")
    yield server
    if server.process.poll() is None:
        os.kill(server.process.pid, signal.SIGCONT)
    server.stop()


def test_a_dead_server_is_unreachable_within_seconds(own_server: RedisServer) -> None:
    ref = ship(SOME, redis_at(own_server))
    own_server.stop()
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"^store test \(redis\) does not answer: .*refused"):
        fetch(ref)
    assert time.monotonic() - began < 10


def test_a_silent_server_is_waited_for_once(own_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_REDIS_ANSWERS_S", 0.2)
    store = replace(redis_at(own_server), name="silent")
    ref = ship(SOME, store)
    os.kill(own_server.process.pid, signal.SIGSTOP)
    for attempt in (
        lambda: fetch(ref),
        lambda: ship(SOME, store),
        lambda: evict(ref),
        lambda: len(keys(store)),
        lambda: clear(store),
    ):
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"^store silent \(redis\) does not answer"):
            attempt()
        assert time.monotonic() - began < 1
    os.kill(own_server.process.pid, signal.SIGCONT)
    assert fetch(ship(SOME, store)).keys() == SOME.keys()


def test_a_file_store_that_cannot_be_made_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = StoreSpec("test", "file", (("store_dir", str(tmp_path / "file" / "store")),))
    with pytest.raises(Unreachable, match=r"^store test \(file\) does not answer: .*Not a directory"):
        ship(SOME, store)


def test_a_file_store_whose_directory_went_is_unreachable(file_store: StoreSpec) -> None:
    ship(SOME, file_store)
    clear(file_store)
    with pytest.raises(Unreachable, match=r"does not answer: .*No such file"):
        ship(SOME, file_store)


def test_a_kind_that_the_site_does_not_reach_is_not_dialled(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = ship(SOME, store)
    open_store.cache_clear()
    monkeypatch.setenv(REACHES_VARIABLE, "globus,inline")
    for attempt in (lambda: fetch(ref), lambda: ship(SOME, store), lambda: evict(ref)):
        with pytest.raises(Unreachable, match=f"of kind {store.kind}, and this site reaches only globus,inline"):
            attempt()
    assert same(fetch(ship(SOME, INLINE)), SOME)
    monkeypatch.setenv(REACHES_VARIABLE, "file,redis")
    assert same(fetch(ref), SOME)


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"a": {"uuid": "x"}}'])
def test_a_globus_configuration_that_does_not_serve_is_told(content: str) -> None:
    with pytest.raises(
        BadInput, match=r"^the Globus store cannot be opened: .*; mend the file of --ps-globus-config"
    ):
        ship(SOME, StoreSpec("test", "globus", (("endpoints", content),)))


# ---- moving


def test_data_move_from_redis_to_files(redis_store: StoreSpec, file_store: StoreSpec) -> None:
    source = ship(SOME, redis_store)
    result = move(MoveSpec(cargo=("frames", 0), task_id=9, attempt=2, source=source, store=file_store))
    assert (result.task_id, result.attempt) == (9, 2)
    assert result.moved.store == file_store
    assert result.moved.n_bytes == source.n_bytes
    assert same(fetch(result.moved), SOME)
    # Somebody else may still be reading at the source.
    assert same(fetch(source), SOME)
    assert raw_bytes(result.moved) == raw_bytes(source)


def test_data_that_are_gone_cannot_be_moved(redis_store: StoreSpec, file_store: StoreSpec) -> None:
    source = ship(SOME, redis_store)
    evict(source)
    with pytest.raises(Unreachable, match="no longer holds"):
        move(MoveSpec(cargo=("frames", 0), task_id=9, attempt=1, source=source, store=file_store))
    assert len(keys(file_store)) == 0


def test_a_message_takes_what_its_carrier_takes() -> None:
    carrier = StoreSpec("wayfinder", "inline", ((MAX_INLINE_OPTION, "1000"),))
    assert fetch(ship({"frames": np.zeros(10)}, carrier))["frames"].shape == (10,)
    with pytest.raises(TooLarge, match="exceed the 1000 that a message carries"):
        ship({"frames": np.zeros(1000)}, carrier)
