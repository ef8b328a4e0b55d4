"""Figures of a report, each drawn from a campaign's frames, with a sentence that says what is to be seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from campaign import activity
from campaign.figures import COLOURS, colour_of
from campaign.report.lineage import Tree
from campaign.report.structures import Sampled
from campaign.trace import Run

PARTS = {
    "server_s": "to the task server",
    "queue_s": "waiting for a worker",
    "store_s": "stores",
    "compute_s": "computing",
    "return_s": "back to the task server",
    "notify_s": "to the Thinker",
}

# Single tasks are drawn as far as they can be told apart; beyond, how busy each worker was.
_MOST_BARS = 1_500
_N_BINS = 240
_MOST_WORKERS = 60
_UTILISATION_BINS = 80

# Where one model version ends and the next begins is marked up to so many.
_MOST_UPRIGHTS = 60

# Points of a curve that are told apart on a screen.
_MOST_ALONG = 1_000

# Points that a browser draws at once.
_MOST_TORSIONS = 4_000


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure with its heading and what it says in words.

    Attributes
    ----------
    name
        Identifies it on the page.
    figure
        None where there is nothing to draw; ``said`` says why.
    shows_structures
        Whether its points carry ``[segment, frame]``, so that a click shows a structure.
    colours
        What its points can be coloured by: names, and the values and scale of each.
    """

    name: str
    title: str
    said: str
    figure: go.Figure | None = None
    shows_structures: bool = False
    colours: tuple[dict[str, Any], ...] = ()


def timeline(tasks: pd.DataFrame) -> Panel:
    """Return what each worker did when."""
    title = "Workers over time"
    ran = activity.ran(tasks)
    ran = ran.assign(row=ran.site.astype(str) + " · " + ran.lane)
    if ran.empty:
        return Panel("timeline", title, "No task ran.")
    origin, workers = ran.started.min(), list(_workers(ran))
    left_out = max(0, len(workers) - _MOST_WORKERS)
    workers = workers[:_MOST_WORKERS]
    ran = ran[ran.row.isin(workers)]
    if len(ran) <= _MOST_BARS:
        figure, how = _bars(ran, origin), f"Each of {len(ran)} tasks is a bar."
    else:
        figure, how = (
            _busy_map(ran, origin, workers),
            f"{len(ran)} tasks, as the share of each interval that was busy.",
        )
    if left_out:
        how += f" {left_out} more workers are left out."
    figure.update_layout(height=120 + 26 * len(workers), xaxis_title="time (s)", yaxis_autorange="reversed")
    return Panel("timeline", title, how, figure)


def _workers(ran: pd.DataFrame) -> Iterator[str]:
    """Yield the workers, those of segments first."""
    first = ran.assign(learns=ran.topic != "simulate").groupby("row").learns.all()
    yield from first.reset_index().sort_values(["learns", "row"]).row


def _bars(ran: pd.DataFrame, origin: float) -> go.Figure:
    figure = go.Figure()
    for topic, part in ran.groupby("topic", sort=False):
        figure.add_bar(
            y=part.row, base=part.started - origin, x=part.ended - part.started, orientation="h", name=topic,
            marker={"color": colour_of(str(topic)), "line": {"width": 0}},
            hovertemplate="%{fullData.name} %{customdata}: %{x:.3g} s from %{base:.2f} s<extra></extra>",
            customdata=part.task_id.astype(str),
        )  # fmt: skip
    figure.update_layout(barmode="overlay", bargap=0.25)
    return figure


def _busy_map(ran: pd.DataFrame, origin: float, workers: Sequence[str]) -> go.Figure:
    edges = np.linspace(0.0, max(ran.ended.max() - origin, 1e-9), _N_BINS + 1)
    rows = [
        activity.busy_time(part.started.to_numpy() - origin, part.ended.to_numpy() - origin, edges) / np.diff(edges)
        for part in (ran[ran.row == worker] for worker in workers)
    ]
    return go.Figure(
        go.Heatmap(
            x=(edges[1:] + edges[:-1]) / 2, y=list(workers), z=np.clip(np.round(rows, 3), 0, 1), zmin=0, zmax=1,
            colorscale="Cividis", colorbar={"title": "busy"},
            hovertemplate="%{y}: %{z:.0%} busy at %{x:.1f} s<extra></extra>",
        )
    )  # fmt: skip


def utilisation(run: Run) -> Panel:
    """Return how busy the workers of each site and topic were over time."""
    title = "Utilisation by site and topic"
    shares = activity.utilisation_over_time(run.tasks, _UTILISATION_BINS)
    if shares.empty:
        return Panel("utilisation", title, "No task ran.")
    figure = go.Figure()
    for site, topic in shares.columns:
        figure.add_scatter(
            x=60 * shares.index, y=np.round(np.clip(shares[site, topic], 0, 1), 4), name=f"{topic} at {site}",
            mode="lines", line={"color": colour_of(str(topic)), "shape": "hvh"},
            hovertemplate="%{fullData.name}: %{y:.0%} at %{x:.1f} s<extra></extra>",
        )  # fmt: skip
    figure.update_layout(xaxis_title="time (s)", yaxis={"title": "busy share of workers", "range": [0, 1.02]})
    told = [
        f"{topic} at {site} {share:.0%}"
        for site, topics in (run.summary.get("worker_utilisation") or {}).items()
        for topic, share in topics.items()
    ]
    said = f"From first to last segment: {', '.join(told)}. " if told else ""
    said += "Workers are those that were seen at work; where they share cores, contention makes them look busier."
    return Panel("utilisation", title, said, figure)


def latency(run: Run) -> Panel:
    """Return where the time of a task goes, from the decision to have it made to its result."""
    title = "From decision to result"
    medians = latency_parts(run.tasks)
    if medians.empty:
        return Panel("latency", title, "No task came back.")
    figure = go.Figure()
    for number, (part, words) in enumerate(PARTS.items()):
        figure.add_bar(
            y=medians.index, x=medians[part], orientation="h", name=words,
            marker={"color": COLOURS[number]}, hovertemplate="%{y}, %{fullData.name}: %{x:.3g} s<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="stack", xaxis_title="median (s)", height=160 + 40 * len(medians))
    decision = run.summary.get("decision_ms") or {}
    said = "Medians of each part; parts of different tasks, so their sum is no task's. "
    if decision.get("n"):
        said += (
            f"From a segment's result in the Thinker's hands to its slot's next one: median "
            f"{decision['p50']:.1f} ms, 95 % within {decision['p95']:.1f} ms ({decision['n']} decisions). "
        )
    said += (
        "Where worker and submit host have clocks of their own, waiting and the way back are off by the difference."
    )
    return Panel("latency", title, said, figure)


def latency_parts(tasks: pd.DataFrame) -> pd.DataFrame:
    """Return the median of each part by topic, in seconds; none is negative, whatever clocks say."""
    found = activity.latency(tasks[tasks.started.notna()])
    medians = pd.DataFrame({part: found[part.removesuffix("_s"), "p50"] for part in PARTS}) / 1000
    return medians.fillna(0.0).clip(lower=0.0)


def stored(tasks: pd.DataFrame) -> Panel:
    """Return how many bytes went through which store."""
    title = "Bytes by store"
    put = tasks[tasks.payload_bytes.fillna(0) > 0] if len(tasks) else tasks
    if put.empty:
        return Panel("bytes", title, "Nothing went through a store.")
    sums = put.assign(store=put.store.fillna("a store")).groupby(["store", "topic"]).payload_bytes.sum().unstack()
    figure = go.Figure()
    for topic in sums.columns:
        figure.add_bar(
            y=sums.index, x=sums[topic], orientation="h", name=topic, marker={"color": colour_of(str(topic))},
            hovertemplate="%{fullData.name} by %{y}: %{x:.3s}B<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        barmode="stack", height=160 + 40 * len(sums), xaxis={"title": "bytes", "tickformat": "~s", "ticksuffix": "B"}
    )
    messages = float(tasks.message_bytes.sum())
    said = (
        f"{size(float(put.payload_bytes.sum()))} of results went into stores; messages about them, with what travels "
        f"inline, took {size(messages)}."
    )
    return Panel("bytes", title, said, figure)


def coverage(runs: Sequence[tuple[str, Run]]) -> Panel:
    """Return cells visited over simulated time, of each run by its name."""
    title = "Coverage over simulated time"
    figure, told = go.Figure(), []
    for number, (name, run) in enumerate(runs):
        seen = run.inferences
        if seen.empty or seen.coverage.isna().all():
            continue
        seen = seen.iloc[np.unique(np.linspace(0, len(seen) - 1, _MOST_ALONG).astype(int))]
        figure.add_scatter(
            x=np.concatenate([[0.0], seen.simulated_ns]), y=np.concatenate([[0.0], seen.coverage]), name=name,
            mode="lines", line={"color": COLOURS[number % len(COLOURS)], "dash": "solid" if number == 0 else "dash"},
            hovertemplate="%{fullData.name}: %{y} cells after %{x:.3f} ns<extra></extra>",
        )  # fmt: skip
        told.append(f"{name} {seen.coverage.iloc[-1]:.0f} cells in {seen.simulated_ns.iloc[-1]:.3f} ns")
    if not told:
        return Panel("coverage", title, "No inference has counted coverage.")
    metric = ((runs[0][1].summary.get("coverage") or {}).get("metric") or "cells").replace("_", " ")
    figure.update_layout(xaxis_title="simulated time (ns)", yaxis_title=metric)
    said = f"{'; '.join(told)}. One run each: another seed gives another curve."
    if len(told) == 1:
        said += " There is no plain control beside it (--control)."
    return Panel("coverage", title, said, figure)


def losses(run: Run) -> Panel:
    """Return the losses of all trainings, one after another."""
    title = "Training"
    found = run.losses
    if found.empty:
        return Panel("losses", title, "No model was trained.")
    figure, epochs = go.Figure(), np.arange(1, len(found) + 1)
    names = [name for name in found.columns if name not in ("model_version", "epoch", "n_frames")]
    for number, name in enumerate(names):
        figure.add_scatter(
            x=epochs, y=found[name], name=name, mode="lines", line={"color": COLOURS[number % len(COLOURS)]},
            customdata=found.model_version,
            hovertemplate="version %{customdata}: %{fullData.name} %{y:.4g}<extra></extra>",
        )  # fmt: skip
    begins = epochs[found.epoch.to_numpy() == 1][1:] - 0.5
    figure.update_layout(
        xaxis_title="epoch, over all model versions", yaxis_title="loss",
        shapes=[_upright(x) for x in begins] if len(begins) <= _MOST_UPRIGHTS else [],
    )  # fmt: skip
    last = found.iloc[-1]
    ends = ", ".join(f"{name} {last[name]:.3g}" for name in names)
    said = f"{found.model_version.nunique()} model versions; version {last.model_version:.0f} ended at {ends}."
    return Panel("losses", title, said, figure)


def _upright(x: float) -> dict[str, Any]:
    line = {"width": 1, "dash": "dot", "color": "#888888"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def latent_map(run: Run, sampled: Sampled) -> Panel:
    """Return the embedding of sampled frames, to be coloured by what is known of each."""
    title = "Latent map"
    if not sampled.axes:
        return Panel("latent", title, "Nothing was embedded: no inference ended, or its files are gone.")
    frames = sampled.frames
    figure = _scatter(frames.x, frames.y, frames, sampled.axes)
    figure.update_layout(height=440)
    said = (
        f"{len(frames)} of the {sampled.n_embedded} frames that the newest reference set keeps, a uniform sample of "
        f"all that were embedded, by model version {sampled.model_version}; principal components where the embedding "
        "has more than two dimensions. Distances in it are no free energies."
    )
    return Panel("latent", title, said, figure, shows_structures=True, colours=tuple(_colours(run, frames)))


def conformations(run: Run, sampled: Sampled) -> Panel:
    """Return the torsions of sampled frames, or how far they are from the start."""
    frames = sampled.frames
    if frames.empty:
        return Panel("conformations", "Conformations", "No frame could be read.")
    if sampled.description is None:
        return Panel("conformations", "Conformations", "Trajectories lack the atoms that this needs (--store).")
    if sampled.description.kind == "phi-psi":
        angles = sampled.values.reshape(len(frames), -1, 2)
        n = angles.shape[1]
        step = max(1, len(frames) * n // _MOST_TORSIONS)
        frames, angles = frames[::step], angles[::step]
        repeated = frames.loc[np.repeat(frames.index, n)].reset_index(drop=True)
        phi, psi = angles.reshape(-1, 2).T
        figure = _scatter(phi, psi, repeated, ("phi (degrees)", "psi (degrees)"))
        ticks = {"range": [-180, 180], "tickvals": [-180, -90, 0, 90, 180]}
        figure.update_layout(xaxis=ticks, yaxis=ticks)
        said = f"Backbone torsions of {n} residue{'s' if n > 1 else ''} in {len(frames)} sampled frames."
        return Panel(
            "conformations", "Ramachandran plot", f"{said} Steered frames are unweighted.", figure,
            shows_structures=True, colours=tuple(_colours(run, repeated)),
        )  # fmt: skip
    shown = sampled.description.names[0]
    ended = run.segments.simulated_ns.reindex(frames.segment_id).to_numpy()
    figure = _scatter(ended, sampled.values[:, 0], frames, ("simulated time of the campaign (ns)", shown))
    said = f"{len(frames)} sampled frames; the system has no residue with phi and psi."
    name = shown.partition(" (")[0]
    return Panel(
        "conformations", name[:1].upper() + name[1:], said, figure,
        shows_structures=True, colours=tuple(_colours(run, frames)),
    )  # fmt: skip


def _scatter(x: Any, y: Any, frames: pd.DataFrame, axes: tuple[str, ...]) -> go.Figure:
    figure = go.Figure(
        go.Scatter(
            x=np.round(np.asarray(x, float), 5), y=np.round(np.asarray(y, float), 5), mode="markers",
            marker={"size": 5, "opacity": 0.8}, customdata=frames[["segment_id", "frame"]].to_numpy().tolist(),
            hovertemplate="segment %{customdata[0]}, frame %{customdata[1]}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(xaxis_title=axes[0], yaxis_title=axes[1], showlegend=False)
    return figure


def _colours(run: Run, frames: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield what points can be coloured by: only what is known of at least one."""
    segments = run.segments.reindex(frames.segment_id)
    looks = run.looks.reindex(frames.segment_id)
    known = {
        "simulated time (ns)": segments.simulated_ns,
        "model version that looked first": looks.model_version,
        "novelty when looked at first": looks.novelty,
        "weight (log10)": _weights(run, frames.segment_id),
    }
    for name, values in known.items():
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        if np.isfinite(numbers).any():
            yield {"name": name, "values": [None if np.isnan(value) else float(f"{value:.5g}") for value in numbers]}


def _weights(run: Run, segments: pd.Series) -> pd.Series:
    walkers = run.walkers
    if walkers.empty:
        return pd.Series(np.nan, index=segments)
    return np.log10(walkers.drop_duplicates("segment_id", keep="last").set_index("segment_id").weight).reindex(
        segments
    )


def tree(run: Run, found: Tree, shown: set[int]) -> Panel:
    """Return which segments began where.

    Parameters
    ----------
    shown
        Segments whose structure the page has.
    """
    title = "Tree of segments"
    nodes = found.nodes
    if nodes.empty:
        return Panel("tree", title, "There is no segment.")
    children = nodes[nodes.parent >= 0]
    parents = nodes.reindex(children.parent)
    gap = np.full(len(children), np.nan)
    along = np.stack([parents.depth_ps, parents.depth_ps, children.depth_ps, gap], axis=1).ravel()
    across = np.stack([parents.row, children.row, children.row, gap], axis=1).ravel()
    segments = run.segments.reindex(nodes.index)
    figure = go.Figure(
        go.Scatter(
            x=np.round(along, 4),
            y=np.round(across, 3),
            mode="lines",
            line={"color": "#8c8c8c", "width": 1},
            hoverinfo="skip",
        )  # fmt: skip
    )
    last = segments.n_frames.fillna(1).to_numpy(dtype=int) - 1
    figure.add_scatter(
        x=np.round(nodes.depth_ps, 4), y=np.round(nodes.row, 3), mode="markers",
        customdata=np.column_stack([nodes.index, last]).tolist(),
        marker={
            "size": 6,
            "color": np.where(segments.steered.fillna(False).astype(bool), COLOURS[0], COLOURS[1]),
            "symbol": np.where(nodes.index.isin(list(shown)), "circle", "circle-open"),
        },
        hovertemplate="segment %{customdata[0]}, %{x:.1f} ps from its basis state<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        xaxis_title="time since the basis state (ps)", yaxis={"visible": False}, showlegend=False,
        height=int(np.clip(240 + nodes.row.max(), 320, 900)),
    )  # fmt: skip
    which = "Every segment" if found.is_whole else f"{len(nodes)} of {found.n_segments} segments (ends and partings)"
    said = (
        f"{which}, each at its end; blue ones began where the policy chose, orange ones carried on or began anew. "
        f"The longest lineage has {found.longest_ps:.4g} ps. Filled points show their last frame."
    )
    return Panel("tree", title, said, figure, shows_structures=True)


def ensemble(run: Run) -> Panel | None:
    """Return what weighted ensembles came to; None for other campaigns."""
    iterations = run.iterations
    if iterations.empty:
        return None
    told = run.summary.get("weighted_ensemble") or {}
    steady = run.settings.get("target") is not None
    shown, words = ("flux_per_ps", "flux into the target (1/ps)") if steady else ("n_walkers", "walkers")
    figure = go.Figure()
    for number, (replica, part) in enumerate(iterations.groupby("replica")):
        part = part.iloc[np.unique(np.linspace(0, len(part) - 1, _MOST_ALONG).astype(int))]
        figure.add_scatter(
            x=part.iteration, y=part[shown], name=f"ensemble {replica}", mode="lines+markers",
            line={"color": COLOURS[number % len(COLOURS)]}, marker={"size": 4},
            hovertemplate="%{fullData.name}, iteration %{x}: %{y:.3g}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(xaxis_title="iteration", yaxis_title=words)
    weights = run.walkers.groupby(["replica", "iteration"]).weight.sum()
    said = f"Weights of an iteration sum to {weights.min():.12g} .. {weights.max():.12g}. "
    if told.get("rate_per_s") is not None:
        low, high = told.get("rate_low_per_s"), told.get("rate_high_per_s")
        interval = "too little flux for an interval" if low is None else f"95 % interval {low:.3g} to {high:.3g}"
        said += f"Rate to {told['target']}: {told['rate_per_s']:.3g} /s ({interval})."
    elif steady:
        said += f"Nothing has reached the target {run.settings['target']}."
    else:
        said += "There is no target: the ensemble goes towards equilibrium."
    return Panel("ensemble", "Weighted ensemble", said, figure)


def size(n_bytes: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
