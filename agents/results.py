"""From Colmena's `Result`, which may carry several tasks, to the `Outcome` of each, which the agents understand."""

from __future__ import annotations

import json
import re
from typing import Any

from colmena.models import FailureInformation, Result

from agents.attempts import Failure
from agents.topic import Outcome
from tasks.messages import Done

# What happens to a bundle as a whole; what its tasks raise themselves comes back as data.
_KINDS = {
    "WorkerLost": "worker_lost",
    "ManagerLost": "manager_lost",
    "EndpointGone": "manager_lost",
    # Of tasks that were at an executor when its interchange ended, and of those sent there since.
    "BadStateException": "site_gone",
    "InterchangeEnded": "site_gone",
}


def outcomes_of(result: Result) -> list[Outcome]:
    """Return what became of the attempt of each task that a Result carried."""
    infos = result.task_info["bundle"]
    if not result.success:
        return [_outcome(result, info, None, _failure(result)) for info in infos]
    return [_outcome(result, info, done, None) for info, done in zip(infos, result.value, strict=True)]


def _outcome(result: Result, info: dict[str, Any], done: Done | None, lost: Failure | None) -> Outcome:
    worker = result.worker_info
    error = None if done is None else done.error
    failure = lost if error is None else Failure(error.kind, error.exception, error.traceback)
    ran = done is not None and failure is None
    return Outcome(
        task_id=info["task_id"] if "task_id" in info else info["segment_id"],
        attempt=info["attempt"],
        value=done.value if done is not None else None,
        failure=failure,
        line=lambda more: _line(result, {**info, **more}, done),
        started=done.started if done is not None and ran else None,
        ended=done.ended if done is not None and ran else None,
        host=None if worker is None else worker.hostname,
        worker=None if worker is None else str(getattr(worker, "PARSL_WORKER_RANK", "")),
    )


def site_is_gone(result: Result) -> bool:
    """Return whether a Result failed because nothing reaches the workers of its executor any more."""
    return not result.success and _failure(result).kind == "site_gone"


def _failure(result: Result) -> Failure:
    """Return why none of them ran, with the kind that the exception stands for."""
    info = result.failure_info
    if info is None:
        return Failure("error", "the task failed and gave no reason")
    name = re.match(r"\w+", info.exception)
    kind = _KINDS.get(name[0] if name else "", "error")
    # Parsl's exception would show all that the executor was made of.
    told = "the interchange of its executor ended" if kind == "site_gone" else info.exception
    return Failure(kind, told, info.traceback)


def _of_worker(done: Done | None) -> dict[str, Any]:
    """Return what a trace line tells of the worker, besides its name: its device, and the most memory it had."""
    told = {} if done is None else {"device": done.device, "worker_rss_bytes": done.rss_bytes}
    return {name: value for name, value in told.items() if value is not None}


def _line(result: Result, info: dict[str, Any], done: Done | None) -> str:
    """Return a task's own trace line: the Result without inputs and value, with the task's times and findings."""
    told = result.model_copy(update={"task_info": {**info, **_of_worker(done)}})
    if done is not None:
        times = {"compute_started": done.started, "compute_ended": done.ended}
        told.timestamp = result.timestamp.model_copy(update=times)
        told.time = result.time.model_copy(update={"running": done.ended - done.started})
        told.success = done.error is None
        if done.error is not None:
            told.failure_info = FailureInformation(exception=done.error.exception, traceback=done.error.traceback)
    text: str = told.json(exclude={"inputs", "value"})
    if "NaN" not in text and "Infinity" not in text:
        return text
    # A task that never ran has no times, and a lone frame no finite novelty; JSON knows neither NaN nor Infinity.
    return json.dumps(json.loads(text, parse_constant=lambda _: None))
