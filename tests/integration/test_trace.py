"""A real run as pandas frames tells what its trace files, its ledger and its summary tell."""

import json

import pandas as pd
import pytest

from campaign.activity import failures, headline, utilisation
from campaign.trace import Run


@pytest.fixture(scope="module")
def run(short_run):
    return Run(short_run.run_dir)


def test_segments_are_the_lines_of_the_trace(run, short_run):
    lines = short_run.traces("simulation")
    for name in ("segment_id", "attempt", "walker_id", "n_frames", "simulated_ps", "payload_bytes", "store"):
        assert run.segments.reset_index()[name].tolist() == [line["task_info"][name] for line in lines], name
    for name, time in {"sent": "created", "started": "compute_started", "received": "result_received"}.items():
        assert run.segments[name].tolist() == [line["timestamp"][time] for line in lines], name


def test_segments_are_those_of_the_ledger(run, short_run):
    told = short_run.ask("SELECT id, parent_id, parent_frame, walker_id, steered FROM task WHERE kind = 'simulate'")
    columns = run.segments.sort_index()[["parent_id", "parent_frame", "walker_id", "steered"]]
    found = [tuple(None if value is pd.NA else value for value in row) for row in columns.astype(object).itertuples()]
    assert found == told


def test_parts_of_every_task_add_up_to_its_whole(run):
    parts = run.tasks[["server_s", "queue_s", "compute_s", "store_s", "return_s", "notify_s"]]
    assert (run.tasks.received - run.tasks.created - parts.sum(axis=1)).abs().max() < 1e-6
    # Clocks are one here, so none of them is negative.
    assert parts.min(axis=None) > -1e-3
    assert len(run.tasks) == sum(len(list(run.lines(topic))) for topic in ("simulate", "infer", "train"))


def test_members_of_a_bundle_ran_one_after_the_other(run):
    bundled = run.tasks[run.tasks.topic == "simulate"].groupby(["worker"])
    for _, tasks in bundled:
        tasks = tasks.sort_values("started")
        assert (tasks.started.to_numpy()[1:] >= tasks.ended.to_numpy()[:-1]).all()


def test_inferences_and_losses_are_those_of_the_traces(run, short_run):
    told = [line["task_info"] for line in short_run.traces("inference")]
    assert run.inferences.coverage.tolist() == [info["coverage"] for info in told]
    assert run.inferences.segments.tolist()[-1] == sum(len(info["segment_ids"]) for info in told)
    trainings = [line["task_info"] for line in short_run.traces("training")]
    for info in trainings:
        losses = run.losses[run.losses.model_version == info["model_version"]]
        for name, values in info["losses"].items():
            assert losses[name].tolist() == values


def test_figures_of_the_traces_are_those_of_the_summary(run, short_run):
    summary, told = short_run.summary(), headline(run)
    for name in ("status", "system", "policy", "seed", "segments", "frames", "model_versions", "inferences"):
        assert told[name] == summary[name], name
    assert told.simulated_ns == pytest.approx(summary["simulated_ns"])
    assert told.steered_fraction == pytest.approx(summary["steered_fraction"])
    assert told.coverage == summary["coverage"]["value"]
    assert len(failures(run)) == sum(summary["failures"].values())


def test_utilisation_is_that_of_the_summary(run, short_run):
    found = utilisation(run)
    for topic, share in short_run.summary()["worker_utilisation"]["local"].items():
        ours = found.loc[("local", topic)]
        # It counts workers that had nothing to do as well.
        slots = ours.share * ours.workers / share
        assert slots == pytest.approx(round(slots))
        assert round(slots) >= ours.workers


def test_the_control_is_a_run_of_its_own(run, short_run):
    summary = json.loads((short_run.run_dir / "control/summary.json").read_text())
    assert run.control.settings["policy"] == "plain"
    assert headline(run.control).coverage == summary["coverage"]["value"]
    assert run.control.segments.novelty.isna().all()


def test_the_reference_set_has_the_frames_of_the_trajectories(run):
    reference, system = run.reference, run.system
    assert reference.number == run.inferences.index[-1]
    assert reference.model_version == run.inferences.model_version.iloc[-1]
    for row in (0, len(reference.sample) // 2, -1):
        segment, frame = reference.sample.ids[row]
        assert run.frames(segment)[frame][system.feature_indices] == pytest.approx(
            reference.sample.points[row], abs=1e-5
        )


def test_nothing_in_the_run_is_changed_by_looking(short_run):
    def contents():
        return {
            path: (path.stat().st_size, path.stat().st_mtime_ns)
            for path in short_run.run_dir.rglob("*")
            if path.is_file() and not path.name.endswith(("-wal", "-shm"))
        }

    before = contents()
    looked = Run(short_run.run_dir)
    for name in (
        "segments",
        "tasks",
        "inferences",
        "losses",
        "attempts",
        "walkers",
        "pcoords",
        "reference",
        "system",
    ):
        getattr(looked, name)
    looked.frames(looked.segments.index[0])
    assert contents() == before
