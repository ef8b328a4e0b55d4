"""From Colmena's Result, as a worker or Parsl leaves it, to what the agents understand."""

import json
import math
from functools import partial

import pytest
from colmena.models import FailureInformation
from colmena.models.methods import PythonMethod
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from agents.queues import pipe_queues
from agents.results import outcomes_of
from agents.server import InterchangeEnded
from tasks.bundle import run_bundle
from tasks.errors import BadInput, NotFinite, TooLarge, Unreachable

SEGMENT = {"segment_id": 7, "attempt": 2, "executor": "cpu"}


@pytest.fixture
def returned():
    """Send a task through real queues and a real method, and return the Result that comes back."""
    queues = pipe_queues()

    def run(function, info, lost=None):
        queues.send_inputs(["in"], method="m", topic="simulate", task_info={"bundle": [info]})
        _, task = queues.get_task(timeout=5)
        if lost is None:
            task = PythonMethod(partial(run_bundle, function), "m")(task)
        else:  # what Colmena's server does with a future that raised
            task.success = False
            task.failure_info = FailureInformation.from_exception(lost)
        queues.send_result(task)
        return queues.get_result("simulate", timeout=5)

    return run


def outcome_of(result):
    """Return the outcome of a Result that carried one task."""
    (outcome,) = outcomes_of(result)
    return outcome


def raises(error):
    def function(_):
        raise error

    return function


def parsed(line: str) -> dict:
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert "\n" not in line
    return json.loads(line, parse_constant=refuse)


def test_a_result_tells_who_made_it_and_when(returned, monkeypatch):
    monkeypatch.setenv("PARSL_WORKER_RANK", "3")
    result = returned(lambda text: text + "side", SEGMENT)
    outcome = outcome_of(result)
    assert (outcome.task_id, outcome.attempt, outcome.value, outcome.failure) == (7, 2, "inside", None)
    assert outcome.worker == "3"
    assert outcome.host
    assert outcome.started <= outcome.ended


def test_tasks_that_are_no_segments_have_ids_of_their_own(returned):
    outcome = outcome_of(returned(len, {"task_id": 2**40 + 1, "attempt": 1}))
    assert (outcome.task_id, outcome.value) == (2**40 + 1, 2)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFinite("energy became NaN"), "nan"),
        (Unreachable("store x does not answer"), "unreachable"),
        (TooLarge("9 bytes"), "too_large"),
        (BadInput("no such platform"), "error"),
        (ValueError("a bug"), "error"),
        (SystemExit(3), "error"),
    ],
)
def test_a_task_that_raised_fails_by_its_kind(returned, error, kind):
    outcome = outcome_of(returned(raises(error), SEGMENT))
    assert outcome.value is None
    assert outcome.failure.kind == kind
    assert outcome.failure.message == repr(error)
    assert "raise error" in outcome.failure.traceback
    assert (outcome.started, outcome.ended) == (None, None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WorkerLost(3, "node"), "worker_lost"),
        (InterchangeEnded("the interchange of executor cpu ended"), "site_gone"),
        (ManagerLost(b"manager", "node"), "manager_lost"),
        (RuntimeError("interchange is gone"), "error"),
    ],
)
def test_a_task_that_parsl_lost_fails_by_its_kind(returned, error, kind):
    outcome = outcome_of(returned(None, SEGMENT, lost=error))
    assert outcome.failure.kind == kind
    assert (outcome.started, outcome.ended, outcome.host, outcome.worker) == (None, None, None, None)


def test_a_failure_without_a_reason_is_still_one(returned):
    result = returned(None, SEGMENT, lost=RuntimeError("x"))
    result.failure_info = None
    assert outcome_of(result).failure.message == "the task failed and gave no reason"


def test_a_trace_line_is_the_result_without_inputs_and_value(returned):
    outcome = outcome_of(returned(lambda _: "the value", SEGMENT))
    line = parsed(outcome.line({"n_frames": 8, "novelty": 0.5}))
    assert line["task_info"].pop("worker_rss_bytes") > 1e6
    assert line["task_info"] == {**SEGMENT, "n_frames": 8, "novelty": 0.5}
    assert not {"inputs", "value"} & line.keys()
    assert line["success"] is True
    assert line["timestamp"]["compute_started"] == outcome.started
    assert line["time"]["running"] >= 0
    assert "the value" not in json.dumps(line)


def test_a_trace_line_of_a_lost_task_has_null_where_nothing_was_measured(returned):
    outcome = outcome_of(returned(None, SEGMENT, lost=WorkerLost(3, "node")))
    line = parsed(outcome.line({}))
    assert line["timestamp"]["compute_started"] is None
    assert line["timestamp"]["result_received"] > 0
    assert line["success"] is False
    assert line["failure_info"]["exception"].startswith("WorkerLost")
    assert line["task_info"] == SEGMENT


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_trace_line_is_json_whatever_was_found(returned, value):
    result = returned(len, SEGMENT)
    # The task server's own times, without which there is NaN in any case.
    result.timestamp.start_task_submission = result.timestamp.task_received = 1.0
    assert "NaN" not in outcome_of(result).line({})
    line = parsed(outcome_of(result).line({"novelty": [value, 1.0]}))
    assert line["task_info"]["novelty"] == [None, 1.0]


def test_words_in_a_trace_line_stay_as_they_are(returned):
    outcome = outcome_of(returned(len, SEGMENT))
    assert parsed(outcome.line({"note": "NaN or Infinity"}))["task_info"]["note"] == "NaN or Infinity"
