"""Let tasks that were given up run again; history is kept, and the campaign takes them up when it is resumed."""

from __future__ import annotations

from collections.abc import Sequence

from campaign.ledger import Ledger, State
from campaign.resuming import damaged
from campaign.rundir import RunDirectory
from tasks.errors import BadInput

_GIVEN_UP: tuple[State, ...] = ("fizzled", "quarantined")


def rerun(run_dir: RunDirectory, ledger: Ledger, segments: Sequence[int]) -> list[str]:
    """Make tasks ready again, all that were given up or only some segments; return what was done, in sentences.

    A segment that is complete, but whose trajectory is lost, cannot be run again exactly, for its start is gone: it
    is given up, and the campaign runs another in its place.

    Raises
    ------
    BadInput
        For a segment that is not there, or that nothing is wrong with.
    """
    given_up = {task.id: task for task in ledger.open_tasks(*_GIVEN_UP)}
    lost = {task_id: file for task_id, file in damaged(run_dir) if task_id in segments}
    for segment_id in segments:
        if segment_id not in given_up and segment_id not in lost:
            raise BadInput(
                f"segment {segment_id} of {run_dir.path} is {ledger.state_of(segment_id) or 'not there'}, so it "
                f"cannot be run again: `python run.py status {run_dir.path}` tells what failed"
            )
    told = []
    with ledger.transaction():
        for task_id in segments or given_up:
            if task_id in lost:
                ledger.give_up(task_id, f"its trajectory {lost[task_id].path} is lost")
                told.append(f"segment {task_id} is given up: its trajectory is lost, and another will take its place")
                continue
            ledger.set_state(task_id, "ready")
            ledger.keep(f"rerun/{task_id}", True)
            task = given_up[task_id]
            told.append(f"{task.kind} task {task_id} is ready to run again, after {task.attempts} attempts")
    return told
