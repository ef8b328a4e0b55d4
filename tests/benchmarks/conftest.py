"""Benchmarks as a user runs them."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Sockets have to lie in it, and pytest's own folders are too deep for that."""
    with tempfile.TemporaryDirectory(prefix="wf-") as name:
        yield Path(name)


def run_benchmark(name: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "WAYFINDER_RUN"}
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *flags, "--json", str(folder / "out.json")],
        cwd=ROOT,
        env={**environment, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
