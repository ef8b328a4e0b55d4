"""However a campaign ends: in order, with its reason, resumable, and with no process left behind."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sites.htex import POOL
from tests.integration.conftest import ROOT, Campaign, small_disk

Start = Callable[..., Campaign]

# Left out of `make test`: another test there goes most of the same way.
SLOW = pytest.mark.slow

# Long enough to be interrupted; paced, so that the machine's load decides little.
LONG = ("--max-segments", "5000", "--min-segment-seconds", "0.1")


def pool(run: Campaign, title: str) -> list[psutil.Process]:
    """Processes of the run whose title or command holds some text."""
    found = []
    for process in run.processes(run.run_id):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def manager_of(run: Campaign, executor: str) -> psutil.Process:
    """The worker pool of an executor."""
    (manager,) = [
        process
        for process in pool(run, POOL)
        if f"/{executor}/" in _command(process) and POOL not in _command(process.parent())
    ]
    return manager


def _command(process: psutil.Process | None) -> str:
    return "" if process is None else " ".join(process.cmdline())


def assert_ended_in_order(run: Campaign, status: str) -> None:
    """Everything that was committed is told alike by summary, ledger and traces, and nothing is still running."""
    summary = run.summary()
    assert summary["status"] == status
    assert summary["reason"]
    assert summary["segments"] == sum(line["success"] for line in run.traces("simulation"))
    assert run.ask("SELECT count(*) FROM task WHERE kind = 'simulate' AND state = 'complete'") == [
        (summary["segments"],)
    ]
    assert run.ask("SELECT count(*) FROM task WHERE state = 'running'") == [(0,)]
    assert run.ask("SELECT count(*) FROM attempt WHERE outcome IS NULL") == [(0,)]
    assert summary["proxies"]["left"] == 0
    assert run.out.splitlines()[-1] == f"run directory: {run.run_dir}"
    assert "Traceback" not in run.err


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=SLOW),
        pytest.param(signal.SIGHUP, 129, marks=SLOW),
    ],
)
def test_a_signal_ends_the_campaign_in_order(campaign: Start, number: signal.Signals, code: int) -> None:
    run = campaign(*LONG)
    run.until_segments(10)
    run_id = run.run_id
    # As a terminal does it: the whole foreground group gets the signal.
    os.killpg(run.process.pid, number)
    assert run.wait(40) == code
    assert_ended_in_order(run, "interrupted")
    assert run.processes(run_id) == []


@SLOW
def test_results_still_arrive_after_a_signal(campaign: Start) -> None:
    run = campaign("--max-segments", "500", "--min-segment-seconds", "2")
    run.until_segments(2)
    before = len(run.traces("simulation"))
    run.process.send_signal(signal.SIGINT)
    assert run.wait(40) == 130
    # Two ran and two waited behind them: all four had been sent, and took less than the grace.
    assert run.summary()["segments"] >= before + 3


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(campaign: Start) -> None:
    run = campaign("--max-segments", "500", "--min-segment-seconds", "30", "--grace-s", "600")
    run.until(lambda: bool(pool(run, POOL)), 60)
    run.until(lambda: (run.run_dir / "runtime.log").exists() and "novelty" in run.diagnosis(), 90)
    run_id = run.run_id
    run.process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    assert run.wait(25) == 130
    assert run.summary()["segments"] == 0
    assert run.processes(run_id) == []


@pytest.mark.slow
def test_a_signal_while_workers_start(campaign: Start) -> None:
    run = campaign(*LONG)
    run.until(lambda: (run.run_dir / "ledger.sqlite").exists(), 60)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(40) == 143
    assert run.summary()["status"] == "interrupted"


@pytest.mark.parametrize(
    ("title", "flags", "sentence"),
    [
        ("HTEX interchange", (), "interchange"),
        pytest.param("redis-server", ("--queue", "redis", "--simulate-ps-backend", "redis"), "Redis", marks=SLOW),
        pytest.param("redis-server", ("--simulate-ps-backend", "redis"), "Redis", marks=SLOW),
    ],
)
def test_a_killed_server_ends_the_campaign_with_a_sentence(
    campaign: Start, title: str, flags: tuple[str, ...], sentence: str
) -> None:
    run = campaign(*LONG, *flags)
    run.until_segments(10)
    run_id = run.run_id
    pool(run, title)[0].kill()
    assert run.wait(60) == 1
    assert sentence in run.summary()["reason"]
    assert_ended_in_order(run, "failed")
    assert run.processes(run_id) == []


@pytest.mark.slow
def test_a_killed_task_server_ends_the_campaign_with_a_sentence(campaign: Start) -> None:
    run = campaign(*LONG)
    run.until_segments(10)
    run_id = run.run_id
    (server,) = [child for child in psutil.Process(run.process.pid).children() if "run.py" in _command(child)]
    server.kill()
    assert run.wait(60) == 1
    assert "task server was killed by SIGKILL" in run.summary()["reason"]
    assert_ended_in_order(run, "failed")
    assert run.processes(run_id) == []


@pytest.mark.parametrize("with_server", [pytest.param(False, marks=SLOW), True])
def test_a_killed_main_process_leaves_nothing_running(campaign: Start, with_server: bool) -> None:
    run = campaign(*LONG, "--queue", "redis")
    run.until_segments(10)
    run_id = run.run_id
    keys = Path.home() / ".wayfinder" / run_id
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    server = [child for child in psutil.Process(run.process.pid).children() if "run.py" in _command(child)]
    for process in [run.process, *(server if with_server else [])]:
        process.kill()
    run.process.wait()
    deadline = time.monotonic() + 15
    while run.processes(run_id) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert run.processes(run_id) == []
    assert not keys.exists()
    committed = run.ask("SELECT count(*) FROM task WHERE kind = 'simulate' AND state = 'complete'")[0][0]
    # Traces are a view of what was committed: at most the last line is missing.
    assert committed - 1 <= len(run.traces("simulation")) <= committed


def test_a_killed_worker_costs_an_attempt(campaign: Start) -> None:
    run = campaign("--max-segments", "40", "--min-segment-seconds", "0.5")
    run.until_segments(4)
    manager_of(run, "cpu").children()[-1].kill()
    assert run.wait() == 0
    summary = run.summary()
    assert summary["segments"] == 40
    assert summary["failures"] == {"worker_lost": 1}
    ((task, number, outcome),) = run.ask("SELECT task_id, number, outcome FROM attempt WHERE outcome != 'success'")
    assert (number, outcome) == (1, "worker_lost")
    assert run.ask(f"SELECT number, outcome FROM attempt WHERE task_id = {task} AND number = 2") == [(2, "success")]
    (failed,) = [line for line in run.traces("simulation") if not line["success"]]
    assert failed["task_info"]["segment_id"] == task


@pytest.mark.parametrize("executor", ["cpu", pytest.param("gpu", marks=SLOW)])
@pytest.mark.slow
def test_a_killed_manager_is_replaced(campaign: Start, executor: str) -> None:
    run = campaign(
        *("--max-segments", "150", "--min-segment-seconds", "0.3", "--heartbeat-threshold-s", "4"),
        *("--retrain-every", "10", "--first-epochs", "2", "--epochs", "1", "--min-model-versions", "2"),
    )
    run.until_segments(20)
    run_id = run.run_id
    manager_of(run, executor).kill()
    assert run.wait() == 0, run.err
    summary = run.summary()
    assert summary["segments"] >= 150
    assert summary["quarantined"] == 0
    assert set(summary["failures"]) <= {"manager_lost"}
    if executor == "cpu":
        assert summary["failures"]["manager_lost"] >= 1
    assert run.processes(run_id) == []


@pytest.mark.slow
def test_segments_that_always_fail_end_the_campaign(campaign: Start) -> None:
    run = campaign("--timestep-fs", "10", "--temperature", "20000", "--max-segments", "50")
    assert run.wait() == 1
    summary = run.summary()
    assert "every start is quarantined" in summary["reason"]
    assert set(summary["failures"]) == {"nan"}
    assert run.ask("SELECT max(number) FROM attempt") == [(3,)]
    assert set(run.ask("SELECT DISTINCT state FROM task WHERE kind = 'simulate'")) <= {("quarantined",), ("ready",)}
    error = run.ask("SELECT error FROM attempt WHERE outcome = 'nan' LIMIT 1")[0][0]
    assert "became NaN or infinite" in error
    assert "Traceback" in error


@SLOW
def test_a_worker_killed_while_it_equilibrates_costs_an_attempt(campaign: Start) -> None:
    run = campaign("--max-segments", "4", "--equilibrate-ps", "500", "--simulate-workers", "1")
    run.until(lambda: "equilibrating 1 basis state" in run.diagnosis(), 90)
    time.sleep(0.5)
    manager_of(run, "cpu").children()[-1].kill()
    assert run.wait() == 0
    assert run.summary()["failures"] == {"worker_lost": 1}
    tried = "SELECT number, outcome FROM attempt JOIN task ON task_id = id WHERE kind = 'equilibrate' ORDER BY number"
    assert run.ask(tried) == [(1, "worker_lost"), (2, "success")]
    assert [path.name for path in (run.run_dir / "equilibrated").iterdir()] == ["0000.xml"]


@SLOW
def test_a_state_that_cannot_be_equilibrated_ends_the_campaign_with_a_sentence(campaign: Start) -> None:
    flags = ("--max-attempts", "2", "--max-segments", "4", "--equilibrate-ps", "1")
    run = campaign("--timestep-fs", "10", "--temperature", "20000", *flags)
    assert run.wait() == 1
    summary = run.summary()
    assert summary["reason"].startswith("no basis state could be equilibrated: ")
    assert "shorter --timestep-fs" in summary["reason"]
    assert (summary["failures"], summary["quarantined"], summary["segments"]) == ({"nan": 2}, 1, 0)
    assert run.ask("SELECT kind, state FROM task") == [("equilibrate", "quarantined")]
    assert not (run.run_dir / "equilibrated").exists()


@SLOW
def test_a_signal_while_it_equilibrates_ends_the_campaign_in_order(campaign: Start) -> None:
    run = campaign("--max-segments", "4", "--equilibrate-ps", "5000", "--grace-s", "1")
    run.until(lambda: "equilibrating 1 basis state" in run.diagnosis(), 90)
    run_id = run.run_id
    run.process.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert_ended_in_order(run, "interrupted")
    assert run.ask("SELECT kind, state FROM task") == [("equilibrate", "ready")]
    assert run.processes(run_id) == []


@SLOW
def test_time_is_a_limit(campaign: Start) -> None:
    run = campaign("--max-minutes", "0.05", "--min-segment-seconds", "0.2")
    assert run.wait(60) == 0
    assert run.summary()["status"] == "complete"
    assert 5 <= run.summary()["segments"] <= 60


@SLOW
def test_a_task_past_its_deadline_is_tried_again_and_given_up(campaign: Start) -> None:
    flags = ("--max-attempts", "1", "--walkers", "12", "--task-timeout", "1")
    run = campaign("--max-segments", "20", "--segment-ps", "2000", "--frame-ps", "2", *flags)
    assert run.wait(120) == 1
    summary = run.summary()
    assert summary["failures"].keys() == {"lost"}
    assert "segments in a row were given up: no result within --task-timeout 1 s" in summary["reason"]
    # Time says nothing of where a segment began.
    assert summary["quarantined"] == 0
    assert run.ask("SELECT max(number) FROM attempt") == [(3,)]


@pytest.mark.slow
def test_failed_start_of_workers_is_told(campaign: Start) -> None:
    run = campaign(*LONG, "--start-timeout", "0.2")
    assert run.wait(60) == 1
    assert "did not answer within --start-timeout" in run.summary()["reason"]
    assert json.loads((run.run_dir / "params.json").read_text())["start_timeout"] == 0.2


@pytest.mark.slow
def test_a_reader_that_is_gone_does_not_end_the_campaign(campaign: Start) -> None:
    run = campaign("--max-segments", "40", "--min-segment-seconds", "0.2")
    assert run.process.stdout is not None
    run.process.stdout.close()
    assert run.process.wait(90) == 0
    assert run.summary()["status"] == "complete"


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_campaign_with_a_sentence(campaign: Start, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1500k") as disk:
        # Of a campaign that only time ends, nobody knows beforehand that it does not fit.
        run = campaign("--max-minutes", "5", "--min-free-mb", "0", name="disk/run")
        assert run.wait() == 1
        assert "Traceback" not in run.err
        assert run.out.splitlines()[-1] == f"run directory: {run.run_dir}"
        assert "failed" in run.out
        done = "SELECT id FROM task WHERE kind = 'simulate' AND state = 'complete'"
        before = set(run.ask(done))
        assert len(before) > 5
        # With more room it goes on, and nothing that was committed is lost.
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        again = [sys.executable, str(ROOT / "run.py"), "resume", str(run.run_dir)]
        ended = subprocess.run([*again, "--max-segments", str(len(before) + 10)], capture_output=True, timeout=90)
        assert ended.returncode == 0, ended.stderr
        assert before < set(run.ask(done))
        assert not (run.run_dir / "proxystore").exists()


def test_time_that_is_up_does_not_wait_for_long_segments(campaign: Start) -> None:
    run = campaign("--max-minutes", "0.05", "--min-segment-seconds", "60", "--grace-s", "2")
    assert run.wait(90) == 0
    assert run.summary()["status"] == "complete"
    assert run.ask("SELECT DISTINCT state FROM task") == [("ready",)]


@SLOW
def test_a_run_within_a_run_has_an_id_of_its_own(campaign: Start) -> None:
    run = campaign("--max-segments", "6", env={"WAYFINDER_RUN": "the-outer", "WAYFINDER_STARTED": "1"})
    run.until(lambda: run.run_id != "the-outer", 10)
    assert run.wait() == 0


@pytest.mark.parametrize("seconds", [0.3, 5.0])
def test_a_signal_before_anything_was_begun_leaves_nothing(tmp_path: Path, seconds: float) -> None:
    # So long a chain takes many seconds to minimise.
    command = [sys.executable, str(ROOT / "run.py"), "--sequence", "AG" * 100, "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=15)
    # The system ends it before Python has begun to take signals.
    assert process.returncode in (143, -signal.SIGTERM)
    assert (out, err) == ("", "")
    assert not (tmp_path / "run").exists()
