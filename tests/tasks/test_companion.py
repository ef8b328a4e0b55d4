"""A command beside a segment: it finds the server, and ends with the segment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tasks import companion
from tasks.companion import Companion
from tasks.imd import ImdServer
from tasks.messages import SegmentSpec, Watch
from tasks.transport import PASSWORD_VARIABLE

LISTEN = """
import os, socket, struct
client = socket.create_connection((os.environ["WAYFINDER_IMD_HOST"], int(os.environ["WAYFINDER_IMD_PORT"])), 20)
client.sendall(struct.pack("!ii", 3, 0))
print("segment", os.environ["WAYFINDER_SEGMENT_ID"], "of iteration", os.environ["WAYFINDER_ITERATION"], flush=True)
print("secret", os.environ.get("%s"))
while client.recv(65536):
    pass
"""


@pytest.fixture
def server() -> Iterator[ImdServer]:
    with ImdServer(n_atoms=2, timestep_ps=0.004) as imd:
        yield imd


@pytest.fixture
def spec(segment: SegmentSpec, tmp_path: Path) -> SegmentSpec:
    return replace(segment, run_dir=str(tmp_path), watch=Watch(1, True, here=str(tmp_path)))


def command(tmp_path: Path, script: str) -> str:
    (tmp_path / "script.py").write_text(script)
    return f"{sys.executable} script.py"


def log(tmp_path: Path) -> str:
    return (tmp_path / "seg_logs" / "000000-000003_analysis.log").read_text()


def test_it_listens_before_the_segment_begins_and_ends_when_the_server_does(
    spec: SegmentSpec, server: ImdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "hidden")
    beside = Companion(command(tmp_path, LISTEN % PASSWORD_VARIABLE), spec, server)
    beside.wait_until_it_listens()
    assert server.wait_for_listeners(1, 0.0)
    assert beside.how is None
    server.close()
    beside.leave()
    assert beside.how == "exit code 0"
    assert log(tmp_path) == "segment 3 of iteration 0\nsecret None\n"


def test_what_does_not_end_by_itself_is_ended_with_all_that_it_started(
    spec: SegmentSpec, server: ImdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companion, "GRACE_S", 0.2)
    monkeypatch.setattr(companion, "TERM_S", 0.2)
    monkeypatch.setattr(companion, "CONNECT_S", 2.0)
    script = (
        "import signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    beside = Companion(command(tmp_path, script), spec, server)
    beside.wait_until_it_listens()
    server.close()
    beside.leave()
    assert beside.how == "signal SIGKILL"
    child = int(log(tmp_path))
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=20)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_one_that_ends_at_once_is_not_waited_for(spec: SegmentSpec, server: ImdServer, tmp_path: Path) -> None:
    beside = Companion(command(tmp_path, "raise SystemExit(3)"), spec, server)
    beside.wait_until_it_listens()
    server.close()
    beside.leave()
    assert beside.how == "exit code 3"


def test_one_that_cannot_be_run_is_told(spec: SegmentSpec, server: ImdServer) -> None:
    beside = Companion("no-such-program-here", spec, server)
    beside.wait_until_it_listens()
    beside.leave()
    assert beside.how is not None
    assert beside.how.startswith("cannot be run (")
