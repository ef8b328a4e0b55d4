"""When time is over, and when a disk has no room."""

import shutil
import stat
import time
from collections import namedtuple
from datetime import datetime, timedelta

import pytest

from campaign.limits import end_of_time, too_full

Usage = namedtuple("Usage", "total used free")


def test_the_earliest_end_counts():
    began = time.monotonic()
    assert end_of_time(None, began, {}) is None
    assert end_of_time(10.0, began, {}) == began + 600
    soon = {"SLURM_JOB_END_TIME": str(int(time.time()) + 100)}
    assert end_of_time(None, began, soon) - time.monotonic() == pytest.approx(100, abs=2)
    assert end_of_time(10.0, began, soon) - time.monotonic() == pytest.approx(100, abs=2)
    assert end_of_time(1.0, began, soon) == began + 60


def test_an_older_slurm_is_asked(tmp_path, monkeypatch):
    end = (datetime.now() + timedelta(seconds=200)).isoformat(timespec="seconds")
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$3" = 17 ] && echo {end}\n')
    squeue.chmod(squeue.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert end_of_time(None, 0.0, {"SLURM_JOB_ID": "17"}) - time.monotonic() == pytest.approx(200, abs=2)
    assert end_of_time(None, 0.0, {"SLURM_JOB_ID": "18"}) is None
    squeue.write_text("#!/bin/sh\necho NONE\n")
    assert end_of_time(None, 0.0, {"SLURM_JOB_ID": "17"}) is None
    squeue.unlink()
    assert end_of_time(None, 0.0, {"SLURM_JOB_ID": "17"}) is None


def test_the_first_disk_without_room_is_named(tmp_path, monkeypatch):
    free = {tmp_path / "a": 50e6, tmp_path / "b": 5e6}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e9, 0, free[path]))
    assert too_full(free, 5_000_000) is None
    assert too_full(free, 10_000_000) == f"the disk of {tmp_path / 'b'} has 5 MB free, and --min-free-mb asks for 10"


def test_a_folder_that_is_gone_is_nobodys_disk(tmp_path):
    assert too_full([tmp_path / "gone"], 10**18) is None
