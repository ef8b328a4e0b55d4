"""Colmena's queues, safe to send on from several threads, and counting the bytes that pass."""

from __future__ import annotations

import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import redis
from colmena.queue.python import PipeQueues
from colmena.queue.redis import RedisQueues

from tasks.transport import PASSWORD_VARIABLE

PROBE = "probe"
TOPICS = ("equilibrate", "simulate", "infer", "glance", "coordinate", "train", "move", "gather", "hook", PROBE)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of a campaign's messages, by topic."""

    sent: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)


class _Here(threading.local):
    """What a thread is about: the campaign of what it sends, the size of what it received."""

    campaign = 0
    n_bytes = 0


def _campaign(task_info: Mapping[str, Any] | None) -> int:
    return int((task_info or {}).get("campaign", 0))


class _Counted:
    """Counts message bytes by campaign and topic in this process, and lets one thread send at a time.

    Colmena's pipes are written by the thread of each agent, and by a thread per executor on the other side; messages
    larger than the pipe's buffer would interleave.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.traffic: defaultdict[int, Traffic] = defaultdict(Traffic)
        self._sending = threading.Lock()
        self._here = _Here()
        self._closed = False
        super().__init__(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]  # of the queues below
        del state["_sending"], state["_here"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self._sending = threading.Lock()
        self._here = _Here()

    def _send_request(self, message: str, topic: str) -> None:
        with self._sending:
            self.traffic[self._here.campaign].sent[topic] += len(message)
            super()._send_request(message, topic)  # type: ignore[misc]

    def _send_result(self, message: str, topic: str) -> None:
        with self._sending:
            super()._send_result(message, topic)  # type: ignore[misc]

    def _get_result(self, topic: str, timeout: float | None = None) -> str:
        message: str = super()._get_result(topic, timeout)  # type: ignore[misc]
        self._here.n_bytes = len(message)
        return message

    def get_result(self, topic: str = "default", timeout: float | None = None) -> Any:
        """Return a result; its bytes count for its campaign."""
        result = super().get_result(topic=topic, timeout=timeout)  # type: ignore[misc]
        self.traffic[_campaign(result.task_info)].received[topic] += self._here.n_bytes
        return result

    def close(self) -> None:
        """Send no more tasks: who still tries is ignored, for nobody would take the result."""
        self._closed = True

    def send_inputs(self, *args: Any, **kwargs: Any) -> str:
        """Send a task, unless the queues are closed; return its id."""
        self._here.campaign = _campaign(kwargs.get("task_info"))
        return "" if self._closed else str(super().send_inputs(*args, **kwargs))  # type: ignore[misc]

    def forget_active(self) -> None:
        """Stop waiting for tasks that will never come back, or Colmena's agents wait for ever."""
        with self._active_lock:  # type: ignore[attr-defined]
            self._active_tasks.clear()  # type: ignore[attr-defined]
            self._all_complete.set()  # type: ignore[attr-defined]


class CountedPipes(_Counted, PipeQueues):
    """Pipes between the Thinker and the task server."""


class CountedRedis(_Counted, RedisQueues):
    """Lists on a Redis server."""

    def connect(self) -> None:
        """Connect without a socket timeout: a blocking read past redis-py's default of 5 s would raise."""
        if self.redis_client is None:
            self.redis_client: Any = redis.StrictRedis(
                host=self.hostname,
                port=self.port,
                password=os.environ.get(PASSWORD_VARIABLE),
                decode_responses=True,
                socket_timeout=None,
                socket_connect_timeout=10,
            )
            self.redis_client.ping()


Queues = CountedPipes | CountedRedis


def _prefix(run_id: str) -> str:
    return f"wayfinder-queues-{run_id[:12]}"


def pipe_queues() -> CountedPipes:
    """Return queues for a task server on this machine."""
    return CountedPipes(topics=TOPICS, keep_inputs=False)


def redis_queues(host: str, port: int, run_id: str, earlier: Iterable[str] = ()) -> CountedRedis:
    """Return queues on a Redis server.

    Parameters
    ----------
    run_id
        Tells their keys from those of others.
    earlier
        Ids of the processes before this one, whose messages nobody will read any more.
    """
    queues = CountedRedis(topics=TOPICS, hostname=host, port=port, prefix=_prefix(run_id), keep_inputs=False)
    for before in earlier:
        if left := list(queues.redis_client.scan_iter(match=f"{_prefix(before)}*", count=1000)):
            queues.redis_client.delete(*left)
    return queues
