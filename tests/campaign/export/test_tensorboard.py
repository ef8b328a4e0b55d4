"""A run for TensorBoard, read back by its own reader."""

import hashlib
import sys

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from campaign.export.tensorboard import write_tensorboard
from campaign.ledger import FIRST_OTHER_ID
from campaign.trace import Run
from tasks.errors import BadInput
from tasks.messages import FileRecord
from tasks.reference import ReferenceSet, Sample


def read(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return {name: found.Scalars(name) for name in found.Tags()["scalars"]}


@pytest.fixture
def remembering(eventful, told):
    """The run with a reference set of three frames."""
    sample = Sample(
        np.array([[0, 1], [2, 7], [3, 0]]), np.zeros((3, 4, 3), np.float32), np.eye(3, 2, dtype=np.float32)
    )
    nothing = sample.take(np.arange(0))
    reference = ReferenceSet(
        2, 1, 24, sample, nothing, np.empty((0, 22, 3), np.float32), np.zeros(9, bool), np.empty(0, np.uint8)
    )
    path = eventful / "models" / "reference-000002.npz"
    path.parent.mkdir()
    np.savez(path, **reference.to_arrays())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = FileRecord("models/reference-000002.npz", digest, path.stat().st_size)
    with told.ledger.transaction():
        told.ledger.add_artifact(FIRST_OTHER_ID + 2, "reference", file)
    return eventful


def test_losses_are_those_of_the_run(eventful, tmp_path):
    write_tensorboard(Run(eventful), tmp_path / "out")
    losses = Run(eventful).losses
    for version, part in losses.groupby("model_version"):
        found = read(tmp_path / "out" / f"model-{version:06d}")
        assert found.keys() == {"loss/reconstruction", "loss/critic"}
        for name, scalars in found.items():
            assert [each.step for each in scalars] == part["epoch"].tolist()
            assert [each.value for each in scalars] == part[name.removeprefix("loss/")].tolist()
        (received,) = {each.wall_time for each in found["loss/critic"]}
        assert received == Run(eventful).tasks.query("topic == 'train'").received.iloc[version - 1]


def test_figures_are_those_of_the_inferences(eventful, tmp_path):
    write_tensorboard(Run(eventful), tmp_path / "out")
    found, inferences = read(tmp_path / "out"), Run(eventful).inferences
    for name in ("coverage", "novelty", "segments", "simulated_ns"):
        scalars = found[f"campaign/{name}"]
        assert [each.step for each in scalars] == inferences.index.tolist()
        assert [each.value for each in scalars] == pytest.approx(inferences[name].tolist())
        assert [each.wall_time for each in scalars] == inferences.received.tolist()
    assert "campaign/smallest_rmsd_nm" not in found


def test_the_projector_finds_embeddings_and_what_they_are_of(remembering, tmp_path):
    out = tmp_path / "out"
    write_tensorboard(Run(remembering), out)
    (told,) = text_format.Parse((out / "projector_config.pbtxt").read_text(), ProjectorConfig()).embeddings
    assert np.loadtxt(out / told.tensor_path).tolist() == np.eye(3, 2).tolist()
    assert (out / told.metadata_path).read_text().splitlines() == [
        "segment_id\tframe\tsegment_novelty\tmodel_version",
        "0\t1\t1.0\t1",
        "2\t7\t3.0\t1",
        "3\t0\t2.0\t1",
    ]


def test_another_export_takes_the_place_of_the_last_and_of_nothing_else(remembering, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "events.out.tfevents.1.mine").write_text("mine")
    for _ in range(2):
        write_tensorboard(Run(remembering), out)
    assert len(list(out.glob("events*.wayfinder"))) == len(list(out.glob("model-000001/*"))) == 1
    assert (out / "events.out.tfevents.1.mine").read_text() == "mine"
    assert not list(out.glob(".wayfinder*"))


def test_a_damaged_reference_set_is_refused(remembering, tmp_path):
    (remembering / "models" / "reference-000002.npz").write_bytes(b"torn")
    with pytest.raises(BadInput, match="reference-000002.npz cannot be read"):
        write_tensorboard(Run(remembering), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_leaves_others_embeddings_alone(remembering, tmp_path):
    place = tmp_path / "out"
    write_tensorboard(Run(remembering), place)
    (folder,) = {path.parent.parent for path in place.glob("*/reference_set/*")}
    (folder / "mine").mkdir()
    for path in (remembering / "models").glob("reference-*"):
        path.unlink()
    write_tensorboard(Run(remembering), place)
    assert (folder / "mine").is_dir()
    assert not (folder / "reference_set").exists()
    assert not (place / "projector_config.pbtxt").exists()


def test_an_empty_run_has_no_figures(told, tmp_path):
    write_tensorboard(Run(told.path), tmp_path / "out")
    assert read(tmp_path / "out") == {}


def test_without_the_library_it_says_how_to_get_it(eventful, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadInput, match=r"pip install -c constraints.txt -e '.\[ml,exports\]'"):
        write_tensorboard(Run(eventful), tmp_path / "out")
    assert not (tmp_path / "out").exists()
