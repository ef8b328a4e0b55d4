"""A pool of sites: no slot is lost on those that live, whichever come and go."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.pool import Load
from agents.summing import snapshot
from agents.topic import task_id
from tests.agents import test_lockstep, test_steering
from tests.agents.test_hook import CHAINS
from tests.agents.test_lockstep import sentenced, without_addresses
from tests.agents.test_summing import summary_of

MANY = settings(max_examples=100, deadline=None)

POOLS = st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.5, 1.0, 3.0])), min_size=2, max_size=3)

CHANCES = st.fixed_dictionaries(
    {
        name: st.sampled_from([0.0, 0.05, 0.3])
        for name in ("fail", "abandon", "late", "repeat", "leave", "back", "vanish")
    }
)


def shape_of(shape: dict, pool: list) -> dict:
    given = {name: value for name, value in shape.items() if name != "slots"}
    return {**given, "pool": tuple(n for n, _ in pool), "weights": tuple(weight for _, weight in pool)}


@MANY
@given(shape=st.fixed_dictionaries(test_steering.SHAPES), pool=POOLS, chances=CHANCES, seed=st.integers(0, 2**32))
def test_promises_hold_whichever_sites_come_and_go(open_campaign, shape, pool, chances, seed):
    with open_campaign(**shape_of(shape, pool)) as campaign:
        campaign.begin()
        campaign.play(random.Random(seed), chances)
        if campaign.state.failure is None:
            assert campaign.state.counts.segments == shape["max_segments"]
            assert not campaign.outstanding
        for send in campaign.abandoned:
            campaign.answer_late(send)
        campaign.end()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.fixed_dictionaries({**test_lockstep.SHAPES, "bundle": st.sampled_from([None, 1, 3])}),
    pool=POOLS,
    lockstep=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_promises_hold_however_often_the_process_dies(open_campaign, shape, pool, lockstep, seed):
    with open_campaign(lockstep=lockstep, **shape_of(shape, pool)) as campaign:
        campaign.begin()
        campaign.play(random.Random(seed), {"kill": 0.1, "fail": 0.1, "leave": 0.1, "back": 0.2, "late": 0.1})
        done = "SELECT count(*), count(DISTINCT task_id) FROM attempt JOIN task ON id = task_id"
        where = "WHERE outcome = 'success' AND kind = 'simulate'"
        ((n_done, n_segments),) = campaign.query(f"{done} {where}")
        assert n_done == n_segments
        # In lockstep, results of a campaign that failed may still wait for those before them.
        assert n_done == campaign.state.counts.segments or (lockstep and campaign.state.failure)
        campaign.end()


def decisions(open_campaign, shape, order: random.Random, percent: int, faults: float) -> dict:
    with open_campaign(lockstep=True, **shape) as campaign:
        campaign.begin()
        chance = {"leave": faults, "back": faults, "vanish": faults / 4}
        while not campaign.steering.finished:
            if faults:
                campaign._let_sites_come_and_go(order, chance)
            send = order.choice(list(campaign.outstanding.values()))
            # Which attempt it is hangs on the sites, so that a task fails once or never.
            campaign.answer(send, sentenced(send, percent) if send.spec.attempt == 1 else None)
        first = {}
        for send in campaign.sent:
            first.setdefault((send.topic, task_id(send.spec)), without_addresses(send.spec))
        told = campaign.query("SELECT id, parent_id, parent_frame, steered, novelty, walker_id FROM task ORDER BY id")
        return {"sent": first, "tasks": told, "failure": campaign.state.failure}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.fixed_dictionaries({**test_lockstep.SHAPES, "bundle": st.sampled_from([None, 1, 3])}),
    pool=POOLS,
    seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)),
    faults=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_in_lockstep_the_sites_decide_nothing(open_campaign, shape, pool, seeds, faults):
    shape = shape_of(shape, pool) | {"max_attempts": 30}
    quiet, shaken = (
        decisions(open_campaign, shape, random.Random(seed), 10, chance)
        for seed, chance in zip(seeds, (0.0, faults), strict=True)
    )
    assert quiet == shaken


def sites_of(sends) -> list[str]:
    return [send.info["site"] for send in sends]


def test_bundles_are_dealt_over_the_sites(make_campaign):
    campaign = make_campaign(pool=(2, 1), walkers=6, policy="plain")
    # Those who have nothing to do come first, in order, then the queues behind them.
    assert sites_of(campaign.out("simulate")) == ["site-0", "site-1", "site-0", "site-0", "site-1", "site-0"]
    send = campaign.out("simulate")[1]
    assert sites_of(campaign.answer(send).sends) == ["site-1"]
    told = campaign.query("SELECT category, count(*) FROM task GROUP BY category")
    assert told == [("cpu-0", 4), ("cpu-1", 3)]


def test_a_bundle_goes_to_one_site(make_campaign):
    campaign = make_campaign(pool=(1, 1), walkers=4, bundle=2, policy="plain")
    assert sites_of(campaign.out("simulate")) == ["site-0", "site-0", "site-1", "site-1"]


@pytest.mark.parametrize(("weights", "shares"), [((1.0, 1.0), (4, 4)), ((1.0, 3.0), (2, 6)), ((7.0, 1.0), (7, 1))])
def test_weights_share_what_does_not_suffice_for_all(make_campaign, weights, shares):
    campaign = make_campaign(pool=(8, 8), weights=weights, walkers=8, policy="plain", max_segments=300)
    order = random.Random(1)
    while campaign.steering.simulate.wants_more():
        out = [sites_of(campaign.out("simulate")).count(place.site) for place in campaign.pool]
        assert all(abs(n - share) <= 1 for n, share in zip(out, shares, strict=True))
        campaign.answer(order.choice(campaign.out("simulate")))


@given(seed=st.integers(0, 2**32), pool=POOLS, walkers=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_no_site_is_ahead_of_another_by_more_than_a_bundle(open_campaign, seed, pool, walkers):
    order = random.Random(seed)
    slots = sum(n for n, _ in pool)
    shape = {"walkers": min(walkers, slots), "policy": "plain", "max_segments": 60, "infer_every": 0}
    with open_campaign(**shape_of(shape, pool)) as campaign:
        campaign.begin()
        while campaign.steering.simulate.wants_more():
            out = campaign.steering.simulate.out
            free = [place for place in campaign.pool if out[place.executor] < place.slots]
            for place in campaign.pool:
                share = place.slots * place.weight
                ahead = (out[place.executor] - 1) / share
                assert all(ahead <= out[p.executor] / (p.slots * p.weight) for p in free if p != place)
            campaign.answer(order.choice(campaign.out("simulate")))


def test_what_failed_is_tried_again_elsewhere(make_campaign):
    campaign = make_campaign(pool=(1, 1), walkers=2, max_attempts=3)
    first = campaign.out("simulate")[0]
    (second,) = campaign.answer(first, "worker_lost").sends
    (third,) = campaign.answer(second, "manager_lost").sends
    assert sites_of([first, second, third]) == ["site-0", "site-1", "site-0"]
    assert campaign.query("SELECT site FROM attempt WHERE task_id = 0 ORDER BY number") == [
        ("site-0",), ("site-1",), ("site-0",),
    ]  # fmt: skip


def test_what_fails_alike_everywhere_is_its_starts_fault(make_campaign):
    campaign = make_campaign(pool=(1, 1), walkers=2, max_attempts=3)
    send = campaign.out("simulate")[0]
    for _ in range(2):
        (send,) = campaign.answer(send, "nan").sends
    campaign.answer(send, "nan")
    assert campaign.state.counts.quarantined == 1


def test_a_site_without_workers_is_left_and_used_again(make_campaign):
    campaign = make_campaign(pool=(1, 2), walkers=6, policy="plain", max_segments=40)
    there = [task_id(send.spec) for send in campaign.out("simulate") if send.info["site"] == "site-1"]
    outbox = campaign.leave("cpu-1")
    assert [task_id(send.spec) for send in outbox.sends] == there
    assert set(sites_of(outbox.sends)) == {"site-0"}
    assert outbox.notes == [
        "site site-1 has had no worker for --heartbeat-threshold-s 10 s: segments go elsewhere until it has one again"
    ]
    assert campaign.state.counts.failures == {"site_gone": 4}
    error = "SELECT DISTINCT error FROM attempt WHERE outcome = 'site_gone'"
    assert campaign.query(error) == [("site site-1 has no workers any more",)]
    assert snapshot(campaign.steering).slots == 1
    late = campaign.abandoned.pop()
    campaign.answer_late(late)  # applied where it was sent again, and only there
    assert campaign.state.counts.segments == 0
    campaign.answer(campaign.out("simulate")[0])
    assert set(sites_of(campaign.out("simulate"))) == {"site-0"}
    assert campaign.come_back("cpu-1").notes == ["site site-1 is back"]
    for _ in range(6):
        campaign.answer(campaign.out("simulate")[0])
    assert "site-1" in sites_of(campaign.out("simulate"))


def test_a_short_silence_is_nothing(make_campaign):
    campaign = make_campaign(pool=(1, 1), walkers=4)
    campaign.present.discard("cpu-1")
    assert campaign.take(campaign.steering.keep_time()).notes == []
    assert campaign.state.counts.failures == {}


def test_a_site_that_is_gone_never_comes_back(make_campaign):
    campaign = make_campaign(pool=(1, 1), walkers=4)
    (note,) = campaign.vanish("cpu-0").notes
    assert note.startswith("site site-0 is gone for good")
    campaign.gone.clear()
    campaign.present.add("cpu-0")
    assert campaign.take(campaign.steering.keep_time()).notes == []
    assert set(sites_of(campaign.out("simulate"))) == {"site-1"}


def test_what_is_out_waits_where_no_other_site_is_here(make_campaign):
    campaign = make_campaign(pool=(1, 1), walkers=4)
    campaign.leave("cpu-0")
    n_failed = campaign.state.counts.failures.total()
    assert campaign.leave("cpu-1").sends == []
    assert campaign.state.counts.failures.total() == n_failed
    assert len(campaign.out("simulate")) == 4
    assert set(sites_of(campaign.come_back("cpu-0").sends)) == {"site-0"}


def test_a_lone_site_is_waited_for(make_campaign):
    campaign = make_campaign(walkers=2, slots=1)
    assert campaign.leave("cpu").sends == []
    assert campaign.state.counts.failures == {}
    assert len(campaign.out("simulate")) == 2


def test_a_site_that_was_silent_at_the_start_joins_when_it_answers(open_campaign):
    with open_campaign(pool=(1, 1), walkers=4, max_segments=40) as campaign:
        campaign.state.pool.leave_out("cpu-1")
        campaign.state.pool.workers = lambda executor: 1  # which alone do not do
        campaign.present = {"cpu-0"}
        campaign.begin()
        campaign.answer(campaign.out("simulate")[0])
        assert set(sites_of(campaign.out("simulate"))) == {"site-0"}
        campaign.state.pool.admit("cpu-1")
        campaign.present.add("cpu-1")
        outbox = campaign.take(campaign.steering.keep_time())
        assert outbox.notes == ["site site-1 is back"]
        assert set(sites_of(outbox.sends)) == {"site-1"}


def test_basis_states_are_equilibrated_at_all_sites(make_campaign):
    campaign = make_campaign(pool=(1, 1), n_starts=4, equilibrate_ps=20.0)
    out = campaign.out("equilibrate")
    assert [(send.info["site"], send.method) for send in out[:2]] == [
        ("site-0", "equilibrate@site-0"),
        ("site-1", "equilibrate@site-1"),
    ]
    (again,) = campaign.answer(out[0], "worker_lost").sends
    assert again.method == "equilibrate@site-1"
    assert {send.method for send in campaign.vanish("cpu-1").sends} == {"equilibrate@site-0"}


def test_the_summary_tells_of_each_site(make_campaign):
    campaign = make_campaign(pool=(2, 1), walkers=6)
    counts = campaign.state.counts
    counts.first_started, counts.last_ended = 100.0, 110.0
    counts.compute_s.update({("site-0", "simulate"): 15.0, ("site-1", "simulate"): 5.0, ("before", "simulate"): 2.0})
    summary = summary_of(campaign)
    assert summary.sites["simulate"] == ["site-0", "site-1"]
    assert summary.worker_utilisation == {
        "site-0": {"simulate": 0.75},
        "site-1": {"simulate": 0.5},
        "before": {"simulate": 0.1},
    }
    assert snapshot(campaign.steering).slots == 3


def test_segments_count_by_bundle_where_they_are():
    load = Load()
    for segment in range(3):
        load.put(segment, 0, "a")
    assert load.out == {"a": 1}
    load.put(1, 0, "b")
    assert load.out == {"a": 1, "b": 1}
    for segment in (0, 2):
        load.take(segment)
    load.take(2)
    assert +load.out == {"b": 1}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.fixed_dictionaries({**test_lockstep.SHAPES, **CHAINS, "bundle": st.sampled_from([None, 1, 3])}),
    pool=POOLS,
    lockstep=st.booleans(),
    kills=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**32),
)
def test_hooks_and_sites_that_come_and_go(open_campaign, shape, pool, lockstep, kills, seed):
    with open_campaign(lockstep=lockstep, **shape_of(shape, pool)) as campaign:
        campaign.begin()
        chances = {
            "kill": kills,
            "fail": 0.05,
            "abandon": 0.05,
            "leave": 0.1,
            "back": 0.2,
            "vanish": 0.02,
            "late": 0.1,
        }
        campaign.play(random.Random(seed), chances)
        if campaign.state.failure is None:
            assert campaign.state.counts.segments == shape["max_segments"]
            assert not campaign.outstanding
        for send in campaign.abandoned:
            campaign.answer_late(send)
        campaign.end()


def where_it_is(campaign, segment_id: int) -> tuple:
    told = "SELECT state, category FROM task WHERE kind = 'simulate' AND id = ?"
    return campaign.query(told, segment_id)[0]


def test_what_waits_for_hooks_is_sent_where_there_are_workers_then(make_campaign):
    asked = {"before_segment": ("true",), "hook_workers": 4}
    campaign = make_campaign(pool=(1, 1), walkers=2, policy="plain", infer_every=0, **asked)
    assert not campaign.out("simulate")
    assert [where_it_is(campaign, i) for i in (0, 1)] == [("waiting", "cpu-0"), ("waiting", "cpu-1")]
    campaign.leave("cpu-0")
    for hook in campaign.out("hook"):
        campaign.answer(hook)
    assert sites_of(campaign.out("simulate")) == ["site-1", "site-1"]
    assert [where_it_is(campaign, i) for i in (0, 1)] == [("running", "cpu-1"), ("running", "cpu-1")]
    campaign.come_back("cpu-0")
    retry = campaign.answer(campaign.out("simulate")[0], "error").sends
    assert sites_of(retry) == ["site-0"]
    assert where_it_is(campaign, 0) == ("running", "cpu-0")
    assert campaign.query("SELECT site FROM attempt WHERE task_id = 0 ORDER BY number") == [("site-1",), ("site-0",)]


def test_a_segment_that_waits_takes_room_where_it_is_to_go(make_campaign):
    asked = {"before_segment": ("true",), "hook_workers": 2}
    campaign = make_campaign(pool=(2, 1), walkers=30, policy="plain", infer_every=0, bundle=1, **asked)
    assert not campaign.out("simulate")
    assert dict(campaign.steering.simulate.out) == {"cpu-0": 4, "cpu-1": 2}


def test_what_waits_for_hooks_may_find_other_sites_in_a_later_process(make_campaign):
    asked = {"before_segment": ("true",), "hook_workers": 9}
    campaign = make_campaign(
        pool=(2, 1), walkers=6, bundle=2, policy="plain", infer_every=0, max_segments=12, **asked
    )
    campaign.join((1,))
    campaign.kill()
    for hook in campaign.out("hook"):
        campaign.answer(hook)
    assert {*sites_of(campaign.out("simulate"))} == {"site-0"}
    assert campaign.query("SELECT DISTINCT category FROM task WHERE kind = 'simulate'") == [("cpu-0",)]
    campaign.play(random.Random(1), {"fail": 0.1, "kill": 0.05})
    assert campaign.state.counts.segments == 12
    campaign.end()


def test_the_segments_of_a_bundle_that_waited_stay_together(make_campaign):
    asked = {"before_segment": ("true",), "hook_workers": 9}
    campaign = make_campaign(pool=(1, 1), walkers=8, bundle=2, policy="plain", infer_every=0, **asked)
    hooks = campaign.out("hook")
    order = random.Random(3).sample(hooks, len(hooks))
    for hook in order:
        campaign.answer(hook)
    site = {task_id(send.spec): send.info["site"] for send in campaign.out("simulate")}
    assert len(site) == 8
    assert all(site[2 * i] == site[2 * i + 1] for i in range(4))
    assert dict(campaign.steering.simulate.out) == {"cpu-0": 2, "cpu-1": 2}


def test_hooks_have_one_place_and_are_not_withdrawn(make_campaign):
    asked = {"after_segment": ("true",), "hook_workers": 1}
    campaign = make_campaign(pool=(1, 1), walkers=2, policy="plain", infer_every=0, **asked)
    campaign.answer(campaign.out("simulate")[0])
    (hook,) = campaign.out("hook")
    campaign.leave("cpu-0")
    assert campaign.out("hook") == [hook]
    (again,) = [send for send in campaign.answer(hook, "error").sends if send.topic == "hook"]
    assert again.info["executor"] == hook.info["executor"]
