"""Learning on a host behind ssh: a real sshd, with a folder, an environment and keys of its own."""

from __future__ import annotations

import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Campaign
from tests.integration.sites.conftest import (
    Host,
    assert_learnt,
    free_ports,
    lay_out,
    lines_of_ssh,
    listens,
    running,
    until,
)
from tests.needs import need, program

Start = Callable[..., Campaign]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    need("sshd", "ssh", package="openssh-server openssh-client")
    lab = tmp_path_factory.mktemp("ssh")
    (port,) = free_ports(1)
    found = lay_out(lab, "127.0.0.1", port)
    with running(str(program("sshd")), "-D", "-f", f"{found.folder}/sshd_config", "-E", f"{lab}/sshd.log"):
        until(lambda: listens(port), "sshd", lab)
        yield found


@pytest.mark.slow
def test_a_campaign_learns_behind_ssh(campaign: Start, host: Host) -> None:
    run = campaign(
        *host.flags, "--max-segments", "60", "--retrain-every", "16", "--min-model-versions", "1", "--no-control"
    )
    assert_learnt(run, on=platform.node())
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


@pytest.mark.slow
def test_a_campaign_learns_over_a_connection_that_is_open(campaign: Start, host: Host, tmp_path: Path) -> None:
    # As for hosts that ask for a password: a person opened a ControlMaster, and nothing else may log in.
    shared = tmp_path / "shared"
    socket_of_master = f"ControlPath {host.folder}/m"
    shared.write_text(f"{host.config.read_text()}  {socket_of_master}\n")
    master = ["ssh", "-F", str(shared)]
    subprocess.run([*master, "-M", "-N", "-f", "-o", "ControlPersist=yes", "gpubox"], check=True, timeout=30)
    try:
        nobody = tmp_path / "nobody"
        nobody.write_text(shared.read_text().replace(str(host.key), str(tmp_path / "no-key")))
        flags = [*host.flags, "--max-segments", "40", "--retrain-every", "16", "--no-control"]
        flags[flags.index("--ssh-config") + 1] = str(nobody)
        run = campaign(*flags)
        run.until_segments(1)
        (line,) = lines_of_ssh(run.run_id)
        lent = forwarded(line)
        assert all(listens(port) for port in lent)
        assert run.wait() == 0, run.err
        assert run.summary()["model_versions"] >= 1
        # What the master forwarded for the run it forwards no longer.
        assert not any(listens(port) for port in lent)
    finally:
        subprocess.run([*master, "-O", "exit", "gpubox"], check=True, timeout=30)


def forwarded(line: psutil.Process) -> list[int]:
    """Ports of the far loopback that an ssh asked for."""
    words = line.cmdline()
    return [int(words[i + 1].split(":")[1]) for i, word in enumerate(words) if word == "-R"]


def test_a_host_that_cannot_be_used_is_refused_in_a_sentence(campaign: Start, host: Host, tmp_path: Path) -> None:
    text = host.config.read_text()
    stranger, closed, refused = (tmp_path / name for name in ("stranger", "closed", "refused"))
    stranger.write_text(text.replace(str(host.known_hosts), str(tmp_path / "nobody")))
    closed.write_text(text.replace("  Port ", "  Port 1\n  #"))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    refused.write_text(text.replace(f"{host.key}\n", f"{tmp_path}/other\n"))
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
