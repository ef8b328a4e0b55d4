"""Weighted ensembles as campaigns: weights follow from the seed, whatever dies, and WESTPA's tools read them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from agents.ensemble import generator
from agents.topic import task_seed
from campaign.iterations import Past, fluxes, past
from campaign.ledger import Ledger
from campaign.method import method_of
from campaign.molecule import system_spec
from campaign.settings import Settings
from campaign.status import status
from policies.iteration import BasisStates
from tasks.coordinate import unpack_pcoord, values
from tasks.indices import Indices
from tasks.messages import SegmentSpec, StoreSpec
from tasks.simulate import run_segment
from tasks.systems import prepare
from tasks.transport import ship
from tests.integration.conftest import Campaign
from tests.integration.test_endings import manager_of

Start = Callable[..., Campaign]

WELL: Mapping[str, object] = {
    "system": "double-well",
    "policy": "weighted-ensemble",
    "bins": "rectilinear:-0.27,-0.2,-0.1,0,0.1,0.2",
    "target": "x > 0.25",
    "segment_ps": 1.0,
    "frame_ps": 0.25,
    "seed": 5,
}

FLAGS = [word for name, value in WELL.items() for word in (f"--{name.replace('_', '-')}", str(value))]

INLINE = StoreSpec("inline", "inline")


def told(run: Campaign, replica: int = 0) -> list[Past]:
    """Return what the ledger has of an ensemble, every iteration checked."""
    ledger = Ledger(run.run_dir / "ledger.sqlite")
    try:
        found = list(past(ledger, replica))
        for before, after in zip(found, found[1:], strict=False):
            before.resampled(after.iteration)
        return found
    finally:
        ledger.close()


def in_one_process(n_iterations: int, replica: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weights and coordinates of an ensemble that was run by hand, segment by segment."""
    settings = Settings(**WELL, max_iterations=n_iterations)
    prepared = prepare(system_spec(settings))
    method, dynamics = method_of(settings, prepared), settings.dynamics(prepared.platform)
    arrays = prepared.basis()
    at_start = values(
        method.coordinate, arrays["positions"].astype(np.float32), None, Indices.from_arrays(prepared.to_arrays())
    )
    basis = BasisStates(method.names, method.probabilities, at_start.astype(np.float64))
    rng = generator(settings.seed, replica)
    system, start = ship(prepared.to_arrays(), INLINE), ship(arrays, INLINE)
    iteration = method.rule(basis.pcoord).begin(basis, rng)
    ends, n_initial, found = [], len(iteration.initial), []
    for number in range(1, n_iterations + 1):
        results = []
        for row, parent in enumerate(iteration.parents.tolist()):
            spec = SegmentSpec(
                segment_id=0, attempt=1, walker_id=row, iteration=number, parent_id=None, parent_frame=None,
                system=system, system_id=prepared.digest, start=start if parent < 0 else ends[parent], start_row=0,
                seed=task_seed(settings.seed, replica, number, row, 0), dynamics=dynamics, store=INLINE, run_dir=None,
                coordinate=method.coordinate,
            )  # fmt: skip
            results.append(run_segment(spec))
        pcoord = np.stack([unpack_pcoord(result.pcoord, 1) for result in results])
        found.append((iteration.weights, pcoord))
        resampled = method.rule(pcoord[:, -1]).resample(iteration, pcoord, basis, rng, n_initial)
        ends = [result.end for result in results]
        iteration, n_initial = resampled.following, n_initial + len(resampled.following.initial)
    return found


def assert_equal(found: list[Past], expected: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """An ensemble is that one, weight by weight and coordinate by coordinate."""
    assert len(found) == len(expected)
    for each, (weights, pcoord) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(each.iteration.weights, weights)
        np.testing.assert_array_equal(each.pcoord, pcoord)


@pytest.fixture(scope="module")
def by_hand() -> list[tuple[np.ndarray, np.ndarray]]:
    return in_one_process(14)


def test_a_campaign_has_the_weights_that_its_seed_gives(
    campaign: Start, by_hand: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    run = campaign(*FLAGS, "--max-iterations", "14", "--simulate-workers", "3", "--bundle", "2")
    assert run.wait() == 0, run.err
    found = told(run)
    assert_equal(found, by_hand)
    summary = run.summary()
    ensemble = summary["weighted_ensemble"]
    assert (ensemble["iterations"], ensemble["target"]) == ([14], "x > 0.25")
    assert summary["segments"] == sum(len(each.segment_ids) for each in found)
    assert summary["proxies"]["left"] == 0
    assert len(list((run.run_dir / "seg_logs").glob("*.log"))) == summary["segments"]
    with h5py.File(run.run_dir / "west.h5") as west:
        assert west.attrs["west_current_iteration"] == 15
        index = west["iterations/iter_00000014/seg_index"][...]
    np.testing.assert_array_equal(index["weight"], found[-1].iteration.weights)
    assert "iteration 10: " in run.out
    assert "iterations that ended: 14" in list(status(run.run_dir).lines())[-2]


@pytest.mark.slow
def test_whatever_dies_in_mid_iteration_weights_are_those_of_the_seed(
    campaign: Start, by_hand: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    run = campaign(*FLAGS, "--max-iterations", "14", "--min-segment-seconds", "0.1")

    def n_ended() -> int:
        return int(run.ask("SELECT count(*) FROM iteration")[0][0])

    run.until_segments(1)
    for victim in ("worker", "main", "server", "main"):
        begun_after = n_ended()
        run.until(lambda before=begun_after: n_ended() > before, 90)
        # In the middle of an iteration: some of its walkers have ended, others have not.
        time.sleep(0.25)
        kill(run, victim)
        if victim != "worker":
            run.process.wait(60)
            run.process.communicate()
            run.resume()
    assert run.wait(200) == 0, run.err
    found = told(run)
    assert_equal(found, by_hand)
    assert max(abs(each.iteration.weights.sum() - 1) for each in found) <= 1e-12
    complete = run.ask("SELECT count(*) FROM task WHERE kind = 'simulate' AND state = 'complete'")[0][0]
    done = "SELECT count(*) FROM attempt JOIN task ON id = task_id WHERE kind = 'simulate' AND outcome = 'success'"
    # No walker twice, and no segment that had ended again.
    assert complete == run.ask(done)[0][0] == sum(len(each.segment_ids) for each in found)
    with h5py.File(run.run_dir / "west.h5") as west:
        assert west.attrs["west_current_iteration"] == 15


def test_an_ensemble_that_cannot_be_right_is_not_resumed(campaign: Start) -> None:
    run = campaign(*FLAGS, "--max-iterations", "2")
    assert run.wait() == 0, run.err
    with closing(sqlite3.connect(run.run_dir / "ledger.sqlite")) as db, db:
        ((key, told),) = db.execute("SELECT key, value FROM kept WHERE key LIKE 'ensemble/0%'").fetchall()
        kept = json.loads(told)
        kept["weights"][0] += 0.25
        db.execute("UPDATE kept SET value = ? WHERE key = ?", (json.dumps(kept), key))
    run.resume("--max-iterations", "3")
    assert run.wait() == 2
    assert "holds a weighted ensemble that cannot be right (iteration 3: weights sum to one +2.5e-01)" in run.err
    assert len(run.err.splitlines()) == 1


def kill(run: Campaign, victim: str) -> None:
    """Send SIGKILL to a process of a run."""
    if victim == "main":
        run.process.kill()
    elif victim == "server":
        (server,) = [c for c in psutil.Process(run.process.pid).children() if "run.py" in " ".join(c.cmdline())]
        server.kill()
    else:
        manager_of(run, "cpu").children()[-1].kill()


@pytest.mark.slow
def test_a_coordinate_is_learned_as_the_campaign_goes(campaign: Start) -> None:
    run = campaign(
        "--policy", "weighted-ensemble", "--pcoord", "aae:0,1", "--bins", "mab:3,3", "--walkers-per-bin", "2",
        "--max-iterations", "8", "--retrain-every", "8", "--infer-every", "4", "--first-epochs", "2", "--epochs", "1",
        "--replicas", "2",
    )  # fmt: skip
    assert run.wait(200) == 0, run.err
    firsts = []
    for replica in range(2):
        found = told(run, replica)
        versions = [each.model_version for each in found]
        assert len(found) == 8
        assert versions == sorted(versions)
        firsts.append(versions[0])
        assert versions[-1] >= 1
        # Without a model nothing is binned: every walker carries on with its weight.
        assert all(np.all(each.pcoord == 0) for each in found if each.model_version == 0)
        assert np.isfinite(found[-1].pcoord).all()
    # One has eight segments before any training; the other may be held up by a worker that starts late.
    assert min(firsts) == 0
    assert (run.run_dir / "west-1.h5").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--bins", "rectilinear:0,1,0.5"], "--bins rectilinear:0,1,0.5"),
        (["--bins", "rectilinear:0,1;0,1"], "--bins rectilinear:0,1;0,1"),
        (["--target", "y > 1"], "y is no dimension"),
        (["--pcoord", "phi-psi"], "--pcoord phi-psi needs a residue"),
        (["--basis-states", "nowhere"], "--basis-states"),
        (["--pcoord", "aae:0,1", "--no-retrain"], "without a model"),
        (["--pcoord", "aae:0,1", "--target", "z0 > 1"], "would move whenever the model"),
        (["--policy", "plain"], "--bins"),
    ],
)
def test_what_no_ensemble_can_be_is_refused_in_a_sentence(campaign: Start, flags: list[str], sentence: str) -> None:
    run = campaign(*FLAGS[:6], "--max-iterations", "2", *flags)
    assert run.wait(60) == 2
    assert sentence in run.err
    assert len(run.err.splitlines()) == 1
    assert not run.run_dir.exists()


def test_westpas_tools_read_what_a_campaign_exports(campaign: Start) -> None:
    run = campaign(*FLAGS, "--max-iterations", "14", "--target", "x > -0.24")
    assert run.wait() == 0, run.err
    export = subprocess.run(
        [sys.executable, str(run.checkout / "run.py"), "export", str(run.run_dir), "--west-cfg"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert export.returncode == 0, export.stderr
    tool = Path(sys.executable).parent / "w_succ"
    succeeded = subprocess.run([tool], cwd=run.run_dir, capture_output=True, text=True, timeout=60)
    assert succeeded.returncode == 0, succeeded.stderr
    lines = [line.split() for line in succeeded.stdout.splitlines() if line.strip()[:1].isdigit()]
    recycled = {(each.iteration.number, one.walker) for each in told(run) for one in each.recycled}
    assert recycled
    assert {(int(words[0]), int(words[1])) for words in lines} == recycled
    ledger = Ledger(run.run_dir / "ledger.sqlite")
    assert fluxes(ledger, 0).sum() == pytest.approx(sum(float(words[2]) for words in lines), rel=1e-5)
    ledger.close()
