"""A benchmark as a user runs it."""

import json
from pathlib import Path

import psutil
import pytest

from tests.benchmarks.conftest import run_benchmark


def test_transport_in_small(folder: Path) -> None:
    done = run_benchmark("transport", folder, "--quick", "--keep-busy", "--sizes", "10000", "100000")
    assert done.returncode == 0, done.stderr
    assert "file 100 kB" in done.stdout
    content = json.loads((folder / "out.json").read_text())
    figures = content["figures"]
    assert content["repeats"] == 6
    for way in ("bare", "empty", "file", "redis", "inline", "automatic"):
        assert 0 < figures[f"{way} 10 kB"]["low"] <= figures[f"{way} 10 kB"]["high"] < 1000, way
    # A task through queues and a worker cannot be faster than two calls in one process.
    assert figures["file/bare 10 kB"]["value"] > 1
    assert_nothing_left(folder)


@pytest.mark.slow
def test_sites_in_small(folder: Path) -> None:
    flags = ("--quick", "--keep-busy", "--repeats", "2", "--sizes", "10000")
    # One that reaches a Redis, and one that has its data in files.
    done = run_benchmark("sites", folder, *flags, "--site", "local-b", "--site", "local-no-redis")
    assert done.returncode == 0, done.stderr
    content = json.loads((folder / "out.json").read_text())
    figures = content["figures"]
    assert content["repeats"] == 6
    ways = {"local", "local-b", "local-no-redis"}
    assert {name.removesuffix(" empty") for name in figures if name.endswith(" empty")} == ways | {
        "local-b/local", "local-no-redis/local",
    }  # fmt: skip
    for way in ways:
        assert 0 < figures[f"{way} notification"]["value"] < figures[f"{way} empty"]["value"], way
    assert {name for name in figures if "10 kB" in name} == {
        "local 10 kB", "local-b 10 kB", "local-b/local 10 kB",
        "local 10 kB by file", "local-no-redis 10 kB by file", "local-no-redis/local 10 kB by file",
    }  # fmt: skip
    assert_nothing_left(folder)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--producers", "2"), ("--backend", "redis"), ("--backend", "zmq")])
def test_movement_in_small(folder: Path, flags: tuple[str, ...]) -> None:
    in_small = ("--quick", "--keep-busy", "--num-frames", "4", "--frame-s", "0.05", "--sizes", "100000")
    done = run_benchmark("movement", folder, *in_small, *flags)
    assert done.returncode == 0, done.stderr
    content = json.loads((folder / "out.json").read_text())
    figures = content["figures"]
    assert content["repeats"] == 6
    # Whoever waits until all frames are made is blocked for as long as that takes; what a stream saves, a busy
    # machine may take again.
    assert figures["blocked, traditional"]["value"] > 4 * 0.05
    names = ("movement 100 kB", "raw copy 100 kB", "put -> landed 100 kB")
    for name in (*names, "blocked, polling/stream", "blocked, traditional/stream"):
        assert figures[name]["value"] > 0, name
    beside = {"plain socket/raw copy 100 kB", "movement/plain socket 100 kB"}
    assert beside <= figures.keys() if "--backend" in flags else not beside & figures.keys()
    assert_nothing_left(folder)


def test_movement_refuses_what_the_command_refuses(folder: Path) -> None:
    done = run_benchmark("movement", folder, "--backend", "endpoint")
    assert done.returncode == 2
    assert done.stderr.startswith("movement: --backend endpoint needs ProxyStore's endpoints: ")
    assert list(folder.iterdir()) == []


def test_sites_without_a_way_is_told_in_a_sentence(folder: Path) -> None:
    done = run_benchmark("sites", folder)
    assert done.returncode == 2
    assert done.stderr == "sites: no way is named: add --ssh-host HOST, --ml-endpoint UUID or --site NAME\n"
    assert list(folder.iterdir()) == []


def assert_nothing_left(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["out.json"], "a folder is left"
    assert not [process for process in psutil.process_iter() if carries(process, str(folder))], "a process is left"


def carries(process: psutil.Process, tmpdir: str) -> bool:
    try:
        inside = process.environ().get("TMPDIR", "").startswith(tmpdir)
        return inside and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
