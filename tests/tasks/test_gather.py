"""Trajectories on a node's scratch, and the archives that are made of them: real files, real processes."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import platform
import tarfile
from dataclasses import replace

import pytest

from tasks import gather as module
from tasks.errors import TaskFailed
from tasks.gather import (
    gather,
    gather_all,
    gather_when_due,
    is_whole,
    keep_pending,
    manifests,
    read_manifest,
    remove_unfinished,
    tidy,
)
from tasks.messages import GatherSpec, Scratch
from tasks.simulate import run_segment


@pytest.fixture
def scratch(tmp_path):
    return Scratch(str(tmp_path / "scratch" / "wayfinder-1"), 3)


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


def keep(segment, scratch, *numbers, attempt=1):
    return [
        keep_pending(replace(segment, segment_id=number, attempt=attempt), scratch, b"frames of %d" % number)
        for number in numbers
    ]


def pending(scratch):
    return sorted(os.listdir(os.path.join(scratch.folder, platform.node(), "pending")))


def below(path):
    return sorted(each.name for each in path.rglob("*") if each.is_file())


def test_the_nth_trajectory_makes_an_archive(segment, scratch, run_dir):
    files = keep(segment, scratch, 0, 1)
    assert gather_when_due(scratch, str(run_dir)) is None
    assert files[0].node == platform.node()
    assert pending(scratch) == ["00000000.1.dcd", "00000001.1.dcd"]
    assert below(run_dir) == []
    files += keep(segment, scratch, 2)
    archive = gather_when_due(scratch, str(run_dir))
    assert pending(scratch) == []
    assert archive.file.path == f"archives/{platform.node()}-000001.tar.gz"
    assert [(m.segment_id, m.name, m.sha256, m.n_bytes) for m in archive.members] == [
        (number, file.path, file.sha256, file.n_bytes) for number, file in enumerate(files)
    ]
    with tarfile.open(run_dir / archive.file.path) as packed:
        for member in archive.members:
            content = packed.extractfile(member.name).read()
            assert hashlib.sha256(content).hexdigest() == member.sha256
    (manifest,) = manifests(run_dir)
    assert read_manifest(manifest) == archive
    assert is_whole(run_dir, archive.file)


def test_a_segment_writes_to_scratch_and_nothing_else(segment, scratch, run_dir):
    direct = run_segment(replace(segment, run_dir=str(run_dir)))
    for path in run_dir.rglob("*.dcd*"):
        path.unlink()
    kept = run_segment(replace(segment, run_dir=str(run_dir), scratch=scratch))
    assert below(run_dir) == []
    assert kept.archive is None
    assert (kept.trajectory.path, kept.trajectory.staged) == ("00000003.1.dcd", None)
    assert (kept.trajectory.sha256, kept.trajectory.n_bytes) == (direct.trajectory.sha256, direct.trajectory.n_bytes)


def test_a_segment_that_makes_enough_brings_the_archive(segment, scratch, run_dir):
    result = run_segment(replace(segment, run_dir=str(run_dir), scratch=replace(scratch, gather_every=1)))
    assert [member.segment_id for member in result.archive.members] == [3]


def test_archives_get_new_names_also_where_scratch_was_emptied(segment, scratch, run_dir):
    for number in range(3):
        keep(segment, scratch, number)
        gather_all(scratch, run_dir)
        tidy(scratch)
        assert not os.path.exists(scratch.folder)
    assert [manifest.name[-11:] for manifest in manifests(run_dir)] == ["000001.json", "000002.json", "000003.json"]


def test_nothing_pending_makes_nothing(segment, scratch, run_dir):
    assert gather_all(scratch, run_dir) is None
    keep(segment, scratch, 1)
    result = gather(GatherSpec(2**40, 1, scratch, str(run_dir)))
    assert (result.node, len(result.archive.members)) == (platform.node(), 1)
    assert gather(GatherSpec(2**40, 1, scratch, str(run_dir))).archive is None


def test_one_worker_of_a_node_gathers_and_the_others_go_on(segment, scratch, run_dir, monkeypatch):
    keep(segment, scratch, 1, 2, 3)
    with open(os.path.join(scratch.folder, platform.node(), "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert gather_when_due(scratch, str(run_dir)) is None
        monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
        with pytest.raises(TaskFailed, match="is being gathered for more than 0.2 s by another process"):
            gather_all(scratch, run_dir)
    assert len(pending(scratch)) == 3
    assert len(gather_when_due(scratch, str(run_dir)).members) == 3


def _many(segment, scratch, run_dir, first):
    for number in range(first, first + 40):
        keep(segment, scratch, number)
        gather_when_due(scratch, str(run_dir))


def test_many_workers_gather_each_trajectory_once(segment, scratch, run_dir):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_many, args=(segment, scratch, run_dir, 100 * i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    gather_all(scratch, run_dir)
    archives = [read_manifest(manifest) for manifest in manifests(run_dir)]
    found = sorted(member.segment_id for archive in archives for member in archive.members)
    assert found == sorted(100 * i + number for i in range(3) for number in range(40))
    assert all(is_whole(run_dir, archive.file) for archive in archives)


@pytest.mark.parametrize("step", ["_pack", "_bring", "_write_synced"])
def test_a_failure_on_the_way_leaves_all_to_the_next(segment, scratch, run_dir, monkeypatch, step):
    keep(segment, scratch, 1, 2, 3)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, step, no_space)
        assert gather_when_due(scratch, str(run_dir)) is None
        with pytest.raises(OSError, match="No space left"):
            gather_all(scratch, run_dir)
    assert len(pending(scratch)) == 3
    assert manifests(run_dir) == []
    # What a kill leaves there is no archive, for it has no manifest.
    remove_unfinished(run_dir)
    assert below(run_dir) == []
    assert len(gather_all(scratch, run_dir).members) == 3


def test_a_torn_archive_is_told_by_its_manifest(segment, scratch, run_dir):
    keep(segment, scratch, 1, 2, 3)
    archive = gather_all(scratch, run_dir)
    path = run_dir / archive.file.path
    path.write_bytes(path.read_bytes()[:-7])
    assert not is_whole(run_dir, archive.file)
    path.unlink()
    assert not is_whole(run_dir, archive.file)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"members": [{"name": 1}]}'])
def test_a_torn_manifest_is_a_sentence(segment, scratch, run_dir, content):
    keep(segment, scratch, 1)
    gather_all(scratch, run_dir)
    (manifest,) = manifests(run_dir)
    assert json.loads(manifest.read_text())["schema"] == 1
    manifest.write_text(content)
    with pytest.raises(TaskFailed, match=r"is torn \(.*\): restore it from a copy"):
        read_manifest(manifest)


def test_a_half_written_trajectory_is_not_pending(segment, scratch, run_dir):
    keep(segment, scratch, 1)
    folder = os.path.join(scratch.folder, platform.node(), "pending")
    with open(os.path.join(folder, "00000002.1.dcd.part"), "w") as half:
        half.write("half")
    assert [member.segment_id for member in gather_all(scratch, run_dir).members] == [1]
