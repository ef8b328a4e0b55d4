"""Learning on a host behind ssh: a real sshd, with a folder, an environment and keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import ROOT, Campaign

Start = Callable[..., Campaign]

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")

# CI installs it, and must not pass because it could not.
REQUIRED = "ssh" in os.environ.get("WAYFINDER_REQUIRE", "").split(",")

pytestmark = pytest.mark.skipif(
    not REQUIRED and (SSHD is None or shutil.which("ssh") is None),
    reason="needs OpenSSH's server and client: apt-get install openssh-server",
)


@dataclass(frozen=True)
class Host:
    """A host that lets one key in."""

    config: Path
    folder: Path
    known_hosts: Path

    @property
    def flags(self) -> tuple[str, ...]:
        """What reaches it, as a learning site."""
        path = Path(sys.executable).parent
        init = f"export PATH={path}:$PATH PYTHONPATH={self.folder}/installed"
        where = ("--ssh-host", "gpubox", "--ssh-config", str(self.config), "--ssh-dir", str(self.folder / "work"))
        return ("--ml-site", "ssh", *where, "--ssh-init", init)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    lab = tmp_path_factory.mktemp("ssh")
    for name in ("id", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(lab / name)], check=True)
    shutil.copy(lab / "id.pub", lab / "authorized_keys")
    port = free_port()
    (lab / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join((lab / 'host.pub').read_text().split()[:2])}\n")
    (lab / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {lab}/host\nAuthorizedKeysFile {lab}/authorized_keys\n"
        "StrictModes no\nPasswordAuthentication no\nUsePAM no\nPermitRootLogin prohibit-password\n"
        f"PidFile {lab}/sshd.pid\nAllowTcpForwarding remote\nClientAliveInterval 2\nClientAliveCountMax 5\n"
    )
    (lab / "ssh_config").write_text(
        f"Host gpubox\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {lab}/id\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {lab}/known_hosts\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    shutil.copytree(ROOT / "tasks", lab / "installed" / "tasks")
    assert SSHD is not None
    server = subprocess.Popen([SSHD, "-D", "-f", str(lab / "sshd_config"), "-E", str(lab / "sshd.log")])
    try:
        yield Host(lab / "ssh_config", lab, lab / "known_hosts")
    finally:
        server.terminate()
        server.wait(10)


def lines_of_ssh(run_id: str) -> list[psutil.Process]:
    """The ssh of each block of a run."""
    return [
        process
        for process in psutil.process_iter()
        if process.name() == "ssh" and "-R" in process.cmdline() and process.environ().get("WAYFINDER_RUN") == run_id
    ]


def test_a_campaign_learns_behind_ssh(campaign: Start, host: Host) -> None:
    run = campaign(
        *host.flags, "--max-segments", "60", "--retrain-every", "16", "--min-model-versions", "1", "--no-control"
    )
    assert run.wait() == 0, run.err
    summary = run.summary()
    assert summary["model_versions"] >= 1
    assert summary["steered_fraction"] > 0.5
    assert summary["failures"] == {}
    assert summary["proxies"]["left"] == 0
    assert {line["task_info"]["site"] for line in run.traces("training")} == {"ssh"}
    # Nothing but logs is left over there, and no key anywhere.
    assert not list(host.folder.glob("work/**/certificates"))
    assert list(host.folder.glob("work/logs/**/manager.log"))
    told = "".join(path.read_text(errors="replace") for path in run.run_dir.rglob("*.log"))
    assert "WAYFINDER_REDIS_PASSWORD" not in told


@pytest.mark.slow
def test_a_cut_line_is_laid_again(campaign: Start, host: Host) -> None:
    run = campaign(
        *host.flags, "--max-segments", "250", "--retrain-every", "16", "--heartbeat-threshold-s", "6",
        "--min-segment-seconds", "0.1", "--no-control",
    )  # fmt: skip
    run.until(lambda: len(run.traces("inference")) >= 2, 90)
    (line,) = lines_of_ssh(run.run_id)
    line.send_signal(signal.SIGKILL)
    cut, before = time.time(), len(run.traces("simulation"))
    run.until(lambda: any((told["timestamp"]["compute_started"] or 0) > cut for told in run.traces("inference")), 60)
    assert len(run.traces("simulation")) > before
    assert run.wait() == 0, run.err
    assert run.summary()["segments"] == 250
    assert run.summary()["failures"].keys() <= {"manager_lost"}


def test_a_host_that_cannot_be_used_is_refused_in_a_sentence(campaign: Start, host: Host, tmp_path: Path) -> None:
    text = host.config.read_text()
    stranger, closed, refused = (tmp_path / name for name in ("stranger", "closed", "refused"))
    stranger.write_text(text.replace(str(host.known_hosts), str(tmp_path / "nobody")))
    closed.write_text(text.replace("  Port ", "  Port 1\n  #"))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    refused.write_text(text.replace(f"{host.folder}/id\n", f"{tmp_path}/other\n"))
    for config, sentence in (
        (stranger, "its host key is unknown or has changed"),
        (closed, "no sshd listens there"),
        (refused, "it refused your key"),
    ):
        flags = [*host.flags, "--max-segments", "4"]
        flags[flags.index("--ssh-config") + 1] = str(config)
        run = campaign(*flags, name=f"run-{config.name}")
        assert run.wait() == 2
        assert run.err.startswith(f"wayfinder: --ssh-host gpubox: {sentence}")
        assert len(run.err.splitlines()) == 1
        assert not run.run_dir.exists()
