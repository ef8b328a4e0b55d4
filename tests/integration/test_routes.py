"""Other queues, other stores, data that change stores on their way, and decisions that can be repeated."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from sites import redis_server
from tests.integration.conftest import Campaign

Start = Callable[..., Campaign]

SHORT = ("--max-segments", "40", "--retrain-every", "16", "--first-epochs", "2", "--epochs", "1")


@pytest.fixture
def somebodys_redis(tmp_path: Path) -> Iterator[redis_server.RedisServer]:
    """A server that others use, too."""
    server = redis_server.start(None, tmp_path / "redis.log")
    yield server
    server.stop()


def assert_complete(run: Campaign) -> None:
    assert run.wait() == 0, run.err
    summary = run.summary()
    assert summary["status"] == "complete"
    assert summary["segments"] == 40
    assert summary["failures"] == {}
    assert summary["proxies"]["left"] == 0
    assert summary["steered_fraction"] > 0.3


def test_everything_by_somebodys_redis(campaign: Start, somebodys_redis: redis_server.RedisServer) -> None:
    host, port = somebodys_redis.host, somebodys_redis.port
    with Redis(host=host, port=port) as client:
        client.set("theirs", "kept")
        backends = [word for topic in ("simulate", "infer", "train") for word in (f"--{topic}-ps-backend", "redis")]
        run = campaign(*SHORT, "--queue", "redis", "--redishost", host, "--redisport", str(port), *backends)
        assert_complete(run)
        assert client.keys() == [b"theirs"]
        assert client.get("theirs") == b"kept"


@pytest.mark.slow
def test_learning_that_cannot_reach_the_simulations_redis(campaign: Start) -> None:
    run = campaign(
        *SHORT,
        *("--ml-site", "local-no-redis", "--simulate-ps-backend", "redis"),
        *("--infer-ps-backend", "file", "--train-ps-backend", "file", "--ps-threshold", "500"),
    )
    assert_complete(run)
    moves = run.traces("move")
    assert len(moves) == 40
    assert {(line["task_info"]["source"], line["task_info"]["target"]) for line in moves} == {("redis", "file")}
    assert run.ask("SELECT count(*) FROM task WHERE kind = 'move' AND state = 'complete'") == [(40,)]
    assert run.summary()["sites"]["infer"] == ["local-no-redis"]


@pytest.mark.slow
def test_without_stores(campaign: Start) -> None:
    run = campaign(*SHORT, "--no-proxystore")
    assert_complete(run)
    assert run.summary()["proxies"] == {"created": 0, "evicted": 0, "left": 0}
    assert not any(line["task_info"]["proxied"] for line in run.traces("simulation"))


@pytest.mark.slow
def test_a_store_in_another_directory(campaign: Start, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    stores.mkdir()
    (stores / "theirs").write_text("kept")
    assert_complete(campaign(*SHORT, "--ps-file-dir", str(stores)))
    assert [path.name for path in stores.iterdir()] == ["theirs"]


@pytest.mark.slow
def test_lockstep_repeats_every_decision(campaign: Start) -> None:
    flags = (*SHORT, "--lockstep", "--seed", "5", "--walkers", "4")
    first, second = campaign(*flags, name="first"), campaign(*flags, name="second")
    assert_complete(first)
    assert_complete(second)
    decided = "SELECT id, parent_id, parent_frame, walker_id, steered FROM task WHERE kind = 'simulate' ORDER BY id"
    assert first.ask(decided) == second.ask(decided)
    files = "SELECT path, sha256 FROM artifact WHERE kind = 'trajectory' ORDER BY path"
    assert first.ask(files) == second.ask(files)
    assert first.summary()["coverage"] == second.summary()["coverage"]


@pytest.mark.slow
def test_another_seed_decides_otherwise(campaign: Start) -> None:
    first = campaign(*SHORT, "--lockstep", "--seed", "5", name="first")
    second = campaign(*SHORT, "--lockstep", "--seed", "6", name="second")
    assert_complete(first)
    assert_complete(second)
    digests = "SELECT sha256 FROM artifact WHERE kind = 'trajectory'"
    assert not set(first.ask(digests)) & set(second.ask(digests))


@pytest.mark.slow
def test_random_and_pca(campaign: Start) -> None:
    random = campaign(*SHORT, "--policy", "random", name="random")
    assert_complete(random)
    assert random.summary()["model_versions"] == 0
    pca = campaign(*SHORT, "--embedding", "pca", "--novelty", "lof", name="pca")
    assert_complete(pca)
    assert pca.summary()["model_versions"] >= 1


@pytest.mark.slow
def test_pretrained_weights_are_version_0(campaign: Start) -> None:
    trained = campaign(*SHORT, "--min-model-versions", "1", name="trained")
    assert trained.wait() == 0
    weights = trained.run_dir / "models" / "model-000001.pt"
    run = campaign(*SHORT, "--aae-weights", str(weights), "--no-retrain", name="pretrained")
    assert_complete(run)
    assert run.summary()["model_versions"] == 0
    assert {line["task_info"]["model_version"] for line in run.traces("inference")} == {0}
    with np.load(sorted(run.run_dir.glob("models/reference-*.npz"))[-1]) as reference:
        assert reference["latent"].shape[1] == 8


@pytest.mark.slow
def test_basis_states_are_equilibrated_once_and_kept(campaign: Start) -> None:
    """The control begins where the campaign began, by ``--start`` and without equilibrating again."""
    run = campaign("--max-segments", "4", "--equilibrate-ps", "1", "--control")
    assert run.wait() == 0, run.err
    ((task, state, outcome),) = run.ask(
        "SELECT id, state, outcome FROM task JOIN attempt ON task_id = id WHERE kind = 'equilibrate'"
    )
    assert (state, outcome) == ("complete", "success")
    ((path, digest),) = run.ask(f"SELECT path, sha256 FROM artifact WHERE kind = 'end_state' AND task_id = {task}")
    kept = (run.run_dir / path).read_bytes()
    assert hashlib.sha256(kept).hexdigest() == digest
    (line,) = run.traces("equilibration")
    assert line["success"]
    assert line["timestamp"]["compute_ended"] < min(
        segment["timestamp"]["compute_started"] for segment in run.traces("simulation")
    )
    summary = run.summary()
    assert (summary["segments"], summary["proxies"]["left"]) == (4, 0)
    assert summary["simulated_ns"] == pytest.approx(4 * 1.984e-3)
    sentence = "basis state 0 after 0.992 ps of equilibration: "
    assert sentence in run.out
    assert sentence in run.diagnosis()
    control = json.loads((run.run_dir / "control" / "params.json").read_text())
    assert (control["start"], control["minimise"], control["equilibrate_ps"]) == (
        [str(run.run_dir / "equilibrated")],
        False,
        0.0,
    )
    assert not (run.run_dir / "control" / "equilibrated").exists()
    assert len(list(run.run_dir.glob("control/trajectories/*.dcd"))) == 4


@pytest.mark.slow
def test_a_peptide_of_ones_own_as_xtc(campaign: Start) -> None:
    run = campaign(
        *("--sequence", "AG", "--cap", "--policy", "plain", "--max-segments", "6", "--trajectory-format", "xtc"),
        *("--segment-ps", "0.5"),
    )
    assert run.wait() == 0, run.err
    assert len(list(run.run_dir.glob("trajectories/*.xtc"))) == 6
    assert run.summary()["coverage"]["metric"] == "phi_psi_cells"


@pytest.mark.slow
def test_a_config_file_and_a_flag_that_wins(campaign: Start, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("max-segments: 500\npolicy: plain\nsegment_ps: 0.5\n")
    run = campaign("--config", str(config), "--max-segments", "6")
    assert run.wait() == 0, run.err
    params = json.loads((run.run_dir / "params.json").read_text())
    assert (params["max_segments"], params["policy"], params["segment_ps"]) == (6, "plain", 0.5)
    assert run.summary()["segments"] == 6
