"""Segments at several sites, which may come and go while the campaign runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from campaign.processes import new_run_id
from tests.integration.conftest import ROOT, Campaign
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


# A site whose workers come long after the others.
LATE = """
import sys
import config
from sites.local import local

def late():
    site = local("late")
    def simulate(resources):
        executor = site.simulate(resources)
        executor.provider.worker_init = "sleep 60\\n" + executor.provider.worker_init
        return executor
    from dataclasses import replace
    return replace(site, simulate=simulate)

config.SITES["late"] = late
import run
sys.exit(run.main(sys.argv[1:]))
"""


@SLOW
def test_a_site_that_is_silent_at_the_start_joins_later(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    flags = ["--simulate-site", "local,late", "--simulate-workers", "1", "--max-minutes", "1"]
    flags += ["--start-timeout", "45", "--min-segment-seconds", "0.2", "--run-dir", str(tmp_path / "run")]
    ended = subprocess.run(
        [sys.executable, "-c", LATE, *flags],
        cwd=ROOT,
        env=os.environ | {"WAYFINDER_RUN": new_run_id(), "PATH": path, "SPT_NOENV": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "site late did not answer within --start-timeout 45 s: the campaign begins without it" in ended.stdout
    assert "site late is back" in ended.stdout
    traces = (tmp_path / "run" / "simulation-results.jsonl").read_text()
    assert '"site": "late"' in traces or '"site":"late"' in traces
