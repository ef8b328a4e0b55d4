"""The train topic: refines the model from the reference set, now and then."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from agents.attempts import Failure, Verdict
from agents.topic import TopicAgent
from tasks.messages import FileRecord, Ref, TrainResult, TrainSpec

logger = logging.getLogger(__name__)


class TrainAgent(TopicAgent[TrainSpec, TrainResult]):
    """One training at a time; an inference with the new version comes before the next."""

    topic = "train"
    kind = "train"
    spec_type = TrainSpec

    def refine(self) -> None:
        """Send a training if enough segments were looked at since the last, all with the present version."""
        state, settings = self.state, self.state.settings
        if self.busy or state.reference is None or not self._wanted():
            return
        enough = state.observed_segments - state.trained_at >= settings.retrain_every
        if not enough or state.reference_version != state.model_version:
            return
        state.trained_at = state.observed_segments
        task_id = state.new_task_id()
        self.begin_task(
            TrainSpec(
                task_id=task_id,
                attempt=1,
                reference=state.reference,
                model=state.model,
                model_version=state.model_version + 1,
                embedding=settings.embedding,
                latent=settings.latent,
                epochs=settings.first_epochs if state.model is None else settings.epochs,
                batch=settings.batch,
                seed=settings.seed,
                store=self.destination.store,
                run_dir=self.destination.run_dir,
            )
        )

    def _wanted(self) -> bool:
        return self.state.policy.learns and not self.state.settings.no_retrain and self.state.ending is None

    def found(self, spec: TrainSpec) -> TrainSpec | None:
        """Return an earlier process' spec, on today's reference set and model where its own are gone."""
        reference = self.state.find(spec.reference, "train") or self.state.reference
        model = (spec.model and self.state.find(spec.model, "train")) or self.state.model
        return None if reference is None else replace(spec, reference=reference, model=model)

    def succeeded(self, spec: TrainSpec, result: TrainResult) -> None:
        """Use the new version from the next inference on."""
        state = self.state
        state.hold(result.model, "model")
        if state.model is not None:
            state.release([state.model], "model")
        state.model, state.model_version = result.model, result.model_version
        state.ledger.keep("model", result.model)
        if result.model_file is not None:
            state.ledger.add_artifact(spec.task_id, "model", result.model_file)
        losses = ", ".join(f"{name} {values[-1]:.3g}" for name, values in result.losses.items())
        covered = "unknown" if state.coverage is None else f"{state.coverage.value:.0f}"
        logger.info(
            "model version %d on %d frames (%s): %s; after segment %d, coverage %s",
            result.model_version,
            result.n_frames,
            result.device,
            losses,
            state.counts.segments,
            covered,
        )

    def given_up(self, spec: TrainSpec, failure: Failure, verdict: Verdict) -> None:
        """Go on with the present version, unless the campaign was asked for more of them."""
        if self.state.ending is None and self.state.model_version < self.state.settings.min_model_versions:
            self.state.fail(f"training failed {spec.attempt} times: {failure.message}")

    def inputs(self, spec: TrainSpec) -> Iterable[Ref]:
        """Return the reference set and the weights to start from."""
        return (spec.reference,) if spec.model is None else (spec.reference, spec.model)

    def outputs(self, result: TrainResult) -> Iterable[Ref]:
        """Return the new weights."""
        return (result.model,)

    def files(self, result: TrainResult) -> Iterable[FileRecord]:
        """Return the weights' file."""
        return () if result.model_file is None else (result.model_file,)

    def info(self, spec: TrainSpec) -> dict[str, Any]:
        """Return the version to be made."""
        return {"task_id": spec.task_id, "model_version": spec.model_version}

    def findings(self, result: TrainResult) -> dict[str, Any]:
        """Return sizes, losses and timings."""
        return {
            "n_frames": result.n_frames,
            "payload_bytes": result.model.n_bytes,
            "proxied": result.model.data is None,
            "store": result.model.place,
            "device": result.device,
            "losses": {name: list(values) for name, values in result.losses.items()},
            "seconds": result.seconds,
        }
