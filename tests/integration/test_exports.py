"""`run.py export` on campaigns that were run: what other programs read is what the run says."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from campaign.trace import Run
from tests.integration.conftest import ROOT, Campaign

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def export(run: Path, *flags: str) -> str:
    """Return what the command prints; it must end well, and leave the run as it was."""
    before = contents(run)
    ended = subprocess.run(
        [sys.executable, "run.py", "export", str(run), *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "canary-5f2c" not in ended.stdout + ended.stderr
    assert contents(run) == before
    return ended.stdout


def contents(run: Path) -> dict[str, int]:
    """Return the files of a run, and when they were written; SQLite keeps two beside the ledger while it is read."""
    return {
        str(path.relative_to(run)): path.stat().st_mtime_ns
        for path in run.rglob("*")
        if path.is_file() and not path.name.startswith("ledger.sqlite-")
    }


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weighted ensemble in a double well: a particle, no model."""
    run = Campaign(
        tmp_path_factory.mktemp("ensemble") / "run",
        *("--system", "double-well", "--policy", "weighted-ensemble", "--segment-ps", "0.5", "--frame-ps", "0.1"),
        *("--max-iterations", "4", "--bins", "rectilinear:-0.3,-0.2,-0.1,0,0.1,0.2,0.3", "--target", "x > 0.27"),
    )
    assert run.wait() == 0, run.err
    return run.run_dir


def test_the_trace_of_a_campaign_has_all_its_attempts(short_run: Campaign, tmp_path: Path) -> None:
    assert "trace.json" in export(short_run.run_dir, "--perfetto", str(tmp_path / "trace.json"))
    text = (tmp_path / "trace.json").read_text()
    events = json.loads(text)["traceEvents"]
    assert "canary-5f2c" not in text
    topics = {"simulate", "infer", "train", "move", "equilibrate", "hook"}
    tasks = [each for each in events if each.get("cat") in topics and each["ph"] in "Xi"]
    assert len(tasks) == len(Run(short_run.run_dir).attempts)
    by_worker: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for each in tasks:
        if each["ph"] == "X":
            by_worker.setdefault((each["pid"], each["tid"]), []).append((each["ts"], each["ts"] + each["dur"]))
    assert len(by_worker) >= 3
    for spans in by_worker.values():
        edges = [edge for span in sorted(spans) for edge in span]
        assert edges == sorted(edges)
    starts, ends = ({each["id"]: each["ts"] for each in events if each["ph"] == kind} for kind in "sf")
    assert starts.keys() == ends.keys()
    assert all(ends[id] >= at for id, at in starts.items())
    segments = Run(short_run.run_dir).segments
    kinds = [each["name"] for each in events if each["ph"] == "s"]
    assert kinds.count("frames") == len(segments)
    assert kinds.count("start") == segments.parent_id.notna().sum()
    counters = [each for each in events if each["ph"] == "C"]
    assert min(value for each in counters for value in each["args"].values()) >= 0
    assert {each["name"].partition(":")[0] for each in counters} == {
        "queued", "running", "utilisation", "memory", "coverage", "model version",
    }  # fmt: skip
    memory = [each["args"]["MB"] for each in counters if each["name"].startswith("memory")]
    assert min(memory) > 50


def test_parquet_files_of_a_campaign_are_its_frames(short_run: Campaign, tmp_path: Path) -> None:
    export(short_run.run_dir, "--parquet", str(tmp_path / "out"))
    run = Run(short_run.run_dir)
    found = pd.read_parquet(tmp_path / "out" / "segments.parquet").set_index("segment_id")
    pd.testing.assert_frame_equal(found, run.segments, check_dtype=False, check_index_type=False)
    assert len(pd.read_parquet(tmp_path / "out" / "losses.parquet")) == len(run.losses) > 0


def test_a_joined_trajectory_is_that_of_the_segments(short_run: Campaign, tmp_path: Path) -> None:
    import MDAnalysis as mda

    run, place = short_run.run_dir, tmp_path / "all.dcd"
    export(run, "--trajectory", str(place), "--select", "backbone", "--stride", "5")
    joined, index = mda.Universe(str(tmp_path / "all.pdb"), str(place)), pd.read_csv(f"{place}.csv")
    segments = Run(run).segments
    assert len(joined.trajectory) == len(index) == -(-segments.n_frames.sum() // 5)
    for row, _ in zip(index.itertuples(), joined.trajectory, strict=True):
        segment = mda.Universe(str(run / "topology.pdb"), str(run / "trajectories" / f"{row.segment_id:08d}.dcd"))
        segment.trajectory[row.segment_frame]
        # DCD has Angstrom in single precision.
        np.testing.assert_array_equal(joined.atoms.positions, segment.select_atoms("backbone").positions)
        assert row.time_ps_in_segment == pytest.approx(segment.trajectory.time, rel=1e-6)
        assert row.walker_id == segments.walker_id[row.segment_id]
    whole = segments.simulated_ps / segments.n_frames
    assert np.allclose(index.time_ps_in_segment, (index.segment_frame + 1) * whole.iloc[0])


def test_tensorboard_shows_losses_and_embeddings(short_run: Campaign, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    export(short_run.run_dir, "--tensorboard", str(tmp_path / "out"))
    run = Run(short_run.run_dir)
    for version, part in run.losses.groupby("model_version"):
        found = EventAccumulator(str(tmp_path / "out" / f"model-{version:06d}"))
        found.Reload()
        values = [each.value for each in found.Scalars("loss/reconstruction")]
        np.testing.assert_allclose(values, part.reconstruction, rtol=1e-6)
    (metadata,) = (tmp_path / "out").glob("*/reference_set/metadata.tsv")
    rows = pd.read_csv(metadata, sep="\t")
    assert len(rows) == run.inferences.n_reference.iloc[-1]
    assert set(rows.segment_id) <= set(run.segments.index)
    tensors = np.loadtxt(metadata.with_name("tensors.tsv"))
    assert tensors.shape == (len(rows), 8)
    assert np.isfinite(tensors).all()


def test_mlflow_has_the_run_with_its_models(
    short_run: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(short_run.run_dir, "--mlflow", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # or it reads no folder
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("wayfinder").experiment_id])
    assert found.data.metrics["summary/segments"] == 80
    assert found.data.params["walkers"] == "4"
    coverage = client.get_metric_history(found.info.run_id, "coverage")
    assert [each.value for each in coverage] == Run(short_run.run_dir).inferences.coverage.tolist()
    models = [each.path for each in client.list_artifacts(found.info.run_id, "models")]
    assert models == [f"models/{path.name}" for path in sorted((short_run.run_dir / "models").glob("*.pt"))]
    told = [path.read_text() for path in (tmp_path / "mlruns").rglob("*") if path.suffix != ".pt" and path.is_file()]
    assert not any("canary-5f2c" in each for each in told)


def test_a_weighted_ensemble_is_exported_whole(ensemble: Path, tmp_path: Path) -> None:
    told = export(
        ensemble,
        *("--perfetto", str(tmp_path / "trace.json"), "--parquet", str(tmp_path / "tables")),
        *("--trajectory", str(tmp_path / "all.dcd"), "--tensorboard", str(tmp_path / "events")),
        *("--mlflow", str(tmp_path / "mlruns")),
    )
    assert len(told.splitlines()) == 6
    run = Run(ensemble)
    index = pd.read_csv(tmp_path / "all.dcd.csv")
    weights = index.groupby("segment_id").weight.first()
    assert weights.to_dict() == run.walkers.set_index("segment_id").weight.to_dict()
    assert index.groupby("iteration").weight.sum().tolist() == pytest.approx([5.0] * 4)  # frames of a segment
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(each.get("cat") == "iteration" for each in events) == 4
    assert len(pd.read_parquet(tmp_path / "tables" / "walkers.parquet")) == len(run.walkers)


def test_a_control_is_exported_like_any_run(short_run: Campaign, tmp_path: Path) -> None:
    control = short_run.run_dir / "control"
    export(control, "--tensorboard", str(tmp_path / "out"), "--perfetto", str(tmp_path / "trace.json"))
    with sqlite3.connect(f"file:{control / 'ledger.sqlite'}?mode=ro", uri=True) as db:
        (attempts,) = db.execute("SELECT count(*) FROM attempt").fetchone()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(each.get("cat") in ("simulate", "infer", "train") and each["ph"] == "X" for each in events) == attempts


def test_a_place_that_cannot_be_written_is_refused_in_one_sentence(short_run: Campaign, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "run.py", "export", str(short_run.run_dir), "--perfetto", str(tmp_path / "no" / "t.json")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"wayfinder: --perfetto {tmp_path}/no/t.json cannot be written")
    assert len(ended.stderr.splitlines()) == 1
