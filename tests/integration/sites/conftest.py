"""Hosts to test with: a real sshd each, reached over loopback or across network namespaces."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import ROOT, Campaign
from tests.needs import need, program

# Where the far host keeps what it sees of itself.
FAR = Path("/mnt")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine's loopback."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(shell: Sequence[str], address: str, port: int) -> bool:
    """Whether an address can be dialled from where a shell is."""
    dial = f"import socket; socket.create_connection(({address!r}, {port}), 3)"
    return subprocess.run([*shell, f'python3 -c "{dial}"'], capture_output=True, timeout=60).returncode == 0


def until(there: Callable[[], bool], what: str, folder: Path, within_s: float = 60) -> None:
    """Wait for a part of a lab; one that does not come is told with the ends of the lab's logs."""
    deadline = time.monotonic() + within_s
    while not there():
        logs = [*folder.glob("*.log"), *folder.glob("*.out")]
        told = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)
        assert time.monotonic() < deadline, f"no {what} after {within_s} s: {told}"
        time.sleep(0.1)


@contextmanager
def running(*words: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program as long as it is needed."""
    process = subprocess.Popen(words, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def lines_of_ssh(run_id: str) -> list[psutil.Process]:
    """The ssh of each block of a run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if (
                process.name() == "ssh"
                and "-R" in process.cmdline()
                and process.environ().get("WAYFINDER_RUN") == run_id
            ):
                found.append(process)
    return found


def assert_learnt(run: Campaign, on: str) -> None:
    """A campaign ended as it should, and learning ran on a host of that name."""
    assert run.wait() == 0, run.err
    summary = run.summary()
    assert summary["model_versions"] >= 1
    assert summary["steered_fraction"] > 0.5
    assert summary["failures"] == {}
    assert summary["proxies"]["left"] == 0
    assert {line["worker_info"]["hostname"] for line in run.traces("training")} == {on}


@dataclass(frozen=True)
class Host:
    """A host that lets one key in, and how a campaign reaches it.

    Attributes
    ----------
    config
        For ssh; it calls the host ``gpubox``.
    far
        The host's own folder, as it calls it.
    folder
        The same, as the tests see it.
    """

    config: Path
    known_hosts: Path
    key: Path
    far: Path
    folder: Path

    @property
    def flags(self) -> tuple[str, ...]:
        """What reaches it, as a learning site."""
        where = ("--ssh-host", "gpubox", "--ssh-config", str(self.config), "--ssh-dir", str(self.far / "work"))
        return ("--ml-site", "ssh", *where, "--ssh-init", self.init)

    @property
    def init(self) -> str:
        """The line that brings Python and `tasks` there."""
        return f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={self.far}/installed"


def lay_out(lab: Path, address: str, port: int, far: Path | None = None) -> Host:
    """Make keys, the configurations of both ends, and an installation of `tasks`."""
    folder = lab / "far"
    folder.mkdir()
    far = far or folder
    for name in (lab / "id", folder / "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(name)], check=True)
    shutil.copy(lab / "id.pub", folder / "authorized_keys")
    public = " ".join((folder / "host.pub").read_text().split()[:2])
    (lab / "known_hosts").write_text(f"[{address}]:{port} {public}\n{address} {public}\n")
    (folder / "sshd_config").write_text(
        f"ListenAddress {address}\nPort {port}\nHostKey {far}/host\nAuthorizedKeysFile {far}/authorized_keys\n"
        "StrictModes no\nPasswordAuthentication no\nUsePAM no\nPermitRootLogin prohibit-password\n"
        f"PidFile {far}/sshd.pid\nAllowTcpForwarding remote\nClientAliveInterval 2\nClientAliveCountMax 5\n"
        "Subsystem sftp internal-sftp\n"
    )
    (lab / "ssh_config").write_text(
        f"Host gpubox\n  HostName {address}\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {lab}/id\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {lab}/known_hosts\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    shutil.copytree(ROOT / "tasks", folder / "installed" / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    return Host(lab / "ssh_config", lab / "known_hosts", lab / "id", far, folder)


# What two hosts are made with, and the packages that have it.
HOST_PROGRAMS = ("sshd", "ssh", "ip", "nft", "unshare")
HOST_PACKAGES = "openssh-server openssh-client iproute2 nftables util-linux"


@dataclass(frozen=True)
class FarHost:
    """A host at the end of a cable; from it nothing leads back to the near one.

    Attributes
    ----------
    near
        What a command begins with to run on the near host.
    shell
        What one begins with to run on the far one, as its sshd would.
    """

    host: Host
    near: tuple[str, ...]
    shell: tuple[str, ...]
    namespace: str
    near_namespace: str
    link: str

    def cable(self, state: str) -> None:
        """Pull it (``down``), or plug it in again (``up``)."""
        _run(*self.cable_command(state))

    def cable_command(self, state: str) -> tuple[str, ...]:
        """Return what does that, from either namespace."""
        return ("ip", "-n", self.near_namespace, "link", "set", self.link, state)


# The far host may answer ssh, and open no connection of its own.
_NO_WAY_BACK = """
table inet fw {
chain out {
  type filter hook output priority 0; policy drop;
  oif lo accept
  tcp sport 22 ct state established accept
}
}
"""

# It sees neither the other's files nor its checkout: only its own folder, an environment, and what is shared.
_OWN_FILES = """
set -e
hostname {name}
mount --bind {folder} {far}
mkdir -p {far}/environment {far}/shared
mount --bind {environment} {far}/environment
mount --bind {shared} {far}/shared
mount -t tmpfs none /tmp
mkdir -p {root}
mount -t tmpfs none {root}
mkdir -p {environment} {shared}
mount --bind {far}/environment {environment}
mount --bind {far}/shared {shared}
exec {sshd} -D -e -f {far}/sshd_config
"""


@contextmanager
def near_host() -> Iterator[str]:
    """Make a network namespace to run campaigns in."""
    namespace = f"wfnear{os.getpid()}"
    try:
        _run("ip", "netns", "add", namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "del", namespace], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def far_host(lab: Path, near: str, number: int = 0, shared: Path | None = None) -> Iterator[FarHost]:
    """Make another at the end of a cable, with an sshd, files, a name and processes of its own.

    Parameters
    ----------
    lab
        An empty folder.
    shared
        A directory that both hosts see under its path.
    """
    far, link, name = f"wffar{os.getpid()}n{number}", f"wayfinder{number}", f"gpubox{number}" if number else "gpubox"
    ends = (near, f"10.77.{number}.1/24", link), (far, f"10.77.{number}.2/24", "wf1")
    host = lay_out(lab, f"10.77.{number}.2", 22, FAR)
    nothing = lab / "nothing"
    nothing.mkdir()
    server: subprocess.Popen[bytes] | None = None
    try:
        _run("ip", "netns", "add", far)
        _run("ip", "-n", far, "link", "set", "lo", "up")
        _run("ip", "link", "add", link, "netns", near, "type", "veth", "peer", "name", "wf1", "netns", far)
        for namespace, address, end in ends:
            _run("ip", "-n", namespace, "addr", "add", address, "dev", end)
            _run("ip", "-n", namespace, "link", "set", end, "up")
        _run("ip", "netns", "exec", far, str(program("nft")), "-f", "-", given=_NO_WAY_BACK)
        script = _OWN_FILES.format(
            name=name, folder=host.folder, far=FAR, environment=sys.prefix, root=ROOT, sshd=program("sshd"),
            shared=shared or nothing,
        )  # fmt: skip
        namespaces = ("--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
        with (lab / "sshd.log").open("wb") as log:
            server = subprocess.Popen(
                ["ip", "netns", "exec", far, "unshare", *namespaces, "bash", "-c", script], stdout=log, stderr=log
            )
        prefix = ("ip", "netns", "exec", near)
        _run(*prefix, "ssh", "-F", str(host.config), "-o", "ConnectionAttempts=20", "gpubox", "true")
        yield FarHost(host, prefix, (*prefix, "ssh", "-F", str(host.config), "gpubox"), far, near, link)
    finally:
        if server is not None:
            server.kill()
            server.wait(10)
        subprocess.run(["ip", "netns", "del", far], check=False, stderr=subprocess.DEVNULL)


# Where the service of a cloud is, for hosts that cannot dial each other.
INTERNET = "10.77.99.1"

# What a program takes for a service on its own loopback is out there.
_OUT_THERE = """
table ip out_there {{
chain output {{ type nat hook output priority -100; ip daddr 127.0.0.1 tcp dport {port} dnat to {address}:{port}; }}
chain postrouting {{ type nat hook postrouting priority 100; ip daddr {address} masquerade; }}
}}
"""

_MAY_DIAL_IT = f"add rule inet fw out ip daddr {INTERNET} accept"


@contextmanager
def internet(far: FarHost, port: int) -> Iterator[tuple[str, ...]]:
    """Make a namespace that both hosts can dial, and that hands nothing on; yield what a command there begins with.

    Parameters
    ----------
    port
        Of a service that its users look for on their own loopback.
    """
    name = f"wfnet{os.getpid()}"
    prefix = ("ip", "netns", "exec", name)
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "addr", "add", f"{INTERNET}/32", "dev", "lo")
        _run(*prefix, "sysctl", "-w", "net.ipv4.ip_forward=0")
        for number, host in enumerate((far.near_namespace, far.namespace)):
            here, there, link = f"10.77.{100 + number}.1", f"10.77.{100 + number}.2", f"out{number}"
            _run("ip", "link", "add", link, "netns", host, "type", "veth", "peer", "name", link, "netns", name)
            for namespace, address in ((host, here), (name, there)):
                _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", link)
                _run("ip", "-n", namespace, "link", "set", link, "up")
            _run("ip", "-n", host, "route", "add", INTERNET, "via", there)
            inside = ("ip", "netns", "exec", host)
            _run(*inside, "sysctl", "-w", "net.ipv4.conf.all.route_localnet=1")
            rules = _OUT_THERE.format(port=port, address=INTERNET)
            _run(*inside, str(program("nft")), "-f", "-", given=rules)
        _run("ip", "netns", "exec", far.namespace, str(program("nft")), "-f", "-", given=_MAY_DIAL_IT)
        yield prefix
    finally:
        # The cables end with it; the hosts' rules lead nowhere then.
        subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def _run(*words: str, given: str | None = None) -> None:
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need(*HOST_PROGRAMS, package=HOST_PACKAGES)
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"this machine lets nobody make namespaces here: {tried.stderr.strip()}")
    with near_host() as made:
        yield made


@pytest.fixture(scope="module")
def hosts(near: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarHost]:
    with far_host(tmp_path_factory.mktemp("far"), near) as made:
        yield made
