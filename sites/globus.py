"""Globus Compute endpoints: tasks go to a web service, which hands them to a machine behind whatever firewall.

The service carries at most 10 MB in a message, takes few calls in a second, cancels nothing and promises no end; what
is asked of it here is batched, measured before it is sent, and bounded.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_sdk import GlobusAPIError, GlobusError
from parsl.executors import GlobusComputeExecutor
from parsl.executors.base import ParslExecutor

from sites.globus_service import check
from sites.site import REACHES_ALL, Resources, Site, no_devices
from tasks.errors import TooLarge

logger = logging.getLogger(__name__)

# Of arrays in a message: Colmena doubles bytes, the SDK adds a third, and the service refuses more than 10 MB.
MAX_INLINE_BYTES = 3_500_000

# Of a pickled task, which the SDK's own encoding makes a third larger.
_MAX_TASK_BYTES = 7_000_000

# The SDK's own limits, at their upper end: with its defaults a lone task waits 3-5 s to be sent.
_SDK_LIMITS = {"api_burst_limit": 8, "api_burst_window_s": 1}

_PAYLOAD_TOO_LARGE = 413

# How the SDK begins to tell that it could not read a result, which it then quotes whole.
_UNREADABLE = "Malformed or unexpected data"
_MOST_WORDS = 500

# Parsl's errors of a worker that died under its task.
_LOST_THERE = ("WorkerLost", "ManagerLost")

_LOOK_EVERY_S = 1.0

# The service is asked how the endpoint is while tasks are out, this often.
_ASK_EVERY_S = 30.0


class EndpointGone(Exception):
    """No result came from an endpoint within bounds. Its task may still run: Globus Compute has no cancel."""


class EndpointExecutor(GlobusComputeExecutor):  # type: ignore[misc]  # Parsl has no types
    """Parsl's executor for an endpoint, made to survive a fork, a refused batch and an endpoint that went away.

    The SDK starts a thread with its executor, and a fork copies none: one that was made before Colmena's task server
    accepts tasks, sends none and raises nothing. This one makes it where Parsl starts.

    Parameters
    ----------
    task_timeout_s
        From sending to the result; the SDK's futures never expire.
    offline_s
        How long the service may say that the endpoint is offline while tasks are out.
    """

    def __init__(
        self,
        endpoint_id: str,
        label: str,
        task_timeout_s: float,
        offline_s: float,
        user_endpoint_config: dict[str, Any] | None = None,
    ) -> None:
        ParslExecutor.__init__(self)  # its own wants an executor of the SDK, alive
        self.endpoint_id, self.label = endpoint_id, label
        self.task_timeout_s, self.offline_s = task_timeout_s, offline_s
        self.resource_specification, self.user_endpoint_config = None, user_endpoint_config
        self.storage_access = self.working_dir = None
        self.executor: Executor | None = None

    def start(self) -> None:
        """Connect to the service."""
        super().start()
        self._pending: dict[Future[Any], tuple[float, Future[Any]]] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._client = Client()
        self._connect()
        threading.Thread(target=self._mind, name=f"{self.label}-minder", daemon=True).start()

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Send a task, unless it is more than the service carries."""
        told: Future[Any] = Future()
        n_bytes = len(pickle.dumps((args, kwargs)))
        if n_bytes > _MAX_TASK_BYTES:
            told.set_exception(
                TooLarge(
                    f"{n_bytes} bytes in a task exceed the {_MAX_TASK_BYTES} that Globus Compute carries: lower "
                    "--ps-threshold or --bundle, or choose a ProxyStore backend for the topic"
                )
            )
            return told
        assert self.executor is not None
        if self.executor._stopped:
            logger.warning("endpoint %s: a refused batch stopped the SDK's executor; a new one is made", self.label)
            self._connect()
        theirs = super().submit(func, resource_specification, *args, **kwargs)
        # Theirs cannot be failed early: their thread would stumble over the late result.
        with self._lock:
            self._pending[told] = time.monotonic() + self.task_timeout_s, theirs
        theirs.add_done_callback(lambda done: self._finish(told, done))
        return told

    def shutdown(self) -> None:
        """Give up what is out, and disconnect."""
        if self.executor is None:
            return
        self._over.set()
        if self.executor.task_group_id:
            super().shutdown()
        else:  # nothing was sent: Parsl's own would open a watcher for no group
            self.executor.shutdown(wait=False, cancel_futures=True)
        for told in list(self._pending):
            self._give_up(told, "the campaign is over")

    def _connect(self) -> None:
        self.executor = Executor(
            self.endpoint_id,
            client=self._client,
            label=self.label,
            user_endpoint_config=self.user_endpoint_config,
            **_SDK_LIMITS,
        )

    def _finish(self, told: Future[Any], theirs: Future[Any]) -> None:
        with self._lock:
            if self._pending.pop(told, None) is None:
                return  # it was given up before
        if theirs.cancelled():  # a batch before it was refused
            told.set_exception(EndpointGone(f"{self.label}: the SDK dropped the task before it was sent"))
        elif (error := theirs.exception()) is not None:
            told.set_exception(self._what_failed(error))
        else:
            told.set_result(theirs.result())

    def _what_failed(self, error: BaseException) -> BaseException:
        """Tell a task's own failure from one of the way there, of which the task is innocent."""
        if isinstance(error, TaskExecutionFailed):
            # The endpoint's executor is Parsl's as well, and words are all that comes back.
            lost = any(f"{name}(" in str(error) or f"{name}:" in str(error) for name in _LOST_THERE)
            return EndpointGone(f"{self.label}: a worker was lost there: {error}") if lost else error
        if isinstance(error, GlobusAPIError) and error.http_status == _PAYLOAD_TOO_LARGE:
            # Of a batch each task is told so; ours was refused before if it was too large alone.
            return TooLarge(
                f"{self.label}: Globus Compute refused a batch with this task as too large: lower --ps-threshold or "
                "--bundle"
            )
        if (cause := error.__cause__) is not None and str(error).startswith(_UNREADABLE):
            unread: BaseException = TaskExecutionFailed(f"{self.label}: its result cannot be read here: {cause!r}")
            return unread
        return EndpointGone(f"{self.label}: {type(error).__name__}: {str(error)[:_MOST_WORDS]}")

    def _give_up(self, told: Future[Any], reason: str) -> None:
        with self._lock:
            if self._pending.pop(told, None) is None:
                return
        told.set_exception(EndpointGone(f"endpoint {self.endpoint_id}: {reason}"))

    def _mind(self) -> None:
        """Give up tasks whose time is over, and those of an endpoint that is gone."""
        online = asked = time.monotonic()
        while not self._over.wait(_LOOK_EVERY_S):
            now = time.monotonic()
            with self._lock:
                pending = list(self._pending.items())
            if not pending:
                online = now
            elif now - asked >= min(_ASK_EVERY_S, self.offline_s / 3):
                asked = now
                online = now if self._is_online() else online
            for told, (deadline, _) in pending:
                if now > deadline:
                    self._give_up(told, f"no result within --task-timeout {self.task_timeout_s:g} s")
                elif now - online > self.offline_s:
                    self._give_up(told, f"offline for {now - online:.0f} s")

    def _is_online(self) -> bool:
        try:
            return bool(self._client.get_endpoint_status(self.endpoint_id)["status"] == "online")
        except (GlobusError, OSError) as error:
            logger.warning("how endpoint %s is could not be asked: %s", self.endpoint_id, error)
            return False


def globus(
    name: str,
    endpoint_id: str,
    n_workers: int = 2,
    user_endpoint_config: dict[str, Any] | None = None,
    reaches: frozenset[str] = REACHES_ALL,
) -> Site:
    """Return a Globus Compute endpoint as a site, for whichever topic is sent there.

    Parameters
    ----------
    n_workers
        Segments at once, unless ``--simulate-workers`` says otherwise.
    user_endpoint_config
        Values for the endpoint's template.
    reaches
        Stores that its workers can open. Which they really can, the probe finds out.
    """

    def executor(label: str, resources: Resources) -> EndpointExecutor:
        no_devices(name, resources)
        check(endpoint_id)
        return EndpointExecutor(
            endpoint_id, label + resources.label_suffix, resources.task_timeout_s, 180.0, user_endpoint_config
        )

    return Site(
        name=name,
        simulate=lambda resources: executor("globus-simulate", resources),
        learn=lambda resources: executor("globus-learn", resources),
        simulate_slots=lambda resources: resources.simulate_workers or n_workers,
        learn_slots=lambda resources: resources.ml_workers,
        reaches=reaches,
        shares_run_dir=False,
        max_inline_bytes=MAX_INLINE_BYTES,
    )
