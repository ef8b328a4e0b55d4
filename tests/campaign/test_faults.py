"""A named passage ends the process; no other does."""

import os
import signal
import subprocess
import sys

import pytest

from campaign import faults

SCRIPT = """
import sys
from campaign.faults import reach
for point in sys.argv[1].split():
    reach(point)
    print(point, flush=True)
"""


def passed(points, kill_at=None):
    """Pass commit points in a process of its own; return its exit code and those it came past."""
    environment = {name: value for name, value in os.environ.items() if name != "WAYFINDER_KILL_AT"}
    if kill_at is not None:
        environment["WAYFINDER_KILL_AT"] = kill_at
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, " ".join(points)],
        env=environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stdout.split()


def test_without_the_variable_every_point_is_passed():
    assert passed(faults.POINTS) == (0, list(faults.POINTS))


@pytest.mark.parametrize(
    ("kill_at", "n_passed"), [("after-send", 1), ("after-send:1", 1), ("after-send:2", 3), ("after-send:3", 4)]
)
def test_the_nth_passage_is_the_last(kill_at, n_passed):
    points = ["before-commit", "after-send", "after-commit", "after-send", "after-send"]
    code, came_past = passed(points, kill_at)
    assert code == -signal.SIGKILL
    assert came_past == points[: n_passed if n_passed < 4 else 4]


@pytest.mark.parametrize("kill_at", ["before-evict", "after-send:4"])
def test_a_passage_that_does_not_come_kills_nobody(kill_at):
    assert passed(["after-send", "after-send"], kill_at) == (0, ["after-send", "after-send"])
