"""Hooks of a user's in real campaigns: beside segments, in their order, with attempts of their own."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import MDAnalysis
import pytest

from tests.integration.conftest import ROOT, Campaign

Start = Callable[..., Campaign]

SHORT = ("--embedding", "pca", "--segment-ps", "0.5", "--walkers", "2", "--seed", "5")

# As a user has it who starts where the example lies.
HERE = {"PYTHONPATH": str(ROOT / "tests" / "integration")}

QUERY = """
SELECT segment_id, max(CASE name WHEN 'rmsd_nm' THEN value END), max(CASE name WHEN 'rg_nm' THEN value END)
FROM hook_value WHERE hook = 'hooks_example:shape' GROUP BY segment_id ORDER BY segment_id
"""

COUNT = """
import json, os, sqlite3
from pathlib import Path

run = Path(os.environ["WAYFINDER_RUN_DIR"])
segment = json.loads(os.environ.get("WAYFINDER_SEGMENT", "null"))
if segment is None:
    db = sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True)
    (n,) = db.execute("SELECT count(DISTINCT segment_id) FROM hook_value WHERE name = 'rg_nm'").fetchone()
    print(json.dumps({"segments with a shape": n}))
else:
    print("looking at", segment["segment_id"])
    print(json.dumps({"there": int((run / "trajectories" / f"{segment['segment_id']:08d}.dcd").exists())}))
"""


MINE = """
def endless(run, segment):
    while True:
        pass


def enough(segment):
    return segment.segment_id >= 5
"""


@pytest.fixture
def count(tmp_path: Path) -> str:
    """A command that counts."""
    (tmp_path / "count it, please.py").write_text(COUNT)
    return f"{sys.executable} '{tmp_path / 'count it, please.py'}'"


def test_shapes_of_segments_are_queried_from_the_ledger(campaign: Start, count: str) -> None:
    run = campaign(
        *SHORT, "--max-segments", "6", "--before-segment", count, "--after-segment", "hooks_example:shape",
        "--after-segment", count, "--after-campaign", count, env=HERE,
    )  # fmt: skip
    assert run.wait() == 0, run.err
    assert run.summary()["hooks"] == {"complete": 19, "fizzled": 0}, run.diagnosis()
    assert run.summary()["segments"] == 6
    assert "hooks: 19 complete, 0 given up" in run.out

    with sqlite3.connect(run.run_dir / "ledger.sqlite") as db:
        shapes = db.execute(QUERY).fetchall()
    assert [segment for segment, _, _ in shapes] == list(range(6))
    for segment, rmsd, radius in shapes:
        universe = MDAnalysis.Universe(run.run_dir / "topology.pdb", run.run_dir / f"trajectories/{segment:08d}.dcd")
        heavy = universe.select_atoms("not element H")
        expected = sum(heavy.radius_of_gyration() for _ in universe.trajectory) / len(universe.trajectory)
        assert radius == pytest.approx(expected / 10)
        assert 0 < rmsd < radius

    # Before a segment its file is not there, after it it always is.
    there = run.ask("SELECT value, count(*) FROM hook_value WHERE name = 'there' GROUP BY value ORDER BY value")
    assert there == [(0.0, 6), (1.0, 6)]
    assert run.ask("SELECT segment_id, value FROM hook_value WHERE name LIKE 'segments%'") == [(None, 6.0)]
    traced = run.traces("hook")
    assert len(traced) == 19
    assert {line["task_info"]["executor"] for line in traced} == {"host"}
    assert {line["task_info"]["moment"] for line in traced} == {"before-segment", "after-segment", "after-campaign"}


def test_a_chain_that_fails_is_given_up_alone_and_the_campaign_ends_when_it_is_told_to(
    campaign: Start, tmp_path: Path
) -> None:
    (tmp_path / "mine_of_hooks.py").write_text(MINE)
    env = {"PYTHONPATH": f"{HERE['PYTHONPATH']}:{tmp_path}"}
    run = campaign(
        *SHORT, "--max-segments", "60", "--max-attempts", "2", "--after-segment", "false",
        "--after-segment", "hooks_example:shape", "--after-campaign", "mine_of_hooks:endless", "--hook-timeout", "2",
        "--hook-workers", "2", "--continue-until", "mine_of_hooks:enough", env=env,
    )  # fmt: skip
    assert run.wait() == 0, run.err
    summary = run.summary()
    assert summary["status"] == "complete"
    assert summary["reason"].startswith("--continue-until mine_of_hooks:enough was true after segment ")
    n = summary["segments"]
    assert 5 < n < 60
    assert summary["hooks"] == {"complete": n, "fizzled": 2 * n + 1}
    assert summary["failures"] == {"hook": 2 * n + 2}
    assert summary["quarantined"] == 0
    assert "took longer than --hook-timeout 2 s" in run.out
    assert run.ask("SELECT DISTINCT state FROM task WHERE kind != 'hook'") == [("complete",)]
    assert run.ask("SELECT count(*) FROM hook_value WHERE name = 'reached'") == [(n,)]

    again = subprocess.run(
        [sys.executable, "run.py", "resume", str(run.run_dir)],
        cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "nothing is left to do" in again.stdout


@pytest.mark.parametrize("point", ["before-publish:4", pytest.param("after-send:9", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_hooks_that_were_out_when_the_process_died_are_run(campaign: Start, count: str, point: str) -> None:
    run = campaign(
        *SHORT, "--max-segments", "8", "--before-segment", count, "--after-segment", "hooks_example:shape",
        "--after-segment", count, env=HERE | {"WAYFINDER_KILL_AT": point},
    )  # fmt: skip
    assert run.wait() == -9
    resumed = subprocess.run(
        [sys.executable, "run.py", "resume", str(run.run_dir)],
        cwd=ROOT, env=os.environ | HERE, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert run.summary()["hooks"] == {"complete": 24, "fizzled": 0}
    assert run.ask("SELECT count(*), count(DISTINCT task_id) FROM attempt WHERE outcome = 'success'"
                   " AND task_id IN (SELECT id FROM task WHERE kind = 'hook')") == [(24, 24)]  # fmt: skip
    there = run.ask("SELECT value, count(*) FROM hook_value WHERE name = 'there' GROUP BY value ORDER BY value")
    assert there == [(0.0, 8), (1.0, 8)]


def test_a_hook_that_is_not_there_is_refused_before_anything_starts(campaign: Start) -> None:
    run = campaign("--after-segment", "hooks_example:shade", env=HERE)
    assert run.wait(60) == 2
    assert "--after-segment hooks_example:shade cannot be used, for module hooks_example" in run.err
    assert not run.run_dir.exists()
