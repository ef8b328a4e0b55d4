"""Streams with real ZeroMQ, a real Redis and real stores; whole commands and their kills are in tests/integration."""

import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from sites import redis_server as redis_servers
from sites.redis_server import RedisServer
from tasks import transport
from tasks.errors import BadInput, StreamBroken, Unreachable
from tasks.messages import StoreSpec
from tasks.stream import Bulk, Consumer, InDirectory, InMessage, InStore, Producer, StreamSpec
from tasks.stream.events import Beat, Sent, Taken, decode, encode
from tasks.stream.rendezvous import TOKEN_VARIABLE, Meeting, look
from tests.integration.sites.conftest import free_ports

SIZES = (1, 200, 30_000)


@pytest.fixture
def zmq_spec(tmp_path: Path) -> StreamSpec:
    """A meeting in a folder of the test's own; its bounds are such that a test that hangs fails soon."""
    folder = tmp_path / "meeting"
    folder.mkdir()
    return StreamSpec("test", "zmq", (("folder", str(folder)),), lease_s=5, wait_s=20)


@pytest.fixture
def redis_spec(redis_store: StoreSpec) -> StreamSpec:
    return StreamSpec(redis_store.name, "redis", redis_store.options, lease_s=5, wait_s=20)


@pytest.fixture(params=["zmq", "redis"])
def spec(request: pytest.FixtureRequest) -> StreamSpec:
    return request.getfixturevalue(f"{request.param}_spec")


@pytest.fixture(params=["messages", "files", "store of files", "redis"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[StreamSpec, Bulk]:
    """Any way for events and bytes."""
    if request.param == "redis":
        store = request.getfixturevalue("redis_store")
        return request.getfixturevalue("redis_spec"), InStore(replace(store, name=f"{store.name}.bulk"))
    spec = request.getfixturevalue("zmq_spec")
    bulk: dict[str, Bulk] = {
        "messages": InMessage(),
        "files": InDirectory(tmp_path / "made"),
        "store of files": InStore(request.getfixturevalue("file_store")),
    }
    return spec, bulk[request.param]


def frame(number: int, stream: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([stream, number])
    return {"positions": rng.random((SIZES[number % len(SIZES)], 3), dtype=np.float32), "box": np.eye(3)}


@contextmanager
def aside(work: Callable[[], None]) -> Iterator[list[Exception]]:
    """Run a function in a thread; what it raises is in the list afterwards."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  # looked at by the test
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(60)
        assert not thread.is_alive(), "an end hangs"


def put_all(spec: StreamSpec, bulk: Bulk, n: int, stream: int = 0) -> None:
    with Producer(spec, stream, bulk) as producer:
        for number in range(n):
            producer.put(frame(number, stream), {"number": number})


# ---- whole streams


@pytest.mark.parametrize("first", ["consumer", "producer"])
def test_what_is_put_is_taken(way: tuple[StreamSpec, Bulk], first: str, tmp_path: Path) -> None:
    spec, bulk = way
    started = threading.Event()

    def produce() -> None:
        if first == "consumer":
            assert started.wait(20)
        put_all(spec, bulk, 12)

    with aside(produce) as raised:
        if first == "producer":
            time.sleep(0.3)
        with Consumer(spec, [0], bulk, tmp_path / "taken") as consumer:
            started.set()
            items = list(consumer)
    assert raised == []
    assert (consumer.taken, consumer.lost, consumer.damaged, consumer.strangers) == (12, 0, 0, 0)
    assert [item.number for item in items] == [item.info["number"] for item in items] == list(range(12))
    for item in items:
        assert item.path == tmp_path / "taken" / "group0" / f"frame{item.number:06d}.safetensors"
        for read in (item.arrays(), transport.unpack(item.path.read_bytes())):
            assert read.keys() == {"positions", "box"}
            np.testing.assert_array_equal(read["positions"], frame(item.number)["positions"])
    assert len(list((tmp_path / "taken" / "group0").iterdir())) == 12
    assert nothing_left(spec, bulk)


def nothing_left(spec: StreamSpec, bulk: Bulk) -> bool:
    """Whether no bytes are in a store, no key in Redis, and no file where the ends met."""
    if isinstance(bulk, InStore) and transport.keys(bulk._store):
        return False
    options = dict(spec.options)
    if spec.events == "redis":
        with Redis(
            options["hostname"], int(options["port"]), password=os.environ.get(transport.PASSWORD_VARIABLE)
        ) as r:
            return not list(r.scan_iter(match=f"{spec.namespace}*"))
    return "folder" not in options or not list(Path(options["folder"]).iterdir())


def test_several_producers_of_one_consumer(way: tuple[StreamSpec, Bulk]) -> None:
    spec, bulk = way
    with (
        aside(lambda: put_all(spec, bulk, 6, 0)) as one,
        aside(lambda: put_all(spec, bulk, 6, 2)) as other,
        Consumer(spec, [0, 2], bulk) as consumer,
    ):
        items = list(consumer)
    assert one == other == []
    assert consumer.taken == 12
    for stream in (0, 2):
        of_it = [item for item in items if item.stream == stream]
        assert [item.number for item in of_it] == list(range(6))
        np.testing.assert_array_equal(of_it[5].arrays()["positions"], frame(5, stream)["positions"])


def test_a_producer_is_never_further_ahead_than_it_may(way: tuple[StreamSpec, Bulk]) -> None:
    spec, bulk = way
    producer = Producer(replace(spec, ahead=3, wait_s=0.3), 0, bulk)
    for number in range(3):
        producer.put(frame(number))
    with pytest.raises(StreamBroken, match=rf"no consumer {spec.name} (was found|came).* within 0\.3 s"):
        producer.put(frame(3))
    producer.abandon()
    # It cleans up after itself, except for files that are the product.
    assert nothing_left(spec, bulk)


def test_a_slow_consumer_holds_a_producer_back(way: tuple[StreamSpec, Bulk]) -> None:
    spec, bulk = way
    furthest = 0

    def produce() -> None:
        nonlocal furthest
        with Producer(replace(spec, ahead=2), 0, bulk) as producer:
            for number in range(8):
                producer.put(frame(number))
                furthest = number + 1

    with aside(produce) as raised, Consumer(replace(spec, ahead=2), [0], bulk) as consumer:
        for n_taken, _ in enumerate(consumer, start=1):
            time.sleep(0.03)
            assert furthest <= n_taken + 2
    assert raised == []
    assert consumer.taken == 8


def test_at_a_named_port_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv(TOKEN_VARIABLE, "ours")
    spec = StreamSpec("test", "zmq", (("host", "127.0.0.1"), ("port", str(port))), lease_s=5, wait_s=20)
    with aside(lambda: put_all(spec, InMessage(), 3)) as raised, Consumer(spec, [0], InMessage()) as consumer:
        assert len(list(consumer)) == 3
    assert raised == []
    with (
        Consumer(spec, [0], InMessage()),
        pytest.raises(BadInput, match=f"a consumer cannot listen at 127.0.0.1:{port} "),
    ):
        Consumer(spec, [0], InMessage())


# ---- what is torn, lost, strange


def test_what_is_torn_is_counted_and_never_seen(zmq_spec: StreamSpec, tmp_path: Path) -> None:
    bulk = InDirectory(tmp_path / "made")
    torn = [bulk.path(0, number) for number in (1, 2)]

    def produce() -> None:
        with Producer(zmq_spec, 0, bulk) as producer:
            for _ in range(4):
                producer.put(frame(2))
            torn[0].write_bytes(torn[0].read_bytes()[:-1])
            data = bytearray(torn[1].read_bytes())
            data[-7] ^= 1
            torn[1].write_bytes(data)
            told.set()

    told = threading.Event()
    with aside(produce) as raised:
        assert told.wait(20)
        with Consumer(zmq_spec, [0], bulk, tmp_path / "taken") as consumer:
            items = list(consumer)
    assert raised == []
    assert [item.number for item in items] == [0, 3]
    assert (consumer.taken, consumer.damaged, consumer.lost) == (2, 2, 0)
    assert sorted(path.name for path in (tmp_path / "taken/group0").iterdir()) == [
        "frame000000.safetensors", "frame000003.safetensors",
    ]  # fmt: skip


def test_what_never_comes_is_counted(way: tuple[StreamSpec, Bulk]) -> None:
    spec, bulk = way

    def produce() -> None:
        producer = Producer(spec, 0, bulk)
        for number in range(6):
            # Of the second and the last nobody is told.
            if number in (1, 5):
                producer._n_sent += 1
            else:
                producer.put(frame(number))
        producer.close()

    with aside(produce) as raised, Consumer(spec, [0], bulk) as consumer:
        assert [item.number for item in consumer] == [0, 2, 3, 4]
    assert raised == []
    assert (consumer.taken, consumer.lost, consumer.damaged) == (4, 2, 0)


class _Runs:
    """What runs code where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def test_strangers_are_counted_and_not_listened_to(zmq_spec: StreamSpec, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    sent = Sent(0, "stranger", 0, 4, "0")
    with Consumer(zmq_spec, [0], InMessage()) as consumer, zmq.Context() as context:
        meeting = look(Path(dict(zmq_spec.options)["folder"]) / ".test.0.stream")
        assert meeting is not None
        with context.socket(zmq.DEALER) as socket:
            socket.connect(meeting.url)
            said = [
                [pickle.dumps(_Runs(trace))],
                [b"\xff" * 70_000],
                [b""],
                [b"{}", b"a", b"b"],
                [b"[1]"],
                [encode(sent, "test.0 guess"), b"data"],
                [encode(replace(sent, stream=7), f"test.0 {meeting.token}"), b"data"],
                [encode(Taken(0, "stranger", 1), f"test.0 {meeting.token}")],
            ]
            for parts in said:
                socket.send_multipart(parts)
            with aside(lambda: put_all(zmq_spec, InMessage(), 3)) as raised:
                assert len(list(consumer)) == 3
            deadline = time.monotonic() + 10
            while consumer.strangers < len(said) and time.monotonic() < deadline:
                time.sleep(0.01)
    assert raised == []
    assert consumer.strangers == len(said)
    assert not trace.exists()


def test_a_key_that_leads_out_of_the_store_is_not_followed(zmq_spec: StreamSpec, tmp_path: Path) -> None:
    store = StoreSpec("test", "file", (("store_dir", str(tmp_path / "store")),))
    (tmp_path / "secret").write_bytes(b"secret")

    class Leads(InStore):
        def put(self, stream: int, number: int, data: bytes) -> tuple[tuple[str, ...], bytes | None]:
            return ("../secret",), None

    with (
        aside(lambda: put_all(zmq_spec, Leads(store), 1)) as raised,
        Consumer(zmq_spec, [0], InStore(store)) as consumer,
    ):
        assert list(consumer) == []
    assert consumer.damaged == 1
    assert (tmp_path / "secret").exists()
    assert raised == []


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_none(data: bytes) -> None:
    assert decode(data, "name token") is None


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from(
            ["kind", "password", "stream", "session", "number", "n_bytes", "checksum", "sent", "state", "info"]
        ),
        st.one_of(st.none(), st.integers(), st.text(), st.booleans(), st.lists(st.integers()), st.just("sent")),
    )
)
def test_any_json_is_a_message_or_none(fields: dict[str, object]) -> None:
    message = decode(json.dumps({"kind": "sent", **fields, "password": "name token"}).encode(), "name token")
    assert message is None or (isinstance(message, Sent) and message.number >= 0)


@pytest.mark.parametrize(
    "message",
    [Sent(1, "s", 2, 3, "4", ("a", "b"), {"made": 1.5}), Beat(1, "s", 2, "over"), Taken(0, "s", 9, "broken")],
)
def test_messages_survive_their_way(message: Sent | Beat | Taken) -> None:
    assert decode(encode(message, "name token"), "name token") == message
    assert decode(encode(message, "name token"), "name other") is None


def test_bulk_does_not_belong_in_events(way: tuple[StreamSpec, Bulk]) -> None:
    spec, bulk = way
    with pytest.raises(ValueError, match="put arrays in the item"), Producer(spec, 0, bulk) as producer:
        producer.put(frame(0), {"text": "x" * 70_000})


# ---- who is gone, or one too many


def test_a_second_producer_is_refused(spec: StreamSpec, tmp_path: Path) -> None:
    bulk = InDirectory(tmp_path / "made")
    begun = threading.Event()

    def first() -> None:
        with Producer(spec, 0, bulk) as producer:
            producer.put(frame(0))
            begun.set()
            assert refused.wait(20)

    refused = threading.Event()
    with aside(first) as raised, Consumer(spec, [0], bulk) as consumer:
        assert begun.wait(20)
        items = iter(consumer)
        next(items)
        with pytest.raises(StreamBroken, match="has a producer of stream 0 already"):
            put_all(spec, InDirectory(tmp_path / "other"), 1)
        refused.set()
        assert list(items) == []
    assert raised == []
    assert consumer.taken == 1


def test_a_second_consumer_is_refused(spec: StreamSpec, tmp_path: Path) -> None:
    bulk = InDirectory(tmp_path / "made")
    with (
        Consumer(spec, [0], bulk),
        pytest.raises(
            (BadInput, StreamBroken), match=r"already.*: choose another (--)?namespace|already, or had one"
        ),
    ):
        Consumer(spec, [0], bulk)


def test_a_producer_that_gives_up_says_so(way: tuple[StreamSpec, Bulk]) -> None:
    spec, bulk = way

    def produce() -> None:
        with Producer(spec, 0, bulk) as producer:
            producer.put(frame(0))
            assert taken.wait(20)
            raise RuntimeError("no more")

    taken = threading.Event()
    with aside(produce) as raised, Consumer(replace(spec, lease_s=30), [0], bulk) as consumer:
        items = iter(consumer)
        next(items)
        taken.set()
        with pytest.raises(StreamBroken, match="producer of stream 0 in namespace .* gave up after 1 items"):
            next(items)
    assert [type(error) for error in raised] == [RuntimeError]
    assert (consumer.taken, consumer.lost) == (1, 0)


def test_a_consumer_that_gives_up_says_so(way: tuple[StreamSpec, Bulk]) -> None:
    spec, bulk = way
    with (
        aside(lambda: put_all(replace(spec, lease_s=30, ahead=2), bulk, 10)) as raised,
        Consumer(spec, [0], bulk) as consumer,
    ):
        next(iter(consumer))
    (error,) = raised
    assert isinstance(error, StreamBroken)
    assert str(error).startswith(f"the consumer {spec.name} gave up: ")
    if isinstance(bulk, InStore):
        assert transport.keys(bulk._store) == []


def test_nobody_comes(spec: StreamSpec, tmp_path: Path) -> None:
    with (
        Consumer(replace(spec, wait_s=0.2), [0], InDirectory(tmp_path)) as consumer,
        pytest.raises(
            StreamBroken, match=r"nothing came of stream 0 in namespace .* within 0\.2 s: start its producer"
        ),
    ):
        next(iter(consumer))


def test_an_address_that_died_is_left_for_the_one_that_lives(zmq_spec: StreamSpec) -> None:
    (port,) = free_ports(1)
    file = Path(dict(zmq_spec.options)["folder"]) / ".test.0.stream"
    file.write_text(f'{{"host": "127.0.0.1", "port": {port}, "token": "old"}}')
    with aside(lambda: put_all(zmq_spec, InMessage(), 3)) as raised:
        time.sleep(0.3)
        with Consumer(zmq_spec, [0], InMessage()) as consumer:
            assert len(list(consumer)) == 3
    assert raised == []
    assert not file.exists()


def test_events_of_a_producer_that_was_killed_are_not_of_the_next(redis_spec: StreamSpec, tmp_path: Path) -> None:
    bulk = InDirectory(tmp_path / "made")
    killed = Producer(redis_spec, 0, bulk)
    killed.put(frame(0))
    killed.put(frame(1))
    killed._outlet._lease.end()  # as it ends for one that renews it no more
    with aside(lambda: put_all(redis_spec, bulk, 3)) as raised, Consumer(redis_spec, [0], bulk) as consumer:
        assert [item.info["number"] for item in consumer] == [0, 1, 2]
    assert raised == []
    assert (consumer.strangers, consumer.lost) == (2, 0)


def test_where_consumers_listen_is_for_their_owner(zmq_spec: StreamSpec) -> None:
    with Consumer(zmq_spec, [0], InMessage()):
        (file,) = Path(dict(zmq_spec.options)["folder"]).iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        meeting = look(file)
    assert isinstance(meeting, Meeting)
    assert (meeting.host, len(meeting.token)) == ("127.0.0.1", 32)


# ---- Redis is gone


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = redis_servers.start(None, tmp_path / "redis.log")
    yield server
    server.stop()


def test_both_ends_say_that_redis_is_gone(own_redis: RedisServer, tmp_path: Path) -> None:
    options = (("hostname", own_redis.host), ("port", str(own_redis.port)))
    spec = StreamSpec("test", "redis", options, ahead=1, lease_s=1, wait_s=60)
    bulk = InDirectory(tmp_path / "made")

    def produce() -> None:
        with Producer(spec, 0, bulk) as producer:
            while True:
                producer.put(frame(0))
                assert gone.wait(20)

    gone = threading.Event()
    with aside(produce) as raised, Consumer(spec, [0], bulk) as consumer:
        items = iter(consumer)
        next(items)
        assert own_redis.process is not None
        own_redis.process.kill()
        gone.set()
        with pytest.raises(
            Unreachable, match=f"Redis at 127.0.0.1:{own_redis.port} does not answer .*: look whether"
        ):
            list(items)
    (error,) = raised
    assert isinstance(error, Unreachable)
    assert str(error).startswith(f"Redis at 127.0.0.1:{own_redis.port} does not answer")
