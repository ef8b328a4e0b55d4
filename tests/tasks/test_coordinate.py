"""Progress coordinates: what a user may name, and values as MDAnalysis computes them."""

import sys
from dataclasses import replace
from pathlib import Path

import MDAnalysis
import numpy as np
import pytest
from MDAnalysis.analysis.dihedrals import Ramachandran
from MDAnalysis.analysis.rms import RMSD

from tasks.bundle import run_bundle
from tasks.coordinate import (
    MAX_PCOORD_BYTES,
    coordinate_kind,
    parse_coordinate,
    require_small,
    rmsd_file,
    unpack_pcoord,
    values,
)
from tasks.embed_coordinate import embed_coordinate
from tasks.errors import BadInput, CoordinateFailed
from tasks.indices import Indices
from tasks.messages import Coordinate, CoordinateSpec, SegmentResult, SegmentSpec, StoreSpec
from tasks.models import AAEModel, Model, fit_alignment, fit_pca
from tasks.prepared import PreparedSystem
from tasks.simulate import begin_segment, run_segment
from tasks.systems import named_system, prepare
from tasks.transport import fetch, ship

INLINE = StoreSpec("inline", "inline")
FUNCTIONS = """
import numpy as np
def ends(frames):
    assert frames.dtype == np.float32
    far = np.linalg.norm(frames[:, 0] - frames[:, -1], axis=1)
    frames[:] = 0  # nobody else must see it
    return np.stack([far, far**2], axis=1)
def flat(frames): return frames[:, 0, 0]
def words(frames): return np.full((len(frames), 1), "far")
def short(frames): return frames[1:, 0]
def none(frames): return None
def raises(frames): raise RuntimeError("it does not\\nwork")
def leaves(frames): raise SystemExit(3)
def nan(frames): return np.full((len(frames), 2), [[1.0, np.nan]])
def later_nan(frames): return np.where(np.arange(len(frames))[:, None] > 2, np.inf, 1.0)
def later_raises(frames): return frames[:, 0] if len(frames) == 1 else 1 / 0
def later_wider(frames): return np.zeros((len(frames), 1 if len(frames) == 1 else 2))
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("functions")
    (folder / "my_coordinate.py").write_text(FUNCTIONS)
    yield str(folder)
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def native(alanine: PreparedSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A structure of the dipeptide, turned and bent, to measure an RMSD from."""
    path = tmp_path_factory.mktemp("native") / "native.pdb"
    path.write_text(alanine.topology_pdb)
    universe = MDAnalysis.Universe(str(path))
    universe.atoms.rotateby(80, [1, 1, 0])
    universe.atoms.positions += np.random.default_rng(1).normal(scale=0.3, size=(22, 3))
    universe.atoms.write(str(path))
    return path


@pytest.fixture(scope="module")
def near_native(native: Path) -> PreparedSystem:
    return prepare(
        replace(named_system("alanine-dipeptide", platform="Reference"), target=str(native), target_flag="--pcoord")
    )


def parse(text: str, prepared: PreparedSystem, here: str = "", latent: int = 8) -> Coordinate:
    return parse_coordinate(text, prepared, latent=latent, here=here)


def run(segment: SegmentSpec, prepared: PreparedSystem, coordinate: Coordinate | None, **changes) -> SegmentResult:
    spec = replace(segment, system=ship(prepared.to_arrays(), INLINE), system_id=prepared.digest, **changes)
    return run_segment(replace(spec, coordinate=coordinate))


def universe_of(prepared: PreparedSystem, segment: SegmentSpec, result: SegmentResult, tmp: Path) -> tuple:
    """Return MDAnalysis' view of the start and the frames."""
    (tmp / "topology.pdb").write_text(prepared.topology_pdb)
    start = fetch(segment.start)["positions"][segment.start_row][None].astype(np.float32)
    frames = np.concatenate([start, fetch(result.frames)["positions"]]) * 10
    return MDAnalysis.Universe(str(tmp / "topology.pdb"), frames, order="fac")


# ---- values


def test_phi_and_psi_are_those_of_mdanalysis(alanine: PreparedSystem, segment: SegmentSpec, tmp_path: Path) -> None:
    coordinate = parse("phi-psi", alanine)
    assert coordinate.names == ("phi", "psi")
    result = run(segment, alanine, coordinate)
    rows = unpack_pcoord(result.pcoord, 2)
    assert rows.shape == (6, 2)
    universe = universe_of(alanine, segment, result, tmp_path)
    theirs = Ramachandran(universe.select_atoms("resname ALA")).run().results.angles[:, 0]
    np.testing.assert_allclose(rows, theirs, atol=2e-3)
    # Nothing else of the segment changes, and what carries it on begins where it ended.
    plain = run(segment, alanine, None)
    assert plain.pcoord == b""
    np.testing.assert_array_equal(fetch(plain.frames)["positions"], fetch(result.frames)["positions"])
    following = run(segment, alanine, coordinate, start=result.end)
    np.testing.assert_array_equal(unpack_pcoord(following.pcoord, 2)[0], rows[-1])


def test_the_rmsd_is_that_of_mdanalysis(
    near_native: PreparedSystem, native: Path, segment: SegmentSpec, tmp_path: Path
) -> None:
    coordinate = parse(f"rmsd:{native}", near_native)
    assert coordinate.names == ("rmsd",)
    result = run(segment, near_native, coordinate)
    universe = universe_of(near_native, segment, result, tmp_path)
    theirs = RMSD(universe, MDAnalysis.Universe(str(native)), select="not element H").run().results.rmsd[:, 2] / 10
    assert theirs.min() > 0.02
    np.testing.assert_allclose(unpack_pcoord(result.pcoord, 1)[:, 0], theirs, atol=2e-5)


def test_the_position_of_a_particle(segment: SegmentSpec) -> None:
    well = prepare(named_system("double-well"))
    coordinate = parse("position", well)
    assert coordinate.names == ("x",)
    result = run(segment, well, coordinate, start=ship(well.basis(), INLINE))
    rows = unpack_pcoord(result.pcoord, 1)[:, 0]
    np.testing.assert_array_equal(rows, [np.float32(-0.3), *fetch(result.frames)["positions"][:, 0, 0]])


def test_a_function_of_the_users(alanine: PreparedSystem, segment: SegmentSpec, here: str) -> None:
    coordinate = parse("my_coordinate:ends", alanine, here)
    assert coordinate.names == ("x0", "x1")
    result = run(segment, alanine, coordinate)
    frames = fetch(result.frames)["positions"]
    assert np.abs(frames).max() > 0.1
    far = np.linalg.norm(frames[:, 0] - frames[:, -1], axis=1)
    np.testing.assert_allclose(unpack_pcoord(result.pcoord, 2)[1:], np.stack([far, far**2], axis=1), rtol=1e-6)


def test_in_water_every_row_has_its_box(water: PreparedSystem, segment: SegmentSpec) -> None:
    dynamics = replace(segment.dynamics, n_steps=20, platform="CPU")
    target = replace(water, target=water.positions[water.feature_indices])
    start = {"positions": water.positions[None]}
    for boxed in (start, {**start, "box": water.box[None]}):
        changes = {"start": ship(boxed, INLINE), "dynamics": dynamics}
        rmsd = run(segment, target, parse("rmsd:x", target), **changes)
        assert unpack_pcoord(rmsd.pcoord, 1)[:, 0] == pytest.approx([0, 0.02], abs=0.0199)
        learned = fetch(run(segment, water, parse("aae:0", water), **changes).frames)["start"]
        np.testing.assert_allclose(learned[0], water.positions[water.feature_indices], atol=1e-6)


def test_a_molecule_across_a_face_has_the_same_shape(water: PreparedSystem) -> None:
    target = replace(water, target=water.positions[water.feature_indices])
    torn = water.positions[None].astype(np.float32)
    torn[0, water.feature_indices[:4], 0] += np.float32(water.box[0, 0])
    rows = values(parse("rmsd:x", target), torn, water.box[None], Indices.from_arrays(target.to_arrays()))
    np.testing.assert_allclose(rows, 0, atol=1e-4)


# ---- a learned coordinate


@pytest.fixture(scope="module", params=["pca", "aae"])
def model(request: pytest.FixtureRequest, alanine: PreparedSystem, segment: SegmentSpec) -> Model:
    hot = replace(segment, dynamics=replace(segment.dynamics, n_steps=2000, frame_steps=40, temperature_K=450.0))
    points = fetch(run_segment(hot).frames)["positions"][:, alanine.feature_indices]
    if request.param == "pca":
        return fit_pca(points, 4)
    from tasks import aae

    return AAEModel(fit_alignment(points), aae.new_autoencoder(aae.Architecture(points.shape[1], 4), seed=1))


@pytest.fixture
def learned(alanine: PreparedSystem, segment: SegmentSpec, model: Model) -> CoordinateSpec:
    """The coordinate of two segments, one after the other."""
    coordinate = parse("aae:2,0", alanine, latent=4)
    assert coordinate.names == ("z2", "z0")
    first = run(segment, alanine, coordinate)
    second = run(segment, alanine, coordinate, start=first.end, seed=5)
    assert (first.pcoord, second.pcoord) == (b"", b"")
    return CoordinateSpec(
        task_id=9,
        attempt=1,
        system=ship(alanine.to_arrays(), INLINE),
        system_id=alanine.digest,
        coordinate=coordinate,
        batches=((7, first.frames), (4, second.frames)),
        model=ship({"model": np.frombuffer(model.to_bytes(), np.uint8)}, INLINE),
        model_version=3,
        store=INLINE,
    )


def test_a_model_embeds_start_and_frames(
    alanine: PreparedSystem, segment: SegmentSpec, learned: CoordinateSpec, model: Model
) -> None:
    result = embed_coordinate(learned)
    assert (result.task_id, result.model_version, result.n_frames, result.basis) == (9, 3, 12, b"")
    assert [segment_id for segment_id, _ in result.pcoord] == [7, 4]
    first, second = (unpack_pcoord(rows, 2) for _, rows in result.pcoord)
    start = alanine.positions.astype(np.float32)[None]
    frames = np.concatenate([start, fetch(learned.batches[0][1])["positions"]])[:, alanine.feature_indices]
    np.testing.assert_allclose(first, model.embed(frames)[:, [2, 0]], atol=1e-6)
    np.testing.assert_allclose(second[0], first[-1], atol=1e-6)
    # An end state alone, as after a retraining.
    end = run(segment, alanine, learned.coordinate).end
    alone = embed_coordinate(replace(learned, batches=((7, end),)))
    np.testing.assert_allclose(unpack_pcoord(alone.pcoord[0][1], 2), first[-1:], atol=1e-6)


def test_basis_states_are_embedded_in_parts(
    alanine: PreparedSystem, learned: CoordinateSpec, model: Model, near_native: PreparedSystem
) -> None:
    states = np.stack([alanine.positions, near_native.positions + 1, alanine.positions * 1.02])
    spec = replace(learned, batches=(), basis=ship({"positions": states}, INLINE))
    whole = unpack_pcoord(embed_coordinate(replace(spec, basis_rows=(0, 1, 2))).basis, 2)
    parts = [embed_coordinate(replace(spec, basis_rows=rows)).basis for rows in ((0,), (2, 1))]
    np.testing.assert_allclose(unpack_pcoord(b"".join(parts), 2), whole[[0, 2, 1]], atol=1e-6)
    wanted = model.embed(states.astype(np.float32)[:, alanine.feature_indices])[:, [2, 0]]
    np.testing.assert_allclose(whole, wanted, atol=1e-6)
    angles = replace(spec, coordinate=parse("phi-psi", alanine), model=None, basis_rows=(0,))
    assert np.abs(unpack_pcoord(embed_coordinate(angles).basis, 2)).max() <= 180


def test_a_model_of_another_shape_is_refused(learned: CoordinateSpec, model: Model) -> None:
    other = fit_pca(np.random.default_rng(0).normal(size=(9, 5, 3)).astype(np.float32), 4)
    packed = ship({"model": np.frombuffer(other.to_bytes(), np.uint8)}, INLINE)
    with pytest.raises(BadInput, match="are for 5 points, and 10 atoms are seen here: .* --features"):
        embed_coordinate(replace(learned, model=packed))
    far = replace(learned.coordinate, latent=(4, 0))
    with pytest.raises(BadInput, match="dimension 4 .* whose 4 dimensions count from 0"):
        embed_coordinate(replace(learned, coordinate=far))


# ---- what is refused, and what fails


@pytest.mark.parametrize(
    "text", ["", "aae:", "aae:x", "aae:-1", "aae:0,,1", "aae:1,1", "aae:٣", "rmsd:", "phi", "a b:c", "phi-psi:1"]
)
def test_what_is_no_coordinate_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^--pcoord .*: give ") as caught:
        coordinate_kind(text)
    assert "\n" not in str(caught.value)


def test_kinds() -> None:
    kinds = {text: coordinate_kind(text) for text in ("aae", "aae:0,1,2", "phi-psi", "rmsd:a:b", "position", "m.n:f")}
    assert list(kinds.values()) == ["aae", "aae", "phi-psi", "rmsd", "position", "function"]
    assert rmsd_file("rmsd:a/b.pdb") == Path("a/b.pdb")
    assert rmsd_file("phi-psi") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aae:0,4", "asks for dimension 4 of an embedding whose 4 dimensions .* or give --latent 5"),
        ("rmsd:native.pdb", "was not read with alanine-dipeptide"),
        ("no_such_module:f", "module no_such_module cannot be imported .*install it"),
        ("my_coordinate:absent", "has no absent: look for a slip"),
        (
            "my_coordinate:flat",
            r"returned float32 of shape \(1,\) for 1 frames: return real numbers of shape \(1, dim",
        ),
        ("my_coordinate:words", "returned <U3 of shape"),
        ("my_coordinate:short", r"returned float32 of shape \(0, 3\) for 1 frames"),
        ("my_coordinate:none", r"returned object of shape \(\)"),
        ("my_coordinate:raises", "raised RuntimeError: it does not work"),
        ("my_coordinate:leaves", "raised SystemExit: 3"),
        ("my_coordinate:nan", "has x1 = nan in row 0: .* finite for every frame, at a structure to start from"),
    ],
)
def test_what_this_system_does_not_have_is_refused(alanine: PreparedSystem, here: str, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=f"^--pcoord {text} .*{said}") as caught:
        parse(text, alanine, here, latent=4)
    assert "\n" not in str(caught.value)


def test_a_particle_has_no_shape(native: Path) -> None:
    well = prepare(named_system("double-well"))
    with pytest.raises(BadInput, match="phi-psi needs a residue with phi and psi and double-well has none"):
        parse("phi-psi", well)
    with pytest.raises(BadInput, match=f"^--pcoord rmsd:{native} measures a change of shape, and 1 atoms have none"):
        prepare(replace(named_system("double-well"), target=str(native), target_flag="--pcoord"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("later_raises", "raised ZeroDivisionError: division by zero"),
        ("later_nan", "has x0 = inf in row 3"),
        ("later_wider", "has 2 dimensions, and 1 of the first structures"),
    ],
)
def test_a_function_that_fails_in_a_segment_is_data(
    alanine: PreparedSystem, segment: SegmentSpec, here: str, name: str, said: str, tmp_path: Path
) -> None:
    bad = replace(segment, coordinate=parse(f"my_coordinate:{name}", alanine, here), run_dir=str(tmp_path / "run"))
    failed, sound = run_bundle(begin_segment, [bad, segment])
    assert failed.error.kind == "coordinate"
    assert "segment 3 from segment 1 frame 4: --pcoord my_coordinate" in failed.error.exception
    assert said in failed.error.exception
    assert sound.error is None
    assert not list(tmp_path.iterdir())


def test_a_frame_that_no_bin_holds_is_refused(alanine: PreparedSystem) -> None:
    lost = np.full((2, 22, 3), np.nan, np.float32)
    with pytest.raises(CoordinateFailed, match="phi-psi has phi = nan in row 0"):
        values(parse("phi-psi", alanine), lost, None, Indices.from_arrays(alanine.to_arrays()))


def test_messages_stay_small(alanine: PreparedSystem, segment: SegmentSpec) -> None:
    coordinate = parse("phi-psi", alanine)
    most = replace(segment.dynamics, n_steps=499, frame_steps=1)
    require_small(coordinate, most)
    assert 8 * (most.n_frames + 1) == MAX_PCOORD_BYTES
    with pytest.raises(BadInput, match="makes 500 frames of a segment, .* 2 dimensions is kept for 499 at most"):
        require_small(coordinate, replace(most, n_steps=500))
