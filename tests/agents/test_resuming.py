"""Whatever was out when a process died, a later one goes on as if nothing had happened."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.topic import task_id
from tests.agents.test_lockstep import SHAPES, without_addresses

MANY = settings(max_examples=60, deadline=None)


@MANY
@given(
    shape=st.fixed_dictionaries({**SHAPES, "bundle": st.sampled_from([None, 1, 3])}),
    chances=st.fixed_dictionaries(
        {
            "kill": st.sampled_from([0.02, 0.1, 0.3]),
            "fail": st.sampled_from([0.0, 0.1]),
            "abandon": st.sampled_from([0.0, 0.1]),
            "repeat": st.sampled_from([0.0, 0.1]),
        }
    ),
    lockstep=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_segment_is_committed_once_however_often_it_dies(open_campaign, shape, chances, lockstep, seed):
    with open_campaign(lockstep=lockstep, **shape) as campaign:
        campaign.begin()
        campaign.play(random.Random(seed), chances)
        if campaign.state.failure is None:
            assert campaign.state.counts.segments == shape["max_segments"]
        done = "SELECT count(*), count(DISTINCT task_id) FROM attempt JOIN task ON id = task_id"
        where = "WHERE outcome = 'success' AND kind = 'simulate'"
        # In lockstep a campaign that cannot go on may leave results that wait for one before them.
        waiting = sum(arrived.result is not None for arrived in campaign.steering.simulate._arrived.values())
        assert campaign.query(f"{done} {where}") == [(campaign.state.counts.segments + waiting,) * 2]
        orphans = "SELECT id FROM task WHERE parent_id IS NOT NULL AND parent_id NOT IN (SELECT id FROM task)"
        assert campaign.query(orphans) == []
        campaign.end()


def decisions(open_campaign, shape, order: random.Random, kills: float) -> dict:
    """Return what a campaign decided, without what was only sent again."""
    with open_campaign(lockstep=True, **shape) as campaign:
        campaign.begin()
        while not campaign.steering.finished:
            send = order.choice(list(campaign.outstanding.values()))
            campaign.answer(send)
            if order.random() < kills:
                campaign.kill()
        first = {}
        for send in campaign.sent:
            first.setdefault((send.topic, task_id(send.spec)), without_addresses(send.spec))
        told = campaign.query("SELECT id, parent_id, parent_frame, steered, novelty, walker_id FROM task ORDER BY id")
        return {"sent": first, "tasks": told, "failure": campaign.state.failure}


@MANY
@given(
    shape=st.fixed_dictionaries({**SHAPES, "bundle": st.sampled_from([None, 1, 3])}),
    seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)),
    kills=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_in_lockstep_decisions_after_a_death_are_those_of_a_run_that_never_died(open_campaign, shape, seeds, kills):
    undisturbed, killed = (
        decisions(open_campaign, shape, random.Random(seed), chance)
        for seed, chance in zip(seeds, (0.0, kills), strict=True)
    )
    assert killed == undisturbed


@pytest.mark.parametrize("topic", ["simulate", "infer", "train", "move"])
def test_what_was_out_is_sent_again_as_another_attempt(make_campaign, topic):
    campaign = make_campaign(crossing=topic == "move", infer_every=1, retrain_every=2, walkers=2, max_segments=30)
    while not campaign.out(topic):
        campaign.answer(next(iter(campaign.outstanding.values())))
    before = {task_id(send.spec): send.spec.attempt for send in campaign.out(topic)}
    campaign.kill()
    after = {task_id(send.spec): send.spec.attempt for send in campaign.out(topic)}
    assert after.items() >= {number: attempt + 1 for number, attempt in before.items()}.items()


def test_being_killed_is_no_failure_of_the_task(make_campaign):
    campaign = make_campaign(max_attempts=2, walkers=1, slots=1, infer_every=0, policy="plain")
    for _ in range(5):
        campaign.kill()
    (send,) = campaign.out("simulate")
    assert send.spec.attempt == 6
    campaign.answer(send, "nan")
    assert [send.spec.attempt for send in campaign.out("simulate")] == [7]
    assert campaign.state.counts.quarantined == 0
    campaign.answer(*campaign.out("simulate"), "nan")
    assert campaign.state.counts.quarantined == 1


def test_a_failure_before_a_death_counts_after_it(make_campaign):
    campaign = make_campaign(max_attempts=2, walkers=1, slots=1, infer_every=0, policy="plain")
    campaign.answer(*campaign.out("simulate"), "nan")
    campaign.kill()
    campaign.answer(*campaign.out("simulate"), "nan")
    assert campaign.state.counts.quarantined == 1
    campaign.kill()
    assert campaign.state.quarantine == {(None, None)}


def test_a_result_that_waits_for_its_turn_survives(make_campaign):
    campaign = make_campaign(lockstep=True, infer_every=2, slots=2, walkers=4)
    first, second, third, fourth = campaign.out("simulate")
    for send in (fourth, second):
        campaign.answer(send)
    campaign.kill()
    assert sorted(task_id(send.spec) for send in campaign.out("simulate")) == [0, 2]
    for send in list(campaign.out("simulate")):
        campaign.answer(send)
    assert campaign.state.counts.segments >= 2
    assert campaign.query("SELECT number FROM attempt WHERE task_id IN (1, 3)") == [(1,), (1,)]


def test_a_segment_that_is_run_again_leaves_its_walker_alone(make_campaign):
    campaign = make_campaign(max_attempts=1, walkers=2, slots=1, infer_every=0, policy="plain", max_segments=20)
    first = campaign.out("simulate")[0]
    campaign.answer(campaign.out("simulate")[1])
    campaign.answer(first, "nan")
    assert campaign.query(f"SELECT state FROM task WHERE id = {task_id(first.spec)}") == [("quarantined",)]
    walker = campaign.steering.simulate.walkers.all[first.spec.walker_id]
    with campaign.ledger.transaction():
        campaign.ledger.set_state(task_id(first.spec), "ready")
        campaign.ledger.keep(f"rerun/{task_id(first.spec)}", True)
    for _ in range(2):
        campaign.kill()
        (again,) = [send for send in campaign.out("simulate") if task_id(send.spec) == task_id(first.spec)]
    walker = campaign.steering.simulate.walkers.all[first.spec.walker_id]
    busy_with, own = walker.segment_id, walker.own
    campaign.answer(again)
    assert (walker.segment_id, walker.own) == (busy_with, own)
    assert campaign.ledger.kept("rerun/") == {}
    campaign.play(random.Random(3))
    assert campaign.state.counts.segments == 20


def test_segments_that_are_always_lost_end_the_campaign(make_campaign):
    campaign = make_campaign(max_attempts=2, walkers=3, slots=1, infer_every=0, policy="plain")
    for _ in range(200):
        if campaign.steering.finished:
            break
        campaign.answer(campaign.out("simulate")[0], "manager_lost")
    assert campaign.state.failure == "10 segments in a row were given up: manager_lost on purpose"
    assert campaign.state.counts.quarantined == 0


@pytest.mark.parametrize(("before", "after"), [((2, 1), (1,)), ((1,), (1, 2)), ((1, 1), (3, 1, 1))])
def test_a_later_process_may_have_other_sites(make_campaign, before, after):
    campaign = make_campaign(pool=before, walkers=6, bundle=2, infer_every=2, max_segments=30)
    for _ in range(5):
        campaign.answer(campaign.out("simulate")[0])
    campaign.join(after)
    campaign.kill()
    sites = {f"site-{number}" for number in range(len(after))}
    assert {send.info["site"] for send in campaign.out("simulate")} <= sites
    category = "SELECT DISTINCT category FROM task WHERE kind = 'simulate' AND state = 'running' ORDER BY category"
    assert {name for (name,) in campaign.query(category)} <= {f"cpu-{number}" for number in range(len(after))}
    campaign.play(random.Random(1), {"fail": 0.1, "kill": 0.05})
    assert campaign.state.counts.segments == 30
    campaign.end()
