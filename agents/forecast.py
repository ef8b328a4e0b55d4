"""What a campaign will take: segments, bytes on disk, through its stores and through the Thinker; arithmetic only.

Trajectories are counted to the byte (DCD) or from what molecules measured (XTC), objects in stores by their arrays;
the rest are bytes measured per segment, inference and training, dated 24 November 2026. Inferences and trainings are
the most that the settings ask for: where learning is slower than simulation, fewer are begun, and each sees more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from agents.infer import MAX_BATCH, frontier_size
from agents.state import Destination
from campaign.report import report_bytes
from campaign.settings import Settings
from policies import Policy, policy
from tasks.features import empty_cells
from tasks.messages import MOST_AHEAD, Dynamics, StoreKind, Topic
from tasks.prepared import PreparedSystem
from tasks.transport import MAX_INLINE_BYTES, pack

# What the ledger and its view, the traces, hold: of a campaign, a segment, an inference, a training, a glance.
_LEDGER_BYTES = (63_000, 2_400, 2_200, 2_000, 2_000)
_TRACE_BYTES = (0, 1_700, 1_850, 1_650, 1_600)
# Logs of Parsl's processes, our own, and the files written once but the topology.
_LOG_BYTES = (70_000, 650, 0, 0, 0)

# A header names each array's type and shape.
_HEADER_BYTES = 80
# MDAnalysis' headers, a box in every frame, and three records of coordinates with their lengths.
_DCD_FILE_BYTES, _DCD_FRAME_BYTES, _DCD_ATOM_BYTES = 356, 80, 12
# 8.0 bytes an atom for 22 atoms, 4.4 for 166.
_XTC_FRAME_BYTES, _XTC_ATOM_BYTES = 92, 4
# The networks of `tasks.aae`: weights of their own, per point and per dimension of the latent; and torch's file.
_AAE_WEIGHTS, _AAE_POINT_WEIGHTS, _AAE_LATENT_WEIGHTS, _AAE_FILE_BYTES = 62_593, 387, 257, 7_500
_NPZ_BYTES = 2_500
# Text of positions and velocities.
_STATE_FILE_BYTES, _STATE_ATOM_BYTES = 500, 166

# The contract's bound, envelopes included; what travels inside messages comes on top, twice, in and out of the
# Thinker, and Colmena up to doubles it.
_THINKER_SEGMENT_BYTES = 8_000
_INLINE_TRIPS = 4

# Objects that a store takes: Redis' longest string, what an endpoint of ProxyStore takes unless it is told otherwise,
# and what a message carries.
_LARGEST: dict[StoreKind, int] = {"redis": 512 * 1024**2, "endpoint": 100_000_000, "inline": MAX_INLINE_BYTES}


@dataclass(frozen=True, slots=True)
class StoreUse:
    """What passes through the store of a topic.

    Attributes
    ----------
    total, peak
        Bytes in all, and at once; the peak is estimated from how far learning may lag behind, and is that of all
        the walkers that there may be.
    largest
        Bytes of the largest object.
    """

    kind: StoreKind
    total: int
    peak: int
    largest: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a campaign will take.

    Attributes
    ----------
    disk_bytes
        What stays in the run directory, by kind.
    thinker_bytes
        At most.
    """

    segments: int
    simulated_ns: float
    frames: int
    inferences: int
    trainings: int
    disk_bytes: Mapping[str, int]
    store_bytes: Mapping[Topic, StoreUse]
    thinker_bytes: int

    def followed_by(self, control: Forecast) -> Forecast:
        """Return this campaign with another after it, which lies in its run directory."""
        both = {
            topic: replace(use, total=use.total + other.total, peak=max(use.peak, other.peak))
            for topic, use in self.store_bytes.items()
            for other in (control.store_bytes[topic],)
        }
        return replace(
            self,
            disk_bytes={**self.disk_bytes, "control": sum(control.disk_bytes.values())},
            store_bytes=both,
            thinker_bytes=self.thinker_bytes + control.thinker_bytes,
        )

    def misfits(self) -> list[str]:
        """Return sentences on objects that their store does not take."""
        return [
            f"--{topic}-ps-backend {use.kind if use.kind != 'inline' else 'none'}: an object of "
            f"{use.largest / 1e6:.1f} MB exceeds the {_LARGEST[use.kind] / 1e6:.1f} MB that it takes: choose the "
            "backend file, a longer --frame-ps or shorter segments"
            for topic, use in self.store_bytes.items()
            if use.largest > _LARGEST.get(use.kind, use.largest)
        ]


@dataclass(frozen=True, slots=True)
class _References:
    """Reference sets: they grow with the frames seen, until they are full.

    Attributes
    ----------
    growing : ndarray of shape (<= n,), int64
        Bytes of the first ones; all later ones are as large as the last of these.
    """

    growing: np.ndarray
    n: int

    @property
    def newest(self) -> int:
        """Bytes of the last one."""
        return int(self.growing[-1]) if self.n else 0

    @property
    def newest_two(self) -> int:
        """Bytes of the last two."""
        if self.n < 2:
            return self.newest
        return self.newest + (int(self.growing[-2]) if self.n == len(self.growing) else self.newest)

    def total(self, threshold: int) -> int:
        """Bytes of all that have as many as a threshold."""
        full = (self.n - len(self.growing)) * self.newest if self.newest >= threshold else 0
        return full + int(self.growing[self.growing >= threshold].sum())


@dataclass(frozen=True, slots=True)
class _Shipped:
    """Objects in stores: how many, and the bytes of each.

    Attributes
    ----------
    equilibrated
        Basis states that equilibration makes anew.
    waiting
        Segments whose frames are kept at once: those in flight (or, where the coordinates of an ensemble are learned,
        of its iteration), those in an inference and those that wait for one.
    walkers
        At most.
    frames_move, candidates_move
        Whether a ``move`` task copies them into their consumer's store.
    batches, batch
        Of segments that run, all that may be looked at, and the bytes of one.
    """

    segments: int
    waiting: int
    walkers: int
    trainings: int
    equilibrated: int
    system: int
    basis: int
    frames: int
    end: int
    candidates: int
    model: int
    references: _References
    frames_move: bool
    candidates_move: bool
    batches: int
    batch: int


def planned_segments(settings: Settings, dynamics: Dynamics) -> int | None:
    """Return how many segments the limits ask for; None where only time ends the campaign."""
    target = settings.target_segments
    return None if target is None else max(target, settings.min_model_versions * _retrain_period(settings))


def forecast(
    settings: Settings,
    prepared: PreparedSystem,
    dynamics: Dynamics,
    destinations: Mapping[Topic, Destination],
    segments: int,
    walkers: int,
) -> Forecast:
    """Return what so many segments of so many walkers will take."""
    shipped = _shipped(settings, prepared, dynamics, destinations, segments, walkers)
    stores = _stores(shipped, settings.ps_threshold, destinations)
    n_inferences, n_trainings = shipped.references.n, shipped.trainings
    counts = (1, segments, n_inferences, n_trainings, shipped.batches)
    trajectory = trajectory_bytes(settings.trajectory_format, len(prepared.stored_indices), dynamics.n_frames)
    kept, learnt = (destinations[topic].run_dir is not None for topic in ("simulate", "infer"))
    disk = {
        "trajectories": kept * segments * trajectory,
        "equilibrated": kept * shipped.equilibrated * (_STATE_FILE_BYTES + _STATE_ATOM_BYTES * prepared.n_atoms),
        "models": learnt * n_trainings * shipped.model,
        "references": learnt * shipped.references.newest_two,
        "ledger": _linear(_LEDGER_BYTES, counts) + _kept(shipped.references, settings.ps_threshold),
        "traces": _linear(_TRACE_BYTES, counts),
        "logs": _linear(_LOG_BYTES, counts) + len(prepared.topology_pdb),
        "system": shipped.system,
        "parked": _parked(shipped, settings.ps_threshold),
        "report": settings.report * report_bytes(segments, dynamics.n_frames, len(prepared.stored_indices)),
    }
    inline = sum(use.total for use in stores.values() if use.kind == "inline")
    return Forecast(
        segments=segments,
        simulated_ns=segments * dynamics.segment_ps / 1000,
        frames=segments * dynamics.n_frames,
        inferences=n_inferences,
        trainings=n_trainings,
        disk_bytes=disk,
        store_bytes=stores,
        thinker_bytes=_THINKER_SEGMENT_BYTES * segments + _INLINE_TRIPS * inline,
    )


def trajectory_bytes(trajectory_format: str, n_atoms: int, n_frames: int) -> int:
    """Return the size of a segment's trajectory: of a DCD exactly, of an XTC about."""
    if trajectory_format == "dcd":
        return _DCD_FILE_BYTES + n_frames * (_DCD_FRAME_BYTES + _DCD_ATOM_BYTES * n_atoms)
    return n_frames * (_XTC_FRAME_BYTES + _XTC_ATOM_BYTES * n_atoms)


def model_bytes(settings: Settings, n_points: int) -> int:
    """Return the size of a model's file."""
    if settings.embedding == "pca":
        return _NPZ_BYTES + 8 * 3 * n_points * (settings.latent + 2)
    weights = _AAE_WEIGHTS + _AAE_POINT_WEIGHTS * n_points + _AAE_LATENT_WEIGHTS * settings.latent
    return _AAE_FILE_BYTES + 4 * weights + 24 * n_points


def _kept(references: _References, threshold: int) -> int:
    """Return the bytes of a reference set in the ledger, kept and in a spec, while it travels in messages."""
    in_messages = references.growing[references.growing < threshold]
    return round(2 * 4 / 3 * int(in_messages.max(initial=0)))


def _parked(shipped: _Shipped, threshold: int) -> int:
    """Return the bytes that stay for a later process to go on with."""
    learnt = (shipped.references.newest, shipped.model if shipped.trainings else 0)
    ends = min(shipped.segments, shipped.walkers) * shipped.end
    return ends + shipped.candidates + sum(n_bytes for n_bytes in learnt if n_bytes >= threshold)


def _retrain_period(settings: Settings) -> int:
    """Return the segments between two trainings: whole inferences."""
    every = max(1, settings.infer_every)
    return math.ceil(settings.retrain_every / every) * every


def _linear(bytes_each: tuple[int, ...], counts: tuple[int, ...]) -> int:
    return sum(each * count for each, count in zip(bytes_each, counts, strict=True))


def _shipped(
    settings: Settings,
    prepared: PreparedSystem,
    dynamics: Dynamics,
    destinations: Mapping[Topic, Destination],
    segments: int,
    walkers: int,
) -> _Shipped:
    n_inferences = math.ceil(segments / settings.infer_every) if settings.infer_every else 0
    n_trainings = segments // _retrain_period(settings) if settings.retrains and n_inferences else 0
    chosen = policy(settings.policy)
    n_offered = 0 if chosen.candidates == "none" else settings.candidates_per_walker * settings.walkers
    n_atoms, boxed = prepared.n_atoms, prepared.box is not None
    simulate, infer = destinations["simulate"], destinations["infer"]
    # While a model is trained, batches pile up.
    waiting = walkers + 2 * settings.infer_every + (MAX_BATCH if n_trainings else 0)
    return _Shipped(
        segments=segments,
        waiting=min(segments, waiting),
        walkers=walkers,
        trainings=n_trainings,
        equilibrated=prepared.n_starts if "equilibrate" in destinations else 0,
        system=len(pack(prepared.to_arrays())),
        basis=len(pack(prepared.basis())),
        frames=_packed(dynamics.n_frames * n_atoms * 12, dynamics.n_frames * 36 * boxed),
        end=_packed(n_atoms * 24, n_atoms * 24, 72 * boxed),
        candidates=_packed(n_offered * n_atoms * 12, n_offered * 36 * boxed),
        model=model_bytes(settings, len(prepared.feature_indices)),
        references=_references(settings, chosen, prepared, settings.infer_every * dynamics.n_frames, n_inferences),
        frames_move=simulate.store.kind not in (*infer.reaches, "inline"),
        candidates_move=infer.store.kind not in (*simulate.reaches, "inline"),
        # The last one of a segment is looked at with all its frames.
        batches=segments * (math.ceil(dynamics.n_frames / settings.batch_frames) - 1) if settings.stream else 0,
        batch=_packed(settings.batch_frames * len(prepared.feature_indices) * 12),
    )


def _packed(*arrays: int) -> int:
    """Return the bytes of a packed object from those of its arrays."""
    return sum(_HEADER_BYTES + n_bytes for n_bytes in arrays if n_bytes)


def _references(
    settings: Settings, chosen: Policy, prepared: PreparedSystem, frames_each: int, n_inferences: int
) -> _References:
    n_features = len(prepared.feature_indices)
    frame = 16 + 12 * n_features + (4 * settings.latent if chosen.learns else 0)
    whole = frame + 12 * prepared.n_atoms + (36 if prepared.box is not None else 0)
    n_whole = 0 if chosen.candidates == "none" else frontier_size(settings, prepared.n_atoms)
    components = _NPZ_BYTES + 8 * 3 * n_features * (settings.latent + 2)
    fixed = components + empty_cells(len(prepared.phi_indices)).nbytes + 10 * _HEADER_BYTES
    until_full = math.ceil(max(settings.max_reference, n_whole) / frames_each) if n_inferences else 0
    seen = frames_each * np.arange(1, min(until_full, n_inferences) + 1, dtype=np.int64)
    sizes = np.minimum(seen, settings.max_reference) * frame + np.minimum(seen, n_whole) * whole + fixed
    return _References(sizes, n_inferences)


def _stores(shipped: _Shipped, threshold: int, destinations: Mapping[Topic, Destination]) -> dict[Topic, StoreUse]:
    simulate, infer, train = (destinations[topic].store for topic in ("simulate", "infer", "train"))
    # Topics of one kind share a store, and the system lies there once.
    apart = 0 if infer == simulate else shipped.system
    return {
        "simulate": _simulate_store(simulate.kind, shipped),
        "infer": _infer_store(infer.kind, shipped, apart, threshold),
        "train": StoreUse(
            train.kind, shipped.trainings * shipped.model, min(2, shipped.trainings) * shipped.model, shipped.model
        ),
    }


def _simulate_store(kind: StoreKind, shipped: _Shipped) -> StoreUse:
    always = shipped.system + shipped.basis * (2 if shipped.equilibrated else 1)
    # Each walker keeps its own end, and starts from another; in an ensemble both until the iteration is over.
    ends = min(shipped.segments, 2 * shipped.walkers) * shipped.end
    offered, kept = _candidate_bytes(shipped)
    batches, at_once = _batch_bytes(shipped)
    return StoreUse(
        kind,
        always + shipped.segments * (shipped.frames + shipped.end) + shipped.candidates_move * offered + batches,
        always + shipped.waiting * shipped.frames + ends + shipped.candidates_move * kept + at_once,
        max(shipped.system, shipped.basis, shipped.frames, shipped.end),
    )


def _infer_store(kind: StoreKind, shipped: _Shipped, system: int, threshold: int) -> StoreUse:
    # What is too small for a store travels inside the message.
    threshold = 0 if kind == "inline" else threshold
    references = shipped.references
    at_once = references.newest_two if references.newest >= threshold else 0
    offered, kept = _candidate_bytes(shipped)
    batches, batches_at_once = _batch_bytes(shipped)
    frames = shipped.frames_move * (shipped.segments * shipped.frames + batches)
    frames_at_once = shipped.frames_move * (shipped.waiting * shipped.frames + batches_at_once)
    return StoreUse(
        kind,
        system + references.total(threshold) + offered + frames,
        system + at_once + kept + frames_at_once,
        max(system, shipped.candidates, references.newest),
    )


def _batch_bytes(shipped: _Shipped) -> tuple[int, int]:
    """Return the bytes of all batches of running segments, and of those at once."""
    at_once = min(shipped.batches, shipped.walkers * MOST_AHEAD)
    return shipped.batches * shipped.batch, at_once * shipped.batch


def _candidate_bytes(shipped: _Shipped) -> tuple[int, int]:
    """Return the bytes of all candidates, and of those at once: on offer, on the way, in use by a walker."""
    n_inferences = shipped.references.n
    return n_inferences * shipped.candidates, min(n_inferences, 2 + shipped.walkers) * shipped.candidates
