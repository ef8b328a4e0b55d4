"""``python -m tasks.stream produce|consume`` as a user runs it: real processes, servers and kills."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from sites import redis_server as redis_servers
from sites.redis_server import RedisServer
from tasks.transport import unpack
from tests.endpointlab import PeerEndpoint
from tests.integration.movement_example import KILLED_AT
from tests.integration.sites.conftest import free_ports

ROOT = Path(__file__).parents[2]
EXAMPLE = "tests.integration.movement_example"

Start = Callable[..., "Command"]


class Command:
    """One of the commands, running."""

    def __init__(self, folder: Path, verb: str, *flags: str, env: dict[str, str] | None = None) -> None:
        self.json = folder / f"{verb}.json"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WAYFINDER_")}
        where = ("--producer-dir", str(folder / "made"), "--shared-dir", str(folder / "shared"))
        where += ("--consumer-dir", str(folder / "taken"), "--json", str(self.json))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tasks.stream", verb, *where, "--lease-s", "2", "--wait-s", "20", *flags],
            cwd=ROOT,
            env={**environment, "TMPDIR": str(folder), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> int:
        """Return the exit code, with what was said read."""
        self.out, self.err = self.process.communicate(timeout=60)
        return self.process.returncode

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.json.read_text())
        return content


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start commands; one that is still there after the test fails it."""
    started: list[Command] = []

    def begin(verb: str, *flags: str, env: dict[str, str] | None = None) -> Command:
        started.append(Command(tmp_path, verb, *flags, env=env))
        return started[-1]

    yield begin
    left = [command for command in started if command.process.poll() is None]
    for command in left:
        command.process.kill()
        command.process.communicate()
    assert not left, "a command hangs"


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = redis_servers.start(None, tmp_path / "redis.log")
    yield server
    server.stop()


def frames_in(folder: Path) -> dict[str, float]:
    """Return what each frame below a folder is filled with; all of one must be equal."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        positions = unpack(path.read_bytes())["positions"]
        assert positions.shape == (200, 3)
        assert (positions == positions[0, 0]).all()
        found[f"{path.parent.name}/{path.name[5:11]}"] = float(positions[0, 0])
    return found


def expected(n_frames: int, *streams: int) -> dict[str, float]:
    return {f"group{s}/{number:06d}": 100.0 * s + number for s in streams for number in range(n_frames)}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


GENERATE = ("--generate", f"{EXAMPLE}:frame")
ANALYZE = ("--analyze", f"{EXAMPLE}:mean")


@pytest.mark.parametrize(
    ("backend", "first"), [("file", "consume"), ("redis", "produce"), ("zmq", "produce"), ("endpoint", "consume")]
)
def test_frames_get_there_whoever_starts_first(
    start: Start, request: pytest.FixtureRequest, backend: str, first: str, tmp_path: Path
) -> None:
    flags, env = ("--backend", backend, "--num-frames", "4"), {}
    if backend == "redis":
        flags += ("--redisport", str(request.getfixturevalue("own_redis").port))
    if backend == "endpoint":
        endpoint: PeerEndpoint = request.getfixturevalue("lone_endpoint")
        flags, env = (*flags, "--ps-endpoints", endpoint.uuid), {"PROXYSTORE_HOME": str(endpoint.home)}
    commands = {}
    for verb in sorted(("consume", "produce"), key=lambda verb: verb != first):
        commands[verb] = start(verb, *flags, *(GENERATE if verb == "produce" else ANALYZE), env=env)
        time.sleep(0.5)
    for command in commands.values():
        assert command.wait() == 0, command.err
    assert frames_in(tmp_path / "made") == frames_in(tmp_path / "taken") == expected(4, 0)
    made, taken = (commands[verb].report() for verb in ("produce", "consume"))
    assert made["frames"] == taken["frames"] == 4
    size = sum(path.stat().st_size for path in (tmp_path / "made").rglob("*.safetensors"))
    assert made["bytes"] == taken["bytes"] == size
    assert (taken["lost"], taken["damaged"], taken["strangers"]) == (0, 0, 0)
    assert [frame["result"] for frame in taken["ranks"][0]["frames"]] == [{"value": float(n)} for n in range(4)]
    assert set(made["seconds"]) == {"production", "writing", "waiting", "movement"}
    assert set(taken["seconds"]) == {"waiting", "movement", "analysis"}
    if backend == "redis":
        with Redis(port=request.getfixturevalue("own_redis").port) as redis:
            assert redis.keys() == []
    assert list((tmp_path / "shared").glob(".*")) == []


def test_in_shared_storage_a_consumer_only_waits(start: Start, tmp_path: Path) -> None:
    commands = [start(verb, "--storage", "shared", "--num-frames", "3") for verb in ("consume", "produce")]
    for command in commands:
        assert command.wait() == 0, command.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["consume.json", "produce.json", "shared"]
    assert len(list((tmp_path / "shared" / "group0").iterdir())) == 3
    assert commands[0].report()["frames"] == 3


def test_several_of_each(start: Start, tmp_path: Path) -> None:
    flags = ("--producers", "3", "--consumers", "2", "--num-frames", "3")
    commands = [start("consume", *flags, *ANALYZE), start("produce", *flags, *GENERATE)]
    for command in commands:
        assert command.wait() == 0, command.err
    assert frames_in(tmp_path / "taken") == frames_in(tmp_path / "made") == expected(3, 0, 1, 2)
    report = commands[0].report()
    streams = [sorted({frame["stream"] for frame in rank["frames"]}) for rank in report["ranks"]]
    assert streams == [[0, 2], [1]]
    assert report["frames"] == 9


def test_one_rank_that_cannot_begin_ends_the_others(start: Start, tmp_path: Path) -> None:
    port, _ = free_ports(2)
    with socket.create_server(("127.0.0.1", port + 1)):
        consumer = start("consume", "--producers", "2", "--consumers", "2", "--address", f"127.0.0.1:{port}")
        assert consumer.wait() == 2
    assert consumer.err == (
        f"python -m tasks.stream: a consumer cannot listen at 127.0.0.1:{port + 1} (Address already in use "
        f"(addr='tcp://127.0.0.1:{port + 1}')): name another --address of this machine\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_producer_killed_while_it_writes_leaves_nothing_torn(start: Start, tmp_path: Path) -> None:
    consumer = start("consume", *ANALYZE)
    until(lambda: list(tmp_path.glob("shared/.*.stream")))
    producer = start("produce", "--generate", f"{EXAMPLE}:killed_while_writing")
    assert producer.wait() == -signal.SIGKILL
    assert consumer.wait() == 1
    assert (
        f"the producer of stream 0 in namespace wayfinder gave no sign of life for 2 s after {KILLED_AT} items"
        in (consumer.err)
    )
    assert frames_in(tmp_path / "taken") == expected(KILLED_AT, 0)
    assert consumer.report()["frames"] == KILLED_AT
    # Both run again over what was left.
    again = [start("consume", *ANALYZE, "--num-frames", "5"), start("produce", *GENERATE, "--num-frames", "5")]
    assert [command.wait() for command in again] == [0, 0]
    assert frames_in(tmp_path / "made") == frames_in(tmp_path / "taken") == expected(5, 0)
    assert not list(tmp_path.rglob("*.part"))


def test_a_killed_consumer_does_not_hold_a_producer(start: Start, tmp_path: Path) -> None:
    flags = ("--num-frames", "50", "--ahead", "4", "--backend", "zmq")
    producer = start("produce", *flags, *GENERATE)
    consumer = start("consume", *flags, "--analyze", f"{EXAMPLE}:killed_while_analysing")
    assert consumer.wait() == -signal.SIGKILL
    assert producer.wait() == 1
    told = re.search(r"the consumer wayfinder\.0 gave no sign of life for 2 s, and took (\d) items: ", producer.err)
    assert told is not None, producer.err
    # The last receipts may have died with the consumer.
    assert int(told[1]) <= KILLED_AT + 1
    # Those that it took, those that it may be ahead, and the one that waits for room.
    assert len(frames_in(tmp_path / "made")) == int(told[1]) + 4 + 1


def test_redis_gone(start: Start, own_redis: RedisServer) -> None:
    flags = ("--backend", "redis", "--redisport", str(own_redis.port))
    commands = [start("consume", *flags), start("produce", *flags, "--generate", f"{EXAMPLE}:slowly")]
    assert commands[0].line().startswith("stream 0 frame 0: ")
    assert own_redis.process is not None
    own_redis.process.kill()
    for command in commands:
        assert command.wait() == 1
        assert f":{own_redis.port} does not answer" in command.err or "(redis) does not answer" in command.err
        assert "Traceback" not in command.err


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 128 + signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_ranks_end_in_order_with_their_command(start: Start, number: signal.Signals, code: int) -> None:
    consumer = start("consume", "--producers", "2", "--lease-s", "60")
    producer = start("produce", "--producers", "2", "--lease-s", "60", "--generate", f"{EXAMPLE}:slowly")
    streams = {consumer.line()[:8] for _ in range(4)}
    while len(streams) < 2:
        streams.add(consumer.line()[:8])
    producer.process.send_signal(number)
    assert producer.wait() == code
    assert consumer.wait() == 1
    for stream in (0, 1):
        assert f"the producer of stream {stream} in namespace wayfinder gave up after" in consumer.err
    assert "Traceback" not in consumer.err + producer.err


def test_a_function_that_raises_is_told_to_both(start: Start, tmp_path: Path) -> None:
    consumer = start("consume", "--lease-s", "60")
    until(lambda: list(tmp_path.glob("shared/.*.stream")))
    producer = start("produce", "--generate", f"{EXAMPLE}:raises")
    assert producer.wait() == 1
    said = "the function of --generate, for frame 0, failed: RuntimeError: no frame 0"
    assert producer.err == f"python -m tasks.stream: {said}\n"
    assert consumer.wait() == 1
    assert "gave up after 0 items" in consumer.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--num-frames", "0"), "--num-frames 0 is too few: give at least 1"),
        (("--num-frames", "many"), "argument --num-frames: invalid int value: 'many': see "),
        (("--consumers", "2"), "--consumers 2 would leave some without any of the 1 producers: give at most 1, "),
        (("--namespace", "../up"), "--namespace '../up' is no name: use up to 100 letters"),
        (("--backend", "redis", "--redisport", "1"), "no Redis server answers at 127.0.0.1:1 ("),
        (("--backend", "endpoint"), "--backend endpoint needs ProxyStore's endpoints: name them with --ps-endpoints"),
        (("--address", "somewhere:"), "--address somewhere: is none: write HOST or HOST:PORT"),
        (("--address", "192.0.2.1"), "a consumer cannot listen at 192.0.2.1:0 ("),
        (("--analyze", "json:nothing"), "--analyze json:nothing cannot be used, for module json ("),
        (("--consumer-dir", "/proc/none"), "directory /proc/none cannot be "),
        (("--rank", "3"), "--rank 3 is none of the 1: give 0 to 0"),
        (("--json", "/none/here.json"), "--json /none/here.json cannot be written: "),
    ],
)
def test_bad_input_is_told_in_a_sentence(
    flags: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.stream.command import main

    where = ("--producer-dir", str(tmp_path / "made"), "--consumer-dir", str(tmp_path / "taken"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["consume", *where, "--shared-dir", str(tmp_path / "shared"), *flags]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr().err
    assert told.startswith(f"python -m tasks.stream: {said}")
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
