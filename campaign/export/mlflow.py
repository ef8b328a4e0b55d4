"""A campaign as a run of MLflow's: settings, figures, losses and models, at a server or in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from campaign.export import SERIES
from campaign.export.places import folder
from campaign.flags import shown
from campaign.rundir import PARAMS, SUMMARY
from campaign.status import status
from campaign.trace import Run
from tasks.errors import BadInput

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_OPTION = "--mlflow"

_EXPERIMENT = "wayfinder"

# How a run ended, in MLflow's words; what still runs has none.
_STATUSES = {"complete": "FINISHED", "failed": "FAILED"}

# What a server takes: metrics and parameters at once, and characters of a value.
_METRICS, _PARAMS, _LONGEST = 1000, 100, 500

_LONGEST_REASON = 200

# Set before the library is imported, unless the user did. It reports how it is used to its makers; it waits for
# minutes for a server that is not there; and it keeps folders no more without being asked to.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


class _Figure(NamedTuple):
    """A value of a metric: when it was known (ms since 1970), and of which step."""

    name: str
    value: float
    at: int
    step: int


def log_run(run: Run, uri: str) -> str:
    """Log the campaign as a new run, and return what is to be said of it.

    Parameters
    ----------
    uri
        Of a server; or a folder, which is made.

    Raises
    ------
    BadInput
        When the library is missing, nothing answers there, or what the run left is damaged; no run is left then.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise BadInput(
            f"{_OPTION} needs mlflow, which is not installed: `pip install -c constraints.txt -e '.[mlflow]'` brings "
            "it"
        ) from error
    # Before anything is sent.
    figures = list(_figures(run))
    place = _folder(uri)
    with folder(place, _OPTION) if place is not None else nullcontext():
        try:
            client = MlflowClient(tracking_uri=uri if place is None else place.as_uri())
            return _log(run, client, figures, uri)
        except (MlflowException, OSError) as error:
            named, reason = shown(_public(uri, uri)), _reason(error, uri)
            raise BadInput(
                f"{_OPTION} {named} cannot be used ({reason}): give the URI of a server that answers, or a folder"
            ) from None


def _folder(uri: str) -> Path | None:
    """Return the folder that a URI names; None where it is a server's."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise BadInput(f"{_OPTION} names no URI ({error}): give that of a server, or a folder") from None
    if parts.scheme == "file":
        return Path(unquote(parts.path)).absolute()
    return Path(uri).absolute() if not parts.scheme else None


def _public(text: str, uri: str) -> str:
    """Return a text without the user's name and password of a URI in it."""
    user, found, _ = urlsplit(uri).netloc.rpartition("@")
    return text.replace(user + found, "") if found else text


def _reason(error: Exception, uri: str) -> str:
    """Return what MLflow says, as far as it fits a sentence."""
    text = _public(" ".join(str(error).split()), uri)
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def _log(run: Run, client: MlflowClient, figures: list[_Figure], uri: str) -> str:
    from mlflow.entities import Metric, Param

    known = client.get_experiment_by_name(_EXPERIMENT)
    experiment = client.create_experiment(_EXPERIMENT) if known is None else known.experiment_id
    began, ended = _times(run)
    tags = _tags(run)
    made = client.create_run(experiment, start_time=began, tags=tags, run_name=run.name).info.run_id
    try:
        params = [Param(name, str(value)[:_LONGEST]) for name, value in run.settings.items() if value is not None]
        for first in range(0, len(params), _PARAMS):
            client.log_batch(made, params=params[first : first + _PARAMS])
        for first in range(0, len(figures), _METRICS):
            client.log_batch(made, metrics=[Metric(*each) for each in figures[first : first + _METRICS]])
        for path in _artifacts(run):
            client.log_artifact(made, str(path), "models" if path.parent.name == "models" else None)
        if tags["status"] != "running":
            client.set_terminated(made, _STATUSES.get(tags["status"], "KILLED"), ended)
    except BaseException:
        with suppress(Exception):
            client.delete_run(made)
        raise
    counted = f"{len(params)} settings and {len(figures)} figures"
    return f"run {made} of experiment {_EXPERIMENT} at {_public(uri, uri)} has {counted}"


def _tags(run: Run) -> dict[str, str]:
    told = {
        "system": run.settings.get("system"),
        "policy": run.settings.get("policy"),
        "status": status(run.path).status,
        "reason": run.meta.get("reason"),
        "campaign": run.meta.get("campaign"),
        "run_directory": run.path.resolve(),
    }
    return {name: str(value) for name, value in told.items() if value is not None}


def _times(run: Run) -> tuple[int, int]:
    """Return when the campaign began, and when the ledger knew of the last attempt's end; ms since 1970."""
    told = run.query("SELECT min(started) AS began, max(ended) AS ended FROM attempt").astype(float).fillna(0.0)
    began = [float(each["started"]) for each in run.meta.get("processes", ())]
    return _ms(min(began, default=float(told.began[0]))), _ms(float(told.ended[0]))


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _figures(run: Run) -> Iterator[_Figure]:
    """Yield what the run knows: by inference, by epoch of all trainings, by iteration, and at the end."""
    for row in run.inferences.reset_index().itertuples():
        for name in SERIES:
            if (value := float(getattr(row, name))) == value:
                yield _Figure(name, value, _ms(row.received), row.reference_number)
    received = [
        line["timestamp"]["result_received"] for line in run.counted("train") if line["task_info"].get("losses")
    ]
    names = run.losses.columns.drop(["model_version", "epoch", "n_frames"])
    # A training has as many rows as epochs, and nobody noted when each of these ended.
    trainings = (run.losses.epoch == 1).cumsum() - 1
    for step, (row, training) in enumerate(zip(run.losses.to_dict("records"), trainings, strict=True), 1):
        at = _ms(received[training])
        yield _Figure("model_version", float(row["model_version"]), at, step)
        yield from (_Figure(f"loss/{name}", float(row[name]), at, step) for name in names)
    for row in run.iterations.itertuples():
        name = f"ensemble-{row.replica}/flux_per_ps"
        yield _Figure(name, float(row.flux_per_ps), _ms(row.ended), row.iteration)
    _, ended = _times(run)
    for name, value in _numbers(run.summary):
        yield _Figure("summary/" + re.sub(r"[^\w .:/-]", "_", name), value, ended, 0)


def _numbers(told: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested data, by their path."""
    for name, value in told.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{within}{name}/")
        elif isinstance(value, int | float) and name != "schema":
            yield f"{within}{name}", float(value)


def _artifacts(run: Run) -> Iterator[Path]:
    named = (run.path / name for name in (SUMMARY, PARAMS, "report.html"))
    yield from (path for path in chain(sorted(run.path.glob("models/model-*")), named) if path.is_file())
