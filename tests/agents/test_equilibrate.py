"""Basis states are equilibrated once, before any segment."""

import random

import pytest


def test_without_equilibration_segments_begin_at_once(make_campaign):
    campaign = make_campaign(equilibrate_ps=0.0)
    campaign.play(random.Random(1))
    assert "equilibrate" not in {send.topic for send in campaign.sent}
    assert campaign.query("SELECT count(*) FROM task WHERE kind = 'equilibrate'") == [(0,)]


def test_segments_begin_at_equilibrated_states_once_all_are_there(make_campaign):
    campaign = make_campaign(equilibrate_ps=20.0, n_starts=2, walkers=2, seed=7)
    first, second = campaign.out("equilibrate")
    assert [(send.spec.number, send.spec.start, send.spec.start_row) for send in (first, second)] == [
        (0, campaign.basis, 0),
        (1, campaign.basis, 1),
    ]
    assert first.spec.seed != second.spec.seed
    assert campaign.answer(second).sends == []
    states = {}
    outbox = campaign.answer(first)
    for send in outbox.sends:
        states[send.spec.parent_frame] = (send.spec.start, send.spec.start_row)
    assert [ref.key[0].split("#")[0] for ref, _ in (states[0], states[1])] == ["state 0.1", "state 1.1"]
    assert {row for _, row in states.values()} == {0}
    assert campaign.basis in outbox.evictions
    assert campaign.query("SELECT kind, path FROM artifact ORDER BY path") == [
        ("end_state", "equilibrated/0000.xml"),
        ("end_state", "equilibrated/0001.xml"),
    ]
    assert campaign.query("SELECT kind, state, parent_frame FROM task WHERE id >= ? ORDER BY id", 2**40) == [
        ("equilibrate", "complete", 0),
        ("equilibrate", "complete", 1),
    ]
    assert campaign.query("SELECT DISTINCT topic FROM record") == [("equilibrate",)]


def test_what_equilibration_showed_is_told(make_campaign):
    campaign = make_campaign(equilibrate_ps=20.0)
    (note,) = campaign.answer(campaign.out("equilibrate")[0]).notes
    assert note.startswith("basis state 0 after 20 ps of equilibration: 301 K of 300 K, density 0.900 -> 1.010 g/ml")


def test_it_is_no_simulated_time_and_no_utilisation(make_campaign):
    campaign = make_campaign(equilibrate_ps=20.0)
    campaign.play(random.Random(1))
    counts = campaign.state.counts
    assert counts.simulated_ps == pytest.approx(counts.segments * campaign.state.dynamics.segment_ps)
    assert {topic for _, topic in counts.compute_s} == {"simulate", "infer"}


def test_a_state_that_cannot_be_equilibrated_is_left_out(make_campaign):
    campaign = make_campaign(equilibrate_ps=20.0, n_starts=2, walkers=2, max_attempts=2, policy="plain")
    bad, good = campaign.out("equilibrate")
    campaign.answer(bad, "nan")
    campaign.answer(good)
    (again,) = campaign.out("equilibrate")
    assert again.spec.attempt == 2
    segments = campaign.answer(again, "nan").sends
    assert {send.spec.parent_frame for send in segments} == {1}
    assert (campaign.state.counts.quarantined, campaign.state.counts.failures["nan"]) == (1, 2)
    campaign.play(random.Random(1))
    assert campaign.state.failure is None
    campaign.end()


def test_without_any_state_the_campaign_ends_with_a_sentence(make_campaign):
    campaign = make_campaign(equilibrate_ps=20.0, n_starts=2, max_attempts=1)
    for send in campaign.out("equilibrate"):
        campaign.answer(send, "nan")
    assert campaign.steering.finished
    assert campaign.state.failure == "no basis state could be equilibrated: nan on purpose"
    campaign.end()


def test_a_signal_keeps_what_still_comes_and_sends_no_segment(make_campaign):
    campaign = make_campaign(equilibrate_ps=20.0, n_starts=2)
    first, second = campaign.out("equilibrate")
    campaign.stop()
    assert not campaign.steering.finished
    assert campaign.answer(first).sends == []
    assert campaign.answer(second, "worker_lost").sends == []
    assert campaign.steering.finished
    assert campaign.state.failure is None
    states = campaign.query("SELECT state FROM task ORDER BY id")
    assert states == [("complete",), ("ready",)]
    campaign.end()


@pytest.mark.parametrize("how", [{}, {"lockstep": True}, {"crossing": True}, {"inline": True}], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_campaigns_that_equilibrate_end_well_whatever_fails(make_campaign, how, seed):
    campaign = make_campaign(
        equilibrate_ps=20.0, n_starts=3, walkers=5, infer_every=1, retrain_every=3, max_segments=15, **how
    )
    campaign.play(random.Random(seed), {"fail": 0.15, "abandon": 0.1, "late": 0.5, "repeat": 0.1})
    campaign.end()
