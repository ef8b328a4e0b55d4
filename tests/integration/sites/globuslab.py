"""Globus Compute on one machine: the real SDK and endpoint, a real RabbitMQ, and a stand-in for the web service."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from campaign.guardian import Guardian
from campaign.processes import RUN_VARIABLE, new_run_id
from tests.integration.conftest import ROOT
from tests.integration.sites.conftest import free_ports, until

# Where the SDK looks for a service that is "local".
SERVICE_PORT = 5000

PROGRAMS = ("rabbitmq-server", "unshare")
PACKAGES = "rabbitmq-server util-linux"

_RABBIT = Path("/usr/lib/rabbitmq/bin")


@dataclass(frozen=True)
class World:
    """Where the parts of it run: on this machine's loopback, unless told otherwise.

    Attributes
    ----------
    address
        Of service and broker, as everybody calls it.
    service
        What a command begins with that runs where these are.
    shell
        What a command begins with that runs where the endpoint is, its words one more; empty where that is here.
    folder, there
        Of the endpoint's user, as the tests see it and as the endpoint does; None for one of the lab.
    tasks
        Where the endpoint's workers find ``tasks``.
    variables
        More of the environment of the endpoint's workers.
    """

    address: str = "127.0.0.1"
    service: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    folder: Path | None = None
    there: Path | None = None
    tasks: Path = ROOT
    variables: tuple[tuple[str, str], ...] = ()

    def at_service(self, *words: str | Path) -> list[str]:
        """Return a command that runs there."""
        return [*self.service, *map(str, words)]

    def at_endpoint(self, *words: str | Path) -> list[str]:
        """Return a command that runs there."""
        return [*self.shell, shlex.join(map(str, words))] if self.shell else [str(word) for word in words]

    def dialled(self, port: int) -> bool:
        """Whether somebody listens at a port of the service."""
        dial = f"import socket; socket.create_connection(({self.address!r}, {port}), 2)"
        return _done(self.at_service(sys.executable, "-c", dial))

    def online(self, endpoint: str) -> bool:
        """Whether the service has heard of an endpoint."""
        url = f"http://{self.address}:{SERVICE_PORT}/v2/endpoints/{endpoint}/status"
        ask = f"import urllib.request as r, sys; sys.exit(b'online' not in r.urlopen({url!r}, timeout=5).read())"
        return _done(self.at_service(sys.executable, "-c", ask))


LOOPBACK = World()


def _done(words: list[str]) -> bool:
    return subprocess.run(words, capture_output=True, timeout=30).returncode == 0


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
    world: World

    def cut(self) -> None:
        """Cut all connections of the broker."""
        words = self.world.at_service(_RABBIT / "rabbitmqctl", "close_all_connections", "a test")
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
def globus_compute(folder: Path, world: World = LOOPBACK) -> Iterator[GlobusCompute]:
    """Start it all, with the endpoint of ``funcx-configs/ml``; end it all."""
    amqp_port, dist_port, epmd_port = free_ports(3)
    amqp = f"amqp://guest:guest@{world.address}:{amqp_port}/%2F"
    environment = {
        "GLOBUS_SDK_ENVIRONMENT": "local",
        "GLOBUS_SDK_SERVICE_URL_AUTH": f"http://localhost:{SERVICE_PORT}",
        "GLOBUS_COMPUTE_CLIENT_ID": "22222222-2222-4222-8222-222222222222",
        "GLOBUS_COMPUTE_CLIENT_SECRET": "the secret of a test",
    }
    (folder / "sdk").mkdir()
    ours = {**environment, "GLOBUS_COMPUTE_USER_DIR": str(folder / "sdk")}
    lab_id = new_run_id()
    # An endpoint writes its title over its environment, unless told not to.
    owned = {**os.environ, RUN_VARIABLE: lab_id, "SPT_NOENV": "1"}
    broker = owned | _rabbit_environment(folder, world.address, amqp_port, dist_port, epmd_port)

    def start(name: str, words: list[str], env: dict[str, str] | None = None) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words, env=owned | (env or {}), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=folder, start_new_session=True,
            )  # fmt: skip
        stack.callback(_end, process)

    with ExitStack() as stack:
        # Tests that are killed leave nothing behind, though most of this runs as daemons, which know no parent.
        stack.callback(Guardian(lab_id, folder / "none").dismiss)
        # Erlang's register of nodes is a daemon; this one is of this lab, by its port.
        words = world.at_service("epmd", "-kill")
        stack.callback(subprocess.run, words, env=broker, stdout=subprocess.DEVNULL, timeout=30, check=False)
        start("rabbitmq", world.at_service(_RABBIT / "rabbitmq-server"), broker)
        until(lambda: world.dialled(amqp_port), "broker", folder)
        standin = Path(__file__).parent / "globus_standin.py"
        start("service", world.at_service(sys.executable, standin, world.address, str(SERVICE_PORT), amqp))
        until(lambda: world.dialled(SERVICE_PORT), "service", folder)
        endpoint = _endpoint(folder, environment, world, start)
        yield GlobusCompute(endpoint, ours, broker, world)


def _endpoint(
    folder: Path, environment: dict[str, str], world: World, start: Callable[[str, list[str]], None]
) -> str:
    """Start the endpoint of ``funcx-configs/ml`` as its README says, and return its id."""
    mine = (world.folder or folder) / "endpoints" / "wayfinder-ml"
    there = (world.there or folder) / "endpoints"
    shutil.copytree(ROOT / "funcx-configs" / "ml", mine)
    programs = Path(sys.executable).parent
    template = (mine / "user_config_template.yaml.j2").read_text()
    init = f"export PATH={programs}:$PATH PYTHONPATH={world.tasks}"
    mine.joinpath("user_config_template.yaml.j2").write_text(
        template.replace("true  # conda activate wayfinder", init)
    )
    with (mine / "config.yaml").open("a") as config:
        config.write("local_compute_services: true\nheartbeat_period: 5\n")
    theirs = {**environment, "GLOBUS_COMPUTE_USER_DIR": str(there)}
    with (mine / "user_environment.yaml").open("a") as variables:
        variables.write(f'PATH: "{programs}:/usr/bin:/bin"\n')
        for name, value in (*theirs.items(), *world.variables):
            variables.write(f'{name}: "{value}"\n')
    program = (*_as_a_user(), programs / "globus-compute-endpoint", "-c", there, "start", "wayfinder-ml")
    start("endpoint", world.at_endpoint("env", *(f"{name}={value}" for name, value in theirs.items()), *program))
    found = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
    stored = mine / "endpoint.json"
    until(lambda: stored.exists() and found.search(stored.read_text()) is not None, "endpoint", folder)
    match = found.search(stored.read_text())
    assert match is not None
    until(lambda: world.online(match[0]), "endpoint online", folder)
    return match[0]


def _as_a_user() -> tuple[str, ...]:
    """Return what a command begins with so as not to run as root, whose endpoints serve many users by other rules."""
    if os.getuid() != 0:
        return ()
    user = pwd.getpwnam("daemon")  # one with a home that is there
    return ("unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}")


def _rabbit_environment(folder: Path, address: str, port: int, dist_port: int, epmd_port: int) -> dict[str, str]:
    """Clients at one address and everything else on loopback, with files in a folder of its own."""
    home = folder / "rabbitmq"
    home.mkdir(exist_ok=True)
    return {
        "HOME": str(home),
        "RABBITMQ_NODENAME": f"wayfinder{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": address,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "logs"),
        "RABBITMQ_CONF_ENV_FILE": str(home / "none"),
        "RABBITMQ_CONFIG_FILE": str(home / "none"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "none"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
            "-kernel inet_dist_use_interface {127,0,0,1} -rabbit loopback_users []"
        ),
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
