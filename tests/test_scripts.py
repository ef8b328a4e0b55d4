"""The scripts at the top level: what they pass on is understood by the command line of today."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ENDPOINT = "11111111-2222-4333-8444-555555555555"


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the top level, as a user does."""
    return subprocess.run([ROOT / script, *words], capture_output=True, text=True, timeout=120)


def test_the_script_for_this_machine_hands_on_flags() -> None:
    planned = run("run_local.sh", "--dry-run", "--max-ns", "0.5")
    assert planned.returncode == 0, planned.stderr
    assert "0.502 ns" in planned.stdout


def test_the_script_for_ssh_asks_for_its_host() -> None:
    said = run("run_ssh.sh", "nowhere.invalid", "conda activate wayfinder", "--dry-run", "--max-ns", "0.5")
    assert said.returncode == 2
    assert said.stderr.startswith("wayfinder: --ssh-host nowhere.invalid: ")


def test_the_script_for_an_endpoint_asks_for_its_redis() -> None:
    said = run("run_globus.sh", ENDPOINT, "127.0.0.1", "1", "--dry-run")
    assert said.returncode == 2
    assert said.stderr.startswith("wayfinder: no Redis server answers at 127.0.0.1:1: start it, or leave")


@pytest.mark.parametrize("script", ["run_ssh.sh", "run_globus.sh"])
def test_a_script_that_lacks_a_word_says_which(script: str) -> None:
    said = run(script)
    assert said.returncode == 2
    assert said.stderr.startswith(f"usage: ./{script} ")
    assert len(said.stderr.splitlines()) == 1
