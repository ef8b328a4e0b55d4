"""Processes of a run are found by the id they carry, and ended whether they like it or not."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from campaign.processes import RUN_VARIABLE, new_run_id, processes_of, reap

SLEEPS = "print('up', flush=True); import time; time.sleep(60)"
IGNORES = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPS
# Started by a shell that ends at once: handed to another parent, in a session of its own, as Parsl's blocks are.
ORPHANS = (
    "import subprocess, sys; "
    f"p = subprocess.Popen([sys.executable, '-c', {SLEEPS!r}], start_new_session=True, stdout=subprocess.DEVNULL); "
    "print(p.pid, flush=True)"
)
RENAMES = f"import setproctitle; setproctitle.setproctitle('parsl: a worker'); {SLEEPS}"


@pytest.fixture
def started():
    """Start Python programs with a run's id; whatever is left of them is killed after the test."""
    processes = []

    def start(program: str, run_id: str | None) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
        environment |= {"SPT_NOENV": "1"}
        if run_id is not None:
            environment[RUN_VARIABLE] = run_id
        process = subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        process.first_line = process.stdout.readline().strip()
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_ids_are_unique():
    assert len({new_run_id() for _ in range(100)}) == 100


def test_processes_are_found_by_the_id_they_carry(started):
    run_id = new_run_id()
    ours = [started(SLEEPS, run_id) for _ in range(2)]
    started(SLEEPS, new_run_id())
    started(SLEEPS, None)
    started(SLEEPS, run_id + "0")
    assert {process.pid for process in processes_of(run_id)} == {process.pid for process in ours}
    assert processes_of(new_run_id()) == []


def test_all_of_a_run_are_ended_and_nobody_else(started):
    run_id = new_run_id()
    polite, stubborn = started(SLEEPS, run_id), started(IGNORES, run_id)
    other, nobodys = started(SLEEPS, new_run_id()), started(SLEEPS, None)
    began = time.monotonic()
    assert reap(run_id, grace_s=0.3) == 2
    assert time.monotonic() - began < 3
    assert processes_of(run_id) == []
    for process in (polite, stubborn):
        process.wait(5)
    assert (other.poll(), nobodys.poll()) == (None, None)


def test_a_polite_process_is_not_waited_for_longer_than_it_takes(started):
    run_id = new_run_id()
    started(SLEEPS, run_id)
    began = time.monotonic()
    assert reap(run_id, grace_s=20) == 1
    assert time.monotonic() - began < 5


def test_an_orphan_is_ended_too(started):
    run_id = new_run_id()
    parent = started(ORPHANS, run_id)
    parent.wait(10)
    orphan = psutil.Process(int(parent.first_line))
    assert orphan.ppid() != os.getpid()
    assert reap(run_id, grace_s=0.3) == 1
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_renamed_itself_is_still_found(started):
    run_id = new_run_id()
    renamed = started(RENAMES, run_id)
    assert [process.pid for process in processes_of(run_id)] == [renamed.pid]


def test_a_second_reaping_finds_nothing(started):
    run_id = new_run_id()
    started(SLEEPS, run_id)
    assert reap(run_id, grace_s=0.3) == 1
    assert reap(run_id, grace_s=0.3) == 0


REAPS = """
import os, subprocess, sys
from campaign.processes import RUN_VARIABLE, processes_of, reap
if len(sys.argv) == 1:  # the ancestor, which carries the id as well
    sys.exit(subprocess.run([sys.executable, __file__, "child"]).returncode)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
run_id = os.environ[RUN_VARIABLE]
found = [process.pid for process in processes_of(run_id)]
assert found == [child.pid], (found, child.pid, os.getpid(), os.getppid())
assert reap(run_id, grace_s=0.3) == 1
child.wait(5)
print("spared")
"""


def test_the_reaper_and_its_ancestors_are_spared(tmp_path):
    script = tmp_path / "reaps.py"
    script.write_text(REAPS)
    environment = {**os.environ, RUN_VARIABLE: new_run_id(), "PYTHONPATH": os.getcwd()}
    ended = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "spared"), ended.stderr
