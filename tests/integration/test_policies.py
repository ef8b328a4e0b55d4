"""Campaigns with each policy, as a user names them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.ensemble_coordinate import NATIVE_PHI, NATIVE_PSI
from tasks.peptides import peptide_pdb
from tests.integration.conftest import Campaign

Start = Callable[..., Campaign]

SHORT = ("--max-segments", "24", "--embedding", "pca", "--segment-ps", "0.5")

# The first steers four segments, and then has a mistake.
MINE = """
class Failing:
    candidates, learns = "uniform", False

    def __init__(self):
        self.left = 5

    def choose(self, scores, used, rng):
        self.left -= bool(len(scores))
        return int(rng.integers(len(scores) if self.left else 0))


class Fresh:
    candidates, learns = "novel", True

    def choose(self, scores, used, rng):
        return int(used.argmin()) if len(scores) else None
"""


@pytest.fixture
def mine(tmp_path: Path) -> dict[str, str]:
    """The environment in which a module of the user's is found."""
    (tmp_path / "mine_of_a_test.py").write_text(MINE)
    return {"PYTHONPATH": str(tmp_path)}


def assert_steered(run: Campaign) -> None:
    assert run.wait() == 0, run.err
    summary = run.summary()
    assert summary["segments"] == 24
    assert summary["steered_fraction"] > 0.2
    assert summary["failures"] == {}


@pytest.mark.slow
def test_a_users_policy_that_fails_ends_the_campaign_in_order(campaign: Start, mine: dict[str, str]) -> None:
    run = campaign(*SHORT, "--policy", "mine_of_a_test:Failing", env=mine)
    assert run.wait() == 1
    summary = run.summary()
    assert summary["status"] == "failed"
    assert summary["reason"].startswith("--policy mine_of_a_test:Failing raised ValueError: ")
    assert "Traceback" in (run.run_dir / "runtime.log").read_text()
    assert summary["proxies"]["left"] == 0
    steered = "SELECT count(*) FROM task WHERE kind = 'simulate' AND steered"
    assert run.ask(steered) == [(4,)]
    assert run.ask("SELECT count(*) FROM task WHERE state = 'running'") == [(0,)]
    complete = "SELECT count(*) FROM task WHERE kind = 'simulate' AND state = 'complete'"
    assert run.ask(complete) == [(summary["segments"],)]


@pytest.mark.slow
def test_a_users_policy(campaign: Start, mine: dict[str, str]) -> None:
    assert_steered(campaign(*SHORT, "--lockstep", "--policy", "mine_of_a_test:Fresh", env=mine))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["least-counts", "lof"])
def test_a_policy_named_after_its_measure(campaign: Start, policy: str) -> None:
    run = campaign(*SHORT, "--lockstep", "--policy", policy)
    assert_steered(run)
    found = [novelty for line in run.traces("inference") for novelty in line["task_info"]["novelty"]]
    # Counts are negative, outlier factors about 1.
    assert max(found) < 0 if policy == "least-counts" else min(found) > 0.5


@pytest.mark.slow
def test_steering_chignolin_to_its_native_state(campaign: Start, tmp_path: Path) -> None:
    native = tmp_path / "native.pdb"
    native.write_text(peptide_pdb("YYDPETGTWY", phi_deg=NATIVE_PHI, psi_deg=NATIVE_PSI))
    run = campaign(*SHORT, "--system", "chignolin", "--policy", f"rmsd:{native}", "--features", "name CA")
    assert_steered(run)
    told = [line["task_info"] for line in run.traces("inference")]
    smallest = [info["smallest_rmsd_nm"] for info in told]
    assert smallest == sorted(smallest, reverse=True)
    assert 0 < smallest[-1] < smallest[0]
    segments = {line["task_info"]["segment_id"] for line in run.traces("simulation")}
    assert told[-1]["nearest"][0] in segments
