"""What a campaign keeps to, in whatever order results come back and whatever goes wrong."""

import json
import math
import queue
import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.topic import task_id
from campaign.ledger import Ledger

MANY = settings(max_examples=120, deadline=None)

SHAPES = {
    "slots": st.integers(1, 3),
    "walkers": st.integers(1, 7),
    "bundle": st.sampled_from([None, 1, 2, 3]),
    "infer_every": st.integers(1, 5),
    "retrain_every": st.integers(1, 8),
    "max_segments": st.integers(1, 30),
    "max_attempts": st.integers(1, 3),
    "candidates_per_walker": st.integers(1, 3),
    "policy": st.sampled_from(["novelty", "random", "plain"]),
    "embedding": st.sampled_from(["aae", "pca"]),
    "crossing": st.booleans(),
}

CHANCES = {name: st.sampled_from([0.0, 0.1, 0.4]) for name in ("fail", "abandon", "late", "repeat")}


def ids(sends) -> list[int]:
    return [task_id(send.spec) for send in sends]


@MANY
@given(shape=st.fixed_dictionaries(SHAPES), chances=st.fixed_dictionaries(CHANCES), seed=st.integers(0, 2**32))
def test_promises_hold_whatever_happens(open_campaign, shape, chances, seed):
    with open_campaign(**shape) as campaign:
        campaign.begin()
        campaign.play(random.Random(seed), chances)
        counts = campaign.state.counts
        if campaign.state.failure is None:
            assert counts.segments == shape["max_segments"]
            assert not campaign.outstanding
            begun = {task_id(send.spec) for send in campaign.sent if send.topic == "simulate"}
            lost = "state IN ('quarantined', 'fizzled') AND kind = 'simulate'"
            given_up = campaign.query(f"SELECT id FROM task WHERE {lost}")
            assert len(begun) == counts.segments + len(given_up), "more was sent than needed"
        for send in campaign.abandoned:
            campaign.answer_late(send)
        campaign.end()


@MANY
@given(
    shape=st.fixed_dictionaries({name: SHAPES[name] for name in SHAPES if name != "policy"}),
    seed=st.integers(0, 2**32),
    versions=st.integers(1, 3),
)
def test_model_versions_that_were_asked_for_extend_a_campaign(open_campaign, shape, seed, versions):
    with open_campaign(**shape, min_model_versions=versions) as campaign:
        campaign.begin()
        campaign.play(random.Random(seed))
        assert campaign.state.failure is None
        assert campaign.state.model_version >= versions
        assert campaign.state.counts.segments >= shape["max_segments"]
        campaign.end()


@MANY
@given(shape=st.fixed_dictionaries(SHAPES), seed=st.integers(0, 2**32), steps=st.integers(0, 40))
def test_nothing_is_sent_after_a_stop(open_campaign, shape, seed, steps):
    order = random.Random(seed)
    with open_campaign(**shape) as campaign:
        campaign.begin()
        for _ in range(steps):
            if campaign.steering.finished:
                break
            campaign.answer(order.choice(list(campaign.outstanding.values())))
        waiting = len(campaign.out("simulate"))
        before = campaign.state.counts.segments
        campaign.stop()
        n_sent = len(campaign.sent)
        n_failed = 0
        while not campaign.steering.finished:
            send = order.choice(list(campaign.outstanding.values()))
            failed = order.random() < 0.2
            n_failed += failed and send.topic == "simulate"
            campaign.answer(send, "worker_lost" if failed else None)
        assert len(campaign.sent) == n_sent
        assert not campaign.outstanding
        assert campaign.state.counts.segments == before + waiting - n_failed
        assert (campaign.state.failure, campaign.state.ending) == (None, "SIGINT was received")
        campaign.end()


def test_a_stop_leaves_what_failed_ready_to_be_sent_again(make_campaign):
    campaign = make_campaign(max_attempts=1)
    campaign.stop()
    first, second, *others = campaign.out("simulate")
    campaign.answer(first, "worker_lost")
    assert campaign.state.counts.quarantined == 1
    campaign = make_campaign(max_attempts=2)
    campaign.stop()
    campaign.answer(campaign.out("simulate")[0], "worker_lost")
    assert campaign.query("SELECT state FROM task WHERE id = 0") == [("ready",)]
    assert campaign.state.counts.quarantined == 0


@pytest.mark.parametrize("max_segments", [1, 3, 4, 17])
def test_exactly_the_segments_asked_for_are_sent(make_campaign, max_segments):
    campaign = make_campaign(max_segments=max_segments)
    campaign.play(random.Random(1))
    assert campaign.state.counts.segments == max_segments
    assert ids(s for s in campaign.sent if s.topic == "simulate") == list(range(max_segments))


@pytest.mark.parametrize(("max_ns", "n_segments"), [(0.02, 10), (0.0201, 11), (0.002, 1), (0.0001, 1)])
def test_simulated_time_ends_a_campaign(make_campaign, max_ns, n_segments):
    campaign = make_campaign(max_segments=None, max_ns=max_ns, segment_ps=2.0, frame_ps=0.5, timestep_fs=4.0)
    campaign.play(random.Random(1))
    assert campaign.state.counts.segments == n_segments
    assert campaign.state.counts.simulated_ps >= 1000 * max_ns * (1 - 1e-9)


def test_the_first_limit_counts(make_campaign):
    campaign = make_campaign(max_segments=5, max_ns=1.0)
    campaign.play(random.Random(1))
    assert campaign.state.counts.segments == 5


def test_time_that_is_up_ends_a_campaign_with_a_last_look(make_campaign):
    campaign = make_campaign(max_segments=None, max_minutes=1.0, infer_every=50)
    for send in campaign.out("simulate")[:3]:
        campaign.answer(send)
    assert campaign.steering.keep_time().sends == []
    assert campaign.state.ending is None
    campaign.state.began -= 61
    outbox = campaign.take(campaign.steering.keep_time())
    assert outbox.sends == []
    assert campaign.state.ending == "--max-minutes 1 are over"
    while segments := campaign.out("simulate"):
        campaign.answer(segments[0])
    (look,) = campaign.out("infer")
    assert [segment for segment, _ in look.spec.batches] == [0, 1, 2, 3, 4, 5, 6]
    campaign.answer(look)
    assert campaign.steering.finished
    assert campaign.state.failure is None
    assert campaign.state.coverage is not None


def test_frames_of_the_last_segments_are_looked_at(make_campaign):
    campaign = make_campaign(max_segments=6, infer_every=4, policy="plain")
    campaign.play(random.Random(1))
    looked_at = [segment for s in campaign.sent if s.topic == "infer" for segment, _ in s.spec.batches]
    assert sorted(looked_at) == list(range(6))


def test_without_inference_no_frames_are_kept(make_campaign):
    campaign = make_campaign(policy="plain", infer_every=0, max_segments=8)
    campaign.play(random.Random(1))
    assert {send.topic for send in campaign.sent} == {"simulate"}
    # Only the system, the basis and where walkers are.
    assert len(campaign.stored) == 2 + campaign.settings.walkers
    campaign.end()


def test_the_freed_slot_is_served_before_learning(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=1)
    first = campaign.answer(campaign.out("simulate")[0])
    assert [send.topic for send in first.sends] == ["simulate", "infer"]
    campaign.answer(campaign.out("infer")[0])
    assert campaign.out("train")
    second = campaign.answer(campaign.out("simulate")[0])
    assert [send.topic for send in second.sends] == ["simulate", "infer"]


def test_learning_never_holds_a_slot(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=1, max_segments=40)
    while campaign.state.counts.segments < 40:
        campaign.answer(campaign.out("simulate")[0])  # and inference never answers
    assert len(campaign.out("infer")) == 1
    assert not campaign.steering.finished


def test_one_training_follows_one_look_with_the_present_model(make_campaign):
    campaign = make_campaign(infer_every=1, retrain_every=1, max_segments=200)
    campaign.answer(campaign.out("simulate")[0])
    campaign.answer(campaign.out("infer")[0])
    assert campaign.out("train")[0].spec.model_version == 1
    # Looks that began with version 0 do not count, however many segments they see.
    campaign.answer(campaign.out("simulate")[0])
    with_version_0 = campaign.out("infer")[0]
    campaign.answer(campaign.out("train")[0])
    campaign.answer(with_version_0)
    assert campaign.out("train") == []
    campaign.answer(campaign.out("simulate")[0])
    assert campaign.out("infer")[0].spec.model_version == 1
    campaign.answer(campaign.out("infer")[0])
    assert campaign.out("train")[0].spec.model_version == 2


def test_every_start_quarantined_fails_the_campaign(make_campaign):
    campaign = make_campaign(max_attempts=2, walkers=3)
    while not campaign.steering.finished:
        campaign.answer(campaign.out("simulate")[0], "nan")
    assert campaign.state.failure == "every start is quarantined: no segment from any of them ended well"
    assert campaign.state.counts.quarantined == 1
    assert campaign.state.counts.failures == {"nan": 6}
    assert campaign.out("simulate") == []
    campaign.end()


def test_a_failed_campaign_sends_nothing_and_is_over(make_campaign):
    campaign = make_campaign(infer_every=1)
    campaign.state.fail("the task server is gone")
    assert campaign.steering.finished
    outbox = campaign.answer(campaign.out("simulate")[0])
    assert outbox.sends == []
    campaign.state.fail("a later reason")
    assert campaign.state.failure == campaign.state.ending == "the task server is gone"
    campaign.end()


@pytest.mark.parametrize("moment", ["first", "later"])
def test_an_error_in_a_decision_leaves_the_ledger_as_it_was(make_campaign, monkeypatch, moment):
    campaign = make_campaign(infer_every=2, max_segments=30)
    if moment == "later":
        for _ in range(3):
            campaign.answer(campaign.out("simulate")[0])
        campaign.answer(campaign.out("infer")[0])
    tables = ("task", "attempt", "artifact", "record", "meta")
    before = {table: campaign.query(f"SELECT * FROM {table}") for table in tables}
    send = campaign.out("simulate")[0]

    def look(*, last):
        if campaign.state.outbox.sends:
            raise ZeroDivisionError

    monkeypatch.setattr(campaign.steering.infer, "look", look)
    with pytest.raises(ZeroDivisionError):
        campaign.steering.handle("simulate", campaign.outcome(send))
    assert {table: campaign.query(f"SELECT * FROM {table}") for table in tables} == before
    # What was decided and not committed must not be sent by the next decision.
    monkeypatch.undo()
    assert [send.topic for send in campaign.steering.stop("over").sends] == []


def test_each_decision_is_one_transaction(tmp_path, make_campaign, monkeypatch):
    began = []
    transaction = Ledger.transaction

    def counted(ledger):
        began.append(ledger)
        return transaction(ledger)

    campaign = make_campaign(infer_every=1, retrain_every=1, crossing=True, max_minutes=1.0)
    monkeypatch.setattr(Ledger, "transaction", counted)
    n_decisions = 0
    for topic in ("simulate", "move", "infer", "move", "train"):
        campaign.answer(campaign.out(topic)[0])
        n_decisions += 1
    campaign.answer(campaign.out("simulate")[0], "nan")
    campaign.abandon(campaign.out("simulate")[0])
    campaign.stop()
    assert len(began) == n_decisions + 3
    campaign.state.began -= 61  # the time is up for a campaign that is ending anyway
    campaign.steering.keep_time()
    assert len(began) == n_decisions + 3, "the clock wrote without a reason"


def test_trace_lines_are_what_the_ledger_holds(make_campaign):
    campaign = make_campaign(infer_every=2, retrain_every=3, max_segments=10, crossing=True)
    campaign.play(random.Random(3), {"fail": 0.2, "abandon": 0.1, "late": 0.5, "repeat": 0.2})
    assert campaign.query("SELECT topic, line FROM record ORDER BY id") == campaign.records
    infos = {topic: json.loads(line)["task_info"] for topic, line in campaign.records if "payload_bytes" in line}
    expected = {"simulate": "segment_id", "infer": "reference_number", "train": "model_version", "move": "source"}
    for topic, key in expected.items():
        assert key in infos[topic]
        assert {"attempt", "executor", "site", "payload_bytes", "proxied"} <= infos[topic].keys()
    wanted = {
        "segment_id", "parent_id", "parent_frame", "walker_id", "iteration", "attempt", "executor", "site",
        "n_frames", "n_atoms", "simulated_ps", "payload_bytes", "proxied", "model_version", "novelty",
        "mean_temperature_K", "potential_energy_kj_mol",
    }  # fmt: skip
    assert wanted <= infos["simulate"].keys()


def test_decisions_are_counted_and_the_kept_times_bounded(make_campaign):
    steering = make_campaign().steering
    for number in range(20_001):
        steering.note_decision(float(number))
    assert steering.state.counts.n_decisions == 20_001
    assert len(steering.state.counts.decisions_ms) == 10_000
    assert max(steering.state.counts.decisions_ms) == 20_000.0


def test_the_clock_does_nothing_while_nothing_is_due(make_campaign):
    campaign = make_campaign(task_timeout=1000.0, max_minutes=1.0)
    outbox = campaign.steering.keep_time()
    assert (outbox.sends, outbox.records, outbox.evictions) == ([], [], [])
    deadlines = [flight.deadline for flight in campaign.steering.simulate.in_flight.values()]
    assert all(math.isclose(deadline, time.monotonic() + 1000, abs_tol=5) for deadline in deadlines)


def test_threads_that_answer_at_once_lose_and_double_nothing(make_campaign):
    campaign = make_campaign(infer_every=2, retrain_every=4, max_segments=60, walkers=6, slots=3, crossing=True)
    arrived = {topic: queue.Queue() for topic in ("simulate", "infer", "train", "move")}
    makes = threading.Lock()  # the imagined workers are not made for threads; the steering is
    errors = []

    def sent(outbox):
        for send in outbox.sends:
            arrived[send.topic].put(send)

    def topic_loop(topic):
        try:
            while (send := arrived[topic].get(timeout=10)) is not None:
                with makes:
                    outcome = campaign.outcome(send)
                sent(campaign.steering.handle(topic, outcome))
        except Exception as error:  # noqa: BLE001  # whatever it is, the test tells
            errors.append(error)

    for send in campaign.outstanding.values():
        arrived[send.topic].put(send)
    threads = [threading.Thread(target=topic_loop, args=(topic,)) for topic in arrived for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while not campaign.steering.finished and not errors and time.monotonic() < deadline:
        time.sleep(0.005)
    for topic in arrived:
        for _ in range(2):
            arrived[topic].put(None)
    for thread in threads:
        thread.join(10)
    assert errors == []
    assert campaign.steering.finished
    assert campaign.state.counts.segments == 60
    assert campaign.query("SELECT count(*), min(id), max(id) FROM task WHERE kind = 'simulate'") == [(60, 0, 59)]
    assert campaign.query("SELECT DISTINCT state FROM task") == [("complete",)]
