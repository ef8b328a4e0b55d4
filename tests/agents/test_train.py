"""When the model is refined, and what follows from a new version."""

import pytest


def answer_all_but(campaign, topic):
    """Answer what is out once, oldest first, but for one topic."""
    for send in list(campaign.outstanding.values()):
        if send.topic != topic:
            campaign.answer(send)


def until_training(campaign):
    while not campaign.out("train"):
        answer_all_but(campaign, "train")
    return campaign.out("train")[0]


def test_a_training_comes_after_enough_segments_were_looked_at(make_campaign):
    campaign = make_campaign(infer_every=2, retrain_every=4, max_segments=50)
    until_training(campaign)
    assert campaign.state.observed_segments >= 4
    assert campaign.state.counts.inferences >= 1
    spec = campaign.out("train")[0].spec
    assert (spec.model, spec.model_version, spec.reference) == (None, 1, campaign.state.reference)


def test_only_the_first_training_is_long_and_later_ones_start_warm(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=1, first_epochs=9, epochs=2, max_segments=50)
    first = until_training(campaign)
    campaign.answer(first)
    second = until_training(campaign)
    assert (first.spec.epochs, second.spec.epochs) == (9, 2)
    assert (second.spec.model, second.spec.model_version) == (campaign.state.model, 2)


def test_a_new_version_is_used_from_the_next_look_on(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=2, max_segments=50)
    campaign.answer(until_training(campaign))
    assert campaign.state.model_version == 1
    while not campaign.out("infer") or campaign.out("infer")[0].spec.model_version == 0:
        answer_all_but(campaign, "train")
    spec = campaign.out("infer")[0].spec
    assert (spec.model, spec.model_version) == (campaign.state.model, 1)


def test_the_last_weights_are_evicted_once_nobody_reads_them(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=1, max_segments=50)
    campaign.answer(until_training(campaign))
    first = campaign.state.model
    second = until_training(campaign)
    assert first in campaign.stored
    campaign.answer(second)
    while any(first in campaign.steering.infer.inputs(send.spec) for send in campaign.out("infer")):
        assert first in campaign.stored
        campaign.answer(campaign.out("infer")[0])
    assert first not in campaign.stored
    assert campaign.state.model in campaign.stored


@pytest.mark.parametrize("options", [{"policy": "random"}, {"policy": "plain"}, {"no_retrain": True}])
def test_nothing_is_trained_where_nothing_learns(make_campaign, options):
    campaign = make_campaign(infer_every=1, retrain_every=1, max_segments=20, **options)
    while not campaign.steering.finished:
        answer_all_but(campaign, None)
    assert {send.topic for send in campaign.sent} == {"simulate", "infer"}
    assert campaign.state.model_version == 0


def test_a_training_that_failed_for_good_leaves_the_present_version(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=3, max_attempts=2, max_segments=60)
    first = until_training(campaign)
    campaign.answer(first, "error")
    campaign.answer(campaign.out("train")[0], "error")
    assert campaign.state.failure is None
    assert campaign.state.model_version == 0
    # The next try is another task for the same version, after as many segments as ever.
    seen = campaign.state.observed_segments
    again = until_training(campaign)
    assert (again.spec.model_version, again.spec.attempt) == (1, 1)
    assert again.spec.task_id != first.spec.task_id
    assert campaign.state.observed_segments >= seen + 3 - 1
    campaign.answer(again)
    assert campaign.state.model_version == 1


def test_a_campaign_that_cannot_make_its_versions_fails(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=1, max_attempts=2, min_model_versions=1)
    until_training(campaign)
    campaign.answer(campaign.out("train")[0], "error")
    assert campaign.state.failure is None
    campaign.answer(campaign.out("train")[0], "error")
    assert campaign.state.failure == "training failed 2 times: error on purpose"
    assert campaign.steering.finished
    campaign.end()


def test_nothing_is_trained_once_the_campaign_is_ending(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=1, max_minutes=1.0, max_segments=50)
    campaign.answer(campaign.out("simulate")[0])
    campaign.state.began -= 61
    campaign.take(campaign.steering.keep_time())
    outbox = campaign.answer(campaign.out("infer")[0])
    assert outbox.sends == []
    assert campaign.state.observed_segments == 1


def test_a_training_cut_short_by_the_end_is_no_failure(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=1, max_attempts=2, min_model_versions=3)
    send = until_training(campaign)
    campaign.stop()
    campaign.answer(send, "worker_lost")
    assert (campaign.state.failure, campaign.state.ending) == (None, "SIGINT was received")


def test_pretrained_weights_are_version_0_and_refined_from_there(open_campaign):
    with open_campaign(infer_every=1, retrain_every=1, aae_weights="/w", max_segments=30) as campaign:
        campaign.state.model = campaign.put(campaign.destinations["infer"].store, "weights")
        campaign.state.hold(campaign.state.model, "model")
        weights = campaign.state.model
        campaign.begin()
        campaign.answer(campaign.out("simulate")[0])
        assert (campaign.out("infer")[0].spec.model, campaign.out("infer")[0].spec.model_version) == (weights, 0)
        spec = until_training(campaign).spec
        assert (spec.model, spec.model_version, spec.epochs) == (weights, 1, campaign.settings.epochs)
        while not campaign.steering.finished:
            answer_all_but(campaign, None)
        assert weights not in campaign.stored
        campaign.end()
