"""What the user has run beside a campaign: in its order, once, and never in a segment's way."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.topic import task_id
from tests.agents.test_lockstep import SHAPES, decisions

CHAINS = {
    "before_segment": st.sampled_from([None, ("true b0",), ("true b0", "true b1")]),
    "after_segment": st.sampled_from([None, ("true a0",), ("true a0", "true a1", "true a2")]),
    "after_campaign": st.sampled_from([None, ("true c0", "true c1")]),
    "continue_until": st.sampled_from([None, "builtins:callable"]),
    "hook_workers": st.integers(1, 3),
}
CHANCES = {
    "kill": st.sampled_from([0.0, 0.02, 0.1, 0.3]),
    "abandon": st.sampled_from([0.0, 0.1]),
    "repeat": st.sampled_from([0.0, 0.1]),
    "late": st.sampled_from([0.0, 0.5]),
}
AFTER, BEFORE = ("true a0", "true a1"), ("true b0", "true b1")
SMALL = {"infer_every": 0, "policy": "plain", "walkers": 1, "slots": 1}


def hooks(campaign, *columns: str, where: str = "1") -> list:
    return campaign.query(f"SELECT {', '.join(columns)} FROM task WHERE kind = 'hook' AND {where} ORDER BY id")


def play(campaign, seed: int, chances) -> Counter:
    """Play to the end; return how often each hook was run to success, by segment."""
    campaign.begin()
    campaign.play(random.Random(seed), chances)
    rows = campaign.query(
        "SELECT task.parent_id, hook FROM hook_value JOIN attempt USING (task_id) JOIN task ON task.id = task_id"
        " WHERE outcome = 'success'"
    )
    return Counter(rows)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.fixed_dictionaries({**SHAPES, **CHAINS, "max_segments": st.integers(1, 12)}),
    chances=st.fixed_dictionaries(CHANCES),
    lockstep=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_each_hook_of_each_segment_succeeds_once_however_often_it_dies(open_campaign, shape, chances, lockstep, seed):
    # Attempts are lost now and then, so none may be given up for it.
    with open_campaign(lockstep=lockstep, **{**shape, "max_attempts": 1000}) as campaign:
        done = play(campaign, seed, chances)
        asked = [hook for name in ("before_segment", "after_segment") for hook in shape[name] or ()]
        asked += [shape["continue_until"]] if shape["continue_until"] else []
        assert campaign.state.counts.segments == shape["max_segments"]
        expected = {(segment, hook): 1 for segment in range(shape["max_segments"]) for hook in asked}
        assert done == expected | {(None, hook): 1 for hook in shape["after_campaign"] or ()}
        assert set(hooks(campaign, "state")) <= {("complete",)}
        campaign.end()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.fixed_dictionaries({**SHAPES, **CHAINS, "max_segments": st.integers(1, 12)}),
    chances=st.fixed_dictionaries({**CHANCES, "fail": st.sampled_from([0.1, 0.5])}),
    lockstep=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_what_fails_takes_its_chain_with_it_and_nothing_else(open_campaign, shape, chances, lockstep, seed):
    with open_campaign(lockstep=lockstep, **shape) as campaign:
        assert max(play(campaign, seed, chances).values(), default=1) == 1
        if campaign.state.failure is None:
            assert campaign.state.counts.segments == shape["max_segments"]
            assert set(hooks(campaign, "state")) <= {("complete",), ("fizzled",)}
            # Hooks of a segment: `waiting` ones that were never tried are given up with the one before them.
            untried = hooks(campaign, "state", where="id NOT IN (SELECT task_id FROM attempt)")
            assert set(untried) <= {("fizzled",)}
        campaign.end()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.fixed_dictionaries({**SHAPES, **CHAINS}),
    kills=st.sampled_from([0.0, 0.1]),
    until=st.integers(0, 20),
    lockstep=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_campaign_goes_on_until_it_is_true(open_campaign, shape, kills, until, lockstep, seed):
    shape = {**shape, "continue_until": "builtins:callable", "max_attempts": 1000}
    with open_campaign(lockstep=lockstep, until=until, **shape) as campaign:
        play(campaign, seed, {"kill": kills})
        assert (campaign.state.until is not None) == (shape["max_segments"] > until)
        assert campaign.state.ending is None
        if campaign.state.until is not None:
            assert campaign.state.counts.segments > until
            assert " was true after segment " in campaign.state.until
        if lockstep and campaign.state.until is not None:
            assert campaign.state.until.endswith(f"after segment {until}")
        concluded = hooks(campaign, "state", where="parent_id IS NULL")
        assert concluded == [("complete",)] * len(shape["after_campaign"] or ())
        campaign.end()


@settings(max_examples=30, deadline=None)
@given(
    shape=st.fixed_dictionaries(SHAPES),
    chains=st.fixed_dictionaries(CHAINS),
    seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)),
)
def test_in_lockstep_hooks_change_no_decision(open_campaign, shape, chains, seeds):
    without, with_them = (
        decisions(open_campaign, {**shape, **hooks}, random.Random(seed))
        for seed, hooks in zip(seeds, ({}, chains), strict=True)
    )
    assert with_them["failure"] == without["failure"]
    # Segments that wait for hooks are sent later, maybe in another order; hooks take numbers from other tasks.
    assert sorted(with_them["simulate"]) == sorted(without["simulate"])
    for topic in ("infer", "train"):
        assert [told[1:] for told in with_them[topic]] == [told[1:] for told in without[topic]]


def test_a_chain_goes_from_ready_to_running_and_from_waiting_on(make_campaign):
    campaign = make_campaign(after_segment=AFTER, max_segments=2, **SMALL)
    outbox = campaign.answer(campaign.out("simulate")[0])
    assert [send.topic for send in outbox.sends] == ["simulate", "hook"]
    campaign.answer(campaign.out("simulate")[0])
    assert hooks(campaign, "parent_id", "state") == [(0, "running"), (0, "waiting"), (1, "ready"), (1, "waiting")]
    (first,) = campaign.out("hook")
    assert first.info == {
        "attempt": 1, "executor": "host", "site": "imagined", "task_id": first.spec.task_id, "segment_id": 0,
        "moment": "after-segment", "hook": "true a0",
    }  # fmt: skip
    campaign.answer(first)
    assert hooks(campaign, "parent_id", "state")[:2] == [(0, "complete"), (0, "ready")]
    assert [send.spec.segment.segment_id for send in campaign.out("hook")] == [1]
    told = campaign.query("SELECT task_id, segment_id, hook, name, value FROM hook_value")
    assert told == [(first.spec.task_id, 0, "true a0", "value", float(first.spec.task_id))]


def test_what_a_hook_is_told_of_a_segment(make_campaign):
    campaign = make_campaign(before_segment=("true b0",), after_segment=("true a0",), **SMALL)
    (before,) = campaign.out("hook")
    assert (before.spec.segment.segment_id, before.spec.segment.trajectory) == (0, None)
    assert (before.spec.segment.n_frames, before.spec.segment.potential_energy_kj_mol) == (None, None)
    campaign.answer(before)
    outcome = campaign.outcome(campaign.out("simulate")[0])
    campaign.answer(campaign.out("simulate")[0])
    after = next(send.spec for send in campaign.out("hook") if send.spec.moment == "after-segment")
    assert (after.segment.n_frames, after.segment.n_atoms) == (outcome.value.n_frames, outcome.value.n_atoms)
    assert after.segment.trajectory == "trajectories/00000000.dcd"
    assert (after.segment.parent_id, after.segment.steered, after.run_dir) == (None, False, "/run")


@pytest.mark.parametrize("failure", [None, "hook"])
def test_a_segment_waits_for_its_hooks_and_is_sent_in_either_case(make_campaign, failure):
    campaign = make_campaign(before_segment=BEFORE, max_attempts=2, **SMALL)
    assert campaign.out("simulate") == []
    assert campaign.query("SELECT state FROM task WHERE id = 0") == [("waiting",)]
    for _ in range(2):
        assert campaign.out("simulate") == []
        campaign.answer(campaign.out("hook")[0], failure)
    assert [task_id(send.spec) for send in campaign.out("simulate")] == [0]
    assert {state for (state,) in hooks(campaign, "state", where="parent_id = 0")} == {
        "fizzled" if failure else "complete"
    }


def test_a_stop_waits_for_no_hook_and_a_later_process_runs_them(make_campaign):
    campaign = make_campaign(before_segment=BEFORE, after_segment=AFTER, after_campaign=("true c",), **SMALL)
    while not campaign.out("simulate"):
        campaign.answer(campaign.out("hook")[0])
    campaign.answer(campaign.out("simulate")[0])
    campaign.stop()
    assert campaign.steering.finished
    assert not campaign.steering.waits_for_hooks
    campaign.kill()
    campaign.play(random.Random(1))
    assert campaign.state.counts.segments == 12
    assert set(hooks(campaign, "state")) == {("complete",)}
    assert len(hooks(campaign, "id")) == 12 * 4 + 1


def test_a_hook_that_comes_back_after_a_stop_lets_its_segment_be_sent_later(make_campaign):
    campaign = make_campaign(before_segment=("true b0",), **SMALL)
    (out,) = campaign.out("hook")
    campaign.stop()
    campaign.answer(out)
    assert campaign.query("SELECT state FROM task WHERE id = 0") == [("ready",)]
    campaign.kill()
    assert [task_id(send.spec) for send in campaign.out("simulate")] == [0]


def test_time_that_is_over_cuts_no_hook_short(make_campaign):
    campaign = make_campaign(
        after_segment=("true a0",), after_campaign=("true c0",), max_minutes=1.0, grace_s=0.0, **SMALL
    )
    campaign.answer(campaign.out("simulate")[0])
    campaign.state.began -= 120
    campaign.take(campaign.steering.keep_time())
    assert campaign.state.ending is not None
    assert campaign.steering.waits_for_hooks
    campaign.answer(campaign.out("hook")[0], "hook")
    campaign.answer(campaign.out("hook")[0])
    # A segment that is still out has no time left.
    campaign.take(campaign.steering.keep_time())
    assert [send.spec.moment for send in campaign.out("hook")] == ["after-campaign"]
    campaign.answer(campaign.out("hook")[0])
    assert not campaign.steering.waits_for_hooks


def test_one_that_is_given_up_after_the_campaign_is_told_and_harms_nothing(make_campaign):
    campaign = make_campaign(after_campaign=("true c0", "true c1"), max_attempts=1, max_segments=1, **SMALL)
    campaign.answer(campaign.out("simulate")[0])
    assert not campaign.steering.finished
    outbox = campaign.answer(campaign.out("hook")[0], "hook")
    assert outbox.notes == [
        "hook given up after 1 attempts: hook on purpose (of this hook, only the log tells further ones)"
    ]
    assert campaign.steering.finished
    assert (campaign.state.failure, campaign.state.ending) == (None, None)
    assert hooks(campaign, "state") == [("fizzled",), ("fizzled",)]


def test_given_up_hooks_run_again_in_their_order(make_campaign):
    campaign = make_campaign(after_segment=AFTER, max_attempts=1, max_segments=1, **SMALL)
    campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("hook")[0], "hook")
    with campaign.ledger.transaction():
        for task in campaign.ledger.open_tasks("fizzled"):
            campaign.ledger.set_state(task.id, "ready")
    campaign.kill()
    assert [send.spec.hook for send in campaign.out("hook")] == ["true a0"]
    campaign.answer(campaign.out("hook")[0])
    assert [send.spec.hook for send in campaign.out("hook")] == ["true a1"]


def test_in_lockstep_files_are_published_by_the_decision_that_sends_the_hook(make_campaign):
    campaign = make_campaign(lockstep=True, infer_every=1, slots=1, walkers=2, after_segment=("true a0",))
    first, second = campaign.out("simulate")
    campaign.answer(first)
    # While the first is looked at, the second waits to be applied.
    campaign.answer(second)
    assert [send.spec.segment.segment_id for send in campaign.out("hook")] == [0]
    campaign.answer(campaign.out("hook")[0])
    outbox = campaign.answer(campaign.out("infer")[0])
    (hook,) = campaign.out("hook")
    assert hook.spec.segment.trajectory in [file.path for file in outbox.published]


@pytest.mark.parametrize(("minutes", "ends"), [(None, True), (5.0, False)])
def test_what_was_reached_stays_reached_unless_the_ends_are_others(make_campaign, minutes, ends):
    campaign = make_campaign(continue_until="builtins:callable", until=0, max_segments=50, **SMALL)
    campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("hook")[0])
    assert campaign.state.until is not None
    campaign.settings = campaign.settings.model_copy(update={"max_minutes": minutes})
    campaign.kill()
    assert (campaign.state.until is not None) is ends
