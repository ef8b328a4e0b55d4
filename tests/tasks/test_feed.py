"""A segment's batches on their way to whoever looks at them: real ZeroMQ, a real Redis, real stores."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.feed import FeedInlet
from agents.state import Receipt
from tasks import feed as feeds
from tasks.feed import Feeder
from tasks.messages import Batch, Feed, SegmentSpec, StoreSpec, Watch
from tasks.simulate import run_segment
from tasks.stream.events import Sent
from tasks.stream.zeromq import ZmqOutlet
from tasks.transport import TOKEN_VARIABLE, fetch, keys
from tests.integration.sites.conftest import free_ports

POINTS = np.arange(24, dtype=np.float32).reshape(2, 4, 3)


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec("batches", "file", (("store_dir", str(tmp_path / "store")),))


@pytest.fixture(params=["zmq", "redis"])
def feed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Feed:
    if request.param == "redis":
        redis_store = request.getfixturevalue("redis_store")
        return Feed(f"{redis_store.name}-feed", "redis", redis_store.options, 0, ahead=2)
    return request.getfixturevalue("by_zmq")


@pytest.fixture
def by_zmq(monkeypatch: pytest.MonkeyPatch) -> Feed:
    monkeypatch.setenv(TOKEN_VARIABLE, "ours")
    (port,) = free_ports(1)
    return Feed("feed", "zmq", (("host", "127.0.0.1"), ("port", str(port))), 0, ahead=2)


@pytest.fixture
def inlet(feed: Feed, store: StoreSpec) -> Iterator[FeedInlet]:
    opened = FeedInlet(feed, None, [store])
    yield opened
    opened.close()


@pytest.fixture
def spec(segment: SegmentSpec, store: StoreSpec) -> SegmentSpec:
    return replace(segment, segment_id=7, attempt=3, store=store)


def heard(inlet: FeedInlet, n: int) -> list[Batch]:
    """Return so many batches of the only campaign."""
    found: list[Batch] = []
    deadline = time.monotonic() + 20
    while len(found) < n:
        assert time.monotonic() < deadline, f"only {found} came"
        found += inlet.hear(0.2).get(0, [])
    return found


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_batches_come_as_they_were_sent_and_their_bytes_stay_in_the_store(feed, inlet, spec, store):
    feeder = Feeder(spec, feed, "drop", may_stop=True)
    feeder.send(0, POINTS)
    feeder.send(2, POINTS + 1)
    first, second = heard(inlet, 2)
    feeder.leave()
    assert (first.segment_id, first.attempt, first.first, first.n_frames, first.number) == (7, 3, 0, 2, 0)
    assert (second.first, second.number, second.stream) == (2, 1, first.stream)
    assert 0 <= second.made - first.made < 10
    np.testing.assert_array_equal(fetch(second.points)["points"], POINTS + 1)
    assert (feeder.fed().sent, feeder.fed().dropped, feeder.fed().error) == (2, 0, None)
    assert len(keys(store)) == 2, "whoever heard of them removes them"


def test_without_room_a_batch_is_dropped_and_counted(feed, inlet, spec, store):
    feeder = Feeder(spec, feed, "drop", may_stop=True)
    for k in range(5):
        feeder.send(2 * k, POINTS)
    assert (feeder.fed().sent, feeder.fed().dropped) == (2, 3)
    (first, _) = heard(inlet, 2)
    inlet.tell([Receipt(first.stream, 2)])

    def has_room() -> bool:
        feeder.send(10, POINTS)
        return feeder.fed().sent == 3

    until(has_room)
    assert heard(inlet, 1)[0].first == 10
    feeder.leave()


def test_a_segment_may_wait_for_room(feed, inlet, spec, monkeypatch):
    monkeypatch.setattr(feeds, "WAIT_S", 1.0)
    feeder = Feeder(spec, feed, "wait", may_stop=True)
    for k in range(3):
        feeder.send(2 * k, POINTS)
    fed = feeder.fed()
    assert (fed.sent, fed.dropped) == (2, 1)
    assert 0.9 < fed.blocked_s < 10
    assert "1 s" in (fed.error or "")
    feeder.leave()


def test_a_segment_is_told_that_enough_was_seen_of_it_and_no_other_is(feed, inlet, spec):
    ended = Feeder(spec, feed, "drop", may_stop=True)
    other = Feeder(replace(spec, segment_id=8), feed, "drop", may_stop=True)
    bound = Feeder(replace(spec, segment_id=9), feed, "drop", may_stop=False)
    for feeder in (ended, other, bound):
        feeder.send(0, POINTS)
    streams = {batch.segment_id: batch.stream for batch in heard(inlet, 3)}
    inlet.tell([Receipt(streams[7]), Receipt(streams[9]), Receipt(streams[8], 1)])

    def told() -> bool:
        for feeder in (ended, other, bound):
            feeder.send(2, POINTS)
        return ended.stopped

    until(told)
    n_sent = ended.fed().sent
    ended.send(4, POINTS)
    assert ended.fed().sent == n_sent
    for feeder in (ended, other, bound):
        feeder.leave()
    assert (ended.fed().stopped, other.fed().stopped, bound.fed().stopped) == (True, False, False)


def test_where_nobody_listens_the_segment_goes_on_and_leaves_nothing(by_zmq, spec, store):
    feeder = Feeder(spec, by_zmq, "drop", may_stop=True)
    for k in range(4):
        feeder.send(2 * k, POINTS)
    feeder.leave()
    assert (feeder.fed().sent, feeder.fed().dropped) == (2, 2)
    assert keys(store) == []


def test_where_the_listener_is_gone_the_segment_goes_on_and_leaves_nothing(by_zmq, spec, store, monkeypatch):
    monkeypatch.setattr(feeds, "LEASE_S", 1.0)
    inlet = FeedInlet(by_zmq, None, [store])
    feeder = Feeder(spec, by_zmq, "wait", may_stop=True)
    feeder.send(0, POINTS)
    heard(inlet, 1)
    until(lambda: feeder._outlet.met)  # before it has heard of a listener it waits for one, and longer
    inlet._inlet._line.close()  # as if it were killed: it says no last word
    feeder.send(2, POINTS)
    feeder.send(4, POINTS)
    assert "gave no sign of life for 1 s" in (feeder.fed().error or "")
    feeder.leave()
    assert keys(store) == []


def test_strangers_are_not_heard(by_zmq, spec, store, monkeypatch):
    inlet = FeedInlet(by_zmq, None, [store])
    monkeypatch.setenv(TOKEN_VARIABLE, "theirs")
    feeder = Feeder(spec, by_zmq, "drop", may_stop=True)
    feeder.send(0, POINTS)
    until(lambda: inlet._inlet.strangers > 0)
    assert inlet.hear(0.2) == {}
    feeder.leave()
    inlet.close()
    assert keys(store) == []


def test_garbage_at_the_port_harms_nobody(by_zmq, spec, store):
    inlet = FeedInlet(by_zmq, None, [store])
    port = int(dict(by_zmq.options)["port"])
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for client in clients:
        client.sendall(os.urandom(4096))
    feeder = Feeder(spec, by_zmq, "drop", may_stop=True)
    feeder.send(0, POINTS)
    assert heard(inlet, 1)[0].segment_id == 7
    feeder.leave()
    for client in clients:
        client.close()
    inlet.close()


def test_an_event_cannot_name_another_store(by_zmq, store):
    inlet = FeedInlet(by_zmq, None, [store])
    told = {"campaign": 0, "segment_id": 7, "attempt": 1, "first": 0, "n_frames": 2, "made": 1.0}
    outlet = ZmqOutlet(feeds.stream_spec(by_zmq), 5, "a session")
    for key in (("../../etc/passwd",), (), ("a/b",)):
        outlet.send(Sent(5, "a session", 0, 10, "", key, told), None)
    outlet.send(Sent(5, "a session", 0, 10, "", ("wellformed",), told), None)
    (batch,) = heard(inlet, 1)
    assert (batch.points.store, batch.points.key) == (store, ("wellformed",))
    outlet.close()
    inlet.close()


def test_a_campaign_that_is_none_of_this_process_is_not_heard(feed, inlet, spec):
    feeder = Feeder(spec, replace(feed, campaign=5), "drop", may_stop=True)
    feeder.send(0, POINTS)
    assert inlet.hear(1.0) == {}
    feeder.leave()


def test_producers_that_ended_are_forgotten(by_zmq, spec, store, monkeypatch):
    monkeypatch.setattr(feeds, "LEASE_S", 1.0)
    inlet = FeedInlet(by_zmq, None, [store])
    for segment_id in range(20):
        feeder = Feeder(replace(spec, segment_id=segment_id), by_zmq, "drop", may_stop=True)
        feeder.send(0, POINTS)
        feeder.leave()
    batches = heard(inlet, 20)
    until(lambda: not inlet._inlet._peers and not inlet._inlet._taken)
    inlet.tell([Receipt(batch.stream, 1) for batch in batches])
    assert not inlet._inlet._taken, "what is told of those that ended grows with the campaign"
    inlet.close()


def test_a_segment_that_is_told_to_end_keeps_the_frames_that_it_has(by_zmq, segment, store):
    inlet = FeedInlet(by_zmq, None, [store])
    padded = replace(segment.dynamics, min_seconds=10.0)
    watch = Watch(every=1, may_stop=True, feed=by_zmq)
    spec = replace(segment, dynamics=padded, watch=watch, store=store)

    from threading import Thread

    def end_it() -> None:
        inlet.tell([Receipt(heard(inlet, 1)[0].stream)])

    thread = Thread(target=end_it)
    thread.start()
    result = run_segment(spec)
    thread.join()
    inlet.close()
    whole = run_segment(replace(spec, watch=None, dynamics=segment.dynamics))
    assert result.watched is not None
    assert result.watched.stopped
    assert result.watched.fed is not None
    assert result.watched.fed.stopped
    assert 1 <= result.n_frames < whole.n_frames == segment.dynamics.n_frames
    frames = fetch(whole.frames)["positions"]
    np.testing.assert_array_equal(fetch(result.frames)["positions"], frames[: result.n_frames])
