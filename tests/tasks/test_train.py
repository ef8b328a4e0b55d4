import hashlib
from dataclasses import replace

import numpy as np
import openmm
import pytest
import torch
from openmm import unit

from tasks.errors import BadInput, NotFinite, Unreachable
from tasks.features import dihedrals_deg
from tasks.files import publish
from tasks.messages import StoreSpec, TrainSpec
from tasks.models import fit_pca, load_model
from tasks.peptides import peptide_pdb
from tasks.systems import SystemSpec, prepare
from tasks.train import train
from tasks.transport import evict, fetch, ship

INLINE = StoreSpec("inline", "inline")
LATENT = 8
N_RUNS, N_FRAMES = 16, 180
HELD_OUT = [1, 5, 10, 14]


@pytest.fixture(scope="module")
def dipeptide(tmp_path_factory):
    """Points (16, 180, 10, 3) float32 in nm, and the cosines and sines of phi and psi (16, 180, 4).

    Short runs at 400 K, half of them from phi = 60 degrees, which dynamics alone would not reach in time.
    """
    pdb = tmp_path_factory.mktemp("dipeptide") / "left-handed.pdb"
    pdb.write_text(peptide_pdb("A", cap=True, phi_deg=[60.0], psi_deg=[40.0]))
    starts = [
        prepare(SystemSpec("right", sequence="A", cap=True, platform="Reference")),
        prepare(SystemSpec("left", pdb=str(pdb), platform="Reference")),
    ]
    prepared = starts[0]
    context = openmm.Context(
        openmm.XmlSerializer.deserialize(prepared.system_xml),
        integrator := openmm.LangevinMiddleIntegrator(400.0, 1.0, 0.004),
        openmm.Platform.getPlatformByName("Reference"),
    )
    frames = np.empty((N_RUNS, N_FRAMES, prepared.n_atoms, 3), dtype=np.float32)
    for number, run in enumerate(frames):
        integrator.setRandomNumberSeed(number + 1)
        context.reinitialize()
        context.setPositions(starts[number * 2 // N_RUNS].positions)
        context.setVelocitiesToTemperature(400.0, number + 1)
        for frame in run:
            integrator.step(62)
            frame[:] = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    flat = frames.reshape(-1, prepared.n_atoms, 3)
    angles = np.radians(
        np.hstack([dihedrals_deg(flat, prepared.phi_indices), dihedrals_deg(flat, prepared.psi_indices)])
    )
    targets = np.hstack([np.cos(angles), np.sin(angles)])
    return frames[:, :, prepared.feature_indices], targets.reshape(N_RUNS, N_FRAMES, 4)


@pytest.fixture(scope="module")
def points():
    """Random chains of 12 points (200, 12, 3), float32, nm."""
    steps = np.random.default_rng(4).normal(0, 0.15, (200, 12, 3))
    return np.cumsum(steps, axis=1).astype(np.float32)


def make_spec(points, **changes):
    reference = ship({"points": points, "ids": np.arange(len(points))}, INLINE)
    spec = TrainSpec(
        task_id=7,
        attempt=2,
        reference=reference,
        model=None,
        model_version=1,
        embedding="aae",
        latent=LATENT,
        epochs=2,
        batch=64,
        seed=5,
        store=INLINE,
        run_dir=None,
    )
    return replace(spec, **changes)


def model_of(result):
    return load_model(fetch(result.model)["model"].tobytes())


def r2_of_neighbours(known, known_targets, asked, asked_targets):
    from sklearn.metrics import r2_score
    from sklearn.neighbors import KNeighborsRegressor

    predicted = KNeighborsRegressor(5).fit(known, known_targets).predict(asked)
    return r2_score(asked_targets, predicted)


def test_latent_tells_phi_and_psi_of_runs_it_has_not_seen(dipeptide):
    frames, targets = dipeptide
    held_out = np.isin(np.arange(N_RUNS), HELD_OUT)
    known, asked = (frames[rows].reshape(-1, *frames.shape[2:]) for rows in (~held_out, held_out))
    known_targets, asked_targets = (targets[rows].reshape(-1, 4) for rows in (~held_out, held_out))

    first = train(make_spec(known, epochs=25))
    second = train(make_spec(known, epochs=5, model=first.model, model_version=2, seed=6))

    assert max(second.losses["reconstruction"]) < 0.1 * first.losses["reconstruction"][0]
    for result in (first, second):
        model = model_of(result)
        latent = model.embed(known)
        assert r2_of_neighbours(latent, known_targets, model.embed(asked), asked_targets) >= 0.95
        spread = latent.std(axis=0)
        assert 0.5 <= np.sqrt(np.mean(spread**2)) <= 2.0
        assert spread.min() >= 0.3
        assert spread.max() <= 2.0


def test_pca_is_an_ablation_worth_comparing_with(dipeptide):
    frames, targets = dipeptide
    flat, flat_targets = frames.reshape(-1, *frames.shape[2:]), targets.reshape(-1, 4)
    result = train(make_spec(flat[::2], embedding="pca"))
    model = model_of(result)
    score = r2_of_neighbours(model.embed(flat[::2]), flat_targets[::2], model.embed(flat[1::2]), flat_targets[1::2])
    assert score >= 0.9
    assert result.losses == {}


def test_result_tells_what_was_made(points):
    result = train(make_spec(points, epochs=3))
    assert (result.task_id, result.attempt, result.model_version, result.n_frames) == (7, 2, 1, 200)
    assert result.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert {name: len(values) for name, values in result.losses.items()} == {
        "reconstruction": 3,
        "critic": 3,
        "adversarial": 3,
    }
    assert set(result.seconds) == {"fetch", "train", "ship"}
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert result.model_file is None


def test_warm_start_goes_on_where_the_old_model_stopped(points):
    first = train(make_spec(points, epochs=10))
    second = train(make_spec(points, epochs=10, model=first.model, seed=6))
    assert second.losses["reconstruction"][0] < 0.5 * first.losses["reconstruction"][0]
    assert second.losses["reconstruction"][-1] < first.losses["reconstruction"][-1]


@pytest.mark.parametrize("embedding", ["aae", "pca"])
def test_warm_start_keeps_alignment_and_scale(points, embedding):
    first = train(make_spec(points, embedding=embedding))
    wider = points[::-1] * np.float32(1.5)
    old, new = (model_of(r) for r in (first, train(make_spec(wider, embedding=embedding, model=first.model))))
    np.testing.assert_array_equal(new.alignment.structure, old.alignment.structure)
    assert new.alignment.scale == old.alignment.scale
    assert not np.allclose(new.embed(points), old.embed(points))


def test_autoencoder_after_pca_takes_over_its_alignment(points):
    pca = fit_pca(points[:20], LATENT)
    address = ship({"model": np.frombuffer(pca.to_bytes(), dtype=np.uint8)}, INLINE)
    model = model_of(train(make_spec(points, model=address)))
    np.testing.assert_array_equal(model.alignment.structure, pca.alignment.structure)
    assert model.network.architecture.n_points == 12


@pytest.mark.parametrize("embedding", ["aae", "pca"])
def test_equal_specs_give_equal_bytes(points, embedding):
    spec = make_spec(points, embedding=embedding)
    state = torch.random.get_rng_state()
    one, same = train(spec), train(spec)
    assert one.model.data == same.model.data
    assert one.losses == same.losses
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_gives_another_model(points):
    one, other = (train(make_spec(points, seed=seed)) for seed in (1, 2))
    assert one.model.data != other.model.data


@pytest.mark.parametrize(("embedding", "name"), [("aae", "model-000003.pt"), ("pca", "model-000003.npz")])
def test_model_file_holds_what_was_shipped(points, tmp_path, embedding, name):
    result = train(make_spec(points, embedding=embedding, model_version=3, run_dir=str(tmp_path)))
    publish(tmp_path, result.model_file)
    data = (tmp_path / "models" / name).read_bytes()
    assert [path.name for path in (tmp_path / "models").iterdir()] == [name]
    assert result.model_file is not None
    assert result.model_file.path == f"models/{name}"
    assert result.model_file.sha256 == hashlib.sha256(data).hexdigest()
    assert result.model_file.n_bytes == len(data)
    assert fetch(result.model)["model"].tobytes() == data


def test_small_models_travel_inline_and_large_ones_through_the_store(points, tmp_path):
    store = StoreSpec("train-test", "file", (("store_dir", str(tmp_path)),), threshold=20_000)
    small = train(make_spec(points, embedding="pca", store=store))
    large = train(make_spec(points, store=store))
    assert small.model.data is not None
    assert large.model.data is None
    assert model_of(large).latent == LATENT
    evict(large.model)
    with pytest.raises(Unreachable):
        fetch(large.model)


def test_points_that_are_not_finite_are_refused(points):
    broken = points.copy()
    broken[3, 2, 1] = np.nan
    for embedding in ("aae", "pca"):
        with pytest.raises(NotFinite, match="reference set"):
            train(make_spec(broken, embedding=embedding))


def test_losses_that_are_not_finite_are_refused(points):
    first = train(make_spec(points))
    with pytest.raises(NotFinite, match="losses of epoch 1"):
        train(make_spec(points * np.float32(1e25), model=first.model))


def test_warm_start_from_another_shape_is_refused(points):
    first = train(make_spec(points))
    with pytest.raises(BadInput, match=r"12 points and 8 latent .* 11 points and 8 latent"):
        train(make_spec(points[:, 1:], model=first.model))
    with pytest.raises(BadInput, match=r"12 points and 8 latent .* 12 points and 4 latent"):
        train(make_spec(points, latent=4, model=first.model))
