"""Runs as pandas frames, from directories written line by line; of real ones see tests/integration/test_trace.py."""

import json
import shutil
import sqlite3
import tarfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from campaign.iterations import Boundary, record
from campaign.ledger import FIRST_OTHER_ID, Ledger
from campaign.trace import Run
from campaign.trace_files import FILES
from tasks.errors import BadInput
from tasks.files import publish
from tasks.reference import ReferenceSet
from tasks.simulate import run_segment
from tasks.transport import fetch
from tests.ensembles import double_well, rectilinear
from tests.ensembles import run as ensemble


@pytest.fixture
def folder(tmp_path):
    """A run directory in which nothing has happened yet."""
    Ledger(tmp_path / "ledger.sqlite").close()
    return tmp_path


@pytest.fixture
def ledger(folder):
    opened = Ledger(folder / "ledger.sqlite")
    yield opened
    opened.close()


def line(success=True, at=100.0, **info):
    """A line of a trace: made, received by the server, computed, returned and received at ``at`` and after."""
    names = ("created", "input_received", "compute_started", "compute_ended", "task_received", "result_received")
    times = dict(zip(names, (at, at + 1, at + 3, at + 10, at + 11, at + 11.5), strict=True))
    return {
        "success": success,
        "task_info": {"attempt": 1, "executor": "cpu", "site": "local", **info},
        "worker_info": {"hostname": "node", "PARSL_WORKER_RANK": "3"},
        "message_sizes": {"inputs": 1000, "value": 500},
        "timestamp": times,
    }


def segment_line(segment_id, success=True, at=100.0, **info):
    told = {
        "segment_id": segment_id, "parent_id": None, "parent_frame": None, "walker_id": segment_id % 4,
        "iteration": 0, "replica": 0, "steered": False, "model_version": 0, "novelty": None, "n_frames": 8,
        "n_atoms": 22, "simulated_ps": 2.0, "payload_bytes": 3424, "store": "file", "mean_temperature_K": 301.5,
        "potential_energy_kj_mol": -90.25, "seconds": {"integrate": 5.0, "fetch": 0.5, "ship": 0.25},
    }  # fmt: skip
    return line(success, at, **(told | info))


def write(folder, topic, *lines):
    text = "".join(json.dumps(each) + "\n" for each in lines)
    (folder / FILES[topic]).write_text(text)
    return text


def test_a_folder_without_a_ledger_is_no_run(tmp_path):
    with pytest.raises(BadInput, match="is no run: it has no ledger.sqlite"):
        Run(tmp_path)


def test_a_run_in_which_nothing_happened_has_frames_without_rows(folder):
    run = Run(folder)
    for name in ("segments", "tasks", "inferences", "losses", "attempts", "walkers", "iterations", "pcoords"):
        frame = getattr(run, name)
        assert len(frame) == 0, name
        assert len(frame.columns) > 2, name
    assert (run.control, run.reference) == (None, None)
    assert (run.summary, run.settings, run.host) == ({}, {}, {})
    assert run.segments.simulated_ps.sum() == 0.0


def test_a_segment_is_as_its_line_tells(folder):
    write(
        folder, "simulate", segment_line(7, parent_id=3, parent_frame=5, steered=True, model_version=2, novelty=1.5)
    )
    (segment,) = Run(folder).segments.reset_index().to_dict("records")
    assert segment == {
        "segment_id": 7, "parent_id": 3, "parent_frame": 5, "walker_id": 3, "replica": 0, "iteration": 0,
        "attempt": 1, "executor": "cpu", "site": "local", "steered": True, "model_version": 2, "novelty": 1.5,
        "n_frames": 8, "n_atoms": 22, "simulated_ps": 2.0, "mean_temperature_K": 301.5,
        "potential_energy_kj_mol": -90.25, "payload_bytes": 3424, "store": "file", "worker": "node/3",
        "sent": 100.0, "started": 103.0, "ended": 110.0, "received": 111.5, "simulated_ns": 0.002,
    }  # fmt: skip


def test_a_segment_at_a_basis_state_has_no_parent_and_no_novelty(folder):
    write(folder, "simulate", segment_line(0))
    (segment,) = Run(folder).segments.itertuples()
    assert all(pd.isna(value) for value in (segment.parent_id, segment.parent_frame, segment.novelty))


def test_segments_come_in_the_order_of_their_results_and_their_time_adds_up(folder):
    write(folder, "simulate", segment_line(1), segment_line(0, simulated_ps=1.0), segment_line(2))
    segments = Run(folder).segments
    assert segments.index.tolist() == [1, 0, 2]
    assert segments.simulated_ns.tolist() == pytest.approx([0.002, 0.003, 0.005])


def test_a_failed_attempt_is_a_task_and_no_segment(folder):
    failed = {**segment_line(0, success=False), "worker_info": None}
    failed["timestamp"] = {**failed["timestamp"], "compute_started": None, "compute_ended": None}
    failed["task_info"].update(seconds=None, n_frames=None)
    write(folder, "simulate", failed, segment_line(0, at=200.0, attempt=2))
    run = Run(folder)
    assert run.segments.attempt.to_dict() == {0: 2}
    assert run.tasks.success.tolist() == [False, True]
    assert pd.isna(run.tasks.started[0])
    assert pd.isna(run.tasks.compute_s[0])
    assert run.tasks.worker[0] is None or pd.isna(run.tasks.worker[0])


def test_of_a_segment_that_came_back_twice_the_attempt_counts_that_the_ledger_says(folder, ledger):
    with ledger.transaction():
        ledger.add_task(0, "simulate", "cpu")
        for attempt, outcome in ((1, "outpaced"), (2, "success")):
            ledger.begin_attempt(0, attempt, "local")
            ledger.end_attempt(0, attempt, outcome)
    write(folder, "simulate", segment_line(0, attempt=2), segment_line(0, at=300.0))
    run = Run(folder)
    assert run.segments.attempt.to_dict() == {0: 2}
    assert run.tasks[["attempt", "success", "outcome"]].values.tolist() == [
        [2, True, "success"],
        [1, True, "outpaced"],
    ]


def test_a_result_that_came_too_late_counts_nowhere(folder, ledger):
    with ledger.transaction():
        for task_id, kind in ((2**40, "infer"), (2**40 + 1, "train")):
            ledger.add_task(task_id, kind, "gpu")
            for attempt, outcome in ((1, "late"), (2, "success")):
                ledger.begin_attempt(task_id, attempt, "local")
                ledger.end_attempt(task_id, attempt, outcome)
    write(folder, "simulate", segment_line(0))
    looked = {"task_id": 2**40, "reference_number": 1, "model_version": 0, "segment_ids": [0], "novelty": [1.5]}
    looked |= {"n_frames": 8, "n_reference": 8, "coverage": 12.0}
    write(folder, "infer", line(attempt=2, **looked), line(at=300.0, **(looked | {"coverage": 99.0})))
    trained = {"task_id": 2**40 + 1, "model_version": 1, "n_frames": 8, "losses": {"critic": [3.0, 2.0]}}
    write(folder, "train", line(attempt=2, **trained), line(at=300.0, **trained))
    run = Run(folder)
    assert run.inferences[["segments", "coverage"]].values.tolist() == [[1, 12.0]]
    assert run.looks.novelty.to_dict() == {0: 1.5}
    assert run.losses.critic.tolist() == [3.0, 2.0]


def test_of_a_segment_that_ran_again_the_last_counts(folder):
    write(folder, "simulate", segment_line(0), segment_line(1), segment_line(0, at=300.0, attempt=2))
    segments = Run(folder).segments
    assert segments.index.tolist() == [1, 0]
    assert segments.attempt[0] == 2
    assert segments.simulated_ns.iloc[-1] == pytest.approx(0.004)


def test_the_parts_of_a_task_are_its_times(folder):
    write(folder, "simulate", segment_line(0))
    (task,) = Run(folder).tasks.to_dict("records")
    parts = [task[name] for name in ("server_s", "queue_s", "compute_s", "store_s", "return_s", "notify_s")]
    assert parts == pytest.approx([1.0, 2.0, 6.25, 0.75, 1.0, 0.5])
    assert sum(parts) == pytest.approx(task["received"] - task["created"])
    assert (task["message_bytes"], task["payload_bytes"], task["store"]) == (1500, 3424, "file")


def test_tasks_are_of_all_topics_and_known_by_their_ids(folder):
    write(folder, "simulate", segment_line(4))
    write(
        folder, "train", line(task_id=FIRST_OTHER_ID, model_version=1, n_frames=10, losses={"reconstruction": [1.0]})
    )
    tasks = Run(folder).tasks
    assert tasks.topic.tolist() == ["simulate", "train"]
    assert tasks.task_id.tolist() == [4, FIRST_OTHER_ID]


@pytest.mark.parametrize(("told", "store"), [({"proxied": False}, "inline"), ({"proxied": True}, None), ({}, None)])
def test_an_older_trace_tells_only_whether_there_was_a_store(folder, told, store):
    older = segment_line(0)
    del older["task_info"]["store"]
    older["task_info"].update(told)
    write(folder, "simulate", older)
    found = Run(folder).segments.store[0]
    assert found == store if store else pd.isna(found)


def test_members_of_a_bundle_have_times_of_their_own(folder):
    first, second = segment_line(0), segment_line(1)
    second["timestamp"].update(compute_started=106.0, compute_ended=109.0)
    write(folder, "simulate", first, second)
    tasks = Run(folder).tasks
    assert tasks.queue_s.tolist() == [2.0, 5.0]
    assert tasks.return_s.tolist() == [1.0, 2.0]


def test_a_line_that_is_half_written_is_not_there_yet(folder):
    text = write(folder, "simulate", segment_line(0), segment_line(1))
    (folder / FILES["simulate"]).write_text(text[:-20])
    assert Run(folder).segments.index.tolist() == [0]


def test_a_damaged_line_is_told_by_its_file_and_number(folder):
    text = write(folder, "simulate", segment_line(0), segment_line(1))
    (folder / FILES["simulate"]).write_text(text.replace('"success": true', '"success": tr', 1))
    with pytest.raises(BadInput, match=r"simulation-results\.jsonl, line 1, is no JSON .*: restore it from a copy"):
        _ = Run(folder).segments


def test_inferences_count_what_was_looked_at_so_far(folder):
    write(folder, "simulate", *map(segment_line, range(3)))
    told = {"model_version": 0, "n_frames": 16, "n_reference": 16, "payload_bytes": 0, "smallest_rmsd_nm": None}
    write(
        folder,
        "infer",
        line(task_id=FIRST_OTHER_ID, reference_number=1, segment_ids=[0, 1], novelty=[1.0, 3.0], coverage=5, **told),
        line(success=False, task_id=FIRST_OTHER_ID + 1, reference_number=2),
        line(
            task_id=FIRST_OTHER_ID + 1, reference_number=2, segment_ids=[2], novelty=[None], coverage=6,
            **{**told, "smallest_rmsd_nm": 0.5},
        ),
    )  # fmt: skip
    found = Run(folder).inferences
    assert found.index.tolist() == [1, 2]
    assert found.segments.tolist() == [2, 3]
    assert found.simulated_ns.tolist() == pytest.approx([0.004, 0.006])
    assert found.coverage.tolist() == [5.0, 6.0]
    assert found.novelty[1] == 2.0
    assert pd.isna(found.novelty[2])
    assert pd.isna(found.smallest_rmsd_nm[1])
    assert found.smallest_rmsd_nm[2] == 0.5


def test_losses_have_a_row_for_each_epoch(folder):
    losses = {"reconstruction": [3.0, 2.0], "critic": [0.5, -1.0]}
    train = line(task_id=FIRST_OTHER_ID, model_version=1, n_frames=96, losses=losses)
    again = line(task_id=FIRST_OTHER_ID + 1, model_version=2, n_frames=200, losses={"reconstruction": [1.0]})
    write(folder, "train", train, line(success=False, task_id=FIRST_OTHER_ID + 1), again)
    found = Run(folder).losses
    assert found.model_version.tolist() == [1, 1, 2]
    assert found.epoch.tolist() == [1, 2, 1]
    assert found.n_frames.tolist() == [96, 96, 200]
    assert found.reconstruction.tolist() == [3.0, 2.0, 1.0]


def test_attempts_are_those_of_the_ledger_with_what_never_came_back(folder, ledger):
    with ledger.transaction():
        ledger.add_task(0, "simulate", "cpu")
        ledger.begin_attempt(0, 1, "local")
        ledger.end_attempt(0, 1, "nan", error="energy became NaN", host="node", worker="1")
        ledger.begin_attempt(0, 2, "far")
    found = Run(folder).attempts
    assert found[["kind", "task_id", "attempt", "site"]].values.tolist() == [
        ["simulate", 0, 1, "local"],
        ["simulate", 0, 2, "far"],
    ]
    assert found.outcome[0] == "nan"
    assert found.error[0] == "energy became NaN"
    assert pd.isna(found.outcome[1])
    assert pd.isna(found.ended[1])


@pytest.fixture
def iterations(folder, ledger):
    """Iterations of two ensembles, as they were recorded."""
    ended = {
        0: list(ensemble(double_well(), rectilinear(), 5, seed=1)),
        1: list(ensemble(double_well(), rectilinear(), 3, seed=2)),
    }
    with ledger.transaction():
        number = 0
        for replica, each in ended.items():
            for one in each:
                n = len(one.pcoord)
                record(ledger, Boundary(replica, one, tuple(range(number, number + n)), 4))
                number += n
    return ended


def test_walkers_are_those_that_were_recorded(folder, iterations):
    walkers = Run(folder).walkers
    for replica, each in iterations.items():
        for one in each:
            found = walkers[(walkers.replica == replica) & (walkers.iteration == one.iteration.number)]
            assert found.weight.to_numpy() == pytest.approx(one.iteration.weights, abs=0)
            assert found.parent.tolist() == one.iteration.parents.tolist()
            assert found.bin.tolist() == one.resampled.bins.tolist()
    assert walkers.groupby(["replica", "iteration"]).weight.sum().to_numpy() == pytest.approx(1.0)


def test_iterations_have_the_flux_that_was_recorded(folder, iterations):
    write(folder, "simulate", segment_line(0, simulated_ps=0.5))
    found = Run(folder).iterations
    told = [one.resampled.flux for each in iterations.values() for one in each]
    assert found.flux_per_ps.tolist() == [flux / 0.5 for flux in told]
    assert found.model_version.unique().tolist() == [4]
    assert found.n_walkers.tolist() == [len(one.pcoord) for each in iterations.values() for one in each]


def test_progress_coordinates_are_those_that_were_recorded_point_by_point(folder, iterations):
    points = Run(folder).pcoords
    last = iterations[1][-1]
    found = points[(points.replica == 1) & (points.iteration == last.iteration.number)]
    assert found.pcoord0.to_numpy().reshape(last.pcoord.shape[:2]).tolist() == last.pcoord[:, :, 0].tolist()
    assert found.point.tolist() == list(range(last.pcoord.shape[1])) * len(last.pcoord)
    assert found.weight.tolist() == np.repeat(last.iteration.weights, last.pcoord.shape[1]).tolist()


def test_a_ledger_of_an_older_version_has_no_ensembles(folder):
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        for table in ("walker", "iteration"):
            db.execute(f"DROP TABLE {table}")
    run = Run(folder)
    assert [len(run.walkers), len(run.iterations), len(run.pcoords)] == [0, 0, 0]


def test_a_query_cannot_write(folder):
    with pytest.raises(Exception, match="readonly"):
        Run(folder).query("DELETE FROM task")


def test_a_control_is_the_run_beside_it(folder):
    (folder / "control").mkdir()
    assert Run(folder).control is None
    shutil.copy(folder / "ledger.sqlite", folder / "control")
    control = Run(folder).control
    assert control is not None
    assert control.path == folder / "control"
    assert control.control is None


def test_a_damaged_summary_is_bad_input_and_a_missing_one_is_empty(folder):
    assert Run(folder).summary == {}
    (folder / "summary.json").write_text('{"segments": 3}')
    assert Run(folder).summary == {"segments": 3}
    (folder / "summary.json").write_text('{"segments"')
    with pytest.raises(BadInput, match=r"summary\.json cannot be read"):
        _ = Run(folder).summary


def reference(number, n_seen):
    empty = ReferenceSet.empty(10, 22, 3, np.zeros(576, bool))
    return replace(empty, number=number, n_seen=n_seen).to_arrays()


def test_the_reference_set_is_the_newest(folder):
    (folder / "models").mkdir()
    for number in (9, 10):
        np.savez(folder / f"models/reference-{number:06d}.npz", **reference(number, 8 * number))
    found = Run(folder).reference
    assert found is not None
    assert (found.number, found.n_seen, found.sample.points.shape) == (10, 80, (0, 10, 3))


def test_a_damaged_reference_set_is_bad_input(folder):
    (folder / "models").mkdir()
    path = folder / "models/reference-000001.npz"
    np.savez(path, **reference(1, 8))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadInput, match=r"reference-000001\.npz cannot be read"):
        _ = Run(folder).reference


def test_a_reference_set_that_would_run_code_is_not_read(folder):
    (folder / "models").mkdir()
    np.savez(folder / "models/reference-000001.npz", **{**reference(1, 8), "ids": np.array([object()])})
    with pytest.raises(BadInput, match="cannot be read"):
        _ = Run(folder).reference


@pytest.fixture
def trajectory(folder, ledger, segment):
    """A segment whose trajectory is in the run directory, with its frames."""
    result = run_segment(replace(segment, run_dir=str(folder)))
    publish(folder, result.trajectory)
    with ledger.transaction():
        ledger.add_task(segment.segment_id, "simulate", "cpu")
        ledger.add_artifact(segment.segment_id, "trajectory", result.trajectory)
    return folder / result.trajectory.path, fetch(result.frames)["positions"]


@pytest.mark.filterwarnings("ignore:No dimensions set")
def test_frames_are_those_that_the_segment_wrote(folder, trajectory, segment):
    frames = Run(folder).frames(segment.segment_id)
    assert frames.dtype == np.float32
    assert frames == pytest.approx(trajectory[1], abs=1e-6)


@pytest.mark.filterwarnings("ignore:No dimensions set")
def test_frames_in_an_archive_are_the_same(folder, ledger, trajectory, segment):
    path, frames = trajectory
    (folder / "archives").mkdir()
    with tarfile.open(folder / "archives/node-0001.tar.gz", "w:gz") as archive:
        archive.add(path, path.name)
    path.unlink()
    with ledger.transaction():
        ledger._db.execute("UPDATE artifact SET path = ?", (f"archives/node-0001.tar.gz/{path.name}",))
    assert Run(folder).frames(segment.segment_id) == pytest.approx(frames, abs=1e-6)


def test_frames_of_a_segment_without_trajectory_are_bad_input(folder):
    with pytest.raises(BadInput, match="segment 5 of .* has no trajectory"):
        Run(folder).frames(5)
