"""What the display and the summary say of a campaign."""

import random
import signal
import time
from collections import Counter

import pytest

from agents.queues import Traffic
from agents.summing import snapshot, summarise


def summary_of(campaign, stopped_by=None, began=None, seconds=3.0, traffic=None):
    began = time.monotonic() if began is None else began
    return summarise(campaign.settings, campaign.state, traffic or Traffic(), stopped_by, began, seconds)


def test_a_campaign_that_reached_its_target(make_campaign):
    campaign = make_campaign(infer_every=2, retrain_every=4, max_segments=20, seed=5)
    campaign.play(random.Random(1), {"fail": 0.2})
    assert campaign.state.counts.failures.total() > 0
    summary = summary_of(campaign)
    counts = campaign.state.counts
    assert (summary.status, summary.reason) == ("complete", None)
    assert (summary.system, summary.policy, summary.seed) == ("imagined", "novelty", 5)
    assert (summary.segments, summary.frames) == (20, 20 * campaign.state.dynamics.n_frames)
    assert summary.simulated_ns == pytest.approx(20 * campaign.state.dynamics.segment_ps / 1000)
    assert summary.failures == dict(counts.failures)
    assert (summary.quarantined, summary.inferences) == (counts.quarantined, counts.inferences)
    assert summary.model_versions == campaign.state.model_version > 0
    steered = campaign.query("SELECT count(*) FROM task WHERE kind = 'simulate' AND state = 'complete' AND steered")
    assert summary.steered_fraction == steered[0][0] / 20
    assert summary.coverage == campaign.state.coverage
    assert summary.wall_s == 3.0
    assert summary.sites == {"simulate": ["imagined"], "infer": ["imagined"], "train": ["imagined"]}


def test_a_campaign_that_never_began_has_nothing_to_measure(make_campaign):
    summary = summary_of(make_campaign())
    assert (summary.segments, summary.steered_fraction, summary.coverage) == (0, 0.0, None)
    assert summary.worker_utilisation == {}
    assert summary.decision_ms == {"p50": None, "p95": None, "n": 0}
    assert summary.startup_s is None
    assert summary.thinker_bytes_per_segment["received"] is None


def test_a_signal_a_failure_and_an_end_are_told_apart(make_campaign):
    campaign = make_campaign(max_minutes=1.0)
    campaign.state.end("--max-minutes 1 are over")
    assert (summary_of(campaign).status, summary_of(campaign).reason) == ("complete", None)
    campaign = make_campaign()
    campaign.stop()
    summary = summary_of(campaign, signal.SIGINT)
    assert (summary.status, summary.reason) == ("interrupted", "SIGINT was received")
    campaign = make_campaign()
    campaign.state.fail("the task server was killed by SIGKILL")
    summary = summary_of(campaign)
    assert (summary.status, summary.reason) == ("failed", "the task server was killed by SIGKILL")


def test_utilisation_is_compute_over_slots_and_span(make_campaign):
    campaign = make_campaign(slots=2)
    counts = campaign.state.counts
    counts.first_started, counts.last_ended = 100.0, 110.0
    counts.compute_s["imagined", "simulate"] = 15.0
    counts.compute_s["imagined", "infer"] = 2.0
    assert summary_of(campaign).worker_utilisation == {"imagined": {"simulate": 0.75, "infer": 0.2}}


def test_decisions_are_told_by_median_and_tail(make_campaign):
    campaign = make_campaign()
    for milliseconds in range(101):
        campaign.steering.note_decision(float(milliseconds))
    assert summary_of(campaign).decision_ms == {"p50": 50.0, "p95": 95.0, "n": 101}


def test_bytes_are_told_by_attempt_sent_and_by_segment_received(make_campaign):
    campaign = make_campaign(max_segments=4, max_attempts=3)
    campaign.answer(campaign.out("simulate")[0], "nan")
    campaign.play(random.Random(1))
    traffic = Traffic(Counter(simulate=5 * 1000, infer=7), Counter(simulate=4 * 300))
    summary = summary_of(campaign, traffic=traffic)
    assert summary.thinker_bytes_per_segment == {"sent": 1000.0, "received": 300.0}


def test_startup_ends_when_the_first_segment_starts(make_campaign):
    campaign = make_campaign()
    began = time.monotonic() - 100
    campaign.state.counts.first_started = time.time() - 90
    assert summary_of(campaign, began=began).startup_s == pytest.approx(10.0, abs=0.5)


def test_proxies_are_told_from_the_holds(make_campaign):
    campaign = make_campaign(max_segments=5)
    campaign.play(random.Random(1))
    campaign.end()
    campaign.state.proxies_left = 2
    made = len(campaign.made)
    assert summary_of(campaign).proxies == {"created": made, "evicted": made, "left": 2}


def test_a_snapshot_tells_how_it_stands(make_campaign):
    campaign = make_campaign(max_segments=30, infer_every=1, retrain_every=1, slots=2)
    now = snapshot(campaign.steering)
    assert (now.segments, now.target, now.busy, now.slots) == (0, 30, 4, 2)
    assert now.coverage == "not yet known"
    campaign.answer(campaign.out("simulate")[0], "nan")
    campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("infer")[0])
    campaign.answer(campaign.out("train")[0])
    now = snapshot(campaign.steering)
    assert (now.segments, now.failures, now.model_version) == (1, 1, 1)
    assert now.coverage == "1 phi/psi cells of 15 degrees"
    assert now.simulated_ns == pytest.approx(campaign.state.dynamics.segment_ps / 1000)
    assert now.elapsed_s >= 0


def test_a_later_process_may_have_no_hooks(make_campaign):
    campaign = make_campaign(
        after_segment=("true",), walkers=1, slots=1, policy="plain", infer_every=0, max_segments=4
    )
    campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("hook")[0])
    campaign.settings = campaign.settings.model_copy(update={"after_segment": None})
    del campaign.destinations["hook"]
    campaign.kill()
    campaign.answer(campaign.out("simulate")[0])
    assert summary_of(campaign).worker_utilisation.keys() == {"imagined"}
