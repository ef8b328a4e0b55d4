"""From Colmena's `Result` to an `Outcome` that the agents understand."""

from __future__ import annotations

import json
import re
from typing import Any

from colmena.models import Result

from agents.topic import Failure, Outcome
from tasks import errors

_KINDS = {
    cls.__name__: cls.kind
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, errors.TaskFailed)
} | {"WorkerLost": "worker_lost", "ManagerLost": "manager_lost"}


def outcome_of(result: Result) -> Outcome:
    """Return what became of an attempt."""
    info = result.task_info
    worker = result.worker_info
    ran = bool(result.success)
    return Outcome(
        task_id=info["segment_id"] if "segment_id" in info else info["task_id"],
        attempt=info["attempt"],
        value=result.value if ran else None,
        failure=None if ran else _failure(result),
        line=lambda more: _line(result, more),
        started=result.timestamp.compute_started if ran else None,
        ended=result.timestamp.compute_ended if ran else None,
        host=None if worker is None else worker.hostname,
        worker=None if worker is None else str(getattr(worker, "PARSL_WORKER_RANK", "")),
    )


def _failure(result: Result) -> Failure:
    """Return the failure with the kind that its exception stands for."""
    info = result.failure_info
    if info is None:
        return Failure("error", "the task failed and gave no reason")
    name = re.match(r"\w+", info.exception)
    return Failure(_KINDS.get(name[0] if name else "", "error"), info.exception, info.traceback)


def _line(result: Result, more: dict[str, Any]) -> str:
    """Return the trace line: the Result without inputs and value, and with more in ``task_info``."""
    result.task_info.update(more)
    text: str = result.json(exclude={"inputs", "value"})
    if "NaN" not in text and "Infinity" not in text:
        return text
    # A task that never ran has no times, and a lone frame no finite novelty; JSON knows neither NaN nor Infinity.
    return json.dumps(json.loads(text, parse_constant=lambda _: None))
