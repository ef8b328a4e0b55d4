"""When frames are looked at, and what is kept of what was found."""

import json
from dataclasses import replace

import pytest

from agents.infer import MAX_BATCH, MAX_FRONTIER, frontier_size
from agents.topic import task_id
from campaign.settings import Settings
from tasks.messages import Nearest


def answer_segments(campaign, count):
    for _ in range(count):
        campaign.answer(campaign.out("simulate")[0])


def segments_of(send) -> list[int]:
    return [segment for segment, _ in send.spec.batches]


def test_a_look_waits_for_enough_segments(make_campaign):
    campaign = make_campaign(infer_every=3, max_segments=50)
    answer_segments(campaign, 2)
    assert campaign.out("infer") == []
    answer_segments(campaign, 1)
    assert segments_of(campaign.out("infer")[0]) == [0, 1, 2]


def test_what_arrived_during_a_look_is_looked_at_next(make_campaign):
    campaign = make_campaign(infer_every=2, max_segments=50)
    answer_segments(campaign, 7)
    assert segments_of(campaign.out("infer")[0]) == [0, 1]
    campaign.answer(campaign.out("infer")[0])
    assert segments_of(campaign.out("infer")[0]) == [2, 3, 4, 5, 6]


def test_a_pile_is_looked_at_in_portions(make_campaign):
    campaign = make_campaign(infer_every=1, max_segments=300)
    answer_segments(campaign, 1 + MAX_BATCH + 5)
    campaign.answer(campaign.out("infer")[0])
    assert segments_of(campaign.out("infer")[0]) == list(range(1, 1 + MAX_BATCH))
    campaign.answer(campaign.out("infer")[0])
    assert segments_of(campaign.out("infer")[0]) == list(range(1 + MAX_BATCH, 1 + MAX_BATCH + 5))


def test_a_look_that_needs_more_than_a_portion_gets_them(make_campaign):
    campaign = make_campaign(infer_every=MAX_BATCH + 3, max_segments=300)
    answer_segments(campaign, MAX_BATCH + 3)
    assert len(segments_of(campaign.out("infer")[0])) == MAX_BATCH + 3


def test_each_look_builds_on_the_last_ones_reference(make_campaign):
    campaign = make_campaign(infer_every=1, max_segments=50)
    answer_segments(campaign, 1)
    first = campaign.out("infer")[0].spec
    assert (first.reference, first.reference_number, first.model, first.model_version) == (None, 1, None, 0)
    campaign.answer(campaign.out("infer")[0])
    answer_segments(campaign, 1)
    second = campaign.out("infer")[0].spec
    assert (second.reference, second.reference_number) == (campaign.state.reference, 2)
    assert first.task_id != second.task_id


@pytest.mark.parametrize(
    ("policy", "embedding", "looked_with", "candidates"),
    [
        ("novelty", "aae", "aae", "novel"),
        ("novelty", "pca", "pca", "novel"),
        ("random", "aae", "none", "uniform"),
        ("plain", "aae", "none", "none"),
        ("lof", "aae", "aae", "novel"),
        ("rmsd:/target.pdb", "aae", "aae", "nearest"),
    ],
)
def test_the_policy_says_what_is_asked(make_campaign, policy, embedding, looked_with, candidates):
    campaign = make_campaign(policy=policy, embedding=embedding, infer_every=1, walkers=3, candidates_per_walker=5)
    answer_segments(campaign, 1)
    spec = campaign.out("infer")[0].spec
    assert (spec.embedding, spec.candidates, spec.n_candidates) == (looked_with, candidates, 15)
    assert spec.novelty == ("lof" if policy == "lof" else "sparsity")


def test_the_trace_tells_the_way_to_a_target(make_campaign):
    campaign = make_campaign(policy="rmsd:/target.pdb", infer_every=1)
    answer_segments(campaign, 1)
    send = campaign.out("infer")[0]
    outcome = campaign.outcome(send)
    del campaign.outstanding["infer", outcome.task_id]
    campaign.deliver(send, replace(outcome, value=replace(outcome.value, nearest=Nearest(0, 2, 0.25))))
    told = json.loads(campaign.records[-1][1])["task_info"]
    assert (told["smallest_rmsd_nm"], told["nearest"]) == (0.25, [0, 2])


def test_without_a_target_the_trace_tells_no_way(make_campaign):
    campaign = make_campaign(infer_every=1)
    answer_segments(campaign, 1)
    campaign.answer(campaign.out("infer")[0])
    told = json.loads(campaign.records[-1][1])["task_info"]
    assert (told["smallest_rmsd_nm"], told["nearest"]) == (None, None)


def test_a_look_that_failed_for_good_leaves_its_frames_unseen_and_goes_on(make_campaign):
    campaign = make_campaign(infer_every=1, max_attempts=2, max_segments=50)
    answer_segments(campaign, 2)
    first = campaign.out("infer")[0]
    campaign.answer(first, "error")
    campaign.answer(campaign.out("infer")[0], "error")
    assert campaign.query("SELECT state FROM task WHERE id = ?", task_id(first.spec)) == [("fizzled",)]
    assert campaign.state.failure is None
    second = campaign.out("infer")[0]
    assert segments_of(second) == [1]
    assert second.spec.reference_number == 1
    assert campaign.state.counts.quarantined == 0


def test_looks_that_fail_again_and_again_end_the_campaign(make_campaign):
    campaign = make_campaign(infer_every=1, max_attempts=2, max_segments=50)
    answer_segments(campaign, 3)
    for _ in range(4):
        assert campaign.state.failure is None
        campaign.answer(campaign.out("infer")[0], "error")
    assert campaign.state.failure == "inference failed again and again: error on purpose"
    assert campaign.steering.finished
    campaign.end()


def test_a_look_that_ends_well_forgives_those_before_it(make_campaign):
    campaign = make_campaign(infer_every=1, max_attempts=2, max_segments=50)
    for _ in range(3):
        answer_segments(campaign, 1)
        for _ in range(2):
            campaign.answer(campaign.out("infer")[0], "error")
        answer_segments(campaign, 1)
        campaign.answer(campaign.out("infer")[0])
    assert campaign.state.failure is None


def test_a_late_failure_of_learning_does_not_fail_a_campaign_that_is_ending(make_campaign):
    campaign = make_campaign(infer_every=1, max_attempts=1, max_segments=50)
    answer_segments(campaign, 1)
    campaign.stop()
    campaign.answer(campaign.out("infer")[0], "worker_lost")
    assert (campaign.state.failure, campaign.state.ending) == (None, "SIGINT was received")


def test_files_of_the_two_newest_reference_sets_are_kept(make_campaign):
    campaign = make_campaign(infer_every=1, max_segments=50)
    for _ in range(5):
        answer_segments(campaign, 1)
        campaign.answer(campaign.out("infer")[0])
    kept = campaign.query("SELECT path FROM artifact WHERE kind = 'reference' ORDER BY id")
    assert kept == [("models/reference-000004.npz",), ("models/reference-000005.npz",)]
    assert campaign.removals == [f"models/reference-{number:06d}.npz" for number in (1, 2, 3)]


def test_the_frontier_is_bounded_in_bytes_but_holds_the_candidates():
    settings = Settings(walkers=4, candidates_per_walker=4)
    assert frontier_size(settings, 22) == MAX_FRONTIER
    assert frontier_size(settings, 30_000) == 32_000_000 // (12 * 30_000)
    assert frontier_size(settings, 10_000_000) == 16
