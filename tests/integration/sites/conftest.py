"""Hosts to test with: a real sshd each, reached over loopback or across two network namespaces."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT

# Where the far host keeps what it sees of itself.
FAR = Path("/mnt")

_SBIN = "/usr/sbin:/usr/local/sbin:/sbin"


def program(name: str) -> str | None:
    """Return where a program is, which need not be on the user's PATH."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def need(*names: str, package: str, requires: str = "ssh") -> None:
    """Skip a test where programs are missing; fail it where somebody insists on them (`.ci/run` installs them)."""
    missing = [name for name in names if program(name) is None]
    if not missing:
        return
    reason = f"needs {', '.join(missing)}: apt-get install {package}"
    if requires in os.environ.get("WAYFINDER_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


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
        init = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={self.far}/installed"
        where = ("--ssh-host", "gpubox", "--ssh-config", str(self.config), "--ssh-dir", str(self.far / "work"))
        return ("--ml-site", "ssh", *where, "--ssh-init", init)


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


@dataclass(frozen=True)
class TwoHosts:
    """Two hosts with one cable between them; from the far one nothing leads back.

    Attributes
    ----------
    near
        What a command begins with to run on the near host.
    far_shell
        What one begins with to run on the far one, as its sshd would.
    """

    host: Host
    near: tuple[str, ...]
    far_shell: tuple[str, ...]
    namespace: str

    def cable(self, state: str) -> None:
        """Pull it (``down``), or plug it in again (``up``)."""
        subprocess.run(["ip", "-n", self.namespace, "link", "set", "wayfinder0", state], check=True)


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

# It sees neither the other's files nor its checkout: only its own folder, and an environment.
_OWN_FILES = """
set -e
hostname gpubox
mount --bind {folder} {far}
mkdir -p {far}/environment
mount --bind {environment} {far}/environment
mount -t tmpfs none /tmp
mkdir -p {root}
mount -t tmpfs none {root}
mkdir -p {environment}
mount --bind {far}/environment {environment}
exec {sshd} -D -e -f {far}/sshd_config
"""


@contextmanager
def two_hosts(lab: Path) -> Iterator[TwoHosts]:
    """Make two network namespaces, and an sshd in the one that has a mount, a name and processes of its own."""
    near, far = f"wfnear{os.getpid()}", f"wffar{os.getpid()}"
    host = lay_out(lab, "10.77.0.2", 22, FAR)
    server: subprocess.Popen[bytes] | None = None
    try:
        _run("ip", "netns", "add", near)
        _run("ip", "netns", "add", far)
        _run("ip", "link", "add", "wayfinder0", "netns", near, "type", "veth", "peer", "name", "wf1", "netns", far)
        for namespace, address, link in ((near, "10.77.0.1/24", "wayfinder0"), (far, "10.77.0.2/24", "wf1")):
            _run("ip", "-n", namespace, "addr", "add", address, "dev", link)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            _run("ip", "-n", namespace, "link", "set", link, "up")
        _run("ip", "netns", "exec", far, str(program("nft")), "-f", "-", given=_NO_WAY_BACK)
        script = _OWN_FILES.format(
            folder=host.folder, far=FAR, environment=sys.prefix, root=ROOT, sshd=program("sshd")
        )
        namespaces = ("--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
        with (lab / "sshd.log").open("wb") as log:
            server = subprocess.Popen(
                ["ip", "netns", "exec", far, "unshare", *namespaces, "bash", "-c", script], stdout=log, stderr=log
            )
        prefix = ("ip", "netns", "exec", near)
        _run(*prefix, "ssh", "-F", str(host.config), "-o", "ConnectionAttempts=20", "gpubox", "true")
        yield TwoHosts(host, prefix, (*prefix, "ssh", "-F", str(host.config), "gpubox"), near)
    finally:
        if server is not None:
            server.kill()
            server.wait(10)
        for namespace in (near, far):
            subprocess.run(["ip", "netns", "del", namespace], check=False, stderr=subprocess.DEVNULL)


def _run(*words: str, given: str | None = None) -> None:
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
