"""What is said of workers' time, from tasks whose times are known."""

import numpy as np
import pandas as pd
import pytest

from campaign import activity
from campaign.ledger import Ledger
from campaign.trace import Run


def tasks(*rows):
    """Tasks of a topic on a worker, from one second to another."""
    names = ["topic", "worker", "started", "ended", "success", "outcome"]
    found = pd.DataFrame([(*row, True, None)[:6] if len(row) == 4 else row for row in rows], columns=names)
    executor = ["cpu" if topic == "simulate" else "gpu" for topic in found.topic]
    return found.astype({"started": float, "ended": float}).assign(site="local", executor=executor)


def test_utilisation_is_time_at_work_of_all_workers_between_the_segments():
    found = activity.utilisation_of(
        tasks(
            ("simulate", "a/0", 0, 8), ("simulate", "a/1", 2, 6), ("simulate", "a/1", 7, 10), ("train", "a/0", 1, 3)
        )
    )
    assert found.share.to_dict() == pytest.approx({("local", "simulate"): 15 / 20, ("local", "train"): 2 / 10})
    assert found.workers.to_dict() == {("local", "simulate"): 2, ("local", "train"): 1}


def test_what_did_not_count_is_no_utilisation():
    counted, failed = ("simulate", "a/0", 0, 10), ("simulate", "a/1", 0, 10, False, "nan")
    outpaced = ("simulate", "a/1", 0, 10, True, "outpaced")
    found = activity.utilisation_of(tasks(counted, failed, outpaced))
    assert found.busy_s.tolist() == [10.0]


def test_utilisation_over_time_adds_up_to_that_of_the_whole():
    told = tasks(("simulate", "a/0", 0, 8), ("simulate", "a/1", 2, 6), ("simulate", "a/1", 7, 10))
    over_time = activity.utilisation_over_time(told, 7)["local", "simulate"]
    assert over_time.mean() == pytest.approx(activity.utilisation_of(told).share["local", "simulate"])
    assert over_time.index[0] == pytest.approx(10 / 7 / 2 / 60)
    first, *_ = activity.utilisation_over_time(told, 10)["local", "simulate"]
    assert first == pytest.approx(0.5)


def test_gaps_are_between_tasks_of_one_worker():
    found = activity.gaps(
        tasks(("simulate", "a/0", 0, 4), ("simulate", "a/0", 6, 8), ("simulate", "a/1", 1, 5), ("train", "a/0", 0, 1))
    )
    assert found.values.tolist() == [["cpu", "cpu a/0", 4.0, 2.0]]


def test_a_task_within_another_ends_no_gap_early():
    found = activity.gaps(tasks(("simulate", "a/0", 0, 9), ("simulate", "a/0", 1, 2), ("simulate", "a/0", 10, 12)))
    assert found[["began", "seconds"]].values.tolist() == [[9.0, 1.0]]


def test_latency_is_in_ms_by_topic_and_part():
    parts = dict.fromkeys(activity.PARTS, 0.5)
    rows = [
        {"topic": "simulate", "created": 0.0, "received": 3.0, **parts, "queue_s": queue} for queue in (1.0, 2.0, 9.0)
    ]
    table = activity.latency(pd.DataFrame(rows).assign(success=True, outcome=None))
    assert table.loc["simulate", ("queue", "p50")] == 2000.0
    assert table.loc["simulate", ("queue", "p95")] == pytest.approx(8300.0)
    assert table.loc["simulate", ("store", "p50")] == 500.0
    assert table.loc["simulate", ("all", "p50")] == 3000.0
    assert table.loc["simulate", ("n", "")] == 3


def test_a_decision_is_from_a_result_to_the_next_segment_of_its_walker():
    segments = pd.DataFrame(
        {"replica": 0, "walker_id": [0, 1, 0, 1], "sent": [0.0, 0.0, 5.002, 6.5], "received": [5.0, 6.0, 9.0, 9.0]}
    )
    assert activity.decisions(segments).to_dict() == pytest.approx({0: 2.0, 1: 500.0})


def test_figures_of_a_run_in_which_nothing_happened_are_noughts(tmp_path):
    Ledger(tmp_path / "ledger.sqlite").close()
    run = Run(tmp_path)
    told = activity.headline(run)
    assert told[["segments", "simulated_ns", "frames", "failures", "inferences"]].tolist() == [0, 0.0, 0, 0, 0]
    assert told.coverage is None
    for table in (
        activity.utilisation(run),
        activity.utilisation_over_time(run.tasks),
        activity.gaps(run.tasks),
        activity.latency(run.tasks),
        activity.decisions(run.segments),
    ):
        assert len(table) == 0


def test_failures_are_those_of_somebody(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with ledger.transaction():
        ledger.add_task(0, "simulate", "cpu")
        for number, outcome in enumerate(["nan", "abandoned", "outpaced", "worker_lost", "success"], 1):
            ledger.begin_attempt(0, number, "local")
            ledger.end_attempt(0, number, outcome)
        ledger.begin_attempt(0, 6, "local")
    ledger.close()
    assert activity.failures(Run(tmp_path)).outcome.tolist() == ["nan", "worker_lost"]


def test_busy_time_is_that_of_every_task_in_every_interval():
    rng = np.random.default_rng(1)
    started = rng.uniform(0, 90, 300)
    ended = started + rng.exponential(5, 300)
    edges = np.linspace(0, 100, 21)
    by_hand = [
        sum(max(0.0, min(e, high) - max(s, low)) for s, e in zip(started, ended, strict=True))
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    assert activity.busy_time(started, ended, edges) == pytest.approx(by_hand)
