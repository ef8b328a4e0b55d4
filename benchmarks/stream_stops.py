"""Whether it pays to end segments that have nothing new to say."""

from __future__ import annotations

from typing import Final

from benchmarks.campaigns import campaign
from benchmarks.harness import Figure, Session, interval

SEEDS: Final = tuple(range(7001, 7017))
BELOW: Final = (0.5,)

# Of each length of segments in ps what is simulated in all, in ns, and the wall time of a ps: a verdict takes some
# tens of milliseconds, and is to come within a batch, a tenth of a segment.
LENGTHS: Final[dict[float, tuple[float, float]]] = {2.0: (0.3, 0.05), 20.0: (1.0, 0.02), 100.0: (2.0, 0.01)}

# Of so many simulated ps there is an inference, however long segments are.
_INFER_PS: Final = 8.0


def figures(session: Session) -> dict[str, Figure]:
    """Return cells by segment length, with and without, and their ratio over seeds."""
    options = session.options
    seeds = options.seeds or (SEEDS[:2] if session.quick else SEEDS)
    found: dict[str, Figure] = {}
    for length_ps in options.lengths or ([20.0] if session.quick else LENGTHS):
        arms = {None: "never", **{below: f"below {below:g}" for below in options.below or BELOW}}
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in arms.values()}
        for turn, seed in enumerate(seeds):
            for below in list(arms)[:: 1 if turn % 2 == 0 else -1]:
                told = _run(session, length_ps, below, seed)
                runs[arms[below]].append(told)
                session.kept += 1
                session.console.print(f"{length_ps:g} ps, {arms[below]}, seed {seed}: {told}", highlight=False)
        found |= figures_of(runs, f"{length_ps:g} ps")
    return found


def figures_of(runs: dict[str, list[dict[str, float]]], length: str) -> dict[str, Figure]:
    """Return the figures of finished runs of one segment length, seeds in equal order."""
    found: dict[str, Figure] = {}
    for arm, each in runs.items():
        found[f"stops, {length}, {arm}: cells"] = interval((told["cells"] for told in each), "cells")
        if arm == "never":
            continue
        ratios = (told["cells"] / plain["cells"] for told, plain in zip(each, runs["never"], strict=True))
        found[f"stops, {length}, {arm} / never"] = interval(ratios, "ratio")
        found[f"stops, {length}, {arm}: segments stopped"] = interval((told["stopped"] for told in each), "of all")
    return found


def _run(session: Session, length_ps: float, below: float | None, seed: int) -> dict[str, float]:
    total_ns, pad_s_per_ps = LENGTHS[length_ps]
    if session.quick:
        total_ns /= 4
    flags = (
        *("--segment-ps", f"{length_ps:g}", "--frame-ps", "0.2", "--walkers", "4", "--simulate-workers", "2"),
        *("--min-segment-seconds", f"{pad_s_per_ps * length_ps:g}", "--embedding", "pca"),
        *("--infer-every", str(max(1, round(_INFER_PS / length_ps))), "--max-ns", f"{total_ns:g}"),
        *("--seed", str(seed), "--stream"),
        *(() if below is None else ("--stop-below", f"{below:g}")),
    )
    with campaign(session, *flags) as ran:
        summary = ran.summary
    return {
        "cells": summary["coverage"]["value"],
        "stopped": summary["stream"]["stopped"] / summary["segments"],
        "ns": summary["simulated_ns"],
    }
