"""The Thinker never touches coordinates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from campaign.processes import new_run_id
from tests.integration.conftest import ROOT

# Fetching is broken in the main process; workers are processes of their own and import it anew.
BROKEN = """
import sys
import tasks.transport

def fetch(ref):
    raise AssertionError("the main process fetched data")

tasks.transport.fetch = fetch
import tasks.engine, tasks.infer, tasks.simulate, tasks.train
tasks.engine.fetch = tasks.infer.fetch = tasks.simulate.fetch = tasks.train.fetch = fetch
import run
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_campaign_runs_although_its_main_process_cannot_fetch(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    flags = ["--max-segments", "30", "--retrain-every", "12", "--first-epochs", "2", "--min-model-versions", "1"]
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN, *flags, "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ | {"WAYFINDER_RUN": new_run_id(), "PATH": path, "SPT_NOENV": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
