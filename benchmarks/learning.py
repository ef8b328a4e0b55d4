"""What learning costs: warm workers against cold processes, frames per second, and growth with the campaign.

- Turnaround of a training and of an inference on a warm worker (through Colmena's queues and the campaign's task
  server) against the same task in a fresh process; both take turns, on the reference set, the model and the newest
  trajectories of a real campaign on alanine dipeptide. The start-up share is the part of the turnaround beyond the
  time that a warm worker spends inside the task. Wanted: below 5 % on the warm worker.
- Frames per second that the autoencoder embeds, on one thread.
- Time inside an inference late in that campaign over the time soon after the reference set was full (250 segments),
  beside the same of segments, whose work does not grow: what those slow down is the machine's. Wanted: no growth of
  the one over the other, taken as 1.1 times at most.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.campaigns import Campaign, campaign
from benchmarks.harness import ROOT, Figure, Figures, Session, Wanted, interval, median, run
from benchmarks.service import call, colmena_worker
from tasks.infer import embed
from tasks.messages import EmbedResult, EmbedSpec, StoreSpec, TrainResult, TrainSpec
from tasks.models import load_model
from tasks.systems import named_system, prepare
from tasks.train import train
from tasks.transport import evict, ship

# An inference of the default campaign looks at so many new segments.
_SEGMENTS_PER_INFERENCE = 4
_FULL_AT = 250

Timing = dict[str, float]
Task = Callable[[], tuple[float, EmbedResult | TrainResult]]


@dataclass(frozen=True, slots=True)
class Material:
    """What a campaign left that learning can be timed on.

    Attributes
    ----------
    growth, drift
        Time inside an inference at the campaign's end over that soon after the reference set was full, and the same
        of segments; None where others used the machine.
    points : ndarray of shape (n, n_points, 3), float32
        The reference set's, in nm.
    """

    growth: float | None
    drift: float | None
    train: TrainSpec
    embed: EmbedSpec
    model: bytes
    points: np.ndarray


def measure(session: Session) -> Figures:
    """Return all of it."""
    material = _material(session)
    with colmena_worker(session.folder, [train, embed]) as queues:
        figures = _warm_and_cold(session, "training", material.train, lambda: call(queues, "train", material.train))
        figures |= _warm_and_cold(session, "inference", material.embed, lambda: call(queues, "embed", material.embed))
    figures |= _frames_per_second(session, material)
    return figures | _late_over_early(material)


def _late_over_early(material: Material) -> dict[str, Figure]:
    if material.growth is None or material.drift is None:
        grown, drifted, beyond = list[float](), list[float](), list[float]()
    else:
        grown, drifted, beyond = [material.growth], [material.drift], [material.growth / material.drift]
    return {
        "inference late / early in a campaign": interval(grown, "ratio"),
        "segment late / early in it": interval(drifted, "ratio"),
        "inference late / early over segment": interval(beyond, "ratio", Wanted(at_most=1.1)),
    }


def growth(seconds: np.ndarray, newest: np.ndarray, full_at: int, window: int) -> float:
    """Return the median time of the last tasks over that of the first after the reference set was full.

    Parameters
    ----------
    seconds : ndarray of shape (n,)
        Time inside each task.
    newest : ndarray of shape (n,), int64
        Newest segment that each looked at, or was.
    full_at, window
        Segments that fill the reference set, and segments in each of the two spans compared.
    """
    early = seconds[(newest >= full_at) & (newest < full_at + window)]
    late = seconds[newest > newest.max() - window]
    return float(np.median(late) / np.median(early))


def _material(session: Session) -> Material:
    n_segments = 1000 if session.quick else 4000

    def whole_campaign() -> Material:
        with campaign(session, "--max-segments", str(n_segments)) as ran:
            return _specs(session, ran)

    watched = session.measured(f"campaign of {n_segments} segments", whole_campaign)
    # Without its growth the campaign is still good enough to take models and frames from.
    return watched if watched is not None else replace(whole_campaign(), growth=None, drift=None)


def _specs(session: Session, ran: Campaign) -> Material:
    """Return a training and an inference as the campaign would send them next."""
    store = StoreSpec("bench-learning", "file", (("store_dir", str(session.folder / "store")),))
    reference = dict(np.load(max(ran.path.glob("models/reference-*.npz"))))
    model = max(ran.path.glob("models/model-*.pt")).read_bytes()
    version = ran.summary["model_versions"]
    reference_ref = ship(reference, store)
    model_ref = ship({"model": np.frombuffer(model, np.uint8)}, store)
    prepared = prepare(named_system("alanine-dipeptide"))
    n_segments = ran.summary["segments"]
    newest = range(n_segments - _SEGMENTS_PER_INFERENCE, n_segments)
    run_dir = session.folder / "warm"
    (run_dir / "models").mkdir(parents=True, exist_ok=True)
    settings = json.loads((ran.path / "params.json").read_text())
    common: dict[str, Any] = {
        "task_id": 0,
        "attempt": 1,
        "reference": reference_ref,
        "model": model_ref,
        "embedding": "aae",
        "latent": settings["latent"],
        "seed": 1,
        "store": store,
        "run_dir": str(run_dir),
    }
    return Material(
        growth=_growth(ran, "infer"),
        drift=_growth(ran, "simulate"),
        train=TrainSpec(model_version=version + 1, epochs=settings["epochs"], batch=settings["batch"], **common),
        embed=EmbedSpec(
            system=ship(prepared.to_arrays(), store),
            system_id=prepared.digest,
            batches=tuple(
                (n_segments + number, ship({"positions": positions}, store))
                for number, positions in enumerate(ran.frames(newest))
            ),
            reference_number=int(reference["counts"][0]) + 1,
            model_version=version,
            candidates="novel",
            n_candidates=16,
            novelty=settings["novelty"],
            neighbours=settings["neighbours"],
            max_reference=settings["max_reference"],
            max_frontier=256,
            **common,
        ),
        model=model,
        points=reference["points"],
    )


def _growth(ran: Campaign, topic: Literal["infer", "simulate"]) -> float:
    records = [record["task_info"] for record in ran.trace(topic)]
    records = [info for info in records if "seconds" in info]  # of those that ended well
    seconds = np.array([sum(info["seconds"].values()) for info in records])
    newest = np.array([max(info.get("segment_ids") or [info["segment_id"]]) for info in records])
    return growth(seconds, newest, _FULL_AT, (newest.max() - _FULL_AT) // 3)


def _warm_and_cold(session: Session, name: str, spec: EmbedSpec | TrainSpec, task: Task) -> dict[str, Figure]:
    path = session.folder / f"{name}.spec"
    path.write_bytes(pickle.dumps(spec))
    turns = 1 if name == "training" else 20

    def warm() -> Timing:
        return _median_timing([_warm(task) for _ in range(turns)])

    warm()  # loads libraries, as the probe of a campaign does
    rounds = session.rounds(name, {"warm": warm, "cold": lambda: _cold(path)}, 3 if session.quick else 10)
    figures = {}
    for arm, mark in (("warm", Wanted(at_most=0.05)), ("cold", None)):
        turnaround = ((1000 * r[arm]["turnaround"]) for r in rounds)
        figures[f"{name}, {arm}: turnaround"] = interval(turnaround, "ms")
        shares = (1 - r["warm"]["inside"] / r[arm]["turnaround"] for r in rounds)
        figures[f"{name}, {arm}: start-up share"] = interval(shares, "of turnaround", mark)
    return figures


def _warm(task: Task) -> Timing:
    turnaround, result = task()
    made = (result.reference, result.starts) if isinstance(result, EmbedResult) else (result.model,)
    for ref in made:
        if ref is not None:
            evict(ref)
    return {"turnaround": turnaround, "inside": sum(result.seconds.values())}


def _cold(path: Path) -> Timing:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "benchmarks.cold", str(path)], cwd=ROOT, stdin=subprocess.DEVNULL, check=True
    )
    return {"turnaround": time.perf_counter() - began}


def _median_timing(timings: list[Timing]) -> Timing:
    return {name: median([timing[name] for timing in timings]) for name in timings[0]}


def _frames_per_second(session: Session, material: Material) -> dict[str, Figure]:
    model = load_model(material.model)
    points = np.concatenate([material.points] * 10)
    model.embed(points)

    def embedded_per_second() -> float:
        began = time.perf_counter()
        for _ in range(3):
            model.embed(points)
        return 3 * len(points) / (time.perf_counter() - began)

    rounds = session.rounds("embedding", {"embed": embedded_per_second}, 3 if session.quick else 10)
    return {"frames embedded": interval((r["embed"] for r in rounds), "frames/s")}


if __name__ == "__main__":
    sys.exit(run("learning", __doc__, measure))
