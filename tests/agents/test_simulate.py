"""Walkers, their starts, and what becomes of segments that fail."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.simulate import QUEUED_PER_WORKER
from agents.state import bundles
from agents.topic import task_seed
from policies.imported import Imported
from tasks.messages import SegmentSpec


def failed_for_good(campaign, send, kind="nan"):
    """Let a segment fail in every attempt; return what is sent after the last."""
    for _ in range(campaign.settings.max_attempts - 1):
        (send,) = campaign.answer(send, kind).sends
    return campaign.answer(send, kind).sends


@pytest.mark.parametrize(("slots", "walkers", "sent"), [(2, 4, 4), (2, 9, 4), (3, 4, 4), (1, 4, 2), (1, 1, 1)])
def test_one_runs_and_one_waits_on_every_worker(make_campaign, slots, walkers, sent):
    campaign = make_campaign(slots=slots, walkers=walkers)
    assert QUEUED_PER_WORKER == 2
    assert len(campaign.out("simulate")) == sent


def bundles_of(sends):
    return [[send.spec.segment_id for send in bundle] for bundle in bundles(sends)]


def test_a_bundle_is_sent_whole_and_sent_again_when_its_walkers_are_back(make_campaign):
    campaign = make_campaign(slots=1, walkers=4, bundle=2, policy="plain")
    first = campaign.out("simulate")
    assert bundles_of(first) == [[0, 1], [2, 3]]
    assert campaign.answer(first[0]).sends == [], "half a bundle was sent while the worker has another"
    assert bundles_of(campaign.answer(first[1]).sends) == [[4, 5]]


def test_half_a_bundle_is_sent_when_a_worker_would_wait_for_the_rest(make_campaign):
    campaign = make_campaign(slots=2, walkers=3, bundle=2, policy="plain")
    assert bundles_of(campaign.out("simulate")) == [[0, 1], [2]]


def test_a_segment_that_is_tried_again_travels_alone(make_campaign):
    campaign = make_campaign(slots=1, walkers=4, bundle=4, policy="plain")
    sends = [send for first in campaign.out("simulate")[:2] for send in campaign.answer(first, "worker_lost").sends]
    assert [send.spec.attempt for send in sends] == [2, 2]
    assert bundles_of(sends) == [[0], [1]]


def test_short_segments_are_bundled_as_far_as_walkers_go(make_campaign):
    campaign = make_campaign(slots=1, walkers=9, policy="plain", max_segments=100)
    assert bundles_of(campaign.out("simulate")) == [[0], [1]]
    outcome = campaign.outcome(send := campaign.out("simulate")[0])
    del campaign.outstanding["simulate", send.spec.segment_id]
    sent = campaign.deliver(send, replace(outcome, started=outcome.ended - 0.02)).sends
    # 0.02 s each: five make a task worthwhile, but nine walkers keep one running and one waiting only as fours.
    assert bundles_of(sent) == [[2, 3, 4, 5]]


def test_long_segments_are_not_bundled(make_campaign):
    campaign = make_campaign(slots=1, walkers=9, policy="plain")
    assert bundles_of(campaign.answer(campaign.out("simulate")[0]).sends) == [[2]]


def test_first_segments_begin_at_the_basis_with_seeds_of_their_own(make_campaign):
    campaign = make_campaign(walkers=4, seed=7)
    specs = [send.spec for send in campaign.out("simulate")]
    assert [spec.segment_id for spec in specs] == [spec.walker_id for spec in specs] == [0, 1, 2, 3]
    assert {(spec.parent_id, spec.parent_frame, spec.start, spec.start_row) for spec in specs} == {
        (None, None, campaign.basis, 0)
    }
    assert [spec.seed for spec in specs] == [task_seed(7, number) for number in range(4)]
    assert len({spec.seed for spec in specs}) == 4


def test_several_starts_are_dealt_in_turn_and_kept_apart(make_campaign):
    campaign = make_campaign(walkers=4, slots=2, n_starts=3)
    specs = [send.spec for send in campaign.out("simulate")]
    assert [(spec.parent_id, spec.parent_frame, spec.start_row) for spec in specs] == [
        (None, 0, 0), (None, 1, 1), (None, 2, 2), (None, 0, 0),
    ]  # fmt: skip
    assert {spec.start for spec in specs} == {campaign.basis}
    told = campaign.reader.execute("SELECT parent_id, parent_frame FROM task WHERE kind = 'simulate' ORDER BY id")
    assert told.fetchall() == [(None, 0), (None, 1), (None, 2), (None, 0)]


def test_of_several_starts_only_the_bad_one_is_quarantined(make_campaign):
    campaign = make_campaign(walkers=2, slots=1, n_starts=2, policy="plain")
    (again,) = failed_for_good(campaign, campaign.out("simulate")[0])
    assert (again.spec.walker_id, again.spec.parent_id, again.spec.parent_frame) == (0, None, 1)
    assert campaign.state.quarantine == {(None, 0)}


def test_a_spec_says_all_that_a_worker_needs(make_campaign):
    campaign = make_campaign(trajectory_format="xtc", segment_ps=4.0)
    send = campaign.out("simulate")[0]
    destination = campaign.destinations["simulate"]
    assert send.method == destination.method
    assert send.spec == SegmentSpec(
        segment_id=0,
        attempt=1,
        walker_id=0,
        iteration=0,
        parent_id=None,
        parent_frame=None,
        system=campaign.state.molecule.refs["simulate"],
        system_id="digest",
        start=campaign.basis,
        start_row=0,
        seed=task_seed(campaign.settings.seed, 0),
        dynamics=campaign.settings.dynamics("Reference"),
        store=destination.store,
        run_dir="/run",
        trajectory_format="xtc",
    )


def test_without_candidates_a_walker_carries_on(make_campaign):
    campaign = make_campaign(walkers=2, policy="plain", infer_every=1)
    first = campaign.out("simulate")[1]
    outcome = campaign.outcome(first)
    del campaign.outstanding["simulate", 1]
    (send,) = (s for s in campaign.deliver(first, outcome).sends if s.topic == "simulate")
    assert (send.spec.walker_id, send.spec.parent_id, send.spec.parent_frame) == (1, 1, outcome.value.n_frames - 1)
    assert (send.spec.start, send.spec.start_row) == (outcome.value.end, 0)
    assert send.info["steered"] is False
    assert send.info["novelty"] is None


def test_candidates_are_spread_over_walkers_and_say_for_what_they_were_chosen(make_campaign):
    campaign = make_campaign(walkers=4, infer_every=1, candidates_per_walker=1, max_segments=100)
    campaign.answer(campaign.out("simulate")[0])
    outcome = campaign.outcome(campaign.out("infer")[0])
    send = campaign.out("infer")[0]
    del campaign.outstanding["infer", outcome.task_id]
    campaign.deliver(send, outcome)
    offered = outcome.value.start_ids
    assert len(offered) == 3
    starts = []
    for _ in range(len(offered)):
        (sent,) = (s for s in campaign.answer(campaign.out("simulate")[0]).sends if s.topic == "simulate")
        row = sent.spec.start_row
        assert sent.spec.start == outcome.value.starts
        assert (sent.spec.parent_id, sent.spec.parent_frame) == offered[row]
        assert sent.info["steered"] is True
        assert sent.info["novelty"] == outcome.value.scores[row]
        starts.append(row)
    assert sorted(starts) == list(range(len(offered)))
    assert campaign.query("SELECT count(*) FROM task WHERE steered") == [(len(offered),)]
    while campaign.state.counts.steered == 0:
        campaign.answer(campaign.out("simulate")[0])


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_a_failed_attempt_is_tried_again_and_then_given_up(make_campaign, max_attempts):
    campaign = make_campaign(walkers=1, slots=1, max_attempts=max_attempts)
    campaign.answer(campaign.out("simulate")[0])  # so that the basis is not the only start
    spec = campaign.out("simulate")[0].spec
    for attempt in range(1, max_attempts):
        (again,) = campaign.answer(campaign.out("simulate")[0], "worker_lost").sends
        assert again.spec == replace(spec, attempt=attempt + 1)
        assert again.info["attempt"] == attempt + 1
    (other,) = campaign.answer(campaign.out("simulate")[0], "worker_lost").sends
    assert other.spec.segment_id == spec.segment_id + 1
    assert (other.spec.parent_id, other.spec.parent_frame) != (spec.parent_id, spec.parent_frame)
    assert campaign.state.counts.failures == {"worker_lost": max_attempts}
    assert campaign.state.counts.quarantined == 1
    assert campaign.state.failure is None
    rows = campaign.query("SELECT number, outcome, error FROM attempt WHERE task_id = 1 ORDER BY number")
    error = "worker_lost on purpose\nTraceback ..."
    assert rows == [(number, "worker_lost", error) for number in range(1, max_attempts + 1)]
    assert campaign.query("SELECT state FROM task WHERE id = 1") == [("quarantined",)]


def test_a_quarantined_start_is_never_chosen_again(make_campaign):
    campaign = make_campaign(walkers=2, slots=1, max_attempts=1, policy="plain", max_segments=40)
    campaign.answer(campaign.out("simulate")[0])
    lost = campaign.out("simulate")[-1].spec
    failed_for_good(campaign, campaign.out("simulate")[-1])
    while not campaign.steering.finished:
        campaign.answer(next(iter(campaign.outstanding.values())))
    later = [s.spec for s in campaign.sent if s.topic == "simulate" and s.spec.segment_id > lost.segment_id]
    assert (lost.parent_id, lost.parent_frame) not in {(spec.parent_id, spec.parent_frame) for spec in later}
    assert campaign.state.counts.segments == 40
    assert campaign.state.counts.quarantined == 1


def test_a_quarantined_candidate_is_passed_over(make_campaign):
    campaign = make_campaign(walkers=1, slots=1, infer_every=1, max_attempts=1, candidates_per_walker=1)
    campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("infer")[0])
    (only,) = campaign.state.candidates.ids
    campaign.answer(campaign.out("simulate")[0])  # sent before there were candidates
    steered = campaign.out("simulate")[0]
    assert (steered.spec.parent_id, steered.spec.parent_frame) == only
    (sent,) = failed_for_good(campaign, steered)
    assert sent.info["steered"] is False
    assert (sent.spec.parent_id, sent.spec.parent_frame) == campaign.steering.simulate.walkers.all[0].own.origin


def test_a_candidate_is_taken_although_another_is_quarantined(make_campaign):
    campaign = make_campaign(walkers=1, slots=1, infer_every=1, max_attempts=1, candidates_per_walker=2)
    campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("infer")[0])
    assert len(campaign.state.candidates.ids) == 2
    campaign.answer(campaign.out("simulate")[0])
    lost = campaign.out("simulate")[0].spec
    (sent,) = failed_for_good(campaign, campaign.out("simulate")[0])
    assert sent.info["steered"] is True
    assert (sent.spec.start, sent.spec.start_row) == (lost.start, 1 - lost.start_row)


def test_a_walker_without_a_start_takes_another_walkers(make_campaign):
    campaign = make_campaign(walkers=3, slots=2, max_attempts=1, policy="plain")
    first, second, third = campaign.out("simulate")
    campaign.answer(first)
    outbox = campaign.answer(second, "nan")  # with it the basis is lost, where the second walker still is
    (sent,) = outbox.sends
    assert (sent.spec.walker_id, sent.spec.parent_id) == (1, 0)
    assert campaign.state.failure is None


def test_walkers_without_a_start_wait_for_segments_that_are_out(make_campaign):
    campaign = make_campaign(walkers=2, slots=1, max_attempts=1, policy="plain", max_segments=6)
    first, second = campaign.out("simulate")
    assert campaign.answer(first, "nan").sends == []
    assert campaign.state.failure is None
    sends = campaign.answer(second).sends
    assert sorted(send.spec.walker_id for send in sends) == [0, 1]
    while not campaign.steering.finished:
        campaign.answer(next(iter(campaign.outstanding.values())))
    assert (campaign.state.failure, campaign.state.counts.segments) == (None, 6)


def test_a_deadline_that_passed_counts_as_a_loss_and_its_result_is_not_applied(make_campaign):
    campaign = make_campaign(walkers=1, slots=1, task_timeout=900.0)
    first = campaign.out("simulate")[0]
    (again,) = campaign.abandon(first).sends
    assert again.spec == replace(first.spec, attempt=2)
    assert campaign.state.counts.failures == {"lost": 1}
    row = "SELECT outcome, error FROM attempt WHERE task_id = 0 AND number = 1"
    assert campaign.query(row) == [("lost", "no result within --task-timeout 900 s")]
    before = set(campaign.stored)
    outbox = campaign.answer_late(first)
    assert outbox.sends == []
    assert len(outbox.evictions) == 2
    assert campaign.stored == before
    assert campaign.state.counts.segments == 0
    assert campaign.query(row) == [("late", "no result within --task-timeout 900 s")]
    campaign.answer(again)
    assert campaign.state.counts.segments == 1
    assert campaign.query("SELECT number, outcome FROM attempt WHERE task_id = 0") == [(1, "late"), (2, "success")]
    campaign.end()


def test_a_result_that_comes_twice_changes_nothing(make_campaign):
    campaign = make_campaign(walkers=1, slots=1)
    first = campaign.out("simulate")[0]
    outcome = campaign.outcome(first)
    del campaign.outstanding["simulate", 0]
    campaign.deliver(first, outcome)
    # The very same message: its end state is where the walker now is, and must stay.
    campaign.state.counts.failures.clear()
    kept = set(campaign.stored)
    for _ in range(2):
        outbox = campaign.steering.handle("simulate", outcome)
        assert outbox.sends == []
        assert outcome.value.end not in outbox.evictions
    assert campaign.stored == kept
    assert campaign.state.counts.segments == 1
    assert campaign.query("SELECT outcome FROM attempt WHERE task_id = 0") == [("success",)]
    assert campaign.query("SELECT count(*) FROM artifact") == [(1,)]
    assert campaign.query("SELECT count(*) FROM record") == [(3,)]


def test_results_of_segments_and_frames_are_counted(make_campaign):
    campaign = make_campaign(max_segments=5)
    while not campaign.steering.finished:
        campaign.answer(next(iter(campaign.outstanding.values())))
    counts = campaign.state.counts
    dynamics = campaign.state.dynamics
    assert (counts.segments, counts.frames) == (5, 5 * dynamics.n_frames)
    assert counts.simulated_ps == pytest.approx(5 * dynamics.segment_ps)
    assert counts.compute_s["imagined", "simulate"] == pytest.approx(5.0)


def test_compute_spans_the_earliest_start_and_the_latest_end(make_campaign):
    campaign = make_campaign(walkers=3, slots=2)
    for send, began, ended in zip(campaign.out("simulate"), [20.0, 10.0, 30.0], [60.0, 70.0, 50.0], strict=True):
        outcome = replace(campaign.outcome(send), started=began, ended=ended)
        del campaign.outstanding["simulate", send.spec.segment_id]
        campaign.deliver(send, outcome)
    counts = campaign.state.counts
    assert (counts.first_started, counts.last_ended) == (10.0, 70.0)
    assert counts.compute_s["imagined", "simulate"] == 40.0 + 60.0 + 20.0


@given(campaign_seed=st.integers(0, 2**31 - 1), segment_id=st.integers(0, 2**40 - 1))
def test_seeds_are_what_openmm_takes_for_a_seed(campaign_seed, segment_id):
    seed = task_seed(campaign_seed, segment_id)
    assert 1 <= seed < 2**31
    assert seed == task_seed(campaign_seed, segment_id)


def test_seeds_differ_between_segments_and_campaigns():
    seeds = {task_seed(campaign, segment) for campaign in range(20) for segment in range(100)}
    assert len(seeds) >= 1999


class Raising:
    """A user's policy with a mistake."""

    candidates, learns = "novel", True

    def choose(self, scores, used, rng):
        raise ValueError("of mine")


def test_a_policy_that_raises_ends_the_campaign_with_its_name_and_keeps_the_result(make_campaign):
    campaign = make_campaign(walkers=2, slots=1, infer_every=1, max_segments=50)
    campaign.state.policy = Imported("mine:Raising", Raising())
    campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("infer")[0])
    n_sent = campaign.state.counts.n_sent["simulate"]
    campaign.answer(campaign.out("simulate")[0])
    assert campaign.state.failure.startswith("--policy mine:Raising raised ValueError: of mine")
    assert campaign.steering.finished
    assert campaign.state.counts.segments == 2
    assert campaign.state.counts.n_sent["simulate"] == n_sent
    campaign.end()
