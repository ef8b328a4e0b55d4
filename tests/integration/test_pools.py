"""Segments at several sites, which may come and go while the campaign runs."""

import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Campaign, edited_checkout
from tests.integration.test_endings import manager_of, pool

Start = Callable[..., Campaign]

# Left out of `make test`: another test there goes most of the same way.
SLOW = pytest.mark.slow

POOL = ("--simulate-site", "local,local-b", "--simulate-workers", "1")

PER_SITE = (
    "SELECT site, count(*) FROM attempt JOIN task ON id = task_id"
    " WHERE kind = 'simulate' AND outcome = 'success' GROUP BY site"
)
ONCE = "SELECT count(*), count(DISTINCT task_id) FROM attempt JOIN task ON id = task_id"
ONCE += " WHERE kind = 'simulate' AND outcome = 'success'"


def interchange_of(run: Campaign, executor: str) -> psutil.Process:
    """The process between the task server and the workers of an executor."""
    (interchange,) = [
        process
        for process in pool(run, "HTEX interchange")
        if any(f"/{executor}/" in file.path for file in process.open_files())
    ]
    return interchange


def test_both_sites_of_a_pool_get_segments(campaign: Start) -> None:
    run = campaign(*POOL, "--max-segments", "60", "--min-segment-seconds", "0.1")
    assert run.wait() == 0, run.err
    per_site = dict(run.ask(PER_SITE))
    assert per_site.keys() == {"local", "local-b"}
    assert sum(per_site.values()) == 60
    assert min(per_site.values()) >= 10
    summary = run.summary()
    assert summary["sites"]["simulate"] == ["local", "local-b"]
    assert summary["failures"] == {}
    assert 0 < summary["worker_utilisation"]["local-b"]["simulate"] <= 1
    assert summary["proxies"]["left"] == 0
    told = {(line["task_info"]["site"], line["task_info"]["executor"]) for line in run.traces("simulation")}
    assert told == {("local", "cpu-local"), ("local-b", "cpu-local-b")}
    categories = run.ask("SELECT DISTINCT category FROM task WHERE kind = 'simulate' ORDER BY category")
    assert categories == [("cpu-local",), ("cpu-local-b",)]


@pytest.mark.slow
def test_a_campaign_outlasts_the_interchange_of_a_site(campaign: Start) -> None:
    run = campaign(*POOL, "--max-segments", "120", "--min-segment-seconds", "0.2")
    run.until(lambda: len({line["task_info"]["site"] for line in run.traces("simulation")}) == 2, 90)
    run_id = run.run_id
    before = dict(run.ask(PER_SITE))["local-b"]
    interchange_of(run, "cpu-local-b").kill()
    assert run.wait() == 0, run.err
    summary = run.summary()
    assert summary["segments"] == 120
    assert run.ask(ONCE) == [(120, 120)]
    assert summary["failures"].keys() <= {"site_gone"}
    assert summary["quarantined"] == 0
    # What was on its way back when it was killed may still have come.
    assert before <= dict(run.ask(PER_SITE))["local-b"] <= before + 4
    assert "site local-b is gone for good" in run.out
    assert run.processes(run_id) == []


@SLOW
def test_a_campaign_ends_when_no_site_is_left(campaign: Start) -> None:
    run = campaign(*POOL, "--max-segments", "5000", "--min-segment-seconds", "0.2")
    run.until_segments(6)
    run_id = run.run_id
    for executor in ("cpu-local", "cpu-local-b"):
        interchange_of(run, executor).kill()
    assert run.wait(60) == 1
    assert "a Parsl interchange ended" in run.summary()["reason"]
    assert run.processes(run_id) == []


@SLOW
def test_a_campaign_ends_when_learning_is_gone(campaign: Start) -> None:
    run = campaign(*POOL, "--max-segments", "5000", "--min-segment-seconds", "0.2")
    run.until_segments(6)
    interchange_of(run, "gpu").kill()
    assert run.wait(60) == 1
    assert "a Parsl interchange ended" in run.summary()["reason"]


@SLOW
def test_segments_of_a_killed_manager_are_tried_again_elsewhere(campaign: Start) -> None:
    run = campaign(*POOL, "--max-segments", "150", "--min-segment-seconds", "0.2", "--heartbeat-threshold-s", "4")
    run.until(lambda: len({line["task_info"]["site"] for line in run.traces("simulation")}) == 2, 90)
    manager_of(run, "cpu-local-b").kill()
    assert run.wait() == 0, run.err
    assert run.summary()["segments"] == 150
    assert run.ask(ONCE) == [(150, 150)]
    retries = run.ask(
        "SELECT DISTINCT again.site FROM attempt AS lost JOIN attempt AS again"
        " ON again.task_id = lost.task_id AND again.number = lost.number + 1"
        " WHERE lost.site = 'local-b' AND lost.outcome = 'manager_lost'"
    )
    assert retries == [("local",)]


# A site whose workers come once a file is there.
LATE = """
from dataclasses import replace

def late() -> Site:
    here = local("late")

    def simulate(resources):
        executor = here.simulate(resources)
        executor.provider.worker_init += "\\nuntil [ -e {gate} ]; do sleep 0.2; done"
        return executor

    return replace(here, simulate=simulate)

SITES["late"] = late
"""


@SLOW
def test_a_site_that_is_silent_at_the_start_joins_later(campaign: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run = campaign(
        *("--simulate-site", "local,late", "--simulate-workers", "1", "--max-segments", "1000"),
        *("--start-timeout", "60", "--min-segment-seconds", "0.2"),
        checkout=edited_checkout(tmp_path / "checkout", LATE.format(gate=gate)),
    )
    run.until_segments(1, 150)
    gate.touch()
    run.until(lambda: "late" in {line["task_info"]["site"] for line in run.traces("simulation")}, 120)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.err
    assert "site late did not answer within --start-timeout 60 s: the campaign begins without it" in run.out
    assert "site late is back" in run.out
