import io
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from MDAnalysis.analysis.align import rotation_matrix

from tasks import aae
from tasks.errors import BadInput
from tasks.models import AAEModel, Alignment, PCAModel, align, check_model, fit_alignment, fit_pca, load_model

N_POINTS = 10


@pytest.fixture(scope="module")
def points():
    """Deformed copies of one structure of 10 points, turned and moved at random: (300, 10, 3) float32, nm."""
    rng = np.random.default_rng(0)
    base, modes = rng.normal(0, 0.3, (N_POINTS, 3)), rng.normal(0, 0.1, (2, N_POINTS, 3))
    shapes = base + np.einsum("fm,mpx->fpx", rng.normal(0, 1, (300, 2)) * [1.0, 0.5], modes)
    return moved(shapes + rng.normal(0, 0.005, shapes.shape), rng)


@pytest.fixture(scope="module", params=["aae", "pca"])
def model(request, points):
    if request.param == "pca":
        return fit_pca(points, 4)
    return AAEModel(fit_alignment(points), aae.new_autoencoder(aae.Architecture(N_POINTS, 4), seed=1))


def moved(frames, rng):
    """Turn and shift every frame at random."""
    turns, _ = np.linalg.qr(rng.normal(size=(len(frames), 3, 3)))
    turns *= np.linalg.det(turns)[:, None, None]
    return (frames @ turns + rng.uniform(-5, 5, (len(frames), 1, 3))).astype(np.float32)


# --- alignment


def test_align_agrees_with_mdanalysis(points):
    reference = points[7]
    aligned = align(points, reference)
    target = reference - reference.mean(axis=0)
    for frame, ours in zip(points[:50], aligned, strict=False):
        centred = frame.astype(float) - frame.mean(axis=0, dtype=float)
        rotation, rmsd = rotation_matrix(centred, target)
        np.testing.assert_allclose(ours, centred @ rotation.T, atol=1e-6)
        assert np.sqrt(((ours - target) ** 2).sum(1).mean()) == pytest.approx(rmsd, abs=1e-6)


def test_align_finds_a_known_rotation(points):
    turned = moved(np.repeat(points[:1], 20, axis=0), np.random.default_rng(3))
    np.testing.assert_allclose(align(turned, points[0]), align(points[:1], points[0]).repeat(20, 0), atol=1e-5)


def test_align_does_not_mirror(points):
    mirrored = points[:1] * np.float32([1, 1, -1])
    difference = align(mirrored, points[0])[0] - align(points[:1], points[0])[0]
    assert np.abs(difference).max() > 0.05


def test_align_takes_less_than_40_us_a_frame(points):
    many = np.tile(points, (10, 1, 1))
    began = time.process_time()
    align(many, points[0])
    assert (time.process_time() - began) / len(many) < 40e-6


@pytest.mark.parametrize("n_points", [2, 9])
def test_align_refuses_other_numbers_of_points(points, n_points):
    with pytest.raises(ValueError, match="cannot be aligned"):
        align(points[:, :n_points], points[0] if n_points == 9 else points[0, :2])


def test_fitted_alignment_gives_unit_variance(points):
    alignment = fit_alignment(points)
    standardized = alignment.standardize(points)
    assert standardized.dtype == np.float32
    # Fitted on a part of the frames.
    assert standardized.std() == pytest.approx(1.0, rel=0.02)
    assert np.abs(alignment.structure.mean(axis=0)).max() < 1e-6


# --- both kinds of model


def test_embedding_is_blind_to_rotation_and_translation(model, points):
    again = moved(points, np.random.default_rng(9))
    np.testing.assert_allclose(model.embed(again), model.embed(points), atol=2e-4)


def test_embedding_is_a_function_of_one_frame(model, points):
    together = model.embed(points)
    assert together.shape == (300, 4)
    assert together.dtype == np.float32
    rng = np.random.default_rng(2)
    for n_rows in (0, 1, 3, 130):
        rows = rng.permutation(len(points))[:n_rows]
        np.testing.assert_array_equal(model.embed(points[rows]), together[rows])


def test_bytes_restore_the_model(model, points):
    data = model.to_bytes()
    restored = load_model(data)
    assert type(restored) is type(model)
    assert restored.latent == 4
    np.testing.assert_array_equal(restored.embed(points), model.embed(points))
    assert restored.to_bytes() == data


def test_check_model_names_both_shapes(model):
    data = model.to_bytes()
    check_model(data, N_POINTS, 4)
    with pytest.raises(BadInput, match=r"10 points and 4 latent .* 22 points and 4 latent"):
        check_model(data, 22, 4)
    with pytest.raises(BadInput, match=r"10 points and 4 latent .* 10 points and 8 latent"):
        check_model(data, N_POINTS, 8)


def test_damaged_bytes_are_refused(model):
    data = model.to_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    for damaged in (data[:-40], data[40:-1], data[:middle], flipped):
        with pytest.raises(BadInput, match="cannot be read"):
            load_model(damaged)


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps({"weights": 1}), b"PK\x05\x06" + bytes(18)])
def test_bytes_of_another_kind_are_refused(data):
    with pytest.raises(BadInput, match=r"cannot be read .* models/"):
        check_model(data, N_POINTS, 4)


# --- autoencoder


def saved_with(**changes):
    """Return the bytes of a fresh autoencoder with parts of the file changed."""
    alignment = Alignment(np.random.default_rng(0).normal(size=(N_POINTS, 3)), 0.3)
    data = AAEModel(alignment, aae.new_autoencoder(aae.Architecture(N_POINTS, 4), 0)).to_bytes()
    content = torch.load(io.BytesIO(data), weights_only=True)
    file = io.BytesIO()
    torch.save(content | changes, file)
    return file.getvalue()


def test_unchanged_content_loads():
    assert load_model(saved_with()).latent == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {}},
        {"weights": {"encoder.points.0.weight": torch.zeros(32, 3, 5)}},
        {"architecture": {"n_points": 12, "latent": 4}},
        {"architecture": {"n_points": N_POINTS, "latent": 5}},
        {"architecture": {"points": N_POINTS}},
        {"architecture": "PointNet"},
        {"structure": torch.full((N_POINTS, 3), torch.nan)},
        {"structure": [1.0, 2.0]},
        {"scale": 0.0},
        {"scale": float("nan")},
    ],
)
def test_weights_that_do_not_fit_themselves_are_refused(changes):
    with pytest.raises(BadInput, match="cannot be read"):
        load_model(saved_with(**changes))


def test_weights_that_are_not_finite_are_refused():
    network = aae.new_autoencoder(aae.Architecture(N_POINTS, 4), 0)
    weights = network.state_dict()
    weights["encoder.head.0.bias"][3] = torch.nan
    with pytest.raises(BadInput, match="not finite"):
        load_model(saved_with(weights=weights))


def test_another_tools_checkpoint_is_refused():
    file = io.BytesIO()
    torch.save({"model_state_dict": torch.nn.Linear(3, 3).state_dict(), "epoch": 3}, file)
    with pytest.raises(BadInput, match="cannot be read"):
        load_model(file.getvalue())


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return __import__("os").mkdir, (self.folder,)


def test_loading_runs_no_code_from_the_file(tmp_path):
    folder = str(tmp_path / "made-by-payload")
    torch_file, npz_file = io.BytesIO(), io.BytesIO()
    torch.save({"weights": Payload(folder)}, torch_file)
    np.savez(npz_file, structure=np.array([Payload(folder)], dtype=object))
    for file in (torch_file, npz_file):
        with pytest.raises(BadInput, match="cannot be read"):
            load_model(file.getvalue())
    assert not (tmp_path / "made-by-payload").exists()


# --- principal components


def test_pca_components_are_white_and_find_the_modes(points):
    latent = fit_pca(points, 4).embed(points).astype(float)
    np.testing.assert_allclose(np.cov(latent.T), np.eye(4), atol=1e-4)


def test_pca_agrees_with_scikit_learn(points):
    from sklearn.decomposition import PCA

    model = fit_pca(points, 3)
    flat = model.alignment.standardize(points).reshape(len(points), -1).astype(float)
    theirs = PCA(3, whiten=True, svd_solver="full").fit_transform(flat)
    ours = model.embed(points)
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours, theirs * signs, atol=1e-4)


def test_pca_of_too_few_frames_fills_up_with_zeros(points):
    model = fit_pca(points[:3], 8)
    latent = model.embed(points)
    assert latent.shape == (300, 8)
    assert np.isfinite(latent).all()
    assert (latent[:, :2].std(axis=0) > 0.1).all()
    assert not latent[:, 2:].any()
    assert not fit_pca(np.repeat(points[:1], 5, axis=0), 8).embed(points).any()


def test_pca_keeps_an_alignment_it_is_given(points):
    alignment = fit_alignment(points[:20])
    assert fit_pca(points, 2, alignment).alignment is alignment


def test_pca_of_another_shape_than_its_structure_is_refused(points):
    model = fit_pca(points, 2)
    short = PCAModel(model.alignment, model.mean[:-3], model.components[:-3])
    with pytest.raises(BadInput, match="do not fit 30 coordinates"):
        load_model(short.to_bytes())


def test_pca_needs_no_torch(points, tmp_path):
    (tmp_path / "model.npz").write_bytes(fit_pca(points, 2).to_bytes())
    np.save(tmp_path / "points.npy", points[:4])
    program = (
        "import sys, numpy as np; from pathlib import Path; from tasks.models import load_model;"
        "z = load_model(Path('model.npz').read_bytes()).embed(np.load('points.npy'));"
        "sys.exit('torch' in sys.modules or z.shape != (4, 2))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=60).returncode == 0
