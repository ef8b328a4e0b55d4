"""Ask every executor what it is before work is sent there; a mismatch is a sentence with both sides."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from colmena.exceptions import TimeoutException

from agents.queues import PROBE, Queues
from agents.state import Destination
from tasks.messages import ProbeReport, ProbeSpec, Role, StoreSpec, Topic
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
    destinations: dict[Topic, Destination], platform_name: str, stores: Iterable[StoreSpec]
) -> list[Question]:
    """Return one probe for each executor that will get work."""
    asked = []
    for topic, role in _ROLES.items():
        destination = destinations.get(topic)
        if destination is None:
            continue
        reached = tuple(store for store in stores if store.kind in destination.reaches)
        md_platform = platform_name if topic == "simulate" else ""
        spec = ProbeSpec(role, md_platform, reached, destination.run_dir)
        asked.append(Question(topic, destination, spec))
    return asked


def method_of(executor: str) -> str:
    """Return the name under which the task server knows the probe of an executor."""
    return f"probe@{executor}"


def ask(
    queues: Queues, asked: Iterable[Question], timeout_s: float, trouble: Callable[[], str | None]
) -> dict[str, ProbeReport]:
    """Return each executor's report, by its label.

    Parameters
    ----------
    trouble
        Tells why waiting is in vain, once it is.

    Raises
    ------
    ProbeFailed
        When an executor does not answer within ``timeout_s``, or its probe fails.
    """
    waiting = {question.destination.executor: question for question in asked}
    for executor, question in waiting.items():
        queues.send_inputs(question.spec, method=method_of(executor), topic=PROBE, task_info={"executor": executor})
    reports: dict[str, ProbeReport] = {}
    deadline = time.monotonic() + timeout_s
    while len(reports) < len(waiting):
        reason = trouble()
        if reason is not None:
            raise ProbeFailed(reason)
        if time.monotonic() > deadline:
            silent = ", ".join(sorted(set(waiting) - set(reports)))
            raise ProbeFailed(
                f"executor {silent} did not answer within --start-timeout {timeout_s:g} s; see its logs"
            )
        try:
            result = queues.get_result(topic=PROBE, timeout=1)
        except TimeoutException:
            continue
        executor = result.task_info["executor"]
        if not result.success:
            raise ProbeFailed(f"the probe of executor {executor} failed: {result.failure_info.exception}")
        reports[executor] = result.value
    return reports


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
        for problem in report["problems"] or ["ready"]:
            yield f"  {problem}"
