"""The forecast: bytes as they are really written, bounded where the campaign's own are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.forecast import Forecast, forecast, model_bytes, planned_segments, trajectory_bytes
from agents.state import Destination
from campaign.settings import Settings
from tasks import aae
from tasks.messages import SegmentSpec, StoreKind, StoreSpec, Topic
from tasks.models import AAEModel, Alignment, fit_pca
from tasks.prepared import PreparedSystem
from tasks.trajectory import write_trajectory
from tasks.transport import pack

REACHES = frozenset({"file", "redis", "globus", "endpoint", "inline"})


def destinations(
    run_dir: str | None = "/run", reaches: frozenset[str] = REACHES, **kinds: StoreKind
) -> dict[Topic, Destination]:
    def one(topic: Topic) -> Destination:
        store = StoreSpec("test", kinds.get(topic, "file"))
        return Destination("local", topic, topic, 2, reaches, store, run_dir)

    return {topic: one(topic) for topic in ("simulate", "infer", "train")}


def of(
    prepared: PreparedSystem,
    n_segments: int,
    to: dict[Topic, Destination] | None = None,
    n_walkers: int | None = None,
    **given,
) -> Forecast:
    settings = Settings(max_segments=n_segments, **given)
    dynamics, walkers = settings.dynamics("Reference"), n_walkers or settings.walkers
    return forecast(settings, prepared, dynamics, to or destinations(), n_segments, walkers)


@pytest.mark.parametrize(("n_atoms", "n_frames"), [(22, 1), (22, 8), (5, 3), (166, 10)])
@pytest.mark.parametrize("periodic", [False, True])
def test_dcd_trajectories_are_counted_to_the_byte(
    segment: SegmentSpec, tmp_path: Path, n_atoms: int, n_frames: int, periodic: bool
) -> None:
    boxes = np.stack([3 * np.eye(3, dtype=np.float32)] * n_frames) if periodic else None
    spec = replace(segment, run_dir=str(tmp_path))
    record = write_trajectory(spec, np.zeros((n_frames, n_atoms, 3), np.float32), boxes)
    assert record is not None
    assert trajectory_bytes("dcd", n_atoms, n_frames) == record.n_bytes


def test_xtc_trajectories_are_estimated(alanine: PreparedSystem, segment: SegmentSpec, tmp_path: Path) -> None:
    frames = alanine.positions + np.random.default_rng(0).normal(scale=0.02, size=(10, alanine.n_atoms, 3))
    spec = replace(segment, run_dir=str(tmp_path), trajectory_format="xtc")
    record = write_trajectory(spec, frames.astype(np.float32), None)
    assert record is not None
    assert trajectory_bytes("xtc", alanine.n_atoms, 10) == pytest.approx(record.n_bytes, rel=0.3)


@pytest.mark.parametrize(("n_points", "latent"), [(10, 8), (80, 2), (300, 16)])
def test_models_are_as_large_as_their_files(n_points: int, latent: int) -> None:
    network = aae.new_autoencoder(aae.Architecture(n_points, latent), seed=1)
    autoencoder = AAEModel(Alignment(np.zeros((n_points, 3)), 1.0), network)
    assert model_bytes(Settings(latent=latent), n_points) == pytest.approx(len(autoencoder.to_bytes()), rel=0.02)
    frames = np.random.default_rng(0).normal(size=(50, n_points, 3)).astype(np.float32)
    components = fit_pca(frames, latent)
    planned = model_bytes(Settings(latent=latent, embedding="pca"), n_points)
    assert planned == pytest.approx(len(components.to_bytes()), abs=2_500)


def test_what_grows_with_the_campaign_and_what_does_not(alanine: PreparedSystem) -> None:
    short, long = of(alanine, 1_000), of(alanine, 2_000)
    for name in ("trajectories", "models"):
        assert long.disk_bytes[name] == 2 * short.disk_bytes[name] > 0
    assert long.disk_bytes["references"] == short.disk_bytes["references"]
    for topic in ("simulate", "infer", "train"):
        assert long.store_bytes[topic].total > 1.8 * short.store_bytes[topic].total
        assert long.store_bytes[topic].peak == short.store_bytes[topic].peak
    assert long.thinker_bytes == 2 * short.thinker_bytes == 2_000 * 8_000


def test_a_billion_segments_are_counted_as_fast_as_one(alanine: PreparedSystem) -> None:
    assert of(alanine, 10**9).disk_bytes["trajectories"] == 10**9 * 3_108
    one = of(alanine, 1)
    assert (one.inferences, one.trainings, one.frames) == (1, 0, 8)


@pytest.mark.parametrize(
    ("pcoord", "learning"),
    [
        ("phi-psi", 0),
        # Two inferences of four, and what piles up while a model is trained.
        ("aae:0,1", 2 * 4 + 64),
    ],
)
def test_each_walker_of_an_ensemble_keeps_its_start_and_its_end(
    alanine: PreparedSystem, pcoord: str, learning: int
) -> None:
    def peak(n_walkers: int) -> int:
        ensemble = of(alanine, 10_000, policy="weighted-ensemble", pcoord=pcoord, n_walkers=n_walkers)
        return ensemble.store_bytes["simulate"].peak

    # By hand, each array with a header of 80 bytes: 22 positions and 22 velocities of three doubles, and 8 frames of
    # 22 positions of three floats.
    state, frames = 2 * (80 + 22 * 3 * 8), 80 + 8 * 22 * 3 * 4
    always = len(pack(alanine.to_arrays())) + len(pack(alanine.basis()))
    assert peak(24) == always + 2 * 24 * state + (24 + learning) * frames
    # No more than there are segments.
    few = of(alanine, 30, policy="weighted-ensemble", pcoord="phi-psi", n_walkers=24)
    assert few.store_bytes["simulate"].peak == always + 30 * state + 24 * frames


def test_fewer_stored_atoms_and_frames_take_less(alanine: PreparedSystem) -> None:
    assert of(alanine, 10, frame_ps=0.5).disk_bytes["trajectories"] < of(alanine, 10).disk_bytes["trajectories"]
    few = replace(alanine, stored_indices=alanine.stored_indices[:5])
    assert of(few, 10).disk_bytes["trajectories"] == 10 * trajectory_bytes("dcd", 5, 8)


def test_plain_dynamics_without_inference_learns_nothing(alanine: PreparedSystem) -> None:
    plain = of(alanine, 100, policy="plain", infer_every=0)
    assert (plain.inferences, plain.trainings) == (0, 0)
    assert plain.disk_bytes["models"] == plain.disk_bytes["references"] == 0
    assert plain.store_bytes["infer"].total == plain.store_bytes["train"].peak == 0


def test_random_restarts_keep_candidates_and_train_nothing(alanine: PreparedSystem) -> None:
    random = of(alanine, 100, policy="random")
    plain = of(alanine, 100, policy="plain")
    assert random.trainings == plain.trainings == 0
    assert random.inferences == plain.inferences == 25
    assert random.store_bytes["infer"].total > plain.store_bytes["infer"].total


def test_sites_that_do_not_share_the_run_directory_leave_no_files(alanine: PreparedSystem) -> None:
    away = of(alanine, 1_000, destinations(run_dir=None))
    assert away.disk_bytes["trajectories"] == away.disk_bytes["models"] == away.disk_bytes["references"] == 0
    assert away.disk_bytes["ledger"] > 0


def test_what_learning_cannot_reach_is_counted_in_both_stores(alanine: PreparedSystem) -> None:
    together = of(alanine, 100)
    apart = destinations(simulate="redis")
    apart["infer"] = replace(apart["infer"], reaches=frozenset({"file", "inline"}))
    crossing = of(alanine, 100, apart)
    moved = 100 * 8 * 22 * 12
    system = len(pack(alanine.to_arrays()))
    added = crossing.store_bytes["infer"].total - together.store_bytes["infer"].total
    assert added == pytest.approx(moved + system, rel=0.05)


def test_what_travels_in_messages_goes_through_the_thinker(alanine: PreparedSystem) -> None:
    inline = of(alanine, 100, destinations(simulate="inline", infer="inline", train="inline"))
    assert inline.store_bytes["simulate"].kind == "inline"
    assert inline.thinker_bytes > 100 * 8_000 + inline.store_bytes["simulate"].total
    assert inline.misfits() == []


def test_an_object_that_a_message_cannot_carry_is_told(alanine: PreparedSystem) -> None:
    inline = destinations(simulate="inline", infer="inline", train="inline")
    (sentence,) = of(alanine, 10, inline, segment_ps=10_000, frame_ps=0.25).misfits()
    assert sentence.startswith("--simulate-ps-backend none: an object of 10.6 MB exceeds the 8.0 MB")
    assert "--frame-ps" in sentence


@pytest.mark.parametrize(
    ("given", "n_segments"),
    [
        ({"max_segments": 10}, 10),
        ({"max_ns": 1.0, "segment_ps": 2.0, "timestep_fs": 2.0}, 500),
        ({"max_segments": 10, "min_model_versions": 3, "retrain_every": 30}, 96),
        ({"max_minutes": 1.0}, None),
    ],
)
def test_the_segments_that_limits_ask_for(given, n_segments: int | None) -> None:
    settings = Settings(**given)
    assert planned_segments(settings, settings.dynamics("Reference")) == n_segments


def test_equilibrated_states_are_kept(alanine: PreparedSystem) -> None:
    to = destinations()
    with_states = of(alanine, 10, to | {"equilibrate": to["simulate"]})
    without = of(alanine, 10, to)
    assert without.disk_bytes["equilibrated"] == 0
    assert with_states.disk_bytes["equilibrated"] == pytest.approx(4_066, rel=0.1)  # OpenMM's State of 22 atoms
    assert with_states.store_bytes["simulate"].total > without.store_bytes["simulate"].total


def test_a_control_counts_on_disk_and_passes_through_the_same_stores(alanine: PreparedSystem) -> None:
    steered, plain = of(alanine, 100), of(alanine, 100, policy="plain")
    both = steered.followed_by(plain)
    assert both.segments == 100
    assert sum(both.disk_bytes.values()) == sum(steered.disk_bytes.values()) + sum(plain.disk_bytes.values())
    for topic, use in both.store_bytes.items():
        assert use.total == steered.store_bytes[topic].total + plain.store_bytes[topic].total
        assert use.peak == max(steered.store_bytes[topic].peak, plain.store_bytes[topic].peak)


STREAMED = ((False, None), (True, 0.5))


@pytest.mark.parametrize("moves", [False, True])
def test_batches_of_running_segments_pass_through_the_store_of_segments(alanine: PreparedSystem, moves: bool) -> None:
    to = destinations(reaches=frozenset({"file", "inline"}), simulate="redis") if moves else destinations()
    quiet, streaming = (of(alanine, 100, to, stream=stream, stream_every_ps=ps) for stream, ps in STREAMED)
    # Of 8 frames in batches of 2, the last batch comes with the segment; feature atoms, three floats each.
    batch = len(pack({"points": np.zeros((2, len(alanine.feature_indices), 3), np.float32)}))
    for topic in ("simulate", "infer") if moves else ("simulate",):
        more = streaming.store_bytes[topic].total - quiet.store_bytes[topic].total
        assert more == pytest.approx(100 * 3 * batch, rel=0.1)
        at_once = streaming.store_bytes[topic].peak - quiet.store_bytes[topic].peak
        assert at_once == pytest.approx(4 * 4 * batch, rel=0.1)
    assert streaming.disk_bytes["traces"] - quiet.disk_bytes["traces"] == 300 * 1_600
