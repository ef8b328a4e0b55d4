"""Several campaigns side by side."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import plotly.graph_objects as go

from campaign.figures import COLOURS
from campaign.report import facts, panels
from campaign.report.page import relative, write_page
from campaign.report.panels import PARTS, Panel
from campaign.trace import Run


def compare(runs: Sequence[Run], path: Path) -> None:
    """Write a page that compares campaigns.

    Raises
    ------
    BadInput
        When files of one are damaged, or the page cannot be written.
    """
    names = _names(runs)
    told = [dict(facts.headline(run)) for run in runs]
    rows = list(dict.fromkeys(name for each in told for name in each))
    write_page(
        path,
        "comparison.html.j2",
        [
            panels.coverage(list(zip(names, runs, strict=True))),
            _utilisation(runs, names),
            _latency(runs, names),
            _failures(runs, names),
        ],
        {},
        title="Comparison of campaigns",
        lead=", ".join(names),
        names=names,
        links=[relative(run.path / "report.html", path) for run in runs],
        rows=[(name, [each.get(name, "") for each in told]) for name in rows],
        made=f"Made {datetime.now():%d %B %Y, %H:%M}. Each is one run: another seed gives other figures.",
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each, with the folder it is in where two are called alike."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{run.path.resolve().parent.name}/{name}"
        for name, run in zip(names, runs, strict=True)
    ]


def _utilisation(runs: Sequence[Run], names: Sequence[str]) -> Panel:
    figure = go.Figure()
    shares = [
        {f"{topic} at {site}": share for site, topics in found.items() for topic, share in topics.items()}
        for found in ((run.summary.get("worker_utilisation") or {}) for run in runs)
    ]
    if not any(shares):
        return Panel("utilisation", "Utilisation", "No run has ended.")
    for number, where in enumerate(dict.fromkeys(name for each in shares for name in each)):
        figure.add_bar(
            x=list(names), y=[each.get(where) for each in shares], name=where,
            marker={"color": COLOURS[number % len(COLOURS)]},
            hovertemplate="%{x}, %{fullData.name}: %{y:.0%}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="group", yaxis={"title": "busy share of slots", "range": [0, 1.02]})
    said = "From first to last segment. Workers that share cores look busier than they are."
    return Panel("utilisation", "Utilisation", said, figure)


def _latency(runs: Sequence[Run], names: Sequence[str]) -> Panel:
    figure, medians = go.Figure(), [panels.latency_parts(run.tasks) for run in runs]
    rows = [
        (f"{topic}, {name}", parts.loc[topic])
        for topic in dict.fromkeys(topic for parts in medians for topic in parts.index)
        for name, parts in zip(names, medians, strict=True)
        if topic in parts.index
    ]
    if not rows:
        return Panel("latency", "From decision to result", "No task came back.")
    for number, (part, words) in enumerate(PARTS.items()):
        figure.add_bar(
            y=[name for name, _ in rows], x=[values[part] for _, values in rows], orientation="h", name=words,
            marker={"color": COLOURS[number]}, hovertemplate="%{y}, %{fullData.name}: %{x:.3g} s<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        barmode="stack", xaxis_title="median (s)", yaxis_autorange="reversed", height=160 + 32 * len(rows)
    )
    return Panel("latency", "From decision to result", "Medians of each part of a task's time.", figure)


def _failures(runs: Sequence[Run], names: Sequence[str]) -> Panel:
    figure, counts = go.Figure(), [dict(run.summary.get("failures") or {}) for run in runs]
    if not any(counts):
        return Panel("failed", "Failed attempts", "No attempt failed in any of them.")
    for number, kind in enumerate(dict.fromkeys(kind for each in counts for kind in each)):
        figure.add_bar(
            x=list(names), y=[each.get(kind, 0) for each in counts], name=kind,
            marker={"color": COLOURS[number % len(COLOURS)]},
        )  # fmt: skip
    figure.update_layout(barmode="stack", yaxis_title="failed attempts")
    return Panel("failed", "Failed attempts", "By kind.", figure)
