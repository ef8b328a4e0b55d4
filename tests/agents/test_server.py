"""What the task server tells the main process of its executors."""

import os

import pytest

from agents.pool import GONE
from agents.server import Attendance, workers_of


def test_a_forked_process_tells_the_one_that_forked_it():
    attendance = Attendance(["cpu-a", "cpu-b"])
    assert (attendance("cpu-a"), attendance("cpu-b")) == (1, 1)
    child = os.fork()
    if child == 0:
        attendance.tell("cpu-a", 7)
        attendance.tell("cpu-b", GONE)
        os._exit(0)
    os.waitpid(child, 0)
    assert (attendance("cpu-a"), attendance("cpu-b")) == (7, GONE)


def test_who_is_not_in_the_pool_is_not_told_of():
    with pytest.raises(ValueError, match="not in tuple"):
        Attendance(["gpu"])("cpu")


def test_an_executor_that_cannot_tell_says_nothing():
    assert workers_of(object()) is None
