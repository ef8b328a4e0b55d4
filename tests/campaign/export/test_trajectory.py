"""Trajectories joined into one: the frames of the segments, in order, and an index that leads back to them."""

import hashlib
import io
import tarfile

import MDAnalysis as mda
import numpy as np
import pandas as pd
import pytest
from MDAnalysis.lib.mdamath import triclinic_box

from campaign.export.trajectory import write_trajectory
from campaign.trace import Run
from tasks.errors import BadInput
from tasks.messages import FileRecord

N_ATOMS, N_FRAMES, FRAME_PS = 5, 4, 0.248

# A truncated octahedron, nm.
BOX = np.array([[3.0, 0, 0], [1.0, 2.8, 0], [-1.0, 1.4, 2.4]])

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def universe(segment_id, box):
    """Return a segment's frames, Angstrom: other positions and another box in each."""
    made = mda.Universe.empty(N_ATOMS, trajectory=True)
    rng = np.random.default_rng(segment_id)
    coordinates = rng.normal(size=(N_FRAMES, N_ATOMS, 3)).astype(np.float32) * 10
    boxes = None
    if box is not None:
        boxes = np.array([triclinic_box(*(10 + segment_id + n / 10) * box) for n in range(N_FRAMES)], np.float32)
    made.load_new(coordinates, dimensions=boxes, dt=FRAME_PS)
    return made


def content(path, segment_id, box, suffix):
    place = path / f"made.{suffix}"
    made = universe(segment_id, box)
    with mda.Writer(str(place), n_atoms=N_ATOMS, dt=FRAME_PS) as writer:
        for _ in made.trajectory:
            writer.write(made)
    data = place.read_bytes()
    place.unlink()
    return data


def record(told, segment_id, path, data, **more):
    """Tell the ledger of a complete segment and its trajectory."""
    digest = hashlib.sha256(data).hexdigest()
    with told.ledger.transaction():
        told.ledger.add_task(segment_id, "simulate", "cpu", **more)
        told.ledger.complete(segment_id)
        told.ledger.add_artifact(segment_id, "trajectory", FileRecord(path, digest, len(data)))


@pytest.fixture
def run(told, tmp_path):
    """A run, and a function that gives it segments."""
    made = mda.Universe.empty(N_ATOMS, 1, atom_resindex=[0] * N_ATOMS, trajectory=True)
    made.add_TopologyAttr("names", ["N", "CA", "C", "O", "CB"])
    made.add_TopologyAttr("resnames", ["ALA"])
    made.atoms.write(str(told.path / "topology.pdb"))
    (told.path / "trajectories").mkdir()

    def add(*segment_ids, box=None, suffix="dcd"):
        for segment_id in segment_ids:
            path, data = f"trajectories/{segment_id:08d}.{suffix}", content(tmp_path, segment_id, box, suffix)
            (told.path / path).write_bytes(data)
            record(told, segment_id, path, data, walker_id=segment_id % 2, iteration=0)
        return Run(told.path)

    return add


def joined(place):
    """Return positions and boxes of the joined file, its times, and its index."""
    found = mda.Universe(str(place.with_suffix(".pdb")), str(place))
    index = pd.read_csv(f"{place}.csv")
    # Some readers use one array for all boxes.
    told = [(found.atoms.positions.copy(), np.copy(found.dimensions), ts.time) for ts in found.trajectory]
    return *zip(*told, strict=True), index


def wanted(*segment_ids, box=None):
    frames = []
    for segment_id in segment_ids:
        made = universe(segment_id, box)
        frames += [(made.atoms.positions.copy(), made.dimensions) for _ in made.trajectory]
    return zip(*frames, strict=True)


@pytest.mark.parametrize("suffix", ["dcd", "trr", "nc", "h5md"])
def test_frames_are_those_of_the_segments_in_the_order_of_their_ids(run, tmp_path, suffix):
    place = tmp_path / f"all.{suffix}"
    write_trajectory(run(2, 0, 1), place)
    positions, _, times, _ = joined(place)
    expected, _ = wanted(0, 1, 2)
    np.testing.assert_allclose(positions, expected, atol=1e-5)
    np.testing.assert_allclose(np.diff(times), FRAME_PS, atol=1e-5)


def test_the_index_leads_back_to_the_segments(run, tmp_path):
    write_trajectory(run(0, 1, 2), tmp_path / "all.dcd")
    *_, index = joined(tmp_path / "all.dcd")
    assert index.columns.tolist() == [
        "frame", "segment_id", "segment_frame", "time_ps_in_segment", "walker_id", "iteration",
    ]  # fmt: skip
    assert index.frame.tolist() == list(range(12))
    assert index.segment_id.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert index.segment_frame.tolist() == list(range(4)) * 3
    # The start frame is left out, the end frame is not: 62 steps of 4 fs are between them.
    assert index.time_ps_in_segment.tolist() == [0.248, 0.496, 0.744, 0.992] * 3
    assert index.walker_id.tolist() == [0] * 4 + [1] * 4 + [0] * 4


def test_a_stride_goes_on_from_one_segment_to_the_next(run, tmp_path):
    write_trajectory(run(0, 1, 2), tmp_path / "all.dcd", stride=3)
    positions, *_, index = joined(tmp_path / "all.dcd")
    assert list(zip(index.segment_id, index.segment_frame, strict=True)) == [(0, 0), (0, 3), (1, 2), (2, 1)]
    np.testing.assert_array_equal(positions, list(wanted(0, 1, 2))[0][::3])


def test_a_selection_has_a_topology_of_its_own(run, tmp_path):
    write_trajectory(run(0, 1), tmp_path / "some.dcd", select="name CA CB")
    positions, *_ = joined(tmp_path / "some.dcd")
    expected, _ = wanted(0, 1)
    np.testing.assert_array_equal(positions, np.array(expected)[:, [1, 4]])
    assert mda.Universe(str(tmp_path / "some.pdb")).atoms.names.tolist() == ["CA", "CB"]


@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
def test_boxes_are_kept(run, tmp_path, suffix):
    write_trajectory(run(0, 1, box=BOX, suffix=suffix), tmp_path / f"all.{suffix}")
    positions, boxes, *_ = joined(tmp_path / f"all.{suffix}")
    expected, expected_boxes = wanted(0, 1, box=BOX)
    np.testing.assert_allclose(positions, expected, atol=0.02)
    np.testing.assert_allclose(boxes, expected_boxes, atol=0.02)


def test_nothing_is_left_beside_the_runs_trajectories(run, tmp_path):
    made = run(0, 1, suffix="xtc")
    write_trajectory(made, tmp_path / "all.xtc")
    assert {path.name for path in (made.path / "trajectories").iterdir()} == {"00000000.xtc", "00000001.xtc"}


def test_trajectories_in_archives_are_read(run, told, tmp_path):
    (told.path / "archives").mkdir()
    for name, segment_ids in (("a", (0, 2)), ("b", (1, 3))):
        with tarfile.open(told.path / "archives" / f"{name}.tar.gz", "w:gz") as archive:
            for segment_id in segment_ids:
                data = content(tmp_path, segment_id, None, "dcd")
                member = tarfile.TarInfo(f"{segment_id:08d}.1.dcd")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                record(told, segment_id, f"archives/{name}.tar.gz/{member.name}", data)
    write_trajectory(Run(told.path), tmp_path / "all.dcd")
    positions, *_ = joined(tmp_path / "all.dcd")
    np.testing.assert_array_equal(positions, list(wanted(0, 1, 2, 3))[0])


def test_segments_on_scratch_are_left_out_and_told(run, told, tmp_path):
    made = run(0)
    record(told, 1, "scratch:node/00000001.1.dcd", b"")
    with told.ledger.transaction():
        told.ledger.set_state(1, "computed")
    assert "1 segments on nodes' scratch are left out" in write_trajectory(made, tmp_path / "all.dcd")
    assert len(joined(tmp_path / "all.dcd")[0]) == N_FRAMES


def refused(run, place, match, **more):
    """Check that an export is refused and leaves nothing."""
    before = set(place.parent.iterdir())
    with pytest.raises(BadInput, match=match):
        write_trajectory(run, place, **more)
    assert set(place.parent.iterdir()) == before


def test_a_damaged_trajectory_is_named(run, tmp_path):
    made = run(0, 1, 2)
    path = made.path / "trajectories" / "00000001.dcd"
    path.write_bytes(path.read_bytes()[:-100])
    refused(made, tmp_path / "all.dcd", "trajectory trajectories/00000001.dcd of segment 1 is damaged")


def test_a_missing_trajectory_is_named(run, tmp_path):
    made = run(0, 1)
    (made.path / "trajectories" / "00000001.dcd").unlink()
    refused(made, tmp_path / "all.dcd", "00000001.dcd of segment 1 cannot be read")


def test_a_damaged_archive_is_named(run, told, tmp_path):
    (told.path / "archives").mkdir()
    (told.path / "archives" / "a.tar.gz").write_bytes(b"torn")
    record(told, 0, "archives/a.tar.gz/00000000.1.dcd", b"")
    refused(Run(told.path), tmp_path / "all.dcd", "a.tar.gz is damaged")


def test_a_segment_that_left_no_trajectory_is_named(run, told, tmp_path):
    made = run(0)
    with told.ledger.transaction():
        told.ledger.add_task(1, "simulate", "cpu", state="complete")
    refused(made, tmp_path / "all.dcd", "segment 1 .* left no trajectory")


def test_a_run_without_a_complete_segment_is_refused(run, tmp_path):
    refused(run(), tmp_path / "all.dcd", "has no complete segment to join: let it run first")


@pytest.mark.parametrize("name", ["all", "all.foo", "all.pdb", "all.gro"])
def test_a_suffix_of_no_format_for_many_frames_is_refused(run, tmp_path, name):
    refused(run(0), tmp_path / name, "suffix of no format for many frames")


@pytest.mark.parametrize(
    ("select", "match"), [("nme CA", "is no selection of MDAnalysis"), ("name XX", "selects none of the 5 atoms")]
)
def test_a_selection_that_cannot_be_used_is_refused(run, tmp_path, select, match):
    refused(run(0), tmp_path / "all.dcd", match, select=select)


def test_the_runs_topology_is_not_written_over(run):
    made = run(0)
    refused(made, made.path / "topology.dcd", "topology.pdb is a campaign's own")
