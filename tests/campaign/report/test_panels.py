"""What figures are made of."""

import numpy as np
import pandas as pd
import pytest

from campaign.report.panels import latency_parts, size, timeline


def tasks(n):
    started = np.arange(n, dtype=float)
    return pd.DataFrame(
        {
            "topic": "simulate", "site": "local", "executor": "cpu", "worker": [f"vm/{k % 2}" for k in range(n)],
            "task_id": range(n), "success": True, "outcome": "success", "created": started,
            "received": started + 2.0, "started": started, "ended": started + 1.5,
            "server_s": 0.001, "queue_s": np.arange(n) / n, "store_s": 0.01, "compute_s": 1.49, "return_s": 0.002,
            "notify_s": np.nan,
        }
    )  # fmt: skip


def test_a_few_tasks_are_bars_and_many_are_shares_of_intervals():
    few = timeline(tasks(40)).figure
    assert sum(len(trace.x) for trace in few.data) == 40
    many = timeline(tasks(5_000))
    (shares,) = many.figure.data
    # Two workers, each busy for 1.5 of every 2 seconds.
    assert np.asarray(shares.z).shape[0] == 2
    assert np.asarray(shares.z).mean() == pytest.approx(0.75, abs=0.01)
    assert "5000 tasks" in many.said


def test_nothing_that_ran_is_said_and_not_drawn():
    assert timeline(tasks(0)).figure is None


def test_parts_are_medians_and_never_negative():
    found = latency_parts(tasks(101).assign(return_s=-0.5))
    assert found.loc["simulate", "queue_s"] == pytest.approx(50 / 101)
    assert found.loc["simulate", "return_s"] == 0.0
    assert found.loc["simulate", "notify_s"] == 0.0


@pytest.mark.parametrize(("n_bytes", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB")])
def test_bytes_in_words(n_bytes, words):
    assert size(n_bytes) == words
