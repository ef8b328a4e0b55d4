"""Several structures to start from."""

import re
from dataclasses import replace
from pathlib import Path

import MDAnalysis
import numpy as np
import openmm
import pytest

from tasks.engine import make_context
from tasks.errors import BadInput
from tasks.features import dihedrals_deg
from tasks.messages import SegmentSpec, StoreSpec
from tasks.prepared import PreparedSystem
from tasks.simulate import run_segment
from tasks.systems import SystemSpec, named_system, prepare
from tasks.transport import fetch, pack, ship, unpack

INLINE = StoreSpec("inline", "inline")
NAMED = named_system("alanine-dipeptide", platform="Reference")


@pytest.fixture(scope="module")
def folder(alanine: PreparedSystem, segment: SegmentSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two structures: a frame of a hot segment as PDB, and a later one as GRO."""
    where = tmp_path_factory.mktemp("starts")
    (where / "topology").mkdir()
    (where / "topology" / "top.pdb").write_text(alanine.topology_pdb)
    hot = replace(segment, dynamics=replace(segment.dynamics, n_steps=2000, frame_steps=1000, temperature_K=600.0))
    universe = MDAnalysis.Universe(where / "topology" / "top.pdb")
    for frame, name in zip(fetch(run_segment(hot).frames)["positions"], ("a.pdb", "b.gro"), strict=True):
        universe.atoms.positions = frame * 10
        universe.atoms.write(where / name)
    return where


def backbone(prepared: PreparedSystem, positions: np.ndarray) -> np.ndarray:
    return np.hstack([dihedrals_deg(positions, each) for each in (prepared.phi_indices, prepared.psi_indices)])


def test_starts_are_read_minimised_and_keep_their_shape(folder: Path, segment: SegmentSpec) -> None:
    prepared = prepare(replace(NAMED, starts=(str(folder),)))
    assert prepared.n_starts == 2
    assert prepared.basis()["positions"].shape == (2, 22, 3)
    for start, name in zip(prepared.starts, ("a.pdb", "b.gro"), strict=True):
        read = MDAnalysis.Universe(folder / "topology" / "top.pdb", folder / name).atoms.positions / 10
        apart = backbone(prepared, np.stack([start, read.astype(np.float64)]))
        turn = (apart[0] - apart[1] + 180) % 360 - 180
        assert np.abs(turn).max() < 60
        assert np.abs(start - read).max() > 1e-3
    arrived = PreparedSystem.from_arrays(unpack(pack(prepared.to_arrays())))
    np.testing.assert_array_equal(arrived.starts, prepared.starts)
    spec = replace(
        segment,
        system=ship(prepared.to_arrays(), INLINE),
        system_id=prepared.digest,
        start=ship(prepared.basis(), INLINE),
        start_row=1,
    )
    first = fetch(run_segment(spec).frames)["positions"][0]
    distances = [np.abs(first - start).max() for start in prepared.starts]
    assert distances[1] < distances[0]


def save_state(prepared: PreparedSystem, segment: SegmentSpec, path: Path, *, positions: bool = True) -> openmm.State:
    """Write what OpenMM says of a system at its positions, some 0.1 nm aside."""
    context = make_context(prepared, replace(segment.dynamics, platform=prepared.platform))
    context.setPositions(prepared.positions + 0.1)
    state = context.getState(positions=positions, velocities=True)
    path.write_text(openmm.XmlSerializer.serialize(state))
    return state


def test_a_state_is_taken_as_it_is_without_minimising(
    alanine: PreparedSystem, segment: SegmentSpec, tmp_path: Path
) -> None:
    save_state(alanine, segment, tmp_path / "0000.xml")
    (tmp_path / ".0001.xml.part").write_text("not whole")
    spec = replace(NAMED, starts=(str(tmp_path),))
    (start,) = prepare(replace(spec, minimise=False)).starts
    np.testing.assert_array_equal(start, alanine.positions + 0.1)
    (relaxed,) = prepare(spec).starts
    assert np.abs(relaxed - start).max() > 1e-4


def test_without_minimising_the_molecule_too_stays_as_it_is(alanine: PreparedSystem, tmp_path: Path) -> None:
    raw = prepare(replace(NAMED, minimise=False))
    assert np.abs(raw.positions - alanine.positions).max() > 1e-3
    path = tmp_path / "again.pdb"
    path.write_text(raw.topology_pdb)
    again = prepare(SystemSpec("again", pdb=str(path), platform="Reference", minimise=False))
    assert np.abs(again.positions - raw.positions).max() < 1e-3


def test_without_starts_a_system_begins_at_its_minimum(alanine: PreparedSystem) -> None:
    assert alanine.n_starts == 1
    np.testing.assert_array_equal(alanine.basis()["positions"][0], alanine.positions)


def test_starts_in_water_have_boxes(segment: SegmentSpec, tmp_path: Path) -> None:
    wet = replace(named_system("alanine-dipeptide", platform="CPU"), solvent="explicit", padding_nm=0.6, store="all")
    water = prepare(wet)
    (tmp_path / "top.pdb").write_text(water.topology_pdb)
    universe = MDAnalysis.Universe(tmp_path / "top.pdb")
    wide = float(water.box[0, 0]) * 10.1
    universe.atoms.positions = water.positions * 10.1
    universe.dimensions = [wide, wide, wide, 90, 90, 90]
    universe.atoms.write(tmp_path / "wide.gro")
    begun = prepare(replace(wet, starts=(str(tmp_path / "wide.gro"), str(tmp_path / "top.pdb"))))
    assert begun.basis()["box"][:, 0, 0] == pytest.approx([wide / 10, water.box[0, 0]], abs=1e-4)
    assert begun.starts.shape == (2, water.n_atoms, 3)
    save_state(begun, segment, tmp_path / "0000.xml")
    kept = prepare(replace(wet, starts=(str(tmp_path / "0000.xml"),), minimise=False))
    np.testing.assert_allclose(kept.starts[0], begun.positions + 0.1, atol=1e-12)
    np.testing.assert_array_equal(kept.basis()["box"][0], water.box)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "--start .* cannot be used .No such file"),
        ("", "--start .* cannot be used"),
        ("hello", "--start .* cannot be used"),
        ("folder", "is a folder without files"),
        ("short", "has 21 atoms and the system 22: give structures with every atom"),
        ("renamed", "has CX as atom 5 where the system has C"),
    ],
)
def test_bad_starts_are_refused(alanine: PreparedSystem, tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "start.pdb"
    lines = alanine.topology_pdb.splitlines(keepends=True)
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    match content:
        case "folder":
            path.mkdir()
        case "short":
            path.write_text("".join(atoms[:-1]))
        case "renamed":
            path.write_text("".join([*atoms[:4], atoms[4][:12] + " CX " + atoms[4][16:], *atoms[5:]]))
        case str():
            path.write_text(content)
    with pytest.raises(BadInput, match=said) as caught:
        prepare(replace(NAMED, starts=(str(path),)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be used .*: give a State with positions"),
        ("<hello/>", "cannot be used .*: give a State with positions"),
        ("system", "cannot be used .*: give a State with positions"),
        ("empty", "cannot be used .*: give a State with positions"),
        ("other", "has 2 atoms and the system 22: give structures with every atom"),
        ("infinite", "holds coordinates that are no numbers"),
    ],
)
def test_bad_states_are_refused(
    alanine: PreparedSystem, segment: SegmentSpec, tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "start.xml"
    match content:
        case "system":
            path.write_text(alanine.system_xml)
        case "empty":
            save_state(alanine, segment, path, positions=False)
        case "other":
            system = openmm.System()
            system.addParticle(1.0)
            system.addParticle(1.0)
            context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
            context.setPositions(np.zeros((2, 3)))
            path.write_text(openmm.XmlSerializer.serialize(context.getState(positions=True)))
        case "infinite":
            save_state(alanine, segment, path)
            path.write_text(re.sub('<Position x="[^"]*"', '<Position x="nan"', path.read_text()))
        case _:
            path.write_text(content)
    with pytest.raises(BadInput, match=f"^--start {re.escape(str(path))} {said}") as caught:
        prepare(replace(NAMED, starts=(str(path),)))
    assert "\n" not in str(caught.value)
