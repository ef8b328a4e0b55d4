"""A benchmark as a user runs it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Sockets have to lie in it, and pytest's own folders are too deep for that."""
    with tempfile.TemporaryDirectory(prefix="wf-") as name:
        yield Path(name)


def test_transport_in_small(folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "WAYFINDER_RUN"}
    flags = ["--quick", "--keep-busy", "--sizes", "10000", "100000", "--json", str(folder / "out.json")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.transport", *flags],
        cwd=ROOT,
        env={**environment, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "file 100 kB" in done.stdout
    content = json.loads((folder / "out.json").read_text())
    figures = content["figures"]
    assert content["repeats"] == 6
    for way in ("bare", "empty", "file", "redis", "inline", "automatic"):
        assert 0 < figures[f"{way} 10 kB"]["low"] <= figures[f"{way} 10 kB"]["high"] < 1000, way
    # A task through queues and a worker cannot be faster than two calls in one process.
    assert figures["file/bare 10 kB"]["value"] > 1
    assert [path.name for path in folder.iterdir()] == ["out.json"], "a folder is left"
    assert not [process for process in psutil.process_iter() if carries(process, str(folder))], "a process is left"


def carries(process: psutil.Process, tmpdir: str) -> bool:
    try:
        inside = process.environ().get("TMPDIR", "").startswith(tmpdir)
        return inside and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
