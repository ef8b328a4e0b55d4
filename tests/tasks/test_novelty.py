import numpy as np
import pytest

from tasks.novelty import novelty


@pytest.fixture
def latent() -> np.ndarray:
    """A dense cloud, a sparse one, and one point far from both."""
    rng = np.random.default_rng(0)
    dense, sparse = rng.normal(0, 0.1, (60, 3)), rng.normal(4, 1.0, (30, 3))
    return np.concatenate([dense, sparse, [[20.0, -20.0, 20.0]]]).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_sparsity_is_the_distance_to_the_kth_neighbour(latent: np.ndarray, k: int) -> None:
    wide = latent.astype(float)
    distances = np.sort(np.linalg.norm(wide[:, None] - wide[None], axis=-1), axis=1)
    # Column 0 is the frame itself.
    np.testing.assert_allclose(novelty(latent, k, "sparsity"), distances[:, k], rtol=1e-5)


@pytest.mark.parametrize("k", [3, 10])
def test_lof_is_that_of_its_paper(latent: np.ndarray, k: int) -> None:
    """Breunig et al. 2000, definitions 3 to 7, written out."""
    wide = latent.astype(float)
    distances = np.linalg.norm(wide[:, None] - wide[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :k]
    k_distance = np.take_along_axis(distances, nearest, axis=1)[:, -1]
    reach = np.maximum(k_distance[nearest], np.take_along_axis(distances, nearest, axis=1))
    density = 1 / reach.mean(axis=1)
    wanted = density[nearest].mean(axis=1) / density
    np.testing.assert_allclose(novelty(latent, k, "lof"), wanted, rtol=1e-4)


@pytest.mark.parametrize("measure", ["sparsity", "lof"])
def test_the_lone_frame_is_newest(latent: np.ndarray, measure: str) -> None:
    scores = novelty(latent, 5, measure)
    assert scores.shape == (91,)
    assert scores.dtype == np.float64
    assert np.argmax(scores) == 90


def test_only_sparsity_tells_clouds_of_unequal_density_apart(latent: np.ndarray) -> None:
    sparsity, lof = (novelty(latent, 5, measure) for measure in ("sparsity", "lof"))
    assert np.median(sparsity[60:90]) > 5 * np.median(sparsity[:60])
    assert np.median(lof[60:90]) == pytest.approx(np.median(lof[:60]), rel=0.1)


@pytest.mark.parametrize("measure", ["sparsity", "lof"])
@pytest.mark.parametrize("n_frames", [2, 3, 5])
def test_fewer_frames_than_neighbours_use_all_the_others(latent: np.ndarray, measure: str, n_frames: int) -> None:
    few = latent[:n_frames]
    np.testing.assert_array_equal(novelty(few, 50, measure), novelty(few, n_frames - 1, measure))
    assert np.isfinite(novelty(few, 50, measure)).all()


@pytest.mark.parametrize("measure", ["sparsity", "lof"])
def test_a_lone_frame_has_nothing_to_be_new_against(latent: np.ndarray, measure: str) -> None:
    np.testing.assert_array_equal(novelty(latent[:1], 5, measure), [0.0])
    assert len(novelty(latent[:0], 5, measure)) == 0


@pytest.mark.parametrize("measure", ["sparsity", "lof"])
def test_equal_frames_have_finite_scores(measure: str) -> None:
    latent = np.zeros((30, 3), np.float32)
    latent[-1] = 1.0
    scores = novelty(latent, 5, measure)
    assert np.isfinite(scores).all()
    assert np.argmax(scores) == 29
