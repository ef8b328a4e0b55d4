"""Who holds which data, and how many segments a campaign has at its end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.state import Holds
from campaign.ledger import FIRST_OTHER_ID
from campaign.settings import Settings
from tasks.messages import Ref, StoreSpec

STORE = StoreSpec("store", "file")
REFS = [Ref(STORE, (str(number),), 10) for number in range(4)]


@given(
    st.lists(st.tuples(st.sampled_from(["take", "drop"]), st.sampled_from(REFS), st.integers(0, 2)), max_size=60),
)
def test_data_are_evicted_when_the_last_holder_lets_go(steps):
    holds = Holds()
    holders: dict[Ref, set[int]] = {}
    created = evicted = 0
    for verb, ref, holder in steps:
        if verb == "take":
            created += ref not in holders
            holds.take(ref, holder)
            holders.setdefault(ref, set()).add(holder)
        else:
            last = ref in holders and not holders[ref] - {holder}
            assert holds.drop(ref, holder) == ([ref] if last else [])
            if ref in holders:
                holders[ref].discard(holder)
            if last:
                del holders[ref]
                evicted += 1
        assert (holds.created, holds.evicted, len(holds)) == (created, evicted, len(holders))
    assert set(holds.drop_all()) == set(holders)
    assert (holds.evicted, len(holds)) == (created, 0)
    assert holds.drop_all() == []


def test_data_in_a_message_are_never_evicted():
    holds = Holds()
    inline = Ref(StoreSpec("none", "inline"), data=b"bytes")
    holds.take(inline, "walker")
    assert (holds.created, len(holds)) == (0, 0)
    assert holds.drop(inline, "walker") == []
    holds.take(inline, "walker")
    assert holds.drop_all() == []
    assert holds.evicted == 0


@pytest.mark.parametrize(
    ("limits", "target"),
    [
        ({"max_segments": 7}, 7),
        ({"max_ns": 0.1984}, 100),
        ({"max_ns": 0.1985}, 101),
        ({"max_ns": 0.001}, 1),
        ({"max_segments": 7, "max_ns": 1.0}, 7),
        ({"max_segments": 7000, "max_ns": 0.1984}, 100),
        ({"max_minutes": 1.0}, None),
    ],
)
def test_the_first_limit_is_the_target(limits, target):
    settings = Settings(**limits)
    assert settings.dynamics("Reference").segment_ps == pytest.approx(1.984)
    assert settings.target_segments == target


@given(n_segments=st.integers(1, 10**7), frames=st.integers(1, 40))
def test_a_whole_number_of_segments_is_not_rounded_up(n_segments, frames):
    settings = Settings(segment_ps=frames * 0.25, frame_ps=0.25, timestep_fs=2.5, max_segments=1)
    dynamics = settings.dynamics("Reference")
    asked = Settings(segment_ps=frames * 0.25, timestep_fs=2.5, max_ns=n_segments * dynamics.segment_ps / 1000)
    assert asked.target_segments == n_segments


def test_ids_of_segments_and_of_other_tasks_never_meet(make_campaign):
    state = make_campaign(walkers=1).state
    assert [state.new_segment_id() for _ in range(3)] == [1, 2, 3]
    assert [state.new_task_id() for _ in range(2)] == [FIRST_OTHER_ID, FIRST_OTHER_ID + 1]


def test_the_first_reason_stands(make_campaign):
    state = make_campaign().state
    state.end("--max-minutes 1 are over")
    state.fail("a server is gone")
    state.fail("another, too")
    assert (state.ending, state.failure) == ("--max-minutes 1 are over", "a server is gone")
