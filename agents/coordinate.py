"""The coordinate topic: the learning site computes progress coordinates, of an iteration and of basis states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agents.attempts import Failure, Verdict
from agents.questions import Question
from agents.state import CampaignState, Start
from agents.topic import TopicAgent
from tasks.coordinate import unpack_pcoord
from tasks.messages import Coordinate, CoordinateResult, CoordinateSpec, Ref

Deliver = Callable[[int, Mapping[int, np.ndarray], Mapping[int, np.ndarray]], None]


class CoordinateAgent(TopicAgent[CoordinateSpec, CoordinateResult]):
    """Splits what is asked over the learning site's workers; nothing to do outside weighted ensemble.

    Parameters
    ----------
    deliver
        Takes a model version, coordinates by segment, and coordinates by basis state.
    """

    topic = "coordinate"
    kind = "coordinate"
    spec_type = CoordinateSpec

    def __init__(self, state: CampaignState, coordinate: Coordinate | None, deliver: Deliver) -> None:
        super().__init__(state)
        self._coordinate = coordinate
        self._deliver = deliver

    def compute(self, question: Question, basis: Mapping[int, Start], batches: Sequence[tuple[int, Ref]]) -> None:
        """Have a part of a question answered.

        Parameters
        ----------
        basis
            Where basis states lie, by number.
        batches
            Segments, and their frames.
        """
        for number, start in basis.items():
            self._send_part(question, [(number, start)], ())
        for portion in _portions(batches, self.destination.slots):
            self._send_part(question, (), portion)

    def _send_part(
        self, question: Question, basis: Sequence[tuple[int, Start]], batches: Sequence[tuple[int, Ref]]
    ) -> None:
        assert self._coordinate is not None
        state = self.state
        spec = CoordinateSpec(
            task_id=state.new_task_id(),
            attempt=1,
            system=state.molecule.refs["infer"],
            system_id=state.molecule.digest,
            coordinate=self._coordinate,
            batches=tuple(batches),
            model=question.model,
            model_version=question.version,
            store=self.destination.store,
            basis=basis[0][1].ref if basis else None,
            basis_rows=tuple(start.row for _, start in basis),
            basis_numbers=tuple(number for number, _ in basis),
        )
        self.begin_task(spec)

    def found(self, spec: CoordinateSpec) -> CoordinateSpec | None:
        """Return an earlier process' spec with its data where they lie now."""
        where = {ref: self.state.find(ref, "infer") for ref in self.inputs(spec)}
        batches = tuple((segment_id, where[frames]) for segment_id, frames in spec.batches)
        if None in where.values():
            return None
        return replace(
            spec,
            batches=batches,  # type: ignore[arg-type]  # none of them is lost
            basis=None if spec.basis is None else where[spec.basis],
            model=None if spec.model is None else where[spec.model],
        )

    def not_recalled(self, spec: CoordinateSpec) -> None:
        """Let it be: the ensemble asks anew for what it does not know."""

    def succeeded(self, spec: CoordinateSpec, result: CoordinateResult) -> None:
        """Hand coordinates on."""
        n_dimensions = spec.coordinate.n_dimensions
        rows = unpack_pcoord(result.basis, n_dimensions)
        segments = {segment_id: unpack_pcoord(packed, n_dimensions) for segment_id, packed in result.pcoord}
        self._deliver(spec.model_version, segments, dict(zip(spec.basis_numbers, rows, strict=True)))

    def given_up(self, spec: CoordinateSpec, failure: Failure, verdict: Verdict) -> None:
        """Stop: no walker can be binned."""
        if verdict != "again":
            what = "basis states" if spec.basis is not None else "segments"
            self.state.fail(f"the progress coordinate of {what} cannot be computed: {failure.message}")

    def inputs(self, spec: CoordinateSpec) -> Iterable[Ref]:
        """Return frames, basis states and model."""
        optional = (spec.basis, spec.model)
        return (*(frames for _, frames in spec.batches), *(ref for ref in optional if ref is not None))

    def outputs(self, result: CoordinateResult) -> Iterable[Ref]:
        """Return nothing: coordinates travel in the message."""
        return ()

    def info(self, spec: CoordinateSpec) -> dict[str, Any]:
        """Return what is computed, and by which model version."""
        return {
            "task_id": spec.task_id,
            "segment_ids": [segment_id for segment_id, _ in spec.batches],
            "basis_states": list(spec.basis_numbers),
            "model_version": spec.model_version,
        }

    def findings(self, result: CoordinateResult) -> dict[str, Any]:
        """Return sizes and timings."""
        return {"n_frames": result.n_frames, "payload_bytes": 0, "proxied": False, "seconds": result.seconds}


def _portions(items: Sequence[Any], n: int) -> Iterable[Sequence[Any]]:
    """Yield up to ``n`` parts of about equal size, none empty."""
    if items:
        n = min(n, len(items))
        bounds = np.linspace(0, len(items), n + 1).astype(int)
        yield from (items[first:last] for first, last in zip(bounds[:-1], bounds[1:], strict=True))
