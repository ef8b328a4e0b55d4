"""An environment is unpacked once on a node, by real shells at the same time."""

import subprocess
import tarfile

import pytest

from sites.site import worker_environment
from sites.staging import unpacking
from tasks.errors import BadInput


@pytest.fixture
def archive(tmp_path):
    """Return a packed environment whose activation and mending leave traces."""
    bin_ = tmp_path / "env" / "bin"
    bin_.mkdir(parents=True)
    programs = {"hello": "echo staged", "conda-unpack": f"sleep 0.3; echo mended >> {tmp_path}/mended"}
    for name, line in programs.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_ / name).chmod(0o755)
    (bin_ / "activate").write_text("export ACTIVATED=yes\n")
    path = tmp_path / "env.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        packed.add(tmp_path / "env", ".")
    return path


def shell(archive, scratch):
    lines = worker_environment(frozenset({"file"}), unpacking=tuple(unpacking(archive, scratch)))
    return subprocess.Popen(
        ["bash", "-c", f"{lines}\nhello $ACTIVATED && command -v hello"], stdout=subprocess.PIPE, text=True
    )


def test_many_shells_unpack_it_once_and_all_use_it(archive, tmp_path):
    scratch = tmp_path / "node" / "scratch"
    for _ in range(2):
        shells = [shell(archive, scratch) for _ in range(4)]
        for each in shells:
            said, where = each.communicate(timeout=60)[0].splitlines()
            assert each.returncode == 0
            assert said == "staged"
            assert where.startswith(str(scratch))
    assert (tmp_path / "mended").read_text() == "mended\n"


def test_a_half_unpacked_one_is_unpacked_anew(archive, tmp_path):
    assert shell(archive, tmp_path).wait(60) == 0
    (mark,) = tmp_path.glob("wayfinder-env-*/.whole")
    mark.unlink()
    (mark.parent / "bin" / "hello").unlink()
    assert shell(archive, tmp_path).wait(60) == 0


def test_an_archive_that_cannot_be_unpacked_ends_the_block(tmp_path):
    (tmp_path / "env.tar").write_text("no archive")
    assert shell(tmp_path / "env.tar", tmp_path).wait(60) == 1
    assert not list(tmp_path.glob("wayfinder-env-*/.whole"))


def test_an_archive_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"--stage-env .*env.tar cannot be read: .*; name a packed environment"):
        list(unpacking(tmp_path / "env.tar", tmp_path))
