"""In lockstep the decisions are the same in whatever order results come back."""

import random
import zlib
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.topic import task_id
from tasks.messages import Ref

SHAPES = {
    "slots": st.integers(1, 3),
    "walkers": st.integers(1, 6),
    "infer_every": st.integers(1, 4),
    "retrain_every": st.integers(1, 6),
    "max_segments": st.integers(1, 25),
    "max_attempts": st.integers(1, 3),
    "policy": st.sampled_from(["novelty", "random", "plain"]),
    "crossing": st.booleans(),
}


def sentenced(send, percent: int) -> str | None:
    """Return how an attempt fails: of its names alone, so that it fails in every order."""
    name = f"{send.topic} {task_id(send.spec)} {send.spec.attempt}".encode()
    return "nan" if zlib.crc32(name) % 100 < percent else None


def without_addresses(spec) -> tuple:
    """Return what a task was told, but for where the data lie."""
    assert is_dataclass(spec)
    told = []
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name == "batches":
            value = tuple(segment for segment, _ in value)
        told.append(None if isinstance(value, Ref) else value)
    return tuple(told)


def decisions(open_campaign, shape, order: random.Random, percent: int = 0) -> dict:
    with open_campaign(lockstep=True, **shape) as campaign:
        campaign.begin()
        while not campaign.steering.finished:
            send = order.choice(list(campaign.outstanding.values()))
            campaign.answer(send, sentenced(send, percent))
        campaign.end()
        first_tries = [send for send in campaign.sent if send.spec.attempt == 1]
        by_topic = {
            topic: [without_addresses(send.spec) for send in first_tries if send.topic == topic]
            for topic in ("simulate", "infer", "train", "move")
        }
        order_of_topics = [send.topic for send in first_tries]
        return {**by_topic, "order": order_of_topics, "failure": campaign.state.failure}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.fixed_dictionaries(SHAPES),
    seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)),
    percent=st.sampled_from([0, 10, 30]),
)
def test_any_order_of_results_gives_the_same_decisions(open_campaign, shape, seeds, percent):
    one, other = (decisions(open_campaign, shape, random.Random(seed), percent) for seed in seeds)
    assert one == other


@pytest.mark.parametrize("versions", [1, 3])
def test_models_that_were_asked_for_come_after_the_same_segment(open_campaign, versions):
    shape = {"slots": 2, "walkers": 4, "infer_every": 2, "retrain_every": 5}
    shape |= {"max_segments": 1, "min_model_versions": versions}
    told = [decisions(open_campaign, shape, random.Random(seed)) for seed in range(8)]
    assert all(each == told[0] for each in told)
    assert len(told[0]["train"]) == versions


def test_results_wait_for_the_ones_before_them(make_campaign):
    campaign = make_campaign(lockstep=True, infer_every=2, slots=2, walkers=4)
    first, second, third, fourth = campaign.out("simulate")
    for send in (fourth, third, second):
        assert campaign.answer(send).sends == []
    assert campaign.state.counts.segments == 0
    # The first lets the second follow; the two are looked at before anything else is decided.
    assert [send.topic for send in campaign.answer(first).sends] == ["simulate", "infer"]
    assert campaign.state.counts.segments == 2
    assert campaign.steering.simulate.n_pending == 3


def test_slots_wait_for_learning(make_campaign):
    campaign = make_campaign(lockstep=True, infer_every=1, retrain_every=1, slots=1, walkers=2)
    outbox = campaign.answer(campaign.out("simulate")[0])
    assert [send.topic for send in outbox.sends] == ["infer"]
    outbox = campaign.answer(campaign.out("infer")[0])
    assert [send.topic for send in outbox.sends] == ["train"]
    outbox = campaign.answer(campaign.out("train")[0])
    assert [send.topic for send in outbox.sends] == ["simulate"]
    assert outbox.sends[0].info["model_version"] == 1


def test_a_stop_in_lockstep_keeps_what_arrives(make_campaign):
    campaign = make_campaign(lockstep=True, infer_every=1, slots=2, walkers=4)
    first, *others = campaign.out("simulate")
    for send in others:
        campaign.answer(send)
    campaign.stop()
    campaign.answer(first)
    assert campaign.steering.finished
    assert campaign.state.counts.segments == 4
    campaign.end()
