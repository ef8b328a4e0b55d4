"""Frames of runs in numbers: of run directories with a prepared system and trajectories that a segment wrote."""

from dataclasses import replace

import numpy as np
import pytest

from campaign import geometry
from campaign.ledger import Ledger
from campaign.rundir import RunDirectory
from campaign.trace import Run
from campaign.trajectories import read_boxes
from tasks.errors import BadInput
from tasks.features import dihedrals_deg
from tasks.files import publish
from tasks.models import fit_pca
from tasks.reference import ReferenceSet, Sample
from tasks.simulate import run_segment
from tasks.transport import fetch


@pytest.fixture
def begin(tmp_path):
    """Begin a run of a prepared system."""

    def begun(prepared):
        Ledger(tmp_path / "ledger.sqlite").close()
        RunDirectory(tmp_path).write_inputs({}, prepared)
        return Run(tmp_path)

    return begun


def add_segment(run, spec):
    """Run a segment, record its trajectory, and return its frames as they were shipped."""
    result = run_segment(replace(spec, run_dir=str(run.path)))
    publish(run.path, result.trajectory)
    ledger = Ledger(RunDirectory(run.path).ledger)
    with ledger.transaction():
        ledger.add_task(spec.segment_id, "simulate", "cpu")
        ledger.add_artifact(spec.segment_id, "trajectory", result.trajectory)
    ledger.close()
    return fetch(result.frames)


def without_dihedrals(prepared):
    none = np.empty((0, 4), np.int64)
    return replace(prepared, phi_indices=none, psi_indices=none)


@pytest.mark.filterwarnings("ignore:No dimensions set")
@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
def test_a_peptide_is_described_by_its_dihedrals(begin, alanine, segment, suffix):
    run = begin(alanine)
    positions = add_segment(run, replace(segment, trajectory_format=suffix))["positions"]
    table = geometry.table(run, geometry.describe(run), [segment.segment_id])
    torsions = np.concatenate([alanine.phi_indices, alanine.psi_indices])
    assert table.columns.tolist() == ["φ (degrees)", "ψ (degrees)"]
    assert table.index.tolist() == [(segment.segment_id, frame) for frame in range(5)]
    # XTC keeps thousandths of a nanometre.
    assert table.to_numpy() == pytest.approx(dihedrals_deg(positions, torsions), abs=0.01 if suffix == "dcd" else 2.0)
    circle = geometry.table(run, geometry.describe_for_states(run), [segment.segment_id]).to_numpy()
    assert np.degrees(np.arctan2(circle[:, 2:], circle[:, :2])) == pytest.approx(table.to_numpy())


@pytest.mark.filterwarnings("ignore:No dimensions set")
def test_what_has_no_dihedrals_is_described_by_its_rmsd_and_its_embedding(begin, alanine, segment):
    run = begin(without_dihedrals(alanine))
    points = add_segment(run, segment)["positions"][:, alanine.feature_indices]
    shown = geometry.describe(run)
    assert (shown.kind, shown.names) == ("rmsd", ("RMSD to the start (nm)",))
    rmsd = geometry.table(run, shown, [segment.segment_id]).to_numpy()
    assert (rmsd > 0).all()
    assert rmsd.max() < 0.2
    (run.path / "models").mkdir()
    model = fit_pca(points, 3)
    (run.path / "models/model-000002.npz").write_bytes(model.to_bytes())
    embedded = geometry.table(run, geometry.describe_for_states(run), [segment.segment_id])
    assert embedded.columns.tolist() == [f"z{k} of the embedding" for k in range(3)]
    assert embedded.to_numpy() == pytest.approx(model.embed(points), abs=1e-4)


def test_without_dihedrals_and_without_model_there_are_no_states(begin, alanine):
    with pytest.raises(BadInput, match="has no model yet: look again once there was an inference"):
        geometry.describe_for_states(begin(without_dihedrals(alanine)))


def test_points_across_the_faces_of_a_box_are_put_together(begin, alanine):
    box = np.diag([2.0, 2.0, 2.0])
    points = alanine.feature_indices
    chain = np.array([(k, k - 1) for k in range(1, len(points))])
    run = begin(replace(without_dihedrals(alanine), box=box, feature_tree=chain))
    shown = geometry.describe(run)
    assert shown.needs_boxes
    whole = alanine.positions[None].astype(np.float32)
    torn = whole.copy()
    torn[:, points[4:]] += [2.0, 0.0, 0.0]
    assert shown.of(torn, box[None]) == pytest.approx(shown.of(whole, box[None]), abs=1e-5)


def test_a_particle_is_described_by_its_position(begin):
    from tasks.systems import named_system, prepare

    run = begin(prepare(named_system("double-well", platform="Reference")))
    shown = geometry.describe(run)
    assert shown.names == ("x (nm)", "y (nm)", "z (nm)")
    frames = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
    assert shown.of(frames, None).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert geometry.describe_for_states(run).names == shown.names


def test_boxes_are_read_with_the_frames(begin, water, segment):
    from tasks.transport import ship

    spec = replace(
        segment,
        system=ship(water.to_arrays(), segment.store),
        system_id=water.digest,
        start=ship(water.basis(), segment.store),
        dynamics=replace(segment.dynamics, n_steps=4, frame_steps=2, platform="CPU"),
    )
    run = begin(water)
    for number, suffix in enumerate(["dcd", "xtc"]):
        shipped = add_segment(run, replace(spec, segment_id=number, trajectory_format=suffix))
        (path,) = (run.path / "trajectories").glob(f"*.{suffix}")
        assert read_boxes(path) == pytest.approx(shipped["box"], abs=1e-4)
    assert {path.suffix for path in (run.path / "trajectories").iterdir()} == {".dcd", ".xtc"}


def test_atoms_that_trajectories_lack_are_told(begin, alanine):
    run = begin(replace(alanine, stored_indices=alanine.stored_indices[:5]))
    with pytest.raises(BadInput, match="lack .* of the atoms that are asked for.*begin campaigns with a --store"):
        geometry.describe(run)


def test_torsions_are_told_where_all_their_atoms_are_kept(begin, alanine):
    seen = np.setdiff1d(alanine.stored_indices, alanine.psi_indices[0, -1:])
    seen = np.union1d(seen, alanine.feature_indices)
    left = replace(alanine, feature_indices=np.setdiff1d(alanine.feature_indices, alanine.psi_indices[0, -1:]))
    run = begin(replace(left, stored_indices=np.setdiff1d(seen, alanine.psi_indices[0, -1:])))
    assert geometry.describe(run).kind == "rmsd"


def test_atoms_are_found_where_trajectories_keep_them(begin, alanine):
    kept = alanine.stored_indices[::-1]
    run = begin(replace(alanine, stored_indices=kept))
    frames = alanine.positions[None].astype(np.float32)
    torsions = np.concatenate([alanine.phi_indices, alanine.psi_indices])
    assert geometry.describe(run).of(frames[:, kept], None) == pytest.approx(dihedrals_deg(frames, torsions))


def test_segments_that_cannot_be_read_are_counted(begin, alanine):
    run = begin(alanine)
    table = geometry.table(run, geometry.describe(run), [4, 5])
    assert (len(table), table.attrs["left_out"]) == (0, 2)
    assert table.columns.tolist() == ["φ (degrees)", "ψ (degrees)"]


def test_few_of_many_are_evenly_spread():
    assert geometry.spread(range(3), 5) == [0, 1, 2]
    assert geometry.spread(range(0, 101), 5) == [0, 25, 50, 75, 100]


def test_a_plane_shows_what_varies_most():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 3)) * [0.01, 5.0, 1.0] + 7.0
    shown, share = geometry.plane(points)
    assert shown.std(axis=0) == pytest.approx([5.0, 1.0], rel=0.1)
    assert share > 0.999
    line, share = geometry.plane(points[:, :1])
    assert (line[:, 1].tolist(), share) == ([0.0] * 500, 1.0)


def test_frames_that_no_model_embedded_are_shown_by_principal_components():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(20, 10, 3)).astype(np.float32)
    empty = ReferenceSet.empty(10, 22, 0, np.zeros(576, bool))
    ids = np.zeros((20, 2), np.int64)
    model = fit_pca(points, 3)
    pca = np.frombuffer(model.to_bytes(), np.uint8)
    reference = replace(empty, sample=Sample(ids, points, np.empty((20, 0), np.float32)), pca=pca)
    assert geometry.latent(reference) == pytest.approx(model.embed(points)[:, :2])
    embedded = replace(reference, sample=Sample(ids, points, points[:, 0, :2]))
    assert geometry.latent(embedded) is embedded.sample.latent
