"""Frames from a producer on a host from which nothing leads back, through an ssh that carries a port home."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.sites.conftest import FarHost

PORT = 7711
AGREED = ("--backend", "zmq", "--address", f"127.0.0.1:{PORT}", "--namespace", "far", "--num-atoms", "20000")


@contextmanager
def producing(hosts: FarHost, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """Run a producer on the far host, whose port leads here."""
    words = ("python", "-m", "tasks.stream", "produce", *AGREED, "--producer-dir", f"{hosts.host.far}/made", *flags)
    forward = ("-R", f"{PORT}:127.0.0.1:{PORT}", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=60")
    command = [*hosts.near, "ssh", "-F", str(hosts.host.config), *forward, "gpubox"]
    line = f"{hosts.host.init}; exec {shlex.join(words)}"
    with subprocess.Popen([*command, line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def consuming(hosts: FarHost, folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tasks.stream", "consume", *AGREED, "--consumer-dir", str(folder), *flags]
    return subprocess.Popen([*hosts.near, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_frames_come_home_through_ssh(hosts: FarHost, tmp_path: Path) -> None:
    bounds = ("--num-frames", "10", "--lease-s", "10", "--wait-s", "60")
    with producing(hosts, *bounds) as producer, consuming(hosts, tmp_path / "taken", *bounds) as consumer:
        said = [process.communicate(timeout=90)[1] for process in (consumer, producer)]
    assert (consumer.returncode, producer.returncode) == (0, 0), said
    made = sorted((hosts.host.folder / "made" / "group0").iterdir())
    assert len(made) == 10
    for path in made:
        assert (tmp_path / "taken" / "group0" / path.name).read_bytes() == path.read_bytes()


def test_a_cable_that_is_pulled_is_noticed_at_both_ends(hosts: FarHost, tmp_path: Path) -> None:
    bounds = ("--num-frames", "100000", "--lease-s", "3", "--wait-s", "60")
    with producing(hosts, *bounds) as producer, consuming(hosts, tmp_path / "taken", *bounds) as consumer:
        assert consumer.stdout is not None
        assert consumer.stdout.readline().startswith("stream 0 frame 0: ")
        hosts.cable("down")
        try:
            _, said = consumer.communicate(timeout=60)
        finally:
            hosts.cable("up")
        assert consumer.returncode == 1
        assert "the producer of stream 0 in namespace far gave no sign of life for 3 s after " in said
        _, told = producer.communicate(timeout=60)
        assert producer.returncode == 1
        assert "the consumer far.0 gave no sign of life for 3 s, and took " in told
