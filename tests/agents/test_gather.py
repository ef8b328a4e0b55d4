"""Trajectories that wait on their nodes: each is gathered once, or its segment runs again for it alone."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.topic import task_id
from tests.agents.test_lockstep import SHAPES

MANY = settings(max_examples=40, deadline=None)


@MANY
@given(
    shape=st.fixed_dictionaries(
        {
            **SHAPES,
            "bundle": st.sampled_from([None, 1, 3]),
            "nodes": st.integers(1, 3),
            "gather_every": st.integers(1, 8),
            "scratch": st.just("/scratch"),
        }
    ),
    chances=st.fixed_dictionaries(
        {
            "kill": st.sampled_from([0.0, 0.05, 0.2]),
            "lose": st.sampled_from([0.0, 0.02, 0.05]),
            "silent": st.sampled_from([0.0, 0.1]),
            "fail": st.sampled_from([0.0, 0.05]),
            "abandon": st.sampled_from([0.0, 0.1]),
            "late": st.sampled_from([0.0, 0.2]),
            "repeat": st.sampled_from([0.0, 0.1]),
        }
    ),
    lockstep=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_segment_is_complete_once_whatever_is_lost(open_campaign, shape, chances, lockstep, seed):
    with open_campaign(lockstep=lockstep, **shape) as campaign:
        campaign.begin()
        campaign.play(random.Random(seed), chances)
        if campaign.state.failure is None:
            assert campaign.state.counts.segments == shape["max_segments"]
            assert_gathered(campaign, shape["max_segments"])
        campaign.end()


def assert_gathered(campaign, segments: int) -> None:
    """Every segment is complete, by one attempt that counts, and its trajectory is in an archive that is there."""
    states = campaign.query("SELECT state, count(*) FROM task WHERE kind = 'simulate' GROUP BY state")
    assert dict(states).get("complete") == segments
    assert "computed" not in dict(states)
    done = "SELECT count(*), count(DISTINCT task_id) FROM attempt JOIN task ON id = task_id"
    assert campaign.query(f"{done} WHERE outcome = 'success' AND kind = 'simulate'") == [(segments, segments)]
    for segment_id, path, digest in campaign.query(
        "SELECT task_id, path, sha256 FROM artifact WHERE kind = 'trajectory'"
    ):
        archive, _, name = path.partition(".tar.gz/")
        members = {(m.segment_id, m.name, m.sha256) for m in campaign.archives[f"{archive}.tar.gz"].members}
        assert (segment_id, name, digest) in members
    recorded = {path for (path,) in campaign.query("SELECT path FROM artifact WHERE kind = 'archive'")}
    assert recorded <= campaign.archives.keys()
    assert campaign.query(
        "SELECT count(*) FROM task WHERE kind = 'simulate' AND spec IS NOT NULL AND state = 'complete'"
    ) == [(0,)]


@pytest.fixture
def kept(make_campaign):
    """A campaign that keeps trajectories on one node, five to an archive."""
    return make_campaign(
        nodes=1,
        gather_every=5,
        scratch="/scratch",
        policy="plain",
        infer_every=0,
        max_segments=12,
        walkers=1,
        slots=1,
    )


def answer_all(campaign, count: int) -> None:
    for _ in range(count):
        campaign.answer(*campaign.out("simulate"))


def states(campaign) -> dict:
    return dict(campaign.query("SELECT state, count(*) FROM task WHERE kind = 'simulate' GROUP BY state"))


def test_the_nth_segment_makes_the_others_complete(kept):
    answer_all(kept, 4)
    assert states(kept) == {"computed": 4, "running": 1}
    answer_all(kept, 1)
    assert states(kept) == {"complete": 5, "running": 1}
    assert kept.query(
        "SELECT kind, state, outcome, host FROM task JOIN attempt ON id = task_id WHERE kind = 'gather'"
    ) == [("gather", "complete", "success", "node0")]


def test_the_rest_is_gathered_at_the_end(kept):
    answer_all(kept, 12)
    assert states(kept) == {"complete": 10, "computed": 2}
    assert not kept.steering.finished
    kept.answer(*kept.out("gather"))
    assert kept.steering.finished
    assert_gathered(kept, 12)


def test_a_signal_has_it_gathered(kept):
    answer_all(kept, 3)
    kept.stop()
    kept.answer(*kept.out("gather"))
    assert states(kept)["complete"] == 3
    # What was running meanwhile is gathered when it is there.
    answer_all(kept, 1)
    assert not kept.steering.finished
    kept.answer(*kept.out("gather"))
    assert kept.steering.finished
    assert states(kept) == {"complete": 4}


def test_what_a_node_took_with_it_runs_again_and_nothing_that_followed_from_it(kept):
    answer_all(kept, 11)
    kept.lose_node("node0")
    answer_all(kept, 1)
    frames = kept.state.counts.frames
    kept.answer(*kept.out("gather"))
    (again,) = kept.out("simulate")
    first = next(send for send in kept.sent if task_id(send.spec) == task_id(again.spec))
    assert (task_id(again.spec), again.spec.attempt, again.spec.start) == (10, 2, first.spec.start)
    kept.answer(again)
    kept.answer(*kept.out("gather"))
    assert kept.steering.finished
    assert (kept.state.counts.segments, kept.state.counts.frames) == (12, frames)
    assert_gathered(kept, 12)
    kept.end()


def test_a_segment_that_ended_early_is_as_long_when_it_runs_again(kept):
    answer_all(kept, 10)
    (send,) = kept.out("simulate")
    outcome = kept.outcome(send)
    del kept.outstanding["simulate", task_id(send.spec)]
    early = {"n_frames": 3, "simulated_ps": 3 * send.spec.dynamics.frame_ps}
    kept.deliver(send, replace(outcome, value=replace(outcome.value, **early)))
    kept.lose_node("node0")
    answer_all(kept, 1)
    kept.answer(*kept.out("gather"))
    (again,) = kept.out("simulate")
    assert again.spec.segment_id == send.spec.segment_id
    assert (send.spec.dynamics.n_frames, again.spec.dynamics.n_frames) == (8, 3)
    assert again.spec.dynamics.frame_steps == send.spec.dynamics.frame_steps
    kept.answer(again)
    kept.answer(*kept.out("gather"))
    assert kept.steering.finished
    assert kept.state.counts.frames == 11 * 8 + 3
    kept.end()


def test_an_archive_without_a_report_is_found(kept):
    answer_all(kept, 12)
    kept.gather("node0")
    kept.answer(*kept.out("gather"))
    assert kept.steering.finished
    assert_gathered(kept, 12)


def test_a_later_process_runs_again_what_no_node_has(kept):
    answer_all(kept, 3)
    kept.lose_node("node0")
    kept.emptied = frozenset({"node0"})
    kept.kill()
    assert sorted(task_id(send.spec) for send in kept.out("simulate")) == [0, 1, 2, 3]
    while not kept.steering.finished:
        kept.answer(next(iter(kept.outstanding.values())))
    assert_gathered(kept, 12)
    kept.end()


def test_nodes_that_never_keep_anything_end_the_campaign_with_a_sentence(kept):
    while not kept.steering.finished:
        kept.answer(next(iter(kept.outstanding.values())))
        kept.lose_node("node0")
    assert "could not be gathered" in kept.state.failure


def test_archives_that_cannot_be_written_end_the_campaign_with_a_sentence(kept):
    answer_all(kept, 12)
    for _ in range(3):
        kept.answer(*kept.out("gather"), "error")
    assert kept.state.failure == "what was computed could not be gathered: error on purpose"


def test_a_segment_that_cannot_be_had_again_is_replaced(make_campaign):
    campaign = make_campaign(
        nodes=1, gather_every=50, scratch="/s", policy="plain", infer_every=0, max_segments=3, walkers=1, slots=1,
        max_attempts=2,
    )  # fmt: skip
    answer_all(campaign, 3)
    campaign.lose_node("node0")
    campaign.answer(*campaign.out("gather"))
    for _ in range(2):
        campaign.answer(next(send for send in campaign.out("simulate") if task_id(send.spec) == 1), "nan")
    while not campaign.steering.finished:
        campaign.answer(next(iter(campaign.outstanding.values())))
    assert states(campaign) == {"complete": 3, "quarantined": 1}
