"""Real worker pools, whose parts are killed while nothing and while everything happens in them."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import NoneType

import parsl
import psutil
import pytest
from parsl.config import Config
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
from parsl.providers import LocalProvider

from sites.htex import htex
from sites.local import CHECKOUT
from sites.site import REACHES_ALL, Resources, worker_environment

ANSWERS_WITHIN_S = 30


@pytest.fixture
def n_workers(request) -> int:
    """How many workers share a queue."""
    return getattr(request, "param", 2)


@pytest.fixture
def pool(tmp_path: Path, n_workers: int, monkeypatch) -> Iterator[psutil.Process]:
    """Start an executor with one worker pool, and return that pool's process."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    provider = LocalProvider(
        init_blocks=1, min_blocks=1, max_blocks=1, worker_init=worker_environment(REACHES_ALL, CHECKOUT)
    )
    executor = htex("sturdy", provider, Resources(n_workers, 1, private, 1, 4), workers_per_node=n_workers)
    parsl.load(Config(executors=[executor], run_dir=str(tmp_path / "parsl"), retries=0, strategy="simple"))
    try:
        yield psutil.Process(ask(os.getppid, within_s=60))
    finally:
        parsl.dfk().cleanup()
        parsl.clear()


def ask(function, *given, within_s: float = ANSWERS_WITHIN_S):
    """Return what a worker answers."""
    return parsl.python_app(function)(*given).result(timeout=within_s)


@pytest.mark.parametrize("n_workers", [1, 2], indirect=True)
def test_an_idle_worker_that_is_killed_is_replaced(pool):
    for _ in range(3):
        killed = ask(os.getpid)
        time.sleep(0.2)  # it waits for its next task
        os.kill(killed, signal.SIGKILL)
        assert ask(os.getpid) != killed
        assert pool.is_running()


def test_a_busy_worker_that_is_killed_loses_its_task_and_no_other(pool, n_workers):
    from_workers = parsl.python_app(_sleep_as)
    busy = [from_workers(1.5) for _ in range(n_workers)]
    waiting = [from_workers(0) for _ in range(4)]
    started = _workers(pool)[0]
    time.sleep(0.7)
    started.kill()
    failures = [type(task.exception(timeout=ANSWERS_WITHIN_S)) for task in busy]
    assert sorted(failures, key=str) == [NoneType, WorkerLost]
    assert started.pid not in {task.result(timeout=ANSWERS_WITHIN_S) for task in waiting}


@pytest.mark.slow
def test_a_pool_whose_books_are_lost_ends_and_is_started_anew(pool):
    books = _children(pool)[1]
    books.kill()
    pool.wait(ANSWERS_WITHIN_S)
    with suppress(ManagerLost):  # it was sent there before anybody noticed
        ask(os.getppid, within_s=60)
    assert ask(os.getppid, within_s=60) != pool.pid


@pytest.mark.slow
def test_messages_that_fill_a_pipe_do_not_stop_a_pool(pool):
    # Several times what a pipe holds, while every worker is busy for longer than the pool may be silent.
    echo = parsl.python_app(_sleep_and_return)
    texts = [f"{number}" * 2**20 for number in range(4)]
    sent = [echo(5, texts[0]), *(echo(0, text) for text in texts)]
    assert [task.result(timeout=60) for task in sent] == [texts[0], *texts]
    assert pool.is_running()


def _sleep_as(seconds):
    import os
    import time

    time.sleep(seconds)
    return os.getpid()


def _sleep_and_return(seconds, text):
    import time

    time.sleep(seconds)
    return text


def _workers(pool: psutil.Process) -> list[psutil.Process]:
    return _children(pool)[2:]


def _children(pool: psutil.Process) -> list[psutil.Process]:
    """Return its children: multiprocessing's tracker of resources, the keeper of the books, and the workers."""
    return sorted(pool.children(), key=lambda child: child.pid)
