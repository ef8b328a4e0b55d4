import hashlib
import os
import stat

import pytest

from tasks.files import sha256, write_atomically


def test_record_describes_the_file(tmp_path):
    record = write_atomically(tmp_path, "models/model-000001.pt", b"weights")
    assert (tmp_path / record.path).read_bytes() == b"weights"
    assert record.path == "models/model-000001.pt"
    assert record.n_bytes == 7
    assert record.sha256 == hashlib.sha256(b"weights").hexdigest() == sha256(b"weights")


def test_a_later_attempt_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    write_atomically(tmp_path, "model.pt", b"first attempt")
    write_atomically(str(tmp_path), "model.pt", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == b"second"


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    write_atomically(tmp_path, "model.pt", b"old")

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path, "model.pt", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == b"old"


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o022)
    try:
        write_atomically(tmp_path, "model.pt", b"weights")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "model.pt").stat().st_mode) == 0o644


@pytest.mark.parametrize("path", ["../outside.pt", "models/../../outside.pt", "/tmp/outside.pt"])
def test_paths_out_of_the_run_directory_are_refused(tmp_path, path):
    with pytest.raises(ValueError, match="leads out of the run directory"):
        write_atomically(tmp_path / "run", path, b"weights")
    assert not (tmp_path / "run").exists()
