import numpy as np
import pytest

from tasks.periodic import bond_tree, make_whole, minimum_image, nearest_tree

CUBE = np.eye(3) * 3.0
# A rhombic dodecahedron of 3 nm, as OpenMM and GROMACS write it.
DODECAHEDRON = 3.0 * np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, np.sqrt(0.5)]])


def chain(n: int, seed: int = 0) -> np.ndarray:
    """Return a chain of n atoms with steps of about 0.2 nm, longer than the box."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(n, 3)) + [0.7, 0.4, 0.1]
    lengths = rng.uniform(0.15, 0.25, size=(n, 1))
    return np.cumsum(lengths * steps / np.linalg.norm(steps, axis=1)[:, None], axis=0)


def scattered(positions: np.ndarray, box: np.ndarray, seed: int = 1) -> np.ndarray:
    """Return every atom in some other image of the box."""
    turns = np.random.default_rng(seed).integers(-2, 3, size=positions.shape)
    return positions + turns @ box


@pytest.mark.parametrize("box", [CUBE, DODECAHEDRON], ids=["cube", "dodecahedron"])
def test_minimum_images_of_short_vectors_are_those_vectors(box: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    short = rng.normal(size=(4, 50, 3))
    # Within half the smallest diagonal element the reduced form is exact.
    short *= rng.uniform(0, 0.45 * box.diagonal().min(), size=(4, 50, 1)) / np.linalg.norm(short, axis=2)[..., None]
    boxes = np.repeat(box[None], 4, axis=0)
    np.testing.assert_allclose(minimum_image(scattered(short, box), boxes), short, atol=1e-12)


@pytest.mark.parametrize("box", [CUBE, DODECAHEDRON], ids=["cube", "dodecahedron"])
def test_a_scattered_chain_is_made_whole(box: np.ndarray) -> None:
    whole = chain(40)
    broken = np.stack([scattered(whole, box, seed) for seed in (1, 2, 3)])
    for tree in (bond_tree(40, [(i, i + 1) for i in range(39)]), nearest_tree(whole, box)):
        assert len(tree) == 39
        mended = make_whole(broken, np.repeat(box[None], 3, axis=0), tree)
        np.testing.assert_allclose(mended - mended[:, :1], np.stack([whole - whole[0]] * 3), atol=1e-9)


def test_the_tree_is_the_same_for_a_broken_structure() -> None:
    short = chain(12)
    np.testing.assert_array_equal(nearest_tree(scattered(short, CUBE), CUBE), nearest_tree(short, CUBE))


def test_molecules_are_whole_each_by_itself() -> None:
    positions = np.array([[0.1, 0, 0], [2.9, 0, 0], [5.0, 0, 0], [2.1, 0, 0], [9.9, 9.9, 9.9]])
    tree = bond_tree(5, [(0, 1), (2, 3)])
    (whole,) = make_whole(positions[None], CUBE[None], tree)
    np.testing.assert_allclose(whole[:, 0], [0.1, -0.1, 5.0, 5.1, 9.9])


def test_a_lone_point_needs_no_tree() -> None:
    assert nearest_tree(np.zeros((1, 3)), CUBE).shape == (0, 2)
    assert bond_tree(3, []).shape == (0, 2)


def test_the_parent_comes_before_the_child() -> None:
    rng = np.random.default_rng(5)
    for tree in (
        nearest_tree(rng.uniform(0, 3, (30, 3)), CUBE),
        bond_tree(30, [(29 - i, 28 - i) for i in range(29)]),
    ):
        known = {int(tree[0, 1])}
        for child, parent in tree:
            assert int(parent) in known
            known.add(int(child))
        assert known == set(range(30))
