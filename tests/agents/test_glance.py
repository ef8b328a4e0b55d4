"""Batches of running segments: looked at while that is of use, answered always, and nothing left of them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.state import Receipt
from policies.early import has_nothing_new

STREAM = {"stream": True, "embedding": "pca", "infer_every": 2}

CHANCES = {name: st.sampled_from([0.0, 0.1, 0.3]) for name in ("fail", "abandon", "late", "repeat")}
CHANCES["kill"] = st.sampled_from([0.0, 0.02, 0.1])


@settings(max_examples=80, deadline=None)
@given(
    chances=st.fixed_dictionaries(CHANCES),
    crossing=st.booleans(),
    below=st.sampled_from([None, 0.3, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_promises_hold_whatever_comes_while_segments_run(open_campaign, chances, crossing, below, seed):
    with open_campaign(**STREAM, crossing=crossing, stop_below=below, max_segments=20) as campaign:
        campaign.begin()
        campaign.play(random.Random(seed), {"batch": 0.5, **chances})
        if campaign.state.failure is None:
            assert campaign.state.counts.segments == 20
            assert campaign.unanswered == set(), "a segment waits for room"
        else:
            assert chances["fail"] or chances["abandon"]
        assert not campaign.told_to_end or below is not None
        for send in campaign.abandoned:
            campaign.answer_late(send)
        campaign.end()


def looking(make_campaign, **flags):
    """Return a campaign that knows something, and a segment that runs."""
    campaign = make_campaign(**STREAM, **flags)
    for _ in range(2):
        campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("infer")[0])
    return campaign, campaign.out("simulate")[0]


def test_before_anything_is_known_nobody_looks(make_campaign):
    campaign = make_campaign(**STREAM)
    outbox = campaign.feed(campaign.out("simulate")[0])
    assert campaign.out("glance") == []
    assert len(outbox.evictions) == 1
    assert campaign.unanswered == set()


def test_batches_that_come_while_others_are_looked_at_are_looked_at_together(make_campaign):
    campaign, segment = looking(make_campaign)
    campaign.feed(segment)
    (first,) = campaign.out("glance")
    for _ in range(3):
        campaign.feed(segment)
    assert campaign.out("glance") == [first]
    campaign.answer(first)
    (second,) = campaign.out("glance")
    assert [batch.number for batch in second.spec.batches] == [1, 2, 3]
    assert second.spec.model_version == campaign.state.model_version
    campaign.answer(second)
    assert campaign.unanswered == set()
    assert campaign.state.counts.fed["embedded"] == 4


def test_a_batch_whose_segment_has_ended_meanwhile_is_let_go(make_campaign):
    campaign, segment = looking(make_campaign)
    for _ in range(2):
        campaign.feed(segment)
    campaign.answer(segment)
    campaign.answer(campaign.out("glance")[0])
    assert campaign.out("glance") == []
    assert campaign.unanswered == set()
    assert not [ref for ref in campaign.stored if ref.key[0].startswith("batch")]


def test_once_a_person_ended_the_campaign_no_segment_waits_for_room(make_campaign):
    campaign, segment = looking(make_campaign)
    for _ in range(4):
        campaign.feed(segment)
    campaign.stop()
    # Receipts count, so that of the last one is that of the first, which is being looked at.
    assert campaign.unanswered == set()
    campaign.feed(segment)
    campaign.answer(campaign.out("glance")[0])
    assert campaign.unanswered == set()
    assert campaign.out("glance") == []


@pytest.mark.parametrize("failure", ["unreachable", "worker_lost", "error"])
def test_a_glance_that_fails_costs_nothing_and_is_not_tried_again(make_campaign, failure):
    campaign, segment = looking(make_campaign)
    campaign.feed(segment)
    campaign.answer(campaign.out("glance")[0], failure)
    assert campaign.out("glance") == []
    assert campaign.unanswered == set()
    assert campaign.query("SELECT state FROM task WHERE kind = 'glance'") == [("fizzled",)]
    assert campaign.state.failure is None
    campaign.play(random.Random(1))
    campaign.end()


def test_a_segment_with_nothing_new_is_told_to_end_after_two_batches(make_campaign):
    campaign, segment = looking(make_campaign, stop_below=1.0)
    receipts = []
    for _ in range(2):
        campaign.feed(segment)
        receipts.append(campaign.answer(campaign.out("glance")[0]).receipts)
    stream = 1000 * segment.spec.segment_id + segment.spec.attempt
    assert receipts == [[Receipt(stream, 1)], [Receipt(stream, 2), Receipt(stream)]]


def test_a_segment_is_judged_by_its_newest_batches_alone():
    assert not has_nothing_new([0.1], 0.5)
    assert has_nothing_new([0.9, 0.1, 0.2], 0.5)
    assert not has_nothing_new([0.1, 0.1, 0.6], 0.5)
    assert not has_nothing_new([0.1, 0.5], 0.5)
