"""A user's function that is called while a segment runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.bundle import run_bundle
from tasks.indices import Indices
from tasks.live import Audience, Stop
from tasks.messages import SegmentResult, SegmentSpec, Watch
from tasks.onlooker import MAX_VALUES_BYTES, Onlooker
from tasks.prepared import PreparedSystem
from tasks.simulate import begin_segment, run_segment
from tasks.transport import fetch

MINE = """
import numpy as np
from tasks.live import Stop

calls = []


def note(frames, times_ps, box):
    calls.append((frames.copy(), times_ps, box))
    frames[:] = 0
    return {"first_ps": times_ps[0], "n": len(frames)}


def stop_late(frames, times_ps, box):
    return Stop({"last_ps": times_ps[-1]}) if times_ps[-1] > 0.3 else None


def stop(frames, times_ps, box):
    return Stop


def sometimes(frames, times_ps, box):
    if times_ps[-1] < 0.2:
        raise ValueError("too\\nearly")
    return {"x": 1}


def unfit(frames, times_ps, box):
    return {"x": float("nan")}


def endless(frames, times_ps, box):
    try:
        while True:
            pass
    except Exception:
        pass
"""


@pytest.fixture
def mine(tmp_path: Path, request: pytest.FixtureRequest) -> Watch:
    name = f"live_{request.node.name.partition('[')[0]}"
    (tmp_path / f"{name}.py").write_text(MINE)
    return Watch(every=2, may_stop=True, on_frames=f"{name}:note", here=str(tmp_path), timeout_s=20.0)


def onlooker(function: str, here: Path, stored: np.ndarray) -> Onlooker:
    return Onlooker(Watch(1, True, function, str(here), 20.0), function, 1.0, stored)


def calling(segment: SegmentSpec, watch: Watch, function: str, **changes: object) -> SegmentSpec:
    name = f"{watch.on_frames.partition(':')[0]}:{function}"
    return replace(segment, watch=replace(watch, on_frames=name, **changes))


def frames_of(result: SegmentResult) -> np.ndarray:
    return fetch(result.frames)["positions"]


def test_every_frame_is_shown_once_and_what_is_done_to_it_changes_nothing(segment: SegmentSpec, mine: Watch) -> None:
    import importlib

    plain = run_segment(segment)
    watched = run_segment(replace(segment, watch=mine))
    calls = importlib.import_module(mine.on_frames.partition(":")[0]).calls
    assert [len(frames) for frames, _, _ in calls] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([frames for frames, _, _ in calls]), frames_of(plain))
    times_ps = np.concatenate([times for _, times, _ in calls])
    np.testing.assert_allclose(times_ps, segment.dynamics.frame_ps * np.arange(1, 6))
    assert [box for _, _, box in calls] == [None] * 3
    # It was not in the way: the same bits, and as long.
    np.testing.assert_array_equal(frames_of(watched), frames_of(plain))
    assert watched.mean_temperature_K == plain.mean_temperature_K
    assert watched.simulated_ps == plain.simulated_ps == segment.dynamics.segment_ps
    told = watched.watched
    assert (told.n_batches, told.n_failed, told.error, told.stopped, told.n_left_out) == (3, 0, None, False, 0)
    assert [seen.values["n"] for seen in told.seen] == [2, 2, 1]
    assert [seen.until_ps for seen in told.seen] == pytest.approx([times_ps[1], times_ps[3], times_ps[4]])


def test_a_segment_that_is_stopped_ends_with_the_frames_it_has(segment: SegmentSpec, mine: Watch) -> None:
    plain, stopped = run_segment(segment), run_segment(calling(segment, mine, "stop_late"))
    assert stopped.watched.stopped
    assert stopped.n_frames == 4
    assert stopped.simulated_ps == pytest.approx(4 * segment.dynamics.frame_ps)
    np.testing.assert_array_equal(frames_of(stopped), frames_of(plain)[:4])
    np.testing.assert_allclose(fetch(stopped.end)["positions"][0], frames_of(plain)[3], atol=1e-6)
    assert stopped.watched.seen[-1].values == {"last_ps": pytest.approx(stopped.simulated_ps)}


def test_a_stop_may_be_told_without_values(segment: SegmentSpec, mine: Watch) -> None:
    stopped = run_segment(calling(segment, mine, "stop"))
    assert (stopped.n_frames, stopped.watched.stopped, stopped.watched.seen) == (2, True, ())


def test_segments_of_a_bundle_are_watched_one_by_one(segment: SegmentSpec, mine: Watch) -> None:
    watched = calling(segment, mine, "stop")
    done = run_bundle(begin_segment, [watched, replace(segment, segment_id=9), replace(watched, segment_id=10)])
    assert [each.value.n_frames for each in done] == [2, 5, 2]


@pytest.mark.parametrize(
    ("function", "changes", "n_failed", "said"),
    [
        ("sometimes", {}, 1, "sometimes raised ValueError: too early"),
        ("unfit", {}, 3, "returned {'x': nan}: return a dictionary of names and finite numbers, or None"),
        ("gone", {}, 3, "cannot be used, for module"),
        ("endless", {"timeout_s": 0.05}, 3, "took longer than --hook-timeout 0.05 s for a batch of frames"),
        ("stop", {"may_stop": False}, 3, "returned Stop, which would bias a weighted ensemble"),
    ],
)
def test_a_call_that_fails_is_counted_and_its_segment_goes_on(
    segment: SegmentSpec, mine: Watch, function: str, changes: dict[str, object], n_failed: int, said: str
) -> None:
    result = run_segment(calling(segment, mine, function, **changes))
    assert (result.n_frames, result.watched.stopped) == (5, False)
    assert (result.watched.n_batches, result.watched.n_failed) == (3, n_failed)
    assert said in result.watched.error


def test_values_have_a_bound_and_the_newest_are_kept(tmp_path: Path) -> None:
    (tmp_path / "live_bound.py").write_text("def many(f, t, b): return {f'value{k}': t[-1] for k in range(20)}\n")
    looking = onlooker("live_bound:many", tmp_path, np.arange(2))
    for first in range(100):
        looking.look(first, np.zeros((1, 5, 3), np.float32), None)
    told = looking.watched()
    assert len(told.seen) + told.n_left_out == told.n_batches == 100
    assert told.seen[-1].until_ps == 100.0
    assert 0 < sum(len(str(seen.values)) for seen in told.seen) <= MAX_VALUES_BYTES


def test_frames_that_are_no_numbers_are_not_shown(
    segment: SegmentSpec, alanine: PreparedSystem, tmp_path: Path
) -> None:
    (tmp_path / "live_any.py").write_text("def any(f, t, b): return {'n': len(f)}\n")
    watch = Watch(1, True, "live_any:any", str(tmp_path), 20.0)
    audience = Audience(segment, watch, np.arange(2), Indices.from_arrays(alanine.to_arrays()))
    audience.see(np.full((1, alanine.n_atoms, 3), np.nan, np.float32), None)
    audience.see(np.zeros((2, alanine.n_atoms, 3), np.float32), None)
    audience.leave()
    assert audience.watched().n_batches == 1


def test_boxes_and_the_atoms_that_trajectories_keep_are_shown(tmp_path: Path) -> None:
    (tmp_path / "live_boxed.py").write_text("def size(f, t, b): return {'atoms': f.shape[1], 'x': b[0, 0, 0]}\n")
    looking = onlooker("live_boxed:size", tmp_path, np.array([0, 3]))
    looking.look(0, np.zeros((2, 5, 3), np.float32), np.full((2, 3, 3), 2.5, np.float32))
    (seen,) = looking.watched().seen
    assert seen.values == {"atoms": 2.0, "x": 2.5}


def test_stop_holds_what_it_is_told() -> None:
    assert Stop().values == {}
    assert Stop({"x": 1}).values == {"x": 1}
