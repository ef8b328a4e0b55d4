"""The short timing, and work in a process of its own."""

from __future__ import annotations

import os
import signal
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from campaign.aside import aside
from campaign.settings import Settings
from campaign.timing import Timing, time_aside
from tasks import engine
from tasks.errors import BadInput
from tasks.prepared import PreparedSystem


@pytest.fixture(autouse=True)
def no_warm_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign's main process has none; a forked one would wait for the threads of another test's."""
    monkeypatch.setattr(engine, "_engines", OrderedDict())


def never() -> bool:
    return False


def test_a_whole_segment_is_timed_where_it_is_short(alanine: PreparedSystem, tmp_path: Path) -> None:
    dynamics = Settings().dynamics("Reference")
    timing = time_aside(alanine, dynamics, "dcd", tmp_path, never)
    assert timing is not None
    assert timing.platform == "Reference"
    assert timing.ps_per_s > 1
    assert 0 < timing.fixed_s < 1
    (trajectory,) = (tmp_path / "trajectories").iterdir()
    assert trajectory.stat().st_size == 3108  # all 8 frames


def test_a_part_is_timed_where_a_segment_is_long(alanine: PreparedSystem, tmp_path: Path) -> None:
    dynamics = replace(Settings().dynamics("Reference"), n_steps=10**9, frame_steps=10**9)
    timing = time_aside(alanine, dynamics, "dcd", tmp_path, never)
    assert timing is not None
    # At 0.1 ms a step a whole segment would take a day.
    assert timing.seconds(dynamics) > 1000


def test_a_padded_segment_takes_at_least_its_time() -> None:
    timing = Timing("here", "Reference", ps_per_s=100.0, fixed_s=0.5)
    dynamics = replace(Settings().dynamics("Reference"), n_steps=500)
    assert timing.seconds(dynamics) == pytest.approx(0.52)
    assert timing.seconds(replace(dynamics, min_seconds=3.0)) == 3.0


def test_what_cannot_be_run_is_a_sentence(alanine: PreparedSystem, tmp_path: Path) -> None:
    broken = replace(alanine, positions=alanine.positions * float("inf"))
    with pytest.raises(BadInput, match="system alanine-dipeptide cannot be run on Reference"):
        time_aside(broken, Settings().dynamics("Reference"), "dcd", tmp_path, never)


def test_work_aside_ends_when_it_is_interrupted() -> None:
    before = set(psutil.Process().children())
    assert aside(lambda: time.sleep(60), "sleeping", lambda: True) is None
    assert set(psutil.Process().children()) == before


def test_work_aside_that_dies_is_a_sentence() -> None:
    with pytest.raises(BadInput, match=r"it cannot be done: its process ended \(exit -9\)"):
        aside(lambda: os.kill(os.getpid(), signal.SIGKILL), "it cannot be done", never)
