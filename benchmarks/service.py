"""One warm worker behind Colmena and the campaign's own task server, and one behind bare Parsl."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import parsl
from parsl.config import Config
from parsl.providers import LocalProvider

from agents.queues import CountedPipes
from agents.server import SafeTaskServer, stop
from campaign.guardian import Guardian
from campaign.processes import RUN_VARIABLE, reap
from sites.htex import htex
from sites.site import REACHES_ALL, Resources, worker_environment

_LABEL = "worker"


@contextmanager
def colmena_worker(
    folder: Path, functions: Sequence[Callable[..., Any]], topics: Sequence[str] = ("task",), **queue_options: Any
) -> Iterator[CountedPipes]:
    """Lend queues to a task server with one worker; methods are called by the names of the functions.

    Enter it before this process has any thread: the task server is forked.
    """
    run_id = os.environ[RUN_VARIABLE]
    config = _config(folder / "colmena")
    guardian = Guardian(run_id, folder / "colmena" / "keys")
    queues = CountedPipes(topics=list(topics), keep_inputs=False, **queue_options)
    methods = [(function.__name__, function, _LABEL) for function in functions]
    server = SafeTaskServer(methods, queues, config, guardian.life_line)
    server.start()
    try:
        yield queues
    finally:
        stop(server, queues)
        reap(run_id, spare=[guardian.pid])
        guardian.dismiss()


@contextmanager
def parsl_worker(folder: Path) -> Iterator[Any]:
    """Lend a bare Parsl kernel with one worker, configured like the other."""
    kernel = parsl.load(_config(folder / "parsl"))
    try:
        yield kernel
    finally:
        kernel.cleanup()
        parsl.clear()


def call(queues: CountedPipes, method: str, *arguments: Any, topic: str = "task") -> tuple[float, Any]:
    """Run a task; return its turnaround in seconds and its value.

    Raises
    ------
    SystemExit
        When it fails.
    """
    began = time.perf_counter()
    queues.send_inputs(*arguments, method=method, topic=topic)
    result = queues.get_result(topic=topic, timeout=300)
    seconds = time.perf_counter() - began
    if not result.success:
        raise SystemExit(f"task {method} failed on the worker: {result.failure_info.exception}")
    return seconds, result.value


def _config(folder: Path) -> Config:
    keys = folder / "keys"
    keys.mkdir(parents=True, mode=0o700)
    resources = Resources(1, 1, keys, 2.0, 30.0)
    provider = LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1, worker_init=worker_environment(REACHES_ALL))
    return Config(
        executors=[htex(_LABEL, provider, resources, workers_per_node=1)],
        run_dir=str(folder / "logs"),
        retries=0,
        usage_tracking=0,
        initialize_logging=False,
        strategy="simple",
        strategy_period=1,
    )
