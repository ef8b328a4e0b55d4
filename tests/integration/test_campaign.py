"""What a campaign does and leaves behind."""

import hashlib
import json
import warnings
from pathlib import Path

import MDAnalysis as mda
import MDAnalysis.analysis.rms
import numpy as np
import pytest

from campaign.cli import parse
from tasks.features import phi_psi_cells
from tasks.reference import ReferenceSet
from tests.integration.conftest import Campaign

KEYS = {
    "schema", "status", "reason", "system", "policy", "seed", "segments", "simulated_ns", "frames", "failures",
    "weighted_ensemble", "hooks", "on_frames", "stream",
    "quarantined", "model_versions", "inferences", "steered_fraction", "coverage", "worker_utilisation",
    "decision_ms", "thinker_bytes_per_segment", "proxies", "wall_s", "startup_s", "sites",
}  # fmt: skip


def test_the_command_tells_its_result(short_run: Campaign) -> None:
    lines = short_run.out.splitlines()
    assert lines[-1] == f"run directory: {short_run.run_dir}"
    reports = [str(path / "report.html") for path in (short_run.run_dir, short_run.run_dir / "control")]
    assert lines[-2] == f"report: {', '.join(reports)}"
    assert "plain MD of equal length" in lines[-3]
    assert short_run.err == ""


def test_summary_holds_every_key_and_agrees_with_the_traces(short_run: Campaign) -> None:
    summary = short_run.summary()
    traces = short_run.traces("simulation")
    assert set(summary) == KEYS
    assert summary["status"] == "complete"
    assert summary["reason"] is None
    assert summary["segments"] == len(traces) >= 80
    assert summary["frames"] == sum(line["task_info"]["n_frames"] for line in traces)
    assert summary["simulated_ns"] == pytest.approx(sum(line["task_info"]["simulated_ps"] for line in traces) / 1000)
    assert summary["model_versions"] == len(short_run.traces("training")) >= 2
    assert summary["inferences"] == len(short_run.traces("inference"))
    assert summary["steered_fraction"] == np.mean([line["task_info"]["steered"] for line in traces])
    assert summary["failures"] == {}
    assert summary["sites"] == {"simulate": ["local"], "infer": ["local"], "train": ["local"]}


def test_the_thinker_carries_no_coordinates(short_run: Campaign) -> None:
    carried = short_run.summary()["thinker_bytes_per_segment"]
    assert carried["sent"] + carried["received"] < 8000
    assert all(line["task_info"]["proxied"] for line in short_run.traces("simulation"))


def test_stores_are_empty_at_the_end(short_run: Campaign) -> None:
    proxies = short_run.summary()["proxies"]
    assert proxies["left"] == 0
    assert proxies["created"] == proxies["evicted"] > 80
    assert not (short_run.run_dir / "proxystore").exists()


def test_ledger_knows_every_task_and_file(short_run: Campaign) -> None:
    n_segments = short_run.summary()["segments"]
    segments = short_run.ask("SELECT id, state, parent_id FROM task WHERE kind = 'simulate' ORDER BY id")
    assert [row[0] for row in segments] == list(range(n_segments))
    assert {row[1] for row in segments} == {"complete"}
    assert all(parent is None or 0 <= parent < own for own, _, parent in segments)
    assert short_run.ask("SELECT DISTINCT outcome FROM attempt") == [("success",)]
    files = short_run.ask("SELECT kind, path, sha256, bytes FROM artifact")
    assert {kind for kind, *_ in files} == {"trajectory", "reference", "model"}
    for _, path, digest, n_bytes in files:
        data = (short_run.run_dir / path).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (digest, n_bytes)
    on_disk = {str(path.relative_to(short_run.run_dir)) for path in short_run.run_dir.glob("trajectories/*")}
    assert on_disk == {path for kind, path, *_ in files if kind == "trajectory"}


def test_trajectories_open_and_continue_their_parents(short_run: Campaign) -> None:
    for line in short_run.traces("simulation")[::9]:
        info = line["task_info"]
        frames = positions(short_run.run_dir, info["segment_id"])
        assert frames.shape == (info["n_frames"], info["n_atoms"], 3)
        if info["parent_id"] is not None:
            start = positions(short_run.run_dir, info["parent_id"])[info["parent_frame"]]
            # A quarter of a picosecond of thermal motion away from the start, not another structure.
            assert mda.analysis.rms.rmsd(frames[0], start, superposition=True) < 1.5


def test_coverage_counts_the_cells_of_the_saved_frames(short_run: Campaign) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        universe = mda.Universe(short_run.run_dir / "topology.pdb")
    residue = universe.select_atoms("resname ALA").residues[0]
    phi, psi = (getattr(residue, f"{name}_selection")().indices[None] for name in ("phi", "psi"))
    frames = np.concatenate([positions(short_run.run_dir, i) for i in range(short_run.summary()["segments"])])
    assert len(set(phi_psi_cells(frames / 10, phi, psi))) == short_run.summary()["coverage"]["value"]


def test_segments_are_at_their_temperature(short_run: Campaign) -> None:
    control = [json.loads(line) for line in (short_run.run_dir / "control/simulation-results.jsonl").open()]
    temperatures = [line["task_info"]["mean_temperature_K"] for line in control]
    # 80 segments of 57 degrees of freedom: the mean is known within 2 %.
    assert np.mean(temperatures) == pytest.approx(300, rel=0.06)


def test_control_ran_plain_for_as_long(short_run: Campaign) -> None:
    control = json.loads((short_run.run_dir / "control/summary.json").read_text())
    assert control["policy"] == "plain"
    assert control["segments"] == short_run.summary()["segments"]
    assert control["steered_fraction"] == 0


def test_params_are_a_config_that_gives_the_same_settings(short_run: Campaign) -> None:
    params = short_run.run_dir / "params.json"
    again = parse(["--config", str(params)]).settings
    assert again.as_config() == json.loads(params.read_text())


def test_reference_and_models_are_kept(short_run: Campaign) -> None:
    references = sorted(short_run.run_dir.glob("models/reference-*.npz"))
    assert len(references) == 2
    with np.load(references[-1], allow_pickle=False) as arrays:
        newest = ReferenceSet.from_arrays(dict(arrays))
    assert newest.n_seen == short_run.summary()["frames"]
    assert len(list(short_run.run_dir.glob("models/model-*.pt"))) == short_run.summary()["model_versions"]


def test_nothing_of_the_environment_is_kept(short_run: Campaign) -> None:
    for path in short_run.run_dir.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"canary-5f2c" not in data, path
            assert b"secret-key" not in data, path


def test_progress_is_told_in_lines_where_there_is_no_terminal(short_run: Campaign) -> None:
    assert any("segments" in line and "ns/day" in line for line in short_run.out.splitlines())


def positions(run_dir: Path, segment_id: int) -> np.ndarray:
    """Frames of a segment in Angstrom."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        universe = mda.Universe(run_dir / "topology.pdb", run_dir / f"trajectories/{segment_id:08d}.dcd")
    return np.array([frame.positions.copy() for frame in universe.trajectory])
