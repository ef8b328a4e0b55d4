"""Messages between the Thinker and the task server: whole, counted, and waited for without end."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import redis
from colmena.exceptions import KillSignalException, TimeoutException
from colmena.queue.python import PipeQueues
from colmena.queue.redis import RedisQueues

from agents.queues import TOPICS, pipe_queues, redis_queues

LARGE = 400_000


@pytest.fixture(params=["pipe", "redis"])
def queues(request):
    if request.param == "pipe":
        yield pipe_queues()
        return
    redis_server = request.getfixturevalue("redis_server")
    made = redis_queues(redis_server.host, redis_server.port, "run-1")
    yield made
    made.flush()


@contextmanager
def in_threads(function, arguments):
    """Call a function in threads at once; an error in one is raised here."""
    start = threading.Barrier(len(arguments))

    def begin(argument):
        start.wait(10)
        return function(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        futures = [pool.submit(begin, argument) for argument in arguments]
        yield
        for future in futures:
            future.result(timeout=30)


def test_large_requests_of_several_threads_arrive_whole(queues):
    letters = "ab"

    def send(letter):
        for _ in range(15):
            queues.send_inputs(letter * LARGE, method="m", topic="infer" if letter == "a" else "simulate")

    with in_threads(send, letters):
        received = [queues.get_task(timeout=10) for _ in range(30)]
    bodies = []
    for _, task in received:
        task.deserialize()
        bodies.append(task.args[0])
    assert sorted(bodies) == ["a" * LARGE] * 15 + ["b" * LARGE] * 15


def test_large_results_of_several_executors_arrive_whole(queues):
    for letter in "ab":
        queues.send_inputs(letter, method="m", topic="simulate")
    tasks = [queues.get_task(timeout=10)[1] for _ in range(2)]
    for task, letter in zip(tasks, "ab", strict=True):
        task.set_result(letter * LARGE)
        task.serialize()

    def send(task):
        for _ in range(15):
            queues.send_result(task)

    with in_threads(send, tasks):
        values = [queues.get_result("simulate", timeout=10).value for _ in range(30)]
    assert sorted(values) == ["a" * LARGE] * 15 + ["b" * LARGE] * 15


def test_bytes_are_counted_by_topic(queues, monkeypatch):
    written = []

    def spy_on(name):
        colmenas = PipeQueues if isinstance(queues, PipeQueues) else RedisQueues
        original = getattr(colmenas, name)

        def spy(self, message, topic):
            written.append((topic, len(message.encode())))
            original(self, message, topic)

        monkeypatch.setattr(colmenas, name, spy)

    spy_on("_send_request")
    spy_on("_send_result")
    for topic, size in [("simulate", 10), ("simulate", 5000), ("train", 10)]:
        queues.send_inputs("x" * size, method="m", topic=topic)
    assert queues.traffic[0].sent == {
        "simulate": sum(size for topic, size in written if topic == "simulate"),
        "train": sum(size for topic, size in written if topic == "train"),
    }
    assert queues.traffic[0].sent["simulate"] > 2 * 5010
    written.clear()
    for _ in range(3):
        _, task = queues.get_task(timeout=10)
        task.set_result(task.topic * 100)
        task.serialize()
        queues.send_result(task)
    for topic in ("simulate", "simulate", "train"):
        queues.get_result(topic, timeout=10)
    assert queues.traffic[0].received == {
        "simulate": sum(size for topic, size in written if topic == "simulate"),
        "train": sum(size for topic, size in written if topic == "train"),
    }


def test_bytes_are_counted_by_campaign(queues):
    for campaign, size in [(0, 10), (1, 5000), (1, 10)]:
        queues.send_inputs("x" * size, method="m", topic="train", task_info={"campaign": campaign})
    for _ in range(3):
        _, task = queues.get_task(timeout=10)
        task.set_result("y" * 100)
        task.serialize()
        queues.send_result(task)
    for _ in range(3):
        queues.get_result("train", timeout=10)
    sent, received = ([getattr(queues.traffic[n], way)["train"] for n in (0, 1)] for way in ("sent", "received"))
    assert sent[1] > sent[0] + 5000
    assert 100 < received[0] < received[1] < 3 * received[0]


def test_inputs_do_not_come_back(queues):
    queues.send_inputs("x" * 1000, method="m", topic="move")
    _, task = queues.get_task(timeout=10)
    task.deserialize()
    task.set_result("done")
    task.serialize()
    queues.send_result(task)
    assert queues.get_result("move", timeout=10).args == ()
    assert queues.traffic[0].received["move"] < 2000


def test_tasks_that_never_come_back_can_be_forgotten(queues):
    queues.send_inputs(1, method="m", topic="simulate")
    assert queues.active_count == 1
    assert not queues.wait_until_done(timeout=0)
    queues.forget_active()
    assert queues.active_count == 0
    assert queues.wait_until_done(timeout=0)


def test_the_server_hears_that_it_is_to_end(queues):
    queues.send_kill_signal()
    with pytest.raises(KillSignalException):
        queues.get_task(timeout=10)


def test_waiting_in_vain_is_a_timeout_of_colmena(queues):
    began = time.monotonic()
    with pytest.raises(TimeoutException):
        queues.get_result("simulate", timeout=0.2)  # Redis makes it a second
    assert time.monotonic() - began < 3
    assert queues.traffic[0].received == {}


def test_every_topic_has_a_queue(queues):
    assert set(TOPICS) <= queues.topics


def test_redis_is_waited_for_without_end_also_by_the_task_server(redis_server):
    queues = redis_queues(redis_server.host, redis_server.port, "run-2")
    theirs = pickle.loads(pickle.dumps(queues))  # noqa: S301  # how it reaches another process
    for side in (queues, theirs):
        # redis-py's default of 5 s, with its retries, raises after a minute of idleness: nothing catches that.
        assert side.redis_client.connection_pool.connection_kwargs["socket_timeout"] is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(theirs.get_task)
        time.sleep(1.2)
        assert not waiting.done()
        queues.send_inputs("at last", method="m", topic="simulate")
        topic, task = waiting.result(timeout=5)
    task.deserialize()
    assert (topic, task.args) == ("simulate", ("at last",))


def test_queues_of_two_campaigns_on_one_server_do_not_meet(redis_server):
    one, other = (redis_queues(redis_server.host, redis_server.port, f"run-{name}") for name in "ab")
    one.send_inputs("for a", method="m", topic="simulate")
    other.send_inputs("for b", method="m", topic="simulate")
    _, task = other.get_task(timeout=5)
    task.deserialize()
    assert task.args == ("for b",)
    with redis.Redis(redis_server.host, redis_server.port) as client:
        client.set("somebody's", "key")
        assert client.llen("wayfinder-queues-run-a_requests") == 1
        one.flush()
        assert client.get("somebody's") == b"key"
        client.delete("somebody's")


def test_a_later_process_removes_what_a_killed_one_left_unread(redis_server):
    killed, other = (redis_queues(redis_server.host, redis_server.port, name) for name in ("killed", "other"))
    for queues in (killed, other):
        queues.send_inputs("unread", method="m", topic="simulate")
    later = redis_queues(redis_server.host, redis_server.port, "later", earlier=["killed"])
    with redis.Redis(redis_server.host, redis_server.port) as client:
        assert list(client.scan_iter(match="wayfinder-queues-killed*")) == []
        assert client.llen("wayfinder-queues-other_requests") == 1
    for queues in (later, other):
        queues.flush()
