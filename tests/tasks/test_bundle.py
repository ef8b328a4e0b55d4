"""Several tasks as one: order, errors as data, and work done beside the next."""

import threading
import time

import pytest

from tasks.bundle import run_bundle
from tasks.errors import NotFinite


def square(number):
    return number * number


@pytest.mark.parametrize("numbers", [(3,), (3, 1, 2)])
def test_results_come_in_the_order_of_the_specs(numbers):
    assert [done.value for done in run_bundle(square, numbers)] == [n * n for n in numbers]


def test_one_that_fails_takes_no_other_with_it():
    def task(number):
        if number == 1:
            raise NotFinite("energy became NaN")
        if number == 3:
            return lambda: 1 / 0
        return number

    done = run_bundle(task, (0, 1, 2, 3))
    assert [each.value for each in done] == [0, None, 2, None]
    assert [each.error and each.error.kind for each in done] == [None, "nan", None, "error"]
    assert done[1].error.exception == "NotFinite('energy became NaN')"
    assert "raise NotFinite" in done[1].error.traceback
    assert "1 / 0" in done[3].error.traceback


@pytest.mark.parametrize("device", [None, "GPU-a1"])
def test_the_device_of_a_pinned_worker_is_told(monkeypatch, device):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if device is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", device)
    assert {done.device for done in run_bundle(lambda n: 1 / n, (0, 1))} == {device}


def test_the_most_memory_of_the_worker_is_told():
    def task(n_bytes):
        return len(bytearray(b"x") * n_bytes)  # every page is written

    (idle,) = run_bundle(task, (1,))
    more = idle.rss_bytes + 50_000_000
    before, after, later = run_bundle(task, (1, more, 1))
    assert before.rss_bytes < more <= after.rss_bytes == later.rss_bytes


def test_a_lone_task_that_fails_is_data_too():
    (done,) = run_bundle(lambda _: lambda: 1 / 0, (0,))
    assert done.error.exception.startswith("ZeroDivisionError")


def test_the_rest_of_a_task_is_done_beside_the_next():
    begun = threading.Event()

    def task(number):
        if number == 1:
            begun.set()
            return 1
        # Done in order, the second task would never begin.
        return lambda: begun.wait(30)

    assert [done.value for done in run_bundle(task, (0, 1))] == [True, 1]


def test_the_rest_of_a_lone_task_needs_no_thread():
    (done,) = run_bundle(lambda _: threading.get_ident, (0,))
    assert done.value == threading.get_ident()


def test_times_of_a_bundle_do_not_overlap():
    def task(_):
        time.sleep(0.01)
        return lambda: time.sleep(0.02)

    done = run_bundle(task, range(4))
    edges = [edge for each in done for edge in (each.started, each.ended)]
    assert edges == sorted(edges)
