"""From when a frame is made until it is embedded, while its segment runs and at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from benchmarks.campaigns import campaign
from benchmarks.harness import Figure, Session, Wanted, interval

SEGMENT_PS: Final = 20.0
FRAME_PS: Final = 0.25
N_BATCHES: Final = 20


def figures(session: Session) -> dict[str, Figure]:
    """Return seconds, streamed and not."""
    n_repeats = session.options.repeats or (1 if session.quick else 3)
    segment_s, n_segments = (6.0, 10) if session.quick else (20.0, 14)
    streamed: list[np.ndarray] = []
    waited: list[np.ndarray] = []
    for _ in range(n_repeats):
        found = session.measured("delay", lambda: _run(session, segment_s, n_segments))
        if found is not None:
            streamed.append(found[0])
            waited.append(found[1])
    wanted = Wanted(at_most=1.0)
    where = "ssh" if session.options.ssh_host else "local"
    return {
        f"delay, {where}: median": interval((np.median(each) for each in streamed), "s", wanted),
        f"delay, {where}: 95 of 100": interval((np.quantile(each, 0.95) for each in streamed), "s"),
        f"delay, {where}: median from the batch": interval(
            (np.median(each) - _half_a_batch(segment_s) for each in streamed), "s"
        ),
        f"delay, {where}: median at the segment's end": interval((np.median(each) for each in waited), "s"),
        f"delay, {where}: 95 of 100 at its end": interval((np.quantile(each, 0.95) for each in waited), "s"),
        f"delay, {where}: frames": interval((len(each) for each in streamed), "streamed"),
    }


def _half_a_batch(segment_s: float) -> float:
    """Return how long the median frame waits for the others of its batch."""
    return segment_s / N_BATCHES / 2


def _run(session: Session, segment_s: float, n_segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Return delays of each streamed frame in seconds: to when its batch was embedded, and its segment."""
    flags = (
        *("--stream", "--stream-every-ps", f"{SEGMENT_PS / N_BATCHES:g}", "--segment-ps", f"{SEGMENT_PS:g}"),
        *("--frame-ps", f"{FRAME_PS:g}", "--min-segment-seconds", f"{segment_s:g}", "--walkers", "4"),
        *("--simulate-workers", "2", "--infer-every", "2", "--retrain-every", "4", "--max-segments", str(n_segments)),
        *_learning(session),
    )
    with campaign(session, *flags) as ran:
        return delays(ran.trace("glance"), ran.trace("infer"), segment_s / (SEGMENT_PS / FRAME_PS))


def delays(
    glances: list[dict[str, Any]], inferences: list[dict[str, Any]], frame_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return seconds from each frame's making to its batch's embedding, and to its segment's.

    Parameters
    ----------
    frame_s
        Wall time between two frames, so that those of a batch are as old as they are.
    """
    at_end = {
        segment_id: line["timestamp"]["compute_ended"]
        for line in inferences
        if line["success"]
        for segment_id in line["task_info"]["segment_ids"]
    }
    streamed, waited = [], []
    for segment_id, made, embedded in _frames(glances, frame_s):
        if segment_id in at_end:
            streamed.append(embedded - made)
            waited.append(at_end[segment_id] - made)
    return np.array(streamed), np.array(waited)


def _frames(glances: list[dict[str, Any]], frame_s: float) -> Iterator[tuple[int, float, float]]:
    """Yield segment, when it was made, and when it was embedded, of each frame."""
    for line in glances:
        if not line["success"]:
            continue
        info = line["task_info"]
        for (segment_id, _, n_frames), made in zip(info["batches"], info["made"], strict=True):
            for age in range(n_frames):
                yield segment_id, made - age * frame_s, info["embedded"]


def _learning(session: Session) -> tuple[str, ...]:
    options = session.options
    if options.ssh_host is None:
        return ()
    given = {"--ssh-config": options.ssh_config, "--ssh-init": options.ssh_init}
    named = (word for flag, value in given.items() if value is not None for word in (flag, value))
    return ("--ml-site", "ssh", "--ssh-host", options.ssh_host, *named)
