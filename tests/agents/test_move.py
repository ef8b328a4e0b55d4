"""Data that their consumer cannot reach go by way of the submit host."""

import random


def test_frames_are_moved_to_learning_and_starts_back(make_campaign):
    campaign = make_campaign(crossing=True, infer_every=1, walkers=1, slots=1, candidates_per_walker=1)
    segment = campaign.out("simulate")[0]
    del campaign.outstanding["simulate", 0]
    outcome = campaign.outcome(segment)
    outbox = campaign.deliver(segment, outcome)
    assert [send.topic for send in outbox.sends] == ["simulate", "move"]
    there = outbox.sends[1].spec
    assert (there.source, there.store) == (outcome.value.frames, campaign.destinations["infer"].store)
    assert outbox.sends[1].info == {
        "attempt": 1, "executor": "host", "site": "imagined", "task_id": there.task_id, "source": "redis",
        "target": "file",
    }  # fmt: skip

    outbox = campaign.answer(campaign.out("move")[0])
    (look,) = outbox.sends
    assert look.topic == "infer"
    ((segment_id, moved),) = look.spec.batches
    assert (segment_id, moved.store.kind) == (0, "file")
    assert outbox.evictions == [outcome.value.frames]

    outbox = campaign.answer(look)
    (back,) = outbox.sends
    assert (back.topic, back.spec.source.store.kind, back.spec.store.kind) == ("move", "file", "redis")
    assert outbox.evictions == [moved]
    assert campaign.state.candidates is None
    outbox = campaign.answer(campaign.out("move")[0])
    assert outbox.evictions == [back.spec.source]
    assert campaign.state.candidates.ref.store.kind == "redis"
    (steered,) = (s for s in campaign.answer(campaign.out("simulate")[0]).sends if s.topic == "simulate")
    assert steered.spec.start == campaign.state.candidates.ref


def test_nothing_is_moved_that_can_be_reached(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=3, max_segments=20)
    campaign.play(random.Random(1))
    assert {send.topic for send in campaign.sent} == {"simulate", "infer", "train"}


def test_what_travels_in_messages_needs_neither_store_nor_eviction(make_campaign):
    campaign = make_campaign(inline=True, infer_every=1, retrain_every=3, max_segments=20)
    campaign.play(random.Random(1), {"fail": 0.1, "abandon": 0.1, "late": 0.5, "repeat": 0.1})
    assert {send.topic for send in campaign.sent} == {"simulate", "infer", "train"}
    assert campaign.state.counts.steered > 0
    assert (campaign.state.holds.created, campaign.stored) == (0, set())
    campaign.end()


def test_frames_that_cannot_be_moved_stay_unseen(make_campaign):
    campaign = make_campaign(crossing=True, infer_every=1, max_attempts=2, max_segments=50)
    campaign.answer(campaign.out("simulate")[0])
    frames = campaign.out("move")[0].spec.source
    campaign.answer(campaign.out("move")[0], "unreachable")
    assert frames in campaign.stored
    outbox = campaign.answer(campaign.out("move")[0], "unreachable")
    assert outbox.evictions == [frames]
    assert campaign.out("infer") == []
    assert campaign.state.failure is None
    campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("move")[0])
    assert [segment for segment, _ in campaign.out("infer")[0].spec.batches] == [1]


def test_starts_that_cannot_be_moved_leave_the_last_candidates(make_campaign):
    campaign = make_campaign(crossing=True, infer_every=1, max_attempts=1, max_segments=50)
    for fails in (False, True):
        campaign.answer(campaign.out("simulate")[0])
        campaign.answer(campaign.out("move")[0])
        campaign.answer(campaign.out("infer")[0])
        kept = campaign.state.candidates
        campaign.answer(campaign.out("move")[0], "error" if fails else None)
    assert campaign.state.candidates is kept is not None
    campaign.end()


def test_the_end_waits_for_moves_and_looks_at_what_they_bring(make_campaign):
    campaign = make_campaign(crossing=True, infer_every=4, max_segments=2, walkers=2)
    for send in campaign.out("simulate"):
        campaign.answer(send)
    assert not campaign.steering.finished
    first, second = campaign.out("move")
    assert campaign.answer(second).sends == []
    (look,) = campaign.answer(first).sends
    assert sorted(segment for segment, _ in look.spec.batches) == [0, 1]
