"""No death of a process, and no other program, leaves a wrong west.h5."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from campaign.west.file import WestBusy, WestFile
from tests.ensembles import beginning, double_well, rectilinear, run

N = 30
LAYOUT = double_well()


@pytest.fixture(scope="module")
def series():
    return list(run(LAYOUT, rectilinear(), N, seed=1))


@pytest.fixture
def west(tmp_path):
    return WestFile(tmp_path / "west.h5", LAYOUT)


@pytest.fixture
def written(west, series):
    west.rebuild(beginning(8), rectilinear(), series)
    return west


def contents(path):
    """Return all there is in a file but its own addresses: datasets by name, and attributes."""
    told = {}
    with h5py.File(path) as file:

        def tell(name, item):
            told.update({(name, key): value for key, value in item.attrs.items()})
            if isinstance(item, h5py.Dataset):
                names = [each for each in item.dtype.names or () if each != "group_ref"]
                told[name] = item[...][names].tolist() if names else item[...].tolist()

        file.visititems(tell)
        told.update(file.attrs)
    return told


@pytest.mark.parametrize("held", [0, 1, 12, N])
def test_a_file_that_is_behind_is_brought_up(west, series, written, tmp_path, held):
    late = WestFile(tmp_path / "late.h5", LAYOUT)
    late.begin(beginning(8), rectilinear())
    for each in series[:held]:
        late.append(each)
    follow(late, series)
    assert contents(late.path) == contents(written.path)


def follow(west, series):
    last = series[-1] if series else None
    west.follow(beginning(8), rectilinear(), last, lambda number: iter(series[number - 1 :]))


@pytest.mark.parametrize("damage", ["ahead", "another", "empty", "half", "text", "missing"])
def test_a_file_that_is_not_the_ledgers_is_made_again(written, series, damage):
    whole = contents(written.path)
    if damage == "ahead":
        series = series[:20]
        whole = {}
    elif damage == "another":
        written.rebuild(beginning(8), rectilinear(), run(LAYOUT, rectilinear(), N, seed=2))
    elif damage == "missing":
        written.path.unlink()
    else:
        content = written.path.read_bytes()
        written.path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"text" * 999}[damage])
    follow(written, series)
    assert written.last == len(series)
    assert written.holds(series[-1])
    assert not whole or contents(written.path) == whole


def test_nothing_ended_yet(west):
    follow(west, [])
    assert west.last == 0
    assert west.path.exists()


_WRITER = """
import pickle, sys
from campaign.west.file import WestFile
layout, first, binning, series = pickle.load(open(sys.argv[1], "rb"))
west = WestFile(__import__("pathlib").Path(sys.argv[2]), layout)
west.begin(first, binning)
print("begun", flush=True)
for each in series:
    west.append(each)
if "again" in sys.argv:
    west.rebuild(first, binning, series)
print("done", flush=True)
"""


@pytest.fixture
def writer(tmp_path, series):
    """Start a process that writes the series."""
    given = tmp_path / "series"
    given.write_bytes(pickle.dumps((LAYOUT, beginning(8), rectilinear(), series)))

    def start(*more, **environment):
        return subprocess.Popen(
            [sys.executable, "-c", _WRITER, given, tmp_path / "west.h5", *more],
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
        )

    return start


@pytest.mark.parametrize("number", [1, 9])
def test_a_kill_in_mid_append_is_noticed_and_mended(writer, west, series, number, written):
    whole = contents(written.path)
    killed = writer(WAYFINDER_KILL_AT=f"west-append:{number}")
    assert killed.wait(60) == -signal.SIGKILL
    assert west.last == 0
    follow(west, series)
    assert contents(west.path) == whole
    assert list(west.path.parent.glob(".west*")) == []


def test_a_kill_in_mid_rebuild_leaves_the_file_that_was_there(writer, west, series):
    killed = writer("again", WAYFINDER_KILL_AT="west-rebuild:5")
    assert killed.wait(60) == -signal.SIGKILL
    assert west.last == N
    assert west.holds(series[-1])
    follow(west, series)
    west.rebuild(beginning(8), rectilinear(), series)
    assert list(west.path.parent.glob(".west*")) == []


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_any_time_are_mended(writer, west, series, seed, written):
    """What the killed process acknowledged is there, and what it had begun is never taken for whole."""
    whole, chance = contents(written.path), random.Random(seed)
    for _ in range(2):
        process = writer()
        assert process.stdout.readline() == b"begun\n"
        time.sleep(chance.uniform(0, 1.0))
        process.kill()
        process.wait(60)
        held = west.last
        assert held == 0 or west.holds(series[held - 1])
        follow(west, series)
        assert contents(west.path) == whole


def test_another_programs_lock_makes_the_file_late_not_wrong(west, series):
    west.begin(beginning(8), rectilinear())
    west.append(series[0])
    hold = f"import h5py, sys; f = h5py.File({str(west.path)!r}, sys.argv[1]); print('open', flush=True); input()"
    for mode in ("r", "r+"):
        other = subprocess.Popen(
            [sys.executable, "-c", hold, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert other.stdout.readline() == "open\n"
        with pytest.raises(WestBusy):
            west.append(series[1])
        with pytest.raises(WestBusy):
            follow(west, series)
        other.communicate("\n", timeout=30)
    assert west.last == 1
    follow(west, series)
    assert west.holds(series[-1])
