"""What workers and the Thinker did with their time, from the tasks of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from campaign.ledger import NO_FAILURES
from campaign.status import status
from campaign.trace import Run

# From a decision to what follows from it, in their order.
PARTS = ("server_s", "queue_s", "compute_s", "store_s", "return_s", "notify_s")


def headline(run: Run) -> pd.Series:
    """Return the figures of a run that its traces and ledger tell, by their names in ``summary.json``.

    While it runs they are those of what has come back.
    """
    segments, inferences, now = run.segments, run.inferences, status(run.path)
    return pd.Series(
        {
            "status": now.status,
            "reason": now.reason,
            "system": run.meta.get("system"),
            "policy": run.settings.get("policy"),
            "seed": run.settings.get("seed"),
            "segments": len(segments),
            "simulated_ns": float(segments.simulated_ps.sum() / 1000),
            "frames": int(segments.n_frames.sum()),
            "failures": len(failures(run)),
            "quarantined": now.quarantined_starts,
            "model_versions": int(run.losses.model_version.max()) if len(run.losses) else 0,
            "inferences": len(inferences),
            "steered_fraction": float(segments.steered.mean()) if len(segments) else 0.0,
            "coverage": float(inferences.coverage.iloc[-1]) if len(inferences) else None,
        },
        name=run.name,
        dtype=object,
    )


def failures(run: Run) -> pd.DataFrame:
    """Return the attempts that failed, oldest first, as `Run.attempts` has them."""
    ended = run.attempts.dropna(subset="outcome")
    return ended[~ended.outcome.isin(NO_FAILURES)]


def counted(tasks: pd.DataFrame) -> pd.DataFrame:
    """Return the attempts whose result counted: not those that failed, or came after another's."""
    return tasks[tasks.success.astype(bool) & (tasks.outcome.isna() | (tasks.outcome == "success"))]


def ran(tasks: pd.DataFrame) -> pd.DataFrame:
    """Return the attempts that a worker ran, with ``lane`` (executor and worker) and ``seconds`` on it."""
    found = tasks.dropna(subset=["started", "ended", "worker"])
    lane = found.executor.astype(str) + " " + found.worker.astype(str)
    return found.assign(lane=lane, seconds=found.ended - found.started).sort_values("started")


def utilisation(run: Run) -> pd.DataFrame:
    """Return the share of time that workers computed, by site and topic, as `utilisation_of` the run's tasks."""
    return utilisation_of(run.tasks, [each["started"] for each in run.meta.get("processes", ())])


def utilisation_of(tasks: pd.DataFrame, began: Sequence[float] = ()) -> pd.DataFrame:
    """Return the share of time that workers computed, by site and topic.

    Time is from the start of the first segment to the end of the last, without that between two processes of the
    campaign; attempts that did not count are left out, and so are workers that never ran anything.

    Parameters
    ----------
    began
        When each process of the campaign did, UNIX s.

    Returns
    -------
    DataFrame
        Index ``site`` and ``topic``; ``workers`` that the executor had, ``busy_s`` on all of them, and ``share``,
        within 0 and 1.
    """
    found = ran(counted(tasks))
    segments = found[found.topic == "simulate"]
    each = segments.groupby(np.searchsorted(sorted(began), segments.started))
    span = float((each.ended.max() - each.started.min()).sum())
    busy = found.groupby(["site", "topic"]).agg(executor=("executor", "first"), busy_s=("seconds", "sum"))
    busy["workers"] = busy.executor.map(found.groupby("executor").lane.nunique())
    busy["share"] = busy.busy_s / (busy.workers * span) if span > 0 else np.nan
    return busy.drop(columns="executor")


def utilisation_over_time(tasks: pd.DataFrame, n_bins: int = 60) -> pd.DataFrame:
    """Return the same over time: a column for each site and topic, a row for each bin.

    Index ``minutes`` since the first task began, at the middles of the bins.
    """
    found = ran(counted(tasks))
    if found.empty or found.ended.max() <= found.started.min():
        return pd.DataFrame(index=pd.Index([], name="minutes"))
    edges = np.linspace(found.started.min(), found.ended.max(), n_bins + 1)
    width = edges[1] - edges[0]
    workers = found.groupby("executor").lane.nunique()
    middles = pd.Index((edges[:-1] + width / 2 - edges[0]) / 60, name="minutes")
    shares = {
        (site, topic): busy_time(part.started.to_numpy(), part.ended.to_numpy(), edges)
        / (workers[part.executor.iloc[0]] * width)
        for (site, topic), part in found.groupby(["site", "topic"])
    }
    columns = pd.MultiIndex.from_tuples(shares, names=["site", "topic"])
    return pd.DataFrame(np.stack(list(shares.values()), axis=1), index=middles, columns=columns)


def busy_time(started: np.ndarray, ended: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return how many task-seconds lie in each interval.

    Parameters
    ----------
    started, ended : ndarray of shape (n_tasks,), float64
    edges : ndarray of shape (n + 1,), float64

    Returns
    -------
    ndarray of shape (n,), float64
    """
    # Of what has run until each edge: the time of those that ended, and of the others since they began.
    begun, over = np.sort(started), np.sort(ended)
    n_begun, n_over = np.searchsorted(begun, edges), np.searchsorted(over, edges)
    sums_begun, sums_over = np.concatenate([[0.0], np.cumsum(begun)]), np.concatenate([[0.0], np.cumsum(over)])
    until = (n_begun * edges - sums_begun[n_begun]) - (n_over * edges - sums_over[n_over])
    return np.diff(until)


def gaps(tasks: pd.DataFrame) -> pd.DataFrame:
    """Return when workers waited between two tasks: ``executor``, ``lane``, ``began`` (UNIX s), ``seconds``."""
    found = ran(tasks)
    # Its last task so far: one that was outpaced may reach beyond its successor.
    before = found.groupby("lane").ended.transform(lambda ended: ended.cummax().shift())
    found = found.assign(began=before, seconds=found.started - before).dropna(subset="began")
    return found.loc[found.seconds > 0, ["executor", "lane", "began", "seconds"]].reset_index(drop=True)


def latency(tasks: pd.DataFrame) -> pd.DataFrame:
    """Return the parts of tasks that brought a result, by topic: medians and 95th percentiles, ms.

    Index ``topic``; columns ``(part, "p50")`` and ``(part, "p95")`` of ``server``, ``queue``, ``compute``, ``store``,
    ``return``, ``notify``, and ``all`` of them together, and ``n``.
    """
    found = counted(tasks)
    parts = found[list(PARTS)].rename(columns=lambda name: name.removesuffix("_s")).astype(float)
    grouped = parts.assign(all=found.received - found.created).groupby(found.topic, sort=False)
    quantiles = pd.concat({"p50": grouped.quantile(0.5), "p95": grouped.quantile(0.95)}, axis=1).swaplevel(axis=1)
    table: pd.DataFrame = 1000 * quantiles.reindex(columns=[*parts, "all"], level=0)
    table["n", ""] = grouped.size()
    return table


def decisions(segments: pd.DataFrame) -> pd.Series:
    """Return how long each segment's walker waited for its next one to be made, once it was received, ms.

    Index ``segment_id`` of the segment that ended. What follows an inference or an iteration waits for that.
    """
    order = segments.sort_values("sent")
    following = order.groupby(["replica", "walker_id"]).sent.shift(-1)
    waited = 1000 * (following - order.received)
    found: pd.Series = waited[waited > 0].rename("decision_ms")
    return found
