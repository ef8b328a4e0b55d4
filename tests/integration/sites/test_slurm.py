"""Segments on a cluster under a real Slurm, whose blocks come, are cancelled, and go."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import parsl
import pytest
from parsl.config import Config
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import SimpleLauncher

from sites.batch import Nodes, PatientSlurm
from sites.batch import slurm as slurm_site
from sites.local import CHECKOUT
from sites.site import Resources
from tests.integration.conftest import Campaign, edited_checkout
from tests.integration.sites.slurmlab import OWN_SITE, PACKAGES, PROGRAMS, Slurm, own_slurm
from tests.needs import need

Start = Callable[..., Campaign]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    need(*PROGRAMS, package=PACKAGES, requires="slurm")
    with own_slurm() as lab:
        yield lab


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the cluster as a site."""
    return edited_checkout(tmp_path / "checkout", OWN_SITE)


@pytest.mark.slow
def test_a_campaign_runs_under_slurm_and_leaves_nothing_in_its_queue(
    campaign: Start, cluster: Slurm, checkout: Path
) -> None:
    run = campaign(
        "--simulate-site", "lab", "--walkers", "4", "--max-segments", "120", "--min-segment-seconds", "0.2",
        "--retrain-every", "16", "--no-control", "--stream", "--simulate-ps-backend", "redis",
        env=cluster.environment, checkout=checkout,
    )  # fmt: skip
    # There is work for two workers, and a block has one.
    run.until(lambda: list(cluster.jobs().values()).count("R") == 2, 60)
    run.until_segments(10)
    first = min(cluster.jobs(), key=int)
    cluster.ask("scancel", first)
    cancelled = time.time()
    run.until(lambda: len({job for job, state in cluster.jobs().items() if state == "R"} - {first}) == 2, 60)
    assert run.wait() == 0, run.err
    summary = run.summary()
    assert summary["segments"] == 120
    assert summary["failures"].keys() <= {"manager_lost"}
    assert any(line["timestamp"]["compute_started"] > cancelled for line in run.traces("simulation"))
    assert {line["task_info"]["site"] for line in run.traces("simulation")} == {"lab"}
    # News of batches comes through Redis, for nothing leads back from a node.
    assert summary["stream"]["embedded"] > 20
    deadline = time.monotonic() + 20
    while set(cluster.jobs().values()) - {"CG"}:
        assert time.monotonic() < deadline, cluster.jobs()
        time.sleep(0.1)


@pytest.fixture
def shell(cluster: Slurm, monkeypatch) -> None:
    """A shell on a login node of the cluster."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("shell")
def test_a_block_that_slurm_forgot_is_over_and_a_silent_slurm_ends_none(monkeypatch) -> None:
    provider = PatientSlurm(1, partition="debug", launcher=SimpleLauncher(), cmd_timeout=3)
    job = {"status": JobStatus(JobState.RUNNING), "job_stdout_path": None, "job_stderr_path": None}
    with monkeypatch.context() as silent:
        silent.setenv("SLURM_CONF", "/nowhere/slurm.conf")
        provider.resources = {"4000000": dict(job)}
        assert [status.state for status in provider.status(["4000000"])] == [JobState.RUNNING]
    assert [status.state for status in provider.status(["4000000"])] == [JobState.COMPLETED]


@pytest.mark.slow
@pytest.mark.usefixtures("shell")
def test_blocks_grow_and_shrink_with_the_work(cluster: Slurm, tmp_path: Path) -> None:
    init = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={CHECKOUT}"
    nodes = Nodes(
        "00:10:00", queue="debug", max_blocks=2, init=init, launcher=SimpleLauncher(), address="127.0.0.1", poll_s=1
    )
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    executor = slurm_site("lab", nodes).simulate(Resources(None, 1, private, 1, 5))
    with parsl.load(
        Config(
            executors=[executor],
            run_dir=str(tmp_path / "parsl"),
            strategy="htex_auto_scale",
            strategy_period=1,
            max_idletime=2,
        )  # fmt: skip
    ):
        for _ in range(2):
            tasks = [parsl.python_app(_sleep)() for _ in range(6)]
            _wait(lambda: list(cluster.jobs().values()).count("R") == 2)
            for task in tasks:
                task.result(timeout=60)
            _wait(lambda: not set(cluster.jobs().values()) - {"CG"})
    parsl.clear()
    _wait(lambda: not cluster.jobs())


def _sleep():
    import time

    time.sleep(3)


def _wait(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.1)
