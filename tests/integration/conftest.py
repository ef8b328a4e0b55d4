"""A campaign as a user runs it: a real process, with real workers, servers and signals."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]


class Campaign:
    """``python run.py`` in a process of its own.

    Parameters
    ----------
    on
        What its command line begins with, if it is to run on another host.
    checkout
        Where ``run.py`` is: a copy whose ``config.py`` was edited, say.
    """

    def __init__(
        self,
        run_dir: Path,
        *flags: str,
        env: dict[str, str] | None = None,
        on: Sequence[str] = (),
        checkout: Path = ROOT,
    ) -> None:
        self.run_dir = run_dir
        self.on = on
        self.checkout = checkout
        # A report takes seconds and is looked at by tests of its own.
        unasked = () if "--report" in flags else ("--no-report",)
        self._begin("--run-dir", str(run_dir), *flags, *unasked, env=env)

    def resume(self, *flags: str) -> None:
        """Go on with it in another process, once the last one has ended."""
        self._begin("resume", str(self.run_dir), *flags)

    def _begin(self, *words: str, env: dict[str, str] | None = None) -> None:
        # As from a user's shell, not from within a run.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WAYFINDER_")}
        self.process = subprocess.Popen(
            [*self.on, sys.executable, str(self.checkout / "run.py"), *words],
            cwd=self.checkout,
            env=environment | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.out = self.err = ""

    @property
    def run_id(self) -> str:
        """Id in the environment of every process of the run (set once run.py has started over)."""
        found = ""

        def there() -> bool:
            nonlocal found
            found = psutil.Process(self.process.pid).environ().get("WAYFINDER_RUN", "")
            return bool(found)

        self.until(there, 10)
        return found

    def processes(self, run_id: str) -> list[psutil.Process]:
        """Living processes of the run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("WAYFINDER_RUN") == run_id and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s; {self.diagnosis()}"
            assert self.process.poll() is None, f"ended before: {self.process.communicate()}"
            time.sleep(0.05)

    def until_segments(self, count: int, timeout_s: float = 90) -> None:
        """Wait until so many segments are in the trace."""
        self.until(lambda: len(self.traces("simulation")) >= count, timeout_s)

    def wait(self, timeout_s: float = 150) -> int:
        """Return the exit code, with stdout and stderr read."""
        try:
            self.out, self.err = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            pytest.fail(f"the command hung: {self.diagnosis()}")
        return self.process.returncode

    def traces(self, topic: str) -> list[dict[str, Any]]:
        """Lines of a trace; a line that is not whole JSON fails."""
        path = self.run_dir / f"{topic}-results.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        content: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return content

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of the ledger, read without writing."""
        with sqlite3.connect(f"file:{self.run_dir / 'ledger.sqlite'}?mode=ro", uri=True) as db:
            return db.execute(query).fetchall()

    def diagnosis(self) -> str:
        """The end of the log."""
        log = self.run_dir / "runtime.log"
        return log.read_text()[-2000:] if log.exists() else "no log"


@pytest.fixture
def campaign(tmp_path: Path) -> Iterator[Callable[..., Campaign]]:
    """Start campaigns; whatever of them is still there after the test is killed, and that fails the test."""
    started: list[tuple[Campaign, str]] = []

    def start(*flags: str, name: str = "run", **given: Any) -> Campaign:
        begun = Campaign(tmp_path / name, *flags, **given)
        started.append((begun, begun.run_id))
        return begun

    yield start
    left = []
    for begun, run_id in started:
        if begun.process.poll() is None:
            begun.process.kill()
            begun.process.wait(10)
        left += begun.processes(run_id)
    for process in left:
        process.kill()
    assert not left, f"processes left behind: {left}"


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A short campaign with learning and a control, run once for all tests that look at what it left."""
    run = Campaign(
        tmp_path_factory.mktemp("short") / "run",
        *("--max-segments", "80", "--retrain-every", "20", "--first-epochs", "4", "--epochs", "2"),
        *("--min-model-versions", "2", "--control", "--seed", "11", "--report"),
        env={"CANARY_TOKEN": "canary-5f2c"},
    )
    assert run.wait(200) == 0, run.err
    return run


def edited_checkout(folder: Path, sites: str) -> Path:
    """Return a checkout to whose config.py sites were added, as users do; ``{checkout}`` stands for its path."""
    for name in ("agents", "benchmarks", "campaign", "policies", "sites", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.py", "wiring.py"):
        shutil.copy(ROOT / name, folder)
    config = (ROOT / "config.py").read_text()
    (folder / "config.py").write_text(config + sites.format(checkout=folder))
    return folder


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """Mount a file system that is soon full."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
