"""Globus Compute on one machine: the real SDK and endpoint, a real RabbitMQ, and a stand-in for the web service."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.integration.conftest import ROOT
from tests.integration.sites.conftest import free_ports, listens, until

# Where the SDK looks for a service that is "local".
SERVICE_PORT = 5000

PROGRAMS = ("rabbitmq-server", "unshare")
PACKAGES = "rabbitmq-server util-linux"

_RABBIT = Path("/usr/lib/rabbitmq/bin")


@dataclass(frozen=True)
class GlobusCompute:
    """A service with one endpoint.

    Attributes
    ----------
    environment
        What makes the SDK talk to it, as a client with an identity of its own.
    broker
        What makes RabbitMQ's programs talk to its broker.
    """

    endpoint: str
    environment: dict[str, str]
    broker: dict[str, str]

    def cut(self) -> None:
        """Cut all connections of the broker."""
        words = [_RABBIT / "rabbitmqctl", "close_all_connections", "a test"]
        subprocess.run(words, env=self.broker, stdout=subprocess.DEVNULL, timeout=60, check=True)


@contextmanager
def own_globus_compute() -> Iterator[GlobusCompute]:
    """Start it all in a folder of its own; end it all."""
    folder = Path(tempfile.mkdtemp(prefix="wayfinder-globus-"))
    try:
        with globus_compute(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def globus_compute(folder: Path) -> Iterator[GlobusCompute]:
    """Start it all, with the endpoint of ``funcx-configs/ml``; end it all."""
    amqp_port, dist_port, epmd_port = free_ports(3)
    amqp = f"amqp://guest:guest@127.0.0.1:{amqp_port}/%2F"
    environment = {
        "GLOBUS_SDK_ENVIRONMENT": "local",
        "GLOBUS_SDK_SERVICE_URL_AUTH": f"http://localhost:{SERVICE_PORT}",
        "GLOBUS_COMPUTE_CLIENT_ID": "22222222-2222-4222-8222-222222222222",
        "GLOBUS_COMPUTE_CLIENT_SECRET": "the secret of a test",
        "GLOBUS_COMPUTE_USER_DIR": str(folder / "sdk"),
    }
    broker = {**os.environ, **_rabbit_environment(folder, amqp_port, dist_port, epmd_port)}
    (folder / "sdk").mkdir()
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str | Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    try:
        start("rabbitmq", _RABBIT / "rabbitmq-server", env=broker)
        until(lambda: listens(amqp_port), "broker", folder)
        standin = Path(__file__).parent / "globus_standin.py"
        start("service", sys.executable, standin, str(SERVICE_PORT), amqp, env={})
        until(lambda: listens(SERVICE_PORT), "service", folder)
        endpoint = _endpoint(folder, environment, start)
        yield GlobusCompute(endpoint, environment, broker)
    finally:
        for process in reversed(started):
            _end(process)
        # Erlang's register of nodes is a daemon; this one is of this lab, by its port.
        subprocess.run(["epmd", "-kill"], env=broker, stdout=subprocess.DEVNULL, timeout=30, check=False)


def _endpoint(folder: Path, environment: dict[str, str], start: Callable[..., subprocess.Popen[bytes]]) -> str:
    """Start the endpoint of ``funcx-configs/ml`` as its README says, and return its id."""
    mine = folder / "endpoints" / "wayfinder-ml"
    shutil.copytree(ROOT / "funcx-configs" / "ml", mine)
    programs = Path(sys.executable).parent
    template = (mine / "user_config_template.yaml.j2").read_text()
    init = f"export PATH={programs}:$PATH PYTHONPATH={ROOT}"
    mine.joinpath("user_config_template.yaml.j2").write_text(
        template.replace("true  # conda activate wayfinder", init)
    )
    with (mine / "config.yaml").open("a") as config:
        config.write("local_compute_services: true\nheartbeat_period: 5\n")
    with (mine / "user_environment.yaml").open("a") as variables:
        variables.write(f'PATH: "{programs}:/usr/bin:/bin"\n')
        for name, value in environment.items():
            variables.write(f'{name}: "{value}"\n')
    program = (*_as_a_user(), programs / "globus-compute-endpoint")
    start("endpoint", *program, "-c", str(folder / "endpoints"), "start", "wayfinder-ml", env=environment)
    log = folder / "endpoint.log"
    found = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
    stored = mine / "endpoint.json"
    until(lambda: stored.exists() and found.search(stored.read_text()) is not None, "endpoint", folder)
    match = found.search(stored.read_text())
    assert match is not None, log.read_text()
    endpoint = match[0]

    def online() -> bool:
        asked = f"http://localhost:{SERVICE_PORT}/v2/endpoints/{endpoint}/status"
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return b"online" in answer.read()

    until(online, "endpoint online", folder)
    return endpoint


def _as_a_user() -> tuple[str, ...]:
    """Return what a command begins with so as not to run as root, whose endpoints serve many users by other rules."""
    if os.getuid() != 0:
        return ()
    user = pwd.getpwnam("daemon")  # one with a home that is there
    return ("unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}")


def _rabbit_environment(folder: Path, port: int, dist_port: int, epmd_port: int) -> dict[str, str]:
    """Everything on loopback, with files in a folder of its own."""
    home = folder / "rabbitmq"
    home.mkdir(exist_ok=True)
    return {
        "HOME": str(home),
        "RABBITMQ_NODENAME": f"wayfinder{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "logs"),
        "RABBITMQ_CONF_ENV_FILE": str(home / "none"),
        "RABBITMQ_CONFIG_FILE": str(home / "none"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "none"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that came of it."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    process.send_signal(signal.SIGTERM)
    psutil.wait_procs(family, timeout=10)
    for each in family:
        if each.is_running():
            each.kill()
    process.wait(10)
