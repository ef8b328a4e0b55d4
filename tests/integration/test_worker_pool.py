"""Real worker pools, whose parts are killed while nothing and while everything happens in them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import NoneType

import parsl
import psutil
import pytest
import zmq
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


def test_a_busy_worker_that_is_killed_loses_its_task_and_no_other(pool, n_workers, tmp_path):
    from_workers = parsl.python_app(_sleep_as)
    folder = tmp_path / "busy"
    folder.mkdir()
    busy = [from_workers(3, str(folder)) for _ in range(n_workers)]
    waiting = [from_workers(0) for _ in range(4)]
    deadline = time.monotonic() + 60
    while len(pids := [int(path.name) for path in folder.iterdir()]) < n_workers:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(pids[0], signal.SIGKILL)
    failures = [type(task.exception(timeout=ANSWERS_WITHIN_S)) for task in busy]
    assert sorted(failures, key=str) == [NoneType, WorkerLost]
    assert pids[0] not in {task.result(timeout=ANSWERS_WITHIN_S) for task in waiting}


def test_a_pool_whose_interchange_does_not_answer_ends(tmp_path):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        silent.setsockopt(zmq.LINGER, 0)
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        words = f"-a 127.0.0.1 -p 0 -c 1e-6 -m None --port={port} --cert_dir None --block_id=0 --hb_period=1"
        words += f" --hb_threshold=1 --logdir={tmp_path} --max_workers_per_node=1 --cpu-affinity none"
        words += " --poll 10 --drain_period=None --mpi-launcher=mpiexec --available-accelerators"
        command = [sys.executable, "-m", "tasks.worker_pool", *words.split()]
        pool = subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)
        # It tries where an interchange answers, and connects to that one once more.
        silent.setsockopt(zmq.RCVTIMEO, 30_000)
        asker, _ = silent.recv_multipart()
        silent.send_multipart([asker, b""])
        assert asker.startswith(b"\0"), "one with a name of its own, which the next connection bears as well"
        _, said = pool.communicate(timeout=60)
    assert pool.returncode == 1
    assert "no answer from the interchange in 3 s: the pool ends" in said


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


def _sleep_as(seconds, folder=None):
    import os
    import time
    from pathlib import Path

    if folder is not None:
        (Path(folder) / str(os.getpid())).touch()
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
