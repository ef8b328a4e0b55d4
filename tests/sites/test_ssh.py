"""What a block behind ssh is started with, without any ssh."""

import os
import platform
import socket
import time
from importlib import metadata
from pathlib import Path

import pytest
from parsl.jobs.states import JobState

from sites.reach import cause, check, mismatch
from sites.site import Resources, SshAccess
from sites.ssh import SshProvider, ssh_site
from tasks.errors import BadInput
from tasks.messages import StoreSpec
from tasks.transport import FORWARDED_VARIABLE, open_store

COMMAND = "python3 -m tasks.worker_pool -a 127.0.0.1 --port=54123 --cert_dir {keys} --block_id=0"

LIKE_HERE = {"python": platform.python_version(), "parsl": metadata.version("parsl"), "tasks": True}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "client.key_secret").write_text("secret of a test")
    return folder


def provider(folder: Path, **given) -> SshProvider:
    return SshProvider(SshAccess("gpubox", folder=str(folder), **given), "true", (6379,), 2, 10)


def test_ports_over_there_are_others_each_time(tmp_path: Path):
    block = provider(tmp_path)
    seen = set()
    for _ in range(5):
        command, forwards = block._through_the_tunnel(COMMAND)
        (dialled, here), (redis, redis_here) = (forward.split(":")[1::2] for forward in forwards)
        assert (here, redis_here) == ("54123", "6379")
        assert f"--port={dialled} " in command
        assert command.startswith(f"WAYFINDER_FORWARDED=6379={redis} ")
        seen |= {dialled, redis}
    assert len(seen) > 5


def test_a_tunnel_that_is_there_is_left_alone(tmp_path: Path):
    assert provider(tmp_path, tunnel="manual", port=54123)._through_the_tunnel(COMMAND) == (COMMAND, [])


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch) -> Path:
    """Put a program called ssh first on PATH, which runs its input here; return where it tells its arguments."""
    programs, told = tmp_path / "bin", tmp_path / "arguments"
    programs.mkdir()
    (programs / "ssh").write_text(
        f'#!/bin/bash\n[[ "$*" == *" -O "* ]] && exit 255\nprintf "%s\\n" "$@" > {told}\nexec bash -s\n'
    )
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return told


def wait_for(text: str, log: Path) -> None:
    deadline = time.monotonic() + 10
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.05)


def test_secrets_go_through_the_line_and_a_pool_ends_with_it(
    tmp_path: Path, keys: Path, arguments: Path, monkeypatch
):
    monkeypatch.setenv("WAYFINDER_RUN", "0" * 32)
    monkeypatch.setenv("WAYFINDER_REDIS_PASSWORD", "it's a test")
    block = provider(tmp_path / "far")
    block.script_dir = str(tmp_path)
    says = "cat certificates/*; echo; echo $WAYFINDER_RUN $WAYFINDER_REDIS_PASSWORD; sleep 60"
    block_id = block.submit(f"bash -c '{says}' --port=54123 --cert_dir {keys}", 1, "block-0")
    wait_for(f"{'0' * 32} it's a test", tmp_path / "block-0.log")
    assert "secret of a test" in (tmp_path / "block-0.log").read_text()
    told = arguments.read_text()
    assert "gpubox" in told
    assert ":127.0.0.1:54123" in told
    assert "a test" not in told
    assert [status.state for status in block.status([block_id])] == [JobState.RUNNING]
    assert block.cancel([block_id]) == [True]
    assert [status.state for status in block.status([block_id])] == [JobState.CANCELLED]
    assert not list((tmp_path / "far").rglob("certificates"))


def test_a_pool_that_fails_is_told_with_its_last_words(tmp_path: Path, keys: Path, arguments: Path):
    block = provider(tmp_path / "far")
    block.script_dir = str(tmp_path)
    block_id = block.submit(f"bash -c 'echo no Parsl here; exit 3' --port=54123 --cert_dir {keys}", 1, "block-0")
    block.resources[block_id].process.wait(10)
    (status,) = block.status([block_id])
    assert (status.state, status.exit_code, status.message) == (JobState.FAILED, 3, "no Parsl here")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Host key verification failed.", "host key is unknown"),
        ("x@y: Permission denied (publickey).", "refused your key"),
        ("ssh: Could not resolve hostname gpubox: Name or service not known", "name is not known"),
        ("ssh: connect to host gpubox port 22: Connection refused", "no sshd listens"),
        ("a new one", "ssh ended with 'a new one'; try it by hand"),
        ("", "ssh ended with 'nothing'; try it by hand"),
    ],
)
def test_what_ssh_says_is_told_with_its_remedy(said, told):
    assert told in cause(said)


def test_a_host_like_this_one_can_be_used():
    assert mismatch(SshAccess("gpubox"), LIKE_HERE) is None


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"python": "3.8.19"}, f"python3 is 3.8.19 there and {platform.python_version()} here"),
        ({"tasks": False}, "ssh gpubox \"conda activate md; pip install -c constraints.txt './wayfinder_tasks-"),
        ({"parsl": "2025.1.1"}, f"run `pip install parsl=={metadata.version('parsl')}` there"),
        ({"parsl": None}, "Parsl is None there"),
    ],
)
def test_a_host_unlike_this_one_is_told_with_its_remedy(found, told):
    assert told in (mismatch(SshAccess("gpubox", init="conda activate md"), LIKE_HERE | found) or "")


def test_a_port_that_is_taken_here_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"--ssh-port {port} is taken here"):
            check(SshAccess("gpubox", tunnel="manual", port=port))


def test_a_site_without_a_host_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="add --ssh-host HOST"):
        ssh_site("ssh").learn(Resources(None, 1, tmp_path, 2.0, 10.0))


def test_a_store_is_dialled_at_the_near_end_of_the_tunnel(monkeypatch):
    monkeypatch.setenv(FORWARDED_VARIABLE, "6379=24510,7000=24511")
    spec = StoreSpec("behind", "redis", (("hostname", "127.0.0.1"), ("port", "6379")))
    assert open_store(spec).connector.port == 24510
    assert (
        open_store(StoreSpec("beside", "redis", (("hostname", "10.0.0.1"), ("port", "6380")))).connector.port == 6380
    )
