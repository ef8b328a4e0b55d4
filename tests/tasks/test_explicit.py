"""Alanine dipeptide in a box of water: dynamics, trajectories, starts and features across its faces."""

import io
from dataclasses import replace
from pathlib import Path

import MDAnalysis
import numpy as np
import openmm
import pytest
from openmm import unit

from tasks.errors import BadInput
from tasks.files import publish
from tasks.infer import embed
from tasks.messages import EmbedSpec, SegmentResult, SegmentSpec, StoreSpec
from tasks.prepared import PreparedSystem
from tasks.reference import ReferenceSet
from tasks.simulate import run_segment
from tasks.systems import named_system, prepare
from tasks.transport import fetch, pack, ship, unpack

INLINE = StoreSpec("inline", "inline")


def boxed(**changes) -> PreparedSystem:
    spec = replace(named_system("alanine-dipeptide", platform="CPU"), solvent="explicit", padding_nm=0.6)
    return prepare(replace(spec, **changes))


@pytest.fixture(scope="module")
def wet(water: PreparedSystem, segment: SegmentSpec) -> SegmentSpec:
    """A segment of 100 steps and 4 frames: the barostat tries four times."""
    return replace(
        segment,
        system=ship(water.to_arrays(), INLINE),
        system_id=water.digest,
        start=ship({"positions": water.positions[None]}, INLINE),
        dynamics=replace(segment.dynamics, frame_steps=25, platform="CPU"),
    )


@pytest.fixture(scope="module")
def result(wet: SegmentSpec) -> SegmentResult:
    return run_segment(wet)


# ---- the box


def test_water_and_salt_are_added_as_told(water: PreparedSystem) -> None:
    system = openmm.XmlSerializer.deserialize(water.system_xml)
    (nonbonded,) = (f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    (barostat,) = (f for f in system.getForces() if isinstance(f, openmm.MonteCarloBarostat))
    assert nonbonded.getNonbondedMethod() == openmm.NonbondedForce.PME
    assert barostat.getDefaultPressure().value_in_unit(unit.bar) == pytest.approx(1.0)
    assert barostat.getDefaultTemperature().value_in_unit(unit.kelvin) == 300.0
    span = np.ptp(water.positions[:22], axis=0)
    assert (water.box.diagonal() - span > 2 * 0.6 - 0.05).all()
    assert 600 < water.n_atoms < 1500


def test_preparing_again_gives_the_same_bytes(water: PreparedSystem) -> None:
    assert boxed().digest == water.digest
    assert PreparedSystem.from_arrays(unpack(pack(water.to_arrays()))).digest == water.digest


def test_salt_neither_is_stored_nor_seen() -> None:
    salty = boxed(ionic_strength_M=1.0, pressure_bar=0.0)
    system = openmm.XmlSerializer.deserialize(salty.system_xml)
    masses = [round(system.getParticleMass(i).value_in_unit(unit.dalton)) for i in range(salty.n_atoms)]
    assert 23 in masses
    assert 35 in masses
    assert salty.stored_indices.tolist() == list(range(22))
    assert salty.feature_indices.max() < 22
    assert "Barostat" not in salty.system_xml


def test_water_of_four_sites_can_be_run(wet: SegmentSpec) -> None:
    tip4p = boxed(force_field=("amber14/protein.ff14SB.xml", "amber14/tip4pew.xml"))
    system = openmm.XmlSerializer.deserialize(tip4p.system_xml)
    virtual = [i for i in range(tip4p.n_atoms) if system.isVirtualSite(i)]
    assert len(virtual) > 200
    start = ship({"positions": tip4p.positions[None]}, INLINE)
    result = run_segment(replace(wet, system=ship(tip4p.to_arrays(), INLINE), system_id=tip4p.digest, start=start))
    assert 100 < result.mean_temperature_K < 400
    assert tip4p.stored_indices.tolist() == list(range(22))


def test_vacuum_has_neither_box_nor_solvent() -> None:
    dry = prepare(replace(named_system("alanine-dipeptide", platform="Reference"), solvent="vacuum"))
    assert dry.box is None
    assert "GBSA" not in dry.system_xml


def test_too_little_water_is_refused() -> None:
    with pytest.raises(BadInput, match=r"box 1\.\d+ nm wide, .*--padding-nm"):
        boxed(padding_nm=0.3)


def test_a_force_field_without_water_is_refused() -> None:
    with pytest.raises(BadInput, match=r"water cannot be added .*--forcefield"):
        boxed(force_field=("amber14/protein.ff14SB.xml",))


# ---- dynamics


def test_frames_and_end_state_carry_the_box(result: SegmentResult, water: PreparedSystem) -> None:
    frames, end = fetch(result.frames), fetch(result.end)
    assert {name: (array.shape, array.dtype.name) for name, array in frames.items()} == {
        "positions": ((4, water.n_atoms, 3), "float32"),
        "box": ((4, 3, 3), "float32"),
    }
    assert end["box"].shape == (1, 3, 3)
    assert end["box"].dtype == np.float64
    np.testing.assert_array_equal(frames["box"][-1], end["box"][0].astype(np.float32))


def test_the_barostat_moves_the_box_the_same_way_for_the_same_seed(wet: SegmentSpec, result: SegmentResult) -> None:
    again, other = run_segment(replace(wet, attempt=2)), run_segment(replace(wet, seed=12))
    for name, array in fetch(result.end).items():
        np.testing.assert_array_equal(fetch(again.end)[name], array)
    boxes = fetch(result.frames)["box"]
    assert np.ptp(boxes[:, 0, 0]) > 0
    assert np.abs(fetch(other.frames)["box"] - boxes).max() > 0


def test_a_start_sets_its_box_and_the_next_start_its_own(wet: SegmentSpec, water: PreparedSystem) -> None:
    wide = water.box * 1.01
    start = {"positions": water.positions[None] * 1.01, "box": wide[None].astype(np.float32)}
    short = replace(wet, dynamics=replace(wet.dynamics, n_steps=5, frame_steps=5))
    widened = fetch(run_segment(replace(short, start=ship(start, INLINE))).frames)["box"][0]
    np.testing.assert_allclose(widened, wide, rtol=1e-6)
    # The Context is the same; a start that brings no box has the system's.
    np.testing.assert_allclose(fetch(run_segment(short).frames)["box"][0], water.box, rtol=1e-6)


@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
def test_trajectory_matches_its_topology_and_has_the_box(
    wet: SegmentSpec, water: PreparedSystem, tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "trajectories").mkdir()
    result = run_segment(replace(wet, run_dir=str(tmp_path), trajectory_format=suffix))
    publish(tmp_path, result.trajectory)
    (tmp_path / "topology.pdb").write_text(water.topology_pdb)
    universe = MDAnalysis.Universe(tmp_path / "topology.pdb", tmp_path / result.trajectory.path)
    assert [atom.name for atom in universe.select_atoms("name CA")] == ["CA"]
    assert (universe.atoms.n_atoms, len(universe.trajectory)) == (22, 4)
    frames = fetch(result.frames)
    for k, step in enumerate(universe.trajectory):
        np.testing.assert_allclose(step.positions / 10, frames["positions"][k, :22], atol=2e-3)
        np.testing.assert_allclose(step.dimensions[:3] / 10, frames["box"][k].diagonal(), atol=1e-4)
        np.testing.assert_allclose(step.dimensions[3:], 90, atol=1e-3)


# ---- learning


def inference(wet: SegmentSpec, result: SegmentResult, frames: dict[str, np.ndarray]) -> EmbedSpec:
    return EmbedSpec(
        task_id=50, attempt=1, system=wet.system, system_id=wet.system_id, batches=((3, ship(frames, INLINE)),),
        reference=None, reference_number=1, model=None, model_version=0, embedding="pca", candidates="novel",
        n_candidates=3, novelty="sparsity", neighbours=2, latent=2, max_reference=30, max_frontier=20, seed=2,
        store=INLINE, run_dir=None,
    )  # fmt: skip


def test_features_are_whole_wherever_atoms_lie(wet: SegmentSpec, result: SegmentResult) -> None:
    frames = fetch(result.frames)
    turns = np.random.default_rng(4).integers(-1, 2, size=frames["positions"].shape).astype(np.float32)
    broken = {**frames, "positions": frames["positions"] + turns @ frames["box"]}
    whole, mended = (
        ReferenceSet.from_arrays(fetch(embed(inference(wet, result, each)).reference)).sample.points
        for each in (frames, broken)
    )
    np.testing.assert_allclose(mended - mended[:, :1], whole - whole[:, :1], atol=1e-5)


def test_starts_carry_their_box_and_can_be_run(wet: SegmentSpec, result: SegmentResult) -> None:
    frames = fetch(result.frames)
    spec = inference(wet, result, frames)
    first = embed(spec)
    then = embed(replace(spec, reference=first.reference, reference_number=2, batches=((4, result.frames),)))
    starts = fetch(then.starts)
    assert starts["box"].shape == (3, 3, 3)
    for row, (_, frame) in enumerate(then.start_ids):
        np.testing.assert_array_equal(starts["box"][row], frames["box"][frame])
        np.testing.assert_array_equal(starts["positions"][row], frames["positions"][frame])
    again = run_segment(replace(wet, start=then.starts, start_row=1))
    assert 150 < again.mean_temperature_K < 450


# ---- selections


def test_selections_choose_what_is_seen_and_stored(tmp_path: Path) -> None:
    chosen = boxed(
        features="backbone and not name O", store="resname ALA or (resname HOH and byres around 3.5 protein)"
    )
    stored = MDAnalysis.Universe(io.StringIO(chosen.topology_pdb), format="PDB").atoms
    assert len(stored) == len(chosen.stored_indices)
    assert set(stored.residues.resnames) == {"ALA", "HOH"}
    names = [
        line[12:16].strip() for line in boxed(store="all").topology_pdb.splitlines() if line[:4] in ("ATOM", "HETA")
    ]
    # MDAnalysis counts the caps among the residues of a protein.
    assert [names[i] for i in chosen.feature_indices] == ["C", "N", "CA", "C", "N", "C"]


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ({"features": "name XYZ"}, "--features 'name XYZ' selects 0 atoms and must select 3 or more"),
        ({"features": "name CA"}, "--features 'name CA' selects 1 atoms and must select 3"),
        ({"features": "nonsense CA"}, "--features 'nonsense CA' is no selection that MDAnalysis understands"),
        ({"store": "resname NONE"}, "--store 'resname NONE' selects 0 atoms"),
        ({"store": "(protein"}, "is no selection that MDAnalysis understands"),
        ({"store": "index a:b"}, "is no selection that MDAnalysis understands"),
    ],
)
def test_selections_that_select_nothing_are_refused(selection: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        prepare(replace(named_system("alanine-dipeptide", platform="Reference"), **selection))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
