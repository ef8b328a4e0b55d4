"""A run has one process at a time, and a dead one does not have it."""

import subprocess
import sys
import time
from collections import namedtuple

import psutil
import pytest

from campaign import filesystem
from campaign.filesystem import in_use_by, network_file_system, only_process
from tasks.errors import BadInput
from tests.integration.conftest import ROOT

Part = namedtuple("Part", "mountpoint fstype")

HOLDER = """
import sys, time
from pathlib import Path
from campaign.filesystem import only_process
with only_process(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path, holder):
    assert in_use_by(tmp_path).startswith(f"process {holder.pid} on ")
    with (
        pytest.raises(BadInput, match=f"is in use by process {holder.pid} on .*: wait for its end"),
        only_process(tmp_path),
    ):
        pass


def test_a_dead_process_does_not_hold_the_run(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert in_use_by(tmp_path) is None
    with only_process(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith("process ")


def test_looking_whether_a_run_is_in_use_does_not_get_in_the_way(tmp_path):
    with only_process(tmp_path):
        pass
    looking = subprocess.Popen(
        [sys.executable, "-c", f"""
import time
from pathlib import Path
from campaign.filesystem import in_use_by
end = time.time() + 3
print("looking", flush=True)
while time.time() < end:
    in_use_by(Path({str(tmp_path)!r}))
    time.sleep(0.002)
"""], cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert looking.stdout.readline() == "looking\n"
    taken, end = 0, time.monotonic() + 1
    while time.monotonic() < end:
        with only_process(tmp_path):
            taken += 1
    looking.kill()
    looking.wait()
    assert taken > 0


def test_the_kind_of_disk_is_that_of_the_nearest_mount(tmp_path, monkeypatch):
    mounts = [Part("/", "ext4"), Part(str(tmp_path), "nfs4"), Part(str(tmp_path / "local"), "xfs")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    (tmp_path / "local").mkdir()
    assert network_file_system(tmp_path / "run" / "ledger.sqlite") == "nfs4"
    assert network_file_system(tmp_path / "local" / "ledger.sqlite") is None
    assert filesystem.network_file_system(tmp_path.parent) is None
