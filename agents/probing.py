"""Ask every executor what it is before work is sent there; a mismatch is a sentence with both sides."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from colmena.exceptions import TimeoutException
from redis import RedisError

from agents.queues import PROBE, Queues
from agents.results import site_is_gone
from agents.state import Destination
from tasks.messages import ProbeReport, ProbeSpec, Ref, Role, StoreSpec, Topic
from tasks.probe import source_digest

# Training shares the executor of inference.
_ROLES: dict[Topic, Role] = {"simulate": "md", "infer": "ml", "move": "host", "hook": "host"}


class ProbeFailed(Exception):
    """An executor did not answer, or failed to: the campaign cannot go on."""


@dataclass(frozen=True, slots=True)
class Question:
    """A probe for one executor."""

    topic: Topic
    destination: Destination
    spec: ProbeSpec


def questions(
    destinations: dict[Topic, Destination],
    platform_name: str,
    stores: Collection[StoreSpec],
    pool: Sequence[Destination] = (),
    bulk_bytes: int = 0,
    left: Collection[Ref] = (),
) -> list[Question]:
    """Return one probe for each executor that will get work.

    Parameters
    ----------
    pool
        The sites of segments; empty for the one of their destination.
    bulk_bytes
        What is sent through each store to time it; 0 for nothing.
    left
        What this machine put into stores, and all who reach them must find there.
    """
    asked = []
    for topic, role in _ROLES.items():
        lone = [destinations[topic]] if topic in destinations else []
        md_platforms = (platform_name,) if topic == "simulate" else ()
        for destination in pool or lone if topic == "simulate" else lone:
            reached = tuple(store for store in stores if store.kind in destination.reaches)
            scratch = destination.scratch.folder if topic == "simulate" and destination.scratch else None
            there = tuple(ref for ref in left if ref.store in reached and ref.data is None)
            spec = ProbeSpec(role, md_platforms, reached, destination.run_dir, scratch, bulk_bytes, there)
            asked.append(Question(topic, destination, spec))
    return asked


def together(asked: Iterable[Question]) -> list[Question]:
    """Return one question for each executor, of which several campaigns ask."""
    merged: dict[str, Question] = {}
    for question in asked:
        executor, spec = question.destination.executor, question.spec
        if executor in merged:
            known = merged[executor].spec
            platforms = tuple(dict.fromkeys((*known.platforms, *spec.platforms)))
            stores = tuple(dict.fromkeys((*known.stores, *spec.stores)))
            left = (*known.left, *spec.left)
            question = replace(question, spec=replace(known, platforms=platforms, stores=stores, left=left))
        merged[executor] = question
    return list(merged.values())


def method_of(executor: str) -> str:
    """Return the name under which the task server knows the probe of an executor."""
    return f"probe@{executor}"


def ask(
    queues: Queues,
    asked: Iterable[Question],
    timeout_s: float,
    trouble: Callable[[], str | None],
    spare: Collection[str] = (),
) -> dict[str, ProbeReport]:
    """Return each executor's report, by its label.

    Parameters
    ----------
    trouble
        Tells why waiting is in vain, once it is.
    spare
        Executors of which one is enough: the reports of others that do not answer are left out.

    Raises
    ------
    ProbeFailed
        When an executor does not answer within ``timeout_s``, or its probe fails.
    """
    waiting = {question.destination.executor: question for question in asked}
    for executor, question in waiting.items():
        queues.send_inputs(question.spec, method=method_of(executor), topic=PROBE, task_info={"executor": executor})
    reports: dict[str, ProbeReport] = {}
    gone: set[str] = set()
    deadline = time.monotonic() + timeout_s
    while len(reports) + len(gone) < len(waiting):
        reason = trouble()
        if reason is not None:
            raise ProbeFailed(reason)
        if time.monotonic() > deadline:
            lacking = set(waiting) - set(reports)
            if lacking <= set(spare) and reports.keys() & set(spare):
                return reports
            silent = ", ".join(sorted(lacking))
            raise ProbeFailed(
                f"executor {silent} did not answer within --start-timeout {timeout_s:g} s; see its logs"
            )
        try:
            result = queues.get_result(topic=PROBE, timeout=1)
        except TimeoutException:
            continue
        executor = result.task_info["executor"]
        if not result.success and executor in spare and site_is_gone(result):
            gone.add(executor)
            continue
        if not result.success:
            raise ProbeFailed(f"the probe of executor {executor} failed: {result.failure_info.exception}")
        reports[executor] = result.value
    return reports


# What a probe sends through each store to time it: some seconds' worth of a slow line.
BULK_BYTES = 4_000_000

_N_EMPTY = 5


def timed(
    queues: Queues,
    asked: Iterable[Question],
    reports: Mapping[str, ProbeReport],
    timeout_s: float,
    trouble: Callable[[], str | None],
) -> dict[str, ProbeReport]:
    """Return reports of executors that also say how long a task without work takes to each and back: a median.

    Raises
    ------
    ProbeFailed
        When an executor answers no more.
    """
    empty = ProbeSpec("host", (), (), None)
    told = {}
    for question in asked:
        executor = question.destination.executor
        took = []
        for _ in range(_N_EMPTY):
            began = time.monotonic()
            answer = ask(queues, [replace(question, spec=empty)], timeout_s, trouble)[executor]
            took.append(time.monotonic() - began - answer.took_s)
        told[executor] = replace(reports[executor], round_trip_s=median(took))
    return told


def late(queues: Queues) -> Iterator[tuple[str, ProbeReport | None]]:
    """Yield executors that have answered since `ask` returned, and their reports; None for a probe that failed."""
    while True:
        try:
            result = queues.get_result(topic=PROBE, timeout=0.001)
        except (TimeoutException, RedisError):
            return
        yield result.task_info["executor"], result.value if result.success else None


def problems(report: ProbeReport) -> list[str]:
    """Return why work would fail on an executor, as sentences."""
    here = platform.python_version()
    found = list(report.problems)
    if report.python.rsplit(".", 1)[0] != here.rsplit(".", 1)[0]:
        found.append(f"Python is {report.python} there and {here} here; use the same minor version on both sides")
    digest = source_digest()
    if report.tasks_digest != digest:
        found.append(
            f"`tasks` there is {report.tasks_digest[:12]} and here {digest[:12]}; install this checkout's wheel there"
        )
    return found


def lines(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what each executor said, and its problems, for the terminal."""
    for label, report in reports.items():
        yield f"{label}: {report['host']}, {report['device']}, Python {report['python']}"
        yield "  " + ", ".join(f"{name} {version}" for name, version in sorted(report["versions"].items()))
        if report["platforms"]:
            yield f"  OpenMM platforms {', '.join(report['platforms'])}"
        yield f"  {report['free_disk_bytes'] / 1e9:.1f} GB free"
        if report["round_trip_s"] is not None:
            yield f"  a task takes {1e3 * report['round_trip_s']:.1f} ms there and back"
        for name, store in sorted(report["stores"].items()):
            yield (
                f"  store {name} ({store['kind']}): {1e3 * store['round_trip_s']:.1f} ms there and back, "
                f"{store['bytes_per_s'] / 1e6:.0f} MB/s"
            )
        for problem in report["problems"] or ["ready"]:
            yield f"  {problem}"
