"""The report of one campaign."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from campaign.report import facts, panels
from campaign.report.lineage import Tree, tree_of
from campaign.report.page import relative, write_page
from campaign.report.structures import Sampled, sample
from campaign.rundir import TOPOLOGY
from campaign.status import status
from campaign.trace import Run
from campaign.trajectories import trajectory_files

# What is sampled is the same each time a report is made of the same run.
_SEED = 20_261_126


def report_on(run: Run, path: Path) -> None:
    """Write the report of a campaign, which may be running.

    Raises
    ------
    BadInput
        When its files are damaged, or the page cannot be written.
    """
    rng = np.random.default_rng(_SEED)
    tree = tree_of(run.segments, rng)
    sampled = sample(run, tree.nodes.index.to_numpy(), rng)
    shown = _panels(run, tree, sampled)
    coordinates = _coordinates(run, sampled, path)
    write_page(
        path,
        "report.html.j2",
        shown,
        {"coordinates": coordinates, "topology": _topology(run), **_first(coordinates)},
        title=run.name,
        lead=_lead(run),
        facts=list(facts.headline(run)),
        coordinates=coordinates,
        topology_file=relative(run.path / TOPOLOGY, path),
        failures=facts.failures(run),
        methods=facts.methods(run),
        made=_made(run, tree, sampled),
    )


def _panels(run: Run, tree: Tree, sampled: Sampled) -> list[panels.Panel]:
    beside = [] if run.control is None else [("plain control", run.control)]
    steered = str(run.settings.get("policy", "this run"))
    ensemble = panels.ensemble(run)
    return [
        panels.latent_map(run, sampled),
        panels.conformations(run, sampled),
        panels.coverage([(steered, run), *beside]),
        *([] if ensemble is None else [ensemble]),
        panels.tree(run, tree, {each["s"] for each in sampled.coordinates}),
        panels.timeline(run.tasks),
        panels.utilisation(run),
        panels.latency(run),
        panels.stored(run.tasks),
        panels.losses(run),
    ]


def _coordinates(run: Run, sampled: Sampled, page: Path) -> list[dict[str, Any]]:
    """Return the coordinates with where each trajectory lies, and at which frame of which segment it began."""
    ids = [each["s"] for each in sampled.coordinates]
    files = trajectory_files(run.path, ids)
    began = run.segments.reindex(ids)
    found = []
    for each, parent, frame in zip(sampled.coordinates, began.parent_id, began.parent_frame, strict=True):
        file, name = files[each["s"]]
        place = str(file.relative_to(run.path)) + ("" if name is None else f" ({name})")
        origin = {} if not isinstance(parent, int | np.integer) else {"o": int(parent), "k": int(frame)}
        found.append({**each, "p": place, "a": relative(file, page), **origin})
    return sorted(found, key=lambda each: int(each["s"]))


def _first(coordinates: list[dict[str, Any]]) -> dict[str, int]:
    """Return what is shown before anything is clicked: the end of the last segment."""
    if not coordinates:
        return {}
    return {"first": coordinates[-1]["s"], "firstFrame": coordinates[-1]["f"][-1]}


def _topology(run: Run) -> str:
    try:
        return (run.path / TOPOLOGY).read_text()
    except OSError:
        return ""


def _lead(run: Run) -> str:
    return f"{run.meta.get('system', '')}, policy {run.settings.get('policy')}: {status(run.path).status}"


def _made(run: Run, tree: Tree, sampled: Sampled) -> str:
    told = f"Made {datetime.now():%d %B %Y, %H:%M}, of {len(run.segments)} segments and {len(run.tasks)} results."
    if not tree.is_whole or len(sampled.coordinates) < len(run.segments):
        told += (
            f" Sampled: coordinates of {len(sampled.coordinates)} segments, {len(sampled.frames)} frames in maps, "
            f"{len(tree.nodes)} segments in the tree. All else is of all of them."
        )
    return told
