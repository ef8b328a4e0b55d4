import hashlib
import os
import stat

import pytest

from tasks.files import discard, publish, sha256, stage, staged_files


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_record_describes_the_file(tmp_path):
    record = stage(tmp_path, "models/model-000001.pt", b"weights", 1)
    assert (tmp_path / record.staged).read_bytes() == b"weights"
    assert not (tmp_path / record.path).exists()
    assert record.path == "models/model-000001.pt"
    assert record.n_bytes == 7
    assert record.sha256 == hashlib.sha256(b"weights").hexdigest() == sha256(b"weights")


def test_attempts_never_write_over_each_other(tmp_path):
    second = stage(tmp_path, "model.pt", b"second", 2)
    publish(tmp_path, second)
    late = stage(str(tmp_path), "model.pt", b"first, which came late", 1)
    assert (tmp_path / "model.pt").read_bytes() == b"second"
    discard(tmp_path, late)
    assert names(tmp_path) == ["model.pt"]


def test_publishing_twice_is_publishing_once(tmp_path):
    record = stage(tmp_path, "models/model.pt", b"weights", 1)
    publish(tmp_path, record)
    publish(tmp_path, record)
    assert names(tmp_path) == ["model.pt"]
    (tmp_path / "models/model.pt").unlink()
    with pytest.raises(FileNotFoundError):
        publish(tmp_path, record)


def test_what_was_left_staged_is_found_again(tmp_path):
    records = [stage(tmp_path, f"trajectories/0000000{i}.dcd", bytes([i]), 10 + i) for i in range(3)]
    publish(tmp_path, records[1])
    assert sorted(staged_files(tmp_path), key=lambda file: file.path) == [records[0], records[2]]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    publish(tmp_path, stage(tmp_path, "model.pt", b"old", 1))

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        stage(tmp_path, "model.pt", b"new", 2)
    assert names(tmp_path) == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == b"old"


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o022)
    try:
        publish(tmp_path, stage(tmp_path, "model.pt", b"weights", 1))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "model.pt").stat().st_mode) == 0o644


@pytest.mark.parametrize("path", ["../outside.pt", "models/../../outside.pt", "/tmp/outside.pt"])
def test_paths_out_of_the_run_directory_are_refused(tmp_path, path):
    with pytest.raises(ValueError, match="leads out of the run directory"):
        stage(tmp_path / "run", path, b"weights", 1)
    assert not (tmp_path / "run").exists()
