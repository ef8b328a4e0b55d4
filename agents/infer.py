"""The infer topic: looks at new frames, and turns what it finds into candidates to start from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from agents.attempts import Failure, Verdict
from agents.state import CandidateSet
from agents.topic import TopicAgent
from campaign.settings import Settings
from tasks.messages import EmbedResult, EmbedSpec, FileRecord, Ref

# Segments in one inference: what piles up while a model is trained is looked at in portions.
MAX_BATCH = 64

# Whole frames kept to start from, within these bytes.
MAX_FRONTIER = 256
MAX_FRONTIER_BYTES = 32_000_000


class InferAgent(TopicAgent[EmbedSpec, EmbedResult]):
    """One inference at a time over the frames that arrived since the last."""

    topic = "infer"
    kind = "infer"
    spec_type = EmbedSpec

    def look(self, *, last: bool) -> None:
        """Send an inference if enough segments wait; ``last``: whatever waits, for no more will come."""
        waiting = self.state.unobserved
        wanted = 1 if last else self.state.settings.infer_every
        if self.busy or not waiting or len(waiting) < wanted or self.state.quiet:
            return
        batches = tuple(waiting.popleft() for _ in range(min(len(waiting), max(MAX_BATCH, wanted))))
        self._look_at(batches)

    def _look_at(self, batches: tuple[tuple[int, Ref], ...]) -> None:
        settings, state = self.state.settings, self.state
        task_id = state.new_task_id()
        spec = EmbedSpec(
            task_id=task_id,
            attempt=1,
            system=state.molecule.refs["infer"],
            system_id=state.molecule.digest,
            batches=batches,
            reference=state.reference,
            reference_number=state.counts.inferences + 1,
            model=state.model,
            model_version=state.model_version,
            embedding=settings.embedding if state.policy.learns else "none",
            candidates=state.policy.candidates,
            n_candidates=settings.candidates_per_walker * settings.walkers,
            novelty=settings.novelty,
            neighbours=settings.neighbours,
            latent=settings.latent,
            max_reference=settings.max_reference,
            max_frontier=frontier_size(settings, state.molecule.n_atoms),
            seed=settings.seed,
            store=self.destination.store,
            run_dir=self.destination.run_dir,
        )
        self.begin_task(spec)
        for segment_id, frames in batches:
            state.release([frames], ("unobserved", segment_id))

    def found(self, spec: EmbedSpec) -> EmbedSpec | None:
        """Return an earlier process' spec without frames that are gone, by today's model where its own is."""
        moved = ((segment_id, self.state.find(frames, "infer")) for segment_id, frames in spec.batches)
        batches = tuple((segment_id, frames) for segment_id, frames in moved if frames is not None)
        if not batches:
            return None
        reference, model = spec.reference, spec.model
        spec = replace(spec, batches=batches, reference=reference and self.state.find(reference, "infer"))
        if reference is not None and spec.reference is None:
            spec = replace(spec, reference=self.state.reference)
        if model is None or (found := self.state.find(model, "infer")) is not None:
            return replace(spec, model=None if model is None else found)
        return replace(spec, model=self.state.model, model_version=self.state.model_version)

    def succeeded(self, spec: EmbedSpec, result: EmbedResult) -> None:
        """Keep the next reference set, let the last one go, and offer the new candidates."""
        state = self.state
        state.counts.inferences += 1
        state.observed_segments += len(spec.batches)
        state.coverage = result.coverage
        state.inference_failures = 0
        state.reference_version = result.model_version
        state.hold(result.reference, "reference")
        if state.reference is not None:
            state.release([state.reference], "reference")
        state.reference = result.reference
        state.ledger.keep("reference", result.reference)
        self._looked_at(spec)
        if result.reference_file is not None:
            state.ledger.add_artifact(spec.task_id, "reference", result.reference_file)
            state.retire_reference(result.reference_file.path)
        if result.starts is not None:
            state.hold(result.starts, "offered")
            offer = CandidateSet(
                spec.reference_number,
                result.starts,
                result.start_ids,
                np.array(result.scores),
                np.zeros(len(result.scores), np.int64),
            )
            state.offered.append(offer)
            state.ledger.keep(f"offer/{offer.number}", offer.told())

    def _looked_at(self, spec: EmbedSpec) -> None:
        for segment_id, _ in spec.batches:
            self.state.ledger.forget(f"frames/{segment_id}")

    def given_up(self, spec: EmbedSpec, failure: Failure, verdict: Verdict) -> None:
        """Leave these frames unseen; when nothing works any more, the campaign cannot be steered and ends."""
        if verdict == "again":
            return
        self._looked_at(spec)
        self.state.inference_failures += 1
        if self.state.ending is None and self.state.inference_failures >= self.state.settings.max_attempts:
            self.state.fail(f"inference failed again and again: {failure.message}")

    def inputs(self, spec: EmbedSpec) -> Iterable[Ref]:
        """Return the new frames, the reference set and the model."""
        optional = (spec.reference, spec.model)
        return (*(frames for _, frames in spec.batches), *(ref for ref in optional if ref is not None))

    def outputs(self, result: EmbedResult) -> Iterable[Ref]:
        """Return the next reference set and the candidates."""
        return (result.reference,) if result.starts is None else (result.reference, result.starts)

    def files(self, result: EmbedResult) -> Iterable[FileRecord]:
        """Return the reference set's file."""
        return () if result.reference_file is None else (result.reference_file,)

    def info(self, spec: EmbedSpec) -> dict[str, Any]:
        """Return which segments are looked at, and by which model."""
        return {
            "task_id": spec.task_id,
            "segment_ids": [segment_id for segment_id, _ in spec.batches],
            "model_version": spec.model_version,
            "reference_number": spec.reference_number,
        }

    def findings(self, result: EmbedResult) -> dict[str, Any]:
        """Return sizes, novelty, coverage, the way to a target, and timings."""
        nearest = result.nearest
        return {
            "n_frames": result.n_frames,
            "n_reference": result.n_reference,
            "payload_bytes": sum(ref.n_bytes for ref in self.outputs(result)),
            "proxied": result.reference.data is None,
            "store": result.reference.place,
            "novelty": list(result.segment_novelty),
            "candidates": [[segment, frame] for segment, frame in result.start_ids],
            "coverage": result.coverage.value,
            "smallest_rmsd_nm": None if nearest is None else nearest.rmsd_nm,
            "nearest": None if nearest is None else [nearest.segment_id, nearest.frame],
            "seconds": result.seconds,
        }


def frontier_size(settings: Settings, n_atoms: int) -> int:
    """Return how many whole frames a reference set keeps to start from."""
    fits = MAX_FRONTIER_BYTES // (12 * n_atoms)
    return max(settings.candidates_per_walker * settings.walkers, min(MAX_FRONTIER, fits))
