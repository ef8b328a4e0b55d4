"""Learning through Globus Compute: real SDK and endpoint against a stand-in service, with a real RabbitMQ between."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sites import redis_server
from tasks.transport import PASSWORD_VARIABLE
from tests.integration.conftest import Campaign
from tests.integration.sites.conftest import INTERNET, FarHost, answers, free_ports, internet, listens, running, until
from tests.integration.sites.globuslab import (
    PACKAGES,
    PROGRAMS,
    SERVICE_PORT,
    GlobusCompute,
    World,
    globus_compute,
    own_globus_compute,
)
from tests.needs import need

Start = Callable[..., Campaign]

PASSWORD = "a-password-of-a-test"

NOBODYS = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def service() -> Iterator[GlobusCompute]:
    need(*PROGRAMS, package=PACKAGES, requires="globus")
    if listens(SERVICE_PORT):
        pytest.skip(f"port {SERVICE_PORT}, where the SDK looks for a local service, is taken")
    with own_globus_compute() as made:
        yield made


def flags(endpoint: str, tmp_path: Path) -> tuple[str, ...]:
    """What sends learning there, with data in a folder that both sides see."""
    backends = [word for topic in ("simulate", "infer", "train") for word in (f"--{topic}-ps-backend", "file")]
    return ("--ml-endpoint", endpoint, *backends, "--ps-file-dir", str(tmp_path / "store"), "--no-control")


@pytest.mark.slow
def test_both_topics_run_on_an_endpoint(campaign: Start, service: GlobusCompute, tmp_path: Path) -> None:
    run = campaign(
        *flags(service.endpoint, tmp_path), "--simulate-endpoint", service.endpoint, "--max-segments", "24",
        "--retrain-every", "12", "--min-model-versions", "1", env=service.environment,
    )  # fmt: skip
    assert run.wait(200) == 0, run.err
    summary = run.summary()
    assert summary["failures"] == {}
    assert summary["segments"] >= 24
    for topic, site in (("simulation", "globus-simulate"), ("training", "globus-learn")):
        assert {line["task_info"]["site"] for line in run.traces(topic)} == {site}


@contextmanager
def redis_out_there(world: World, folder: Path) -> Iterator[int]:
    """Run a Redis server where all can reach it, who know its password; yield its port."""
    (port,) = free_ports(1)
    config = folder / "redis.conf"
    config.write_text(f'bind {world.address}\nport {port}\nrequirepass {PASSWORD}\nsave ""\ndir {folder}\n')
    with running(*world.at_service(redis_server._executable(), config), stdout=subprocess.DEVNULL):
        until(lambda: world.dialled(port), "Redis", folder)
        yield port


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_learning_goes_by_globus_between_hosts_that_cannot_dial_each_other(
    campaign: Start, hosts: FarHost, tmp_path: Path
) -> None:
    need("rabbitmq-server", package="rabbitmq-server", requires="globus")
    far, home = hosts.host, hosts.host.folder / "globus"
    home.mkdir()
    with internet(hosts, SERVICE_PORT) as out_there, ExitStack() as stack:
        world = World(
            INTERNET, out_there, hosts.shell, home, far.far / "globus", far.far / "installed",
            ((PASSWORD_VARIABLE, PASSWORD),),
        )  # fmt: skip
        service = stack.enter_context(globus_compute(tmp_path, world))
        assert answers(hosts.shell, INTERNET, SERVICE_PORT)
        (near_port,) = free_ports(1)
        listen = f"import socket, time; s = socket.create_server(('0.0.0.0', {near_port})); time.sleep(300)"
        with running(*hosts.near, sys.executable, "-c", listen):
            for address in ("10.77.0.1", "10.77.100.1"):
                until(lambda at=address: answers((*hosts.near, "sh", "-c"), at, near_port), "listener", tmp_path, 20)
                assert not answers(hosts.shell, address, near_port)
        port = stack.enter_context(redis_out_there(world, tmp_path))
        run = campaign(
            "--ml-endpoint", service.endpoint, "--simulate-ps-backend", "redis", "--infer-ps-backend", "redis",
            "--train-ps-backend", "redis", "--redishost", INTERNET, "--redisport", str(port), "--no-control",
            "--max-segments", "150", "--min-segment-seconds", "0.2", "--retrain-every", "24",
            "--min-model-versions", "2", on=hosts.near, env=service.environment | {PASSWORD_VARIABLE: PASSWORD},
        )  # fmt: skip
        run.until_segments(20)
        running_now = (
            "SELECT count(*) FROM attempt JOIN task ON task.id = task_id WHERE kind = 'train' AND outcome IS NULL"
        )
        run.until(lambda: run.ask(running_now)[0][0] > 0, 60)
        service.cut()
        assert run.wait(200) == 0, run.err
    summary = run.summary()
    assert summary["segments"] >= 150
    assert summary["model_versions"] >= 2
    assert summary["steered_fraction"] > 0.3
    assert summary["failures"].keys() <= {"manager_lost"}
    assert summary["proxies"]["left"] == 0
    assert {line["worker_info"]["hostname"] for line in run.traces("training")} == {"gpubox"}
    # Secrets enter no file of ours.
    secrets = [service.environment["GLOBUS_COMPUTE_CLIENT_SECRET"].encode(), PASSWORD.encode()]
    kept = [path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()]
    assert not [secret for secret in secrets for content in kept if secret in content]


def test_an_endpoint_that_cannot_be_used_is_refused_in_a_sentence(
    campaign: Start, service: GlobusCompute, tmp_path: Path
) -> None:
    for endpoint, sentence in (
        (NOBODYS, f"endpoint {NOBODYS}: Globus Compute does not know it: check the UUID"),
        ("gpubox", "endpoint 'gpubox' is not a UUID: take the one that `globus-compute-endpoint list` shows there"),
    ):
        run = campaign(*flags(endpoint, tmp_path), "--max-segments", "4", name=endpoint, env=service.environment)
        assert run.wait() == 2
        assert run.err.startswith(f"wayfinder: {sentence}")
        assert len(run.err.splitlines()) == 1
        assert not run.run_dir.exists()


@pytest.mark.slow
def test_nobody_logged_in_is_told(campaign: Start, service: GlobusCompute, tmp_path: Path) -> None:
    without = {name: value for name, value in service.environment.items() if "CLIENT" not in name}
    without["GLOBUS_COMPUTE_USER_DIR"] = str(tmp_path / "nobody")
    (tmp_path / "nobody").mkdir()
    run = campaign(*flags(service.endpoint, tmp_path), "--max-segments", "4", env=without)
    assert run.wait() == 2
    assert "nobody has logged in to Globus Compute here; run `globus-compute-endpoint login` once" in run.err
