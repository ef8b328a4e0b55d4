"""What executors are asked before work is sent to them, and what their answers are held against."""

import platform
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace

import pytest
from colmena.exceptions import TimeoutException
from colmena.models import FailureInformation

from agents.probing import ProbeFailed, ask, late, lines, method_of, problems, questions, timed
from agents.queues import pipe_queues
from agents.server import InterchangeEnded
from agents.state import Destination
from tasks.messages import ProbeReport, Ref, StoreSpec, StoreSpeed
from tasks.probe import source_digest

FILE, REDIS = StoreSpec("wayfinder", "file"), StoreSpec("wayfinder", "redis")

REPORT = ProbeReport(
    host="node",
    python=platform.python_version(),
    versions={"numpy": "2.0"},
    tasks_digest=source_digest(),
    device="cpu (2 cores)",
    platforms=("Reference",),
    free_disk_bytes=10**12,
    problems=(),
)


def destination(executor, reaches, run_dir="/run"):
    return Destination("far", executor, f"x@{executor}", 1, frozenset(reaches), FILE, run_dir)


DESTINATIONS = {
    "simulate": destination("cpu", {"redis", "inline"}),
    "infer": destination("gpu", {"file", "inline"}, run_dir=None),
    "train": destination("gpu", {"file", "inline"}, run_dir=None),
    "move": destination("host", {"file", "redis", "inline"}, run_dir=None),
}


def test_a_like_executor_has_no_problems():
    assert problems(REPORT) == []


def test_another_python_is_named_on_both_sides():
    (sentence,) = problems(replace(REPORT, python="3.8.19"))
    assert "Python is 3.8.19 there" in sentence
    assert f"{platform.python_version()} here" in sentence
    assert "use the same minor version" in sentence


def test_another_patch_of_python_is_no_problem():
    major, minor, _ = platform.python_version_tuple()
    assert problems(replace(REPORT, python=f"{major}.{minor}.99")) == []


def test_other_tasks_are_named_on_both_sides():
    (sentence,) = problems(replace(REPORT, tasks_digest="f" * 64))
    assert "f" * 12 in sentence
    assert source_digest()[:12] in sentence
    assert "install this checkout's wheel there" in sentence


def test_what_the_executor_itself_says_comes_first():
    told = problems(replace(REPORT, problems=("torch is missing",), python="3.8.1", tasks_digest="0"))
    assert told[0] == "torch is missing"
    assert len(told) == 3


def test_each_executor_is_asked_once_and_about_what_it_will_do():
    asked = {
        question.destination.executor: question.spec for question in questions(DESTINATIONS, "CUDA", (FILE, REDIS))
    }
    assert list(asked) == ["cpu", "gpu", "host"]
    assert {name: spec.role for name, spec in asked.items()} == {"cpu": "md", "gpu": "ml", "host": "host"}
    assert {name: spec.platforms for name, spec in asked.items()} == {"cpu": ("CUDA",), "gpu": (), "host": ()}
    assert {name: spec.stores for name, spec in asked.items()} == {
        "cpu": (REDIS,),
        "gpu": (FILE,),
        "host": (FILE, REDIS),
    }
    assert {name: spec.run_dir for name, spec in asked.items()} == {"cpu": "/run", "gpu": None, "host": None}


def test_who_reaches_a_store_is_to_find_there_what_was_left():
    left = (Ref(FILE, ("a",), 8), Ref(REDIS, ("b",), 8), Ref(REDIS, (), 8, b"inline"))
    asked = questions(DESTINATIONS, "CPU", (FILE, REDIS), left=left)
    assert {question.destination.executor: question.spec.left for question in asked} == {
        "cpu": (left[1],),
        "gpu": (left[0],),
        "host": left[:2],
    }


def test_without_a_submit_host_nobody_is_asked_for_it():
    without = {topic: place for topic, place in DESTINATIONS.items() if topic != "move"}
    assert [question.destination.executor for question in questions(without, "CPU", ())] == ["cpu", "gpu"]


@contextmanager
def answered(queues, answer):
    """Answer probes in a thread, as a task server would, until the test is done."""
    done = threading.Event()

    def serve():
        while not done.is_set():
            try:
                _, task = queues.get_task(timeout=0.02)
            except TimeoutException:
                continue
            with suppress(TimeoutException):  # of one that does not answer
                answer(task)
                task.serialize()
                queues.send_result(task)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)


def test_reports_come_by_executor():
    queues = pipe_queues()
    methods = []

    def answer(task):
        task.deserialize()
        methods.append(task.method)
        task.set_result(replace(REPORT, host=task.args[0].role))

    asked = questions(DESTINATIONS, "CPU", (FILE, REDIS))
    with answered(queues, answer):
        reports = ask(queues, asked, 10, lambda: None)
    assert {executor: report.host for executor, report in reports.items()} == {
        "cpu": "md",
        "gpu": "ml",
        "host": "host",
    }
    assert sorted(methods) == sorted(method_of(executor) for executor in reports)


def test_a_way_there_and_back_is_timed_without_what_the_executor_did():
    queues = pipe_queues()
    asked = questions(DESTINATIONS, "CPU", (FILE, REDIS), bulk_bytes=4)
    assert {question.spec.bulk_bytes for question in asked} == {4}
    specs = []

    def answer(task):
        task.deserialize()
        specs.append(task.args[0])
        time.sleep(0.05)
        task.set_result(replace(REPORT, host="asked again", took_s=0.05))

    reports = {question.destination.executor: REPORT for question in asked}
    with answered(queues, answer):
        told = timed(queues, asked, reports, 10, lambda: None)
    assert {report.host for report in told.values()} == {"node"}
    assert all(0 < report.round_trip_s < 0.05 for report in told.values())
    # Nothing is written, read or imported while the way is timed.
    assert {(spec.stores, spec.bulk_bytes, spec.role) for spec in specs} == {((), 0, "host")}


def test_figures_are_told_in_their_units():
    told = asdict(replace(REPORT, round_trip_s=0.0123, stores={"s": StoreSpeed("redis", 0.0004, 2.5e8)}))
    text = "\n".join(lines({"gpu": told}))
    assert "a task takes 12.3 ms there and back" in text
    assert "store s (redis): 0.4 ms there and back, 250 MB/s" in text


def test_a_probe_that_failed_is_told():
    queues = pipe_queues()

    def answer(task):
        task.deserialize()
        task.set_result(None)
        task.success = False
        task.failure_info = FailureInformation.from_exception(ImportError("no tasks"))

    with answered(queues, answer), pytest.raises(ProbeFailed, match=r"no tasks"):
        ask(queues, questions(DESTINATIONS, "CPU", ()), 10, lambda: None)


def test_an_executor_that_does_not_answer_is_named():
    queues = pipe_queues()
    asked = questions(DESTINATIONS, "CPU", ())
    with pytest.raises(ProbeFailed, match=r"executor cpu, gpu, host did not answer within --start-timeout 0.1 s"):
        ask(queues, asked, 0.1, lambda: None)


def test_waiting_ends_when_it_is_in_vain():
    with pytest.raises(ProbeFailed, match="the task server was killed by SIGKILL"):
        ask(
            pipe_queues(),
            questions(DESTINATIONS, "CPU", ()),
            60,
            lambda: "the task server was killed by SIGKILL",
        )


POOL = (destination("cpu-a", {"redis", "inline"}), destination("cpu-b", {"redis", "inline"}, run_dir=None))


def test_every_site_of_a_pool_is_asked():
    asked = {q.destination.executor: q.spec for q in questions(DESTINATIONS, "CUDA", (FILE, REDIS), POOL)}
    assert list(asked) == ["cpu-a", "cpu-b", "gpu", "host"]
    assert [(asked[name].role, asked[name].platforms) for name in ("cpu-a", "cpu-b")] == [("md", ("CUDA",))] * 2
    assert (asked["cpu-a"].run_dir, asked["cpu-b"].run_dir) == ("/run", None)


def answer_but(*silent, failing=None):
    """Return what answers probes, but not those of some executors; one fails as where its interchange ended."""

    def answer(task):
        task.deserialize()
        if task.task_info["executor"] in silent:
            raise TimeoutException
        task.set_result(REPORT)
        if task.task_info["executor"] == failing:
            task.success = False
            task.failure_info = FailureInformation.from_exception(InterchangeEnded("it ended"))

    return answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (answer_but("cpu-b"), {"cpu-a", "gpu", "host"}),
        (answer_but(failing="cpu-a"), {"cpu-b", "gpu", "host"}),
    ],
)
def test_one_site_of_a_pool_is_enough(answer, told):
    queues = pipe_queues()
    asked = questions(DESTINATIONS, "CPU", (), POOL)
    with answered(queues, answer):
        reports = ask(queues, asked, 2, lambda: None, {"cpu-a", "cpu-b"})
    assert set(reports) == told


@pytest.mark.parametrize("silent", [("cpu-a", "cpu-b"), ("cpu-a", "gpu"), ("gpu",)])
def test_a_pool_without_an_answer_and_learning_without_one_end_the_campaign(silent):
    queues = pipe_queues()
    asked = questions(DESTINATIONS, "CPU", (), POOL)
    with answered(queues, answer_but(*silent)), pytest.raises(ProbeFailed, match=f"executor {', '.join(silent)} did"):
        ask(queues, asked, 1, lambda: None, {"cpu-a", "cpu-b"})


def test_a_late_answer_is_told():
    queues = pipe_queues()
    assert list(late(queues)) == []
    for question in questions(DESTINATIONS, "CPU", (), POOL)[:2]:
        executor = question.destination.executor
        queues.send_inputs(question.spec, method=method_of(executor), topic="probe", task_info={"executor": executor})
    for answer in (answer_but(), answer_but(failing="cpu-b")):
        _, task = queues.get_task(timeout=1)
        answer(task)
        task.serialize()
        queues.send_result(task)
    assert list(late(queues)) == [("cpu-a", REPORT), ("cpu-b", None)]
