"""An endpoint's executor, with the SDK's own replaced by one that answers when it is told to."""

import time
from concurrent.futures import Future

import pytest
import requests
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_sdk import GlobusAPIError, NetworkError

from sites import globus as module
from sites.globus import EndpointExecutor, EndpointGone, globus
from sites.globus_service import check
from sites.site import Resources
from tasks.errors import BadInput, TooLarge

ENDPOINT = "11111111-2222-4333-8444-555555555555"


class Sdk:
    """What `globus_compute_sdk.Executor` is to ours."""

    made: list["Sdk"] = []

    def __init__(self, endpoint_id, **options):
        self.options, self.task_group_id, self._stopped = options, None, False
        self.sent: list[Future] = []
        self.made.append(self)

    def submit(self, function, *args, **kwargs):
        """Take a task."""
        self.sent.append(Future())
        return self.sent[-1]

    def shutdown(self, **options):
        """End."""


class Service:
    """What `globus_compute_sdk.Client` is."""

    status = "online"

    def get_endpoint_status(self, endpoint_id):
        """Tell how an endpoint is."""
        return {"status": self.status}


def refused(status):
    """Return what the SDK raises for an answer of the service."""
    answer = requests.Response()
    answer.status_code = status
    answer.request = requests.Request("POST", "https://service/submit").prepare()
    return GlobusAPIError(answer)


def unreadable():
    """Return what the SDK raises for a result that it cannot read."""
    error = Exception("Malformed or unexpected data structure. Data: " + "x" * 10_000)
    error.__cause__ = ModuleNotFoundError("No module named 'theirs'")
    return error


@pytest.fixture
def start(monkeypatch):
    """Start executors, and end them after the test."""
    monkeypatch.setattr(module, "Executor", Sdk)
    monkeypatch.setattr(module, "Client", Service)
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(Sdk, "made", [])
    started = []

    def begin(task_timeout_s=60.0, offline_s=60.0):
        executor = EndpointExecutor(ENDPOINT, "far", task_timeout_s, offline_s)
        executor.start()
        started.append(executor)
        return executor

    yield begin
    for executor in started:
        executor.shutdown()


def test_nothing_is_connected_before_the_fork(start):
    EndpointExecutor(ENDPOINT, "far", 60, 60)
    assert Sdk.made == []
    start()
    (sdk,) = Sdk.made
    # With the SDK's defaults a lone task waits seconds to be sent.
    assert (sdk.options["api_burst_limit"], sdk.options["api_burst_window_s"]) == (8, 1)


def test_results_and_errors_come_back(start):
    executor = start()
    good, bad = executor.submit(len, {}, "abc"), executor.submit(len, {}, "abc")
    Sdk.made[0].sent[0].set_result(3)
    Sdk.made[0].sent[1].set_exception(TaskExecutionFailed("ModuleNotFoundError: No module named 'tasks'"))
    assert good.result(1) == 3
    assert isinstance(bad.exception(1), TaskExecutionFailed)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("SDK thread quit unexpectedly."), EndpointGone),  # its connection was cut, again and again
        (NetworkError("no route", ConnectionError("no route")), EndpointGone),
        (TaskExecutionFailed("parsl.executors.high_throughput.errors.WorkerLost: of node"), EndpointGone),
        (refused(500), EndpointGone),
        (refused(413), TooLarge),
        (unreadable(), TaskExecutionFailed),
    ],
)
def test_a_failure_of_the_way_is_not_the_tasks(start, error, kind):
    told = start().submit(len, {}, "abc")
    Sdk.made[0].sent[0].set_exception(error)
    assert isinstance(told.exception(1), kind)
    assert len(str(told.exception(1))) < 1000


def test_what_the_service_would_refuse_is_not_sent(start):
    executor = start()
    with pytest.raises(TooLarge, match="exceed the 7000000 that Globus Compute carries: lower --ps-threshold"):
        executor.submit(len, {}, b"0" * 7_000_001).result(1)
    assert Sdk.made[0].sent == []


def test_a_task_is_given_up_at_its_time_and_its_late_result_is_nobodys(start):
    executor = start(task_timeout_s=0.05)
    told = executor.submit(len, {}, "abc")
    with pytest.raises(EndpointGone, match="no result within --task-timeout 0.05 s"):
        told.result(2)
    Sdk.made[0].sent[0].set_result(3)
    assert isinstance(told.exception(1), EndpointGone)


def test_tasks_of_an_endpoint_that_is_offline_are_given_up(start, monkeypatch):
    executor = start(offline_s=0.1)
    told = executor.submit(len, {}, "abc")
    time.sleep(0.3)
    assert not told.done()  # it is online
    monkeypatch.setattr(Service, "status", "offline")
    with pytest.raises(EndpointGone, match="offline for"):
        told.result(2)


def test_a_refused_batch_costs_its_tasks_and_no_other(start):
    executor = start()
    dropped = executor.submit(len, {}, "abc")
    Sdk.made[0].sent[0].cancel()
    Sdk.made[0]._stopped = True
    assert isinstance(dropped.exception(1), EndpointGone)
    sent = executor.submit(len, {}, "abc")
    assert len(Sdk.made) == 2
    Sdk.made[1].sent[0].set_result(3)
    assert sent.result(1) == 3


def test_what_is_out_at_the_end_is_given_up(start):
    executor = start()
    told = executor.submit(len, {}, "abc")
    executor.shutdown()
    with pytest.raises(EndpointGone, match="the campaign is over"):
        told.result(1)


def test_an_id_that_is_none_is_refused():
    with pytest.raises(BadInput, match=r"endpoint 'gpubox' is not a UUID"):
        check("gpubox")


def test_a_site_of_an_endpoint_has_no_devices_of_ours(tmp_path):
    site = globus("far", ENDPOINT)
    assert (site.shares_run_dir, site.max_inline_bytes) == (False, 3_500_000)
    with pytest.raises(BadInput, match="site far has no device"):
        site.simulate(Resources(None, 1, tmp_path, 2.0, 10.0, segments_per_device=2))
