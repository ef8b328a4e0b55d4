"""The equilibrate topic: brings every basis state to temperature and pressure, once, before walkers begin."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from agents.attempts import Failure, Verdict
from agents.state import CampaignState, Destination
from agents.topic import Outcome, TopicAgent, task_seed
from agents.walkers import Walkers
from campaign.ledger import State
from tasks.messages import EquilibrateResult, EquilibrateSpec, FileRecord, Ref

logger = logging.getLogger(__name__)


class EquilibrateAgent(TopicAgent[EquilibrateSpec, EquilibrateResult]):
    """A task for each basis state, where segments run; nothing to do where the campaign has no such topic.

    Parameters
    ----------
    walkers
        Who begin at the basis states.
    """

    topic = "equilibrate"
    kind = "equilibrate"
    spec_type = EquilibrateSpec
    reruns = True

    def __init__(self, state: CampaignState, walkers: Walkers) -> None:
        super().__init__(state)
        self._walkers = walkers

    def begin(self) -> None:
        """Send all basis states."""
        state = self.state
        if self.topic not in state.destinations:
            return
        for number, start in enumerate(self._walkers.basis.starts):
            task_id = state.new_task_id()
            self.begin_task(
                EquilibrateSpec(
                    task_id=task_id,
                    attempt=1,
                    number=number,
                    system=state.molecule.refs["simulate"],
                    start=start.ref,
                    start_row=start.row,
                    duration_ps=state.settings.equilibrate_ps,
                    seed=task_seed(state.settings.seed, task_id),
                    dynamics=state.dynamics,
                    store=self.destination.store,
                    run_dir=self.destination.run_dir,
                ),
                parent_frame=start.parent_frame,
            )
        n_states = len(self._walkers.basis.starts)
        self._tell(
            f"equilibrating {n_states} basis state{'s' if n_states > 1 else ''} "
            f"for {state.settings.equilibrate_ps:g} ps before the first segment"
        )

    def found(self, spec: EquilibrateSpec) -> EquilibrateSpec | None:
        """Return an earlier process' spec; a basis state that is lost from its store is shipped with each process."""
        start = self._walkers.basis.starts[spec.number]
        return super().found(spec) or replace(spec, start=start.ref, start_row=start.row)

    def succeeded(self, spec: EquilibrateSpec, result: EquilibrateResult) -> None:
        """Let walkers begin at the equilibrated state."""
        self._walkers.move_basis(spec.number, result.state)
        if result.state_file is not None:
            self.state.ledger.add_artifact(spec.task_id, "end_state", result.state_file)
        temperature = f"{result.mean_temperature_K:.0f} K of {spec.dynamics.temperature_K:g} K"
        density = ""
        if result.density_before is not None and result.mean_density is not None:
            density = f", density {result.density_before:.3f} -> {result.mean_density:.3f} g/ml"
        self._tell(
            f"basis state {spec.number} after {result.simulated_ps:.4g} ps of equilibration: "
            f"{temperature}{density} (means of its last quarter)"
        )

    def given_up_state(self, verdict: Verdict) -> State:
        """Return that it is quarantined: nothing can begin at a state that was never equilibrated."""
        return "quarantined"

    def given_up(self, spec: EquilibrateSpec, failure: Failure, verdict: Verdict) -> None:
        """Begin at the others, if there are any."""
        if verdict == "again":
            return
        self._walkers.quarantine(self._walkers.basis.starts[spec.number])
        if all(start.origin in self.state.quarantine for start in self._walkers.basis.starts):
            self.state.fail(f"no basis state could be equilibrated: {failure.message}")

    def inputs(self, spec: EquilibrateSpec) -> Iterable[Ref]:
        """Return where it starts; the system is held as long as the campaign."""
        return (spec.start,)

    def outputs(self, result: EquilibrateResult) -> Iterable[Ref]:
        """Return the equilibrated state."""
        return (result.state,)

    def files(self, result: EquilibrateResult) -> Iterable[FileRecord]:
        """Return the State."""
        return () if result.state_file is None else (result.state_file,)

    def info(self, spec: EquilibrateSpec) -> dict[str, Any]:
        """Return which basis state it is."""
        return {"task_id": spec.task_id, "basis_state": spec.number}

    def findings(self, result: EquilibrateResult) -> dict[str, Any]:
        """Return what equilibration showed, and timings."""
        return {
            "n_atoms": result.n_atoms,
            "simulated_ps": result.simulated_ps,
            "payload_bytes": result.state.n_bytes,
            "proxied": result.state.data is None,
            "store": result.state.place,
            "mean_temperature_K": result.mean_temperature_K,
            "potential_energy_kj_mol": result.potential_energy_kj_mol,
            "density_before_g_ml": result.density_before,
            "mean_density_g_ml": result.mean_density,
            "seconds": result.seconds,
        }

    def _count_compute(self, outcome: Outcome, place: Destination) -> None:
        """Leave it out of utilisation, which begins with the first segment."""

    def _tell(self, sentence: str) -> None:
        logger.info("%s", sentence)
        self.state.outbox.notes.append(sentence)
