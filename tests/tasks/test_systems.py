import io
import logging
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import MDAnalysis
import numpy as np
import openmm
import pytest
from openmm import app, unit

from tasks import platforms, systems
from tasks.engine import integrator, make_context
from tasks.errors import BadInput, TaskFailed
from tasks.messages import Dynamics
from tasks.minimise import minimise
from tasks.peptides import AMINO_ACIDS, peptide_pdb
from tasks.platforms import platform_properties, resolve_platform
from tasks.prepared import PreparedSystem
from tasks.selection import select_atoms
from tasks.solvation import FORCE_FIELD, solvent_force
from tasks.systems import (
    NAMED_SYSTEMS,
    SystemSpec,
    named_system,
    prepare,
)
from tasks.transport import pack, unpack

DYNAMICS = Dynamics(
    n_steps=500,
    frame_steps=50,
    timestep_ps=0.004,
    temperature_K=300.0,
    friction_per_ps=1.0,
    platform="Reference",
)


@pytest.fixture(scope="module")
def alanine() -> PreparedSystem:
    return prepare(named_system("alanine-dipeptide", platform="Reference"))


@pytest.fixture(scope="module")
def chignolin() -> PreparedSystem:
    return prepare(named_system("chignolin", platform="CPU"))


def topology_of(prepared: PreparedSystem) -> app.Topology:
    return app.PDBFile(io.StringIO(prepared.topology_pdb)).topology


def energy_and_forces(system: openmm.System, positions: np.ndarray) -> tuple[float, np.ndarray]:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    return (
        state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
        np.array(state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)),
    )


# ---- the force field


def solvent_xml(system: openmm.System) -> str:
    (solvent,) = (force for force in system.getForces() if isinstance(force, openmm.GBSAOBCForce))
    return openmm.XmlSerializer.serialize(solvent)


def peptides_of_all_amino_acids() -> list[SystemSpec]:
    rng = np.random.default_rng(20)
    sequences = ["".join(rng.choice(list(AMINO_ACIDS), size=rng.integers(3, 9))) for _ in range(19)]
    assert set("".join(sequences)) == set(AMINO_ACIDS)
    specs = [SystemSpec(sequence, sequence=sequence) for sequence in sequences]
    return [*specs, named_system("alanine-dipeptide")]


@pytest.mark.parametrize("spec", peptides_of_all_amino_acids(), ids=lambda spec: spec.name)
def test_native_solvent_equals_openmms_obc2(spec: SystemSpec) -> None:
    prepared = prepare(replace(spec, platform="Reference"))
    topology = topology_of(prepared)
    wanted = app.ForceField(FORCE_FIELD, "implicit/obc2.xml").createSystem(topology, nonbondedMethod=app.NoCutoff)
    # Without constraints, which take the bonds' energy out of a prepared system.
    native = app.ForceField(FORCE_FIELD).createSystem(topology, nonbondedMethod=app.NoCutoff)
    native.addForce(solvent_force(native, topology))
    assert solvent_xml(native) == solvent_xml(openmm.XmlSerializer.deserialize(prepared.system_xml))
    # Away from the minimum, where forces are not small.
    positions = prepared.positions + np.random.default_rng(0).normal(0, 0.003, prepared.positions.shape)
    energy, forces = energy_and_forces(native, positions)
    wanted_energy, wanted_forces = energy_and_forces(wanted, positions)
    assert np.sqrt((wanted_forces**2).mean()) > 100
    assert abs(energy - wanted_energy) < 0.01
    assert np.abs(forces - wanted_forces).max() < 0.01


def test_hydrogens_are_heavy_and_their_bonds_constrained(chignolin: PreparedSystem) -> None:
    system = openmm.XmlSerializer.deserialize(chignolin.system_xml)
    topology = topology_of(chignolin)
    masses = np.array([system.getParticleMass(i).value_in_unit(unit.amu) for i in range(chignolin.n_atoms)])
    is_hydrogen = np.array([atom.element.symbol == "H" for atom in topology.atoms()])
    assert np.allclose(masses[is_hydrogen], 3.0)
    # Mass is moved, not made.
    real = sum(atom.element.mass.value_in_unit(unit.amu) for atom in topology.atoms())
    assert masses.sum() == pytest.approx(real, abs=0.1)
    assert system.getNumConstraints() == is_hydrogen.sum()
    names = {type(force).__name__ for force in system.getForces()}
    assert {"GBSAOBCForce", "CMMotionRemover"} <= names
    assert not system.usesPeriodicBoundaryConditions()


def test_four_femtoseconds_hold_the_temperature(alanine: PreparedSystem) -> None:
    # Strong friction, so that few picoseconds hold many independent samples.
    context = seeded_context(alanine, replace(DYNAMICS, friction_per_ps=5.0), seed=1)
    stepper = context.getIntegrator()
    stepper.step(500)
    kinetic = []
    for _ in range(1000):
        stepper.step(20)
        energy = context.getState(energy=True).getKineticEnergy()
        kinetic.append(energy.value_in_unit(unit.kilojoule_per_mole))
    # 66 degrees of freedom less 12 constraints and 3 of the centre of mass.
    temperature = 2 * np.mean(kinetic) / (51 * 0.00831446)
    # The standard error is 3 K: 60 K per sample, about 400 independent ones in 80 ps.
    assert temperature == pytest.approx(300, abs=15)


def test_a_warm_context_repeats_a_seed(alanine: PreparedSystem) -> None:
    context = seeded_context(alanine, DYNAMICS, seed=3)
    ends = []
    for seed in (3, 3, 4):
        context.getIntegrator().setRandomNumberSeed(seed)
        context.reinitialize()
        context.setPositions(alanine.positions)
        context.setVelocitiesToTemperature(300, seed)
        context.getIntegrator().step(100)
        ends.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def seeded_context(prepared: PreparedSystem, dynamics: Dynamics, seed: int) -> openmm.Context:
    context = make_context(prepared, dynamics)
    context.getIntegrator().setRandomNumberSeed(seed)
    context.reinitialize(preserveState=True)
    context.setVelocitiesToTemperature(dynamics.temperature_K, seed)
    return context


def test_integrator_takes_the_campaigns_dynamics() -> None:
    langevin = integrator(replace(DYNAMICS, temperature_K=310.0, friction_per_ps=2.0))
    assert isinstance(langevin, openmm.LangevinMiddleIntegrator)
    assert langevin.getTemperature().value_in_unit(unit.kelvin) == 310.0
    assert langevin.getFriction().value_in_unit(unit.picosecond**-1) == 2.0
    assert langevin.getStepSize().value_in_unit(unit.picosecond) == 0.004


# ---- what a prepared system holds


def test_named_systems_have_their_atoms(alanine: PreparedSystem, chignolin: PreparedSystem) -> None:
    assert alanine.n_atoms == 22
    assert chignolin.n_atoms == 166
    names = [residue.name for residue in topology_of(alanine).residues()]
    assert names == ["ACE", "ALA", "NME"]


def test_model_sees_heavy_atoms_and_trajectories_keep_all(alanine: PreparedSystem) -> None:
    atoms = list(topology_of(alanine).atoms())
    assert [atoms[i].element.symbol for i in alanine.feature_indices] == list("CCONCCOCNC")
    assert list(alanine.stored_indices) == list(range(22))


def test_minimised_positions_are_at_rest(chignolin: PreparedSystem) -> None:
    system = openmm.XmlSerializer.deserialize(chignolin.system_xml)
    energy, _ = energy_and_forces(system, chignolin.positions)
    assert energy < -1500
    written = MDAnalysis.Universe(io.StringIO(chignolin.topology_pdb), format="PDB", topology_format="PDB")
    assert np.abs(written.atoms.positions / 10 - chignolin.positions).max() < 1e-4


def test_alanine_dipeptide_has_one_phi_and_one_psi(alanine: PreparedSystem) -> None:
    atoms = list(topology_of(alanine).atoms())

    def named(indices: np.ndarray) -> list[str]:
        return [f"{atoms[i].residue.name}-{atoms[i].name}" for i in indices]

    assert alanine.phi_indices.shape == alanine.psi_indices.shape == (1, 4)
    assert named(alanine.phi_indices[0]) == ["ACE-C", "ALA-N", "ALA-CA", "ALA-C"]
    assert named(alanine.psi_indices[0]) == ["ALA-N", "ALA-CA", "ALA-C", "NME-N"]


def test_dihedrals_are_those_of_mdanalysis(chignolin: PreparedSystem) -> None:
    universe = MDAnalysis.Universe(io.StringIO(chignolin.topology_pdb), format="PDB", topology_format="PDB")
    residues = universe.residues[1:-1]
    assert [list(r.phi_selection().indices) for r in residues] == chignolin.phi_indices.tolist()
    assert [list(r.psi_selection().indices) for r in residues] == chignolin.psi_indices.tolist()


@pytest.mark.parametrize(("n_residues", "names"), [(39, {"N", "CA", "C", "O", "CB", "OXT"}), (40, {"CA"})])
def test_model_sees_alpha_carbons_of_larger_proteins(n_residues: int, names: set[str]) -> None:
    pdb = peptide_pdb("A" * n_residues)
    water = "HETATM 9999  O   HOH A 999      99.000  99.000  99.000  1.00  0.00           O  \n"
    features, stored, _ = select_atoms(pdb.replace("END", water + "END"))
    atoms = list(app.PDBFile(io.StringIO(pdb)).topology.atoms())
    assert {atoms[i].name for i in features} == names
    assert features.dtype == stored.dtype == np.int64
    assert list(stored) == list(range(len(atoms)))


# ---- shipping


def test_arrays_survive_transport(chignolin: PreparedSystem) -> None:
    arrived = PreparedSystem.from_arrays(unpack(pack(chignolin.to_arrays())))
    assert arrived.digest == chignolin.digest
    assert len(arrived.digest) == 64
    assert (arrived.name, arrived.platform) == ("chignolin", "CPU")
    assert arrived.system_xml == chignolin.system_xml
    assert arrived.topology_pdb == chignolin.topology_pdb
    for name in ("positions", "feature_indices", "stored_indices", "phi_indices", "psi_indices"):
        sent, got = getattr(chignolin, name), getattr(arrived, name)
        assert got.dtype == sent.dtype
        np.testing.assert_array_equal(got, sent)


def test_a_system_without_dihedrals_survives_transport() -> None:
    prepared = prepare(SystemSpec("two", sequence="GG", platform="Reference"))
    arrived = PreparedSystem.from_arrays(unpack(pack(prepared.to_arrays())))
    assert arrived.phi_indices.shape == arrived.psi_indices.shape == (0, 4)
    assert arrived.digest == prepared.digest


def test_changed_arrays_are_refused(alanine: PreparedSystem) -> None:
    arrays = alanine.to_arrays()
    arrays["positions"] = arrays["positions"] + 1e-9
    with pytest.raises(TaskFailed, match="'alanine-dipeptide' arrived with digest .* prepare it again"):
        PreparedSystem.from_arrays(arrays)


def test_a_context_starts_at_the_minimum(alanine: PreparedSystem) -> None:
    state = make_context(alanine, DYNAMICS).getState(positions=True)
    np.testing.assert_array_equal(state.getPositions(asNumpy=True)._value, alanine.positions)


# ---- repeatability


def test_another_process_prepares_the_same_bytes(
    tmp_path: Path, alanine: PreparedSystem, chignolin: PreparedSystem
) -> None:
    pdb = tmp_path / "mended.pdb"
    pdb.write_text("".join(line for line in heavy("AKSMA") if " CE  LYS" not in line))
    mended = SystemSpec("mended", pdb=str(pdb), platform="Reference", seed=5)
    script = (
        "import random, sys\n"
        "from tasks.systems import SystemSpec, named_system, prepare\n"
        "random.seed(99)\n"
        "print(prepare(named_system('chignolin', platform='CPU')).digest)\n"
        "print(prepare(named_system('alanine-dipeptide', platform='Reference')).digest)\n"
        "print(prepare(SystemSpec('mended', pdb=sys.argv[1], platform='Reference', seed=5)).digest)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(pdb)],
        env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        cwd=Path(systems.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert answer.stdout.split() == [chignolin.digest, alanine.digest, prepare(mended).digest]


def test_the_global_generator_is_left_as_it_was() -> None:
    random.seed(3)
    before = random.getstate()
    prepare(SystemSpec("two", sequence="GG", platform="Reference"))
    assert random.getstate() == before


# ---- PDB files


def heavy(sequence: str, *, cap: bool = False) -> list[str]:
    return peptide_pdb(sequence, cap=cap).splitlines(keepends=True)


def from_pdb(tmp_path: Path, lines: list[str], name: str = "x") -> PreparedSystem:
    path = tmp_path / "input.pdb"
    path.write_text("".join(lines))
    return prepare(SystemSpec(name, pdb=str(path), platform="Reference"))


@pytest.mark.parametrize(("sequence", "cap"), [("A", True), ("AKHCE", False)])
def test_a_heavy_atom_pdb_gives_the_sequences_system(tmp_path: Path, sequence: str, cap: bool) -> None:
    wanted = prepare(SystemSpec("x", sequence=sequence, cap=cap, platform="Reference"))
    assert from_pdb(tmp_path, heavy(sequence, cap=cap)).digest == wanted.digest


def test_a_prepared_structure_can_be_prepared_again(tmp_path: Path, alanine: PreparedSystem) -> None:
    again = from_pdb(tmp_path, alanine.topology_pdb.splitlines(keepends=True))
    energies = [
        energy_and_forces(openmm.XmlSerializer.deserialize(prepared.system_xml), alanine.positions)[0]
        for prepared in (again, alanine)
    ]
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)
    assert np.abs(again.positions - alanine.positions).max() < 0.05


def test_the_crystals_cell_plays_no_part(tmp_path: Path) -> None:
    cell = "CRYST1    9.000    9.000    9.000  90.00  90.00  90.00 P 1           1\n"
    assert from_pdb(tmp_path, [cell, *heavy("AKA")]).digest == from_pdb(tmp_path, heavy("AKA")).digest


def test_missing_side_chain_atoms_are_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks.pdb")
    lines = [line for line in heavy("AKSA") if " CE  LYS" not in line and " OG  SER" not in line]
    prepared = from_pdb(tmp_path, lines)
    assert prepared.n_atoms == prepare(SystemSpec("x", sequence="AKSA", platform="Reference")).n_atoms
    where = {(a.residue.name, a.name): a.index for a in topology_of(prepared).atoms()}
    bonds = [("LYS", "CD"), ("LYS", "CE"), ("LYS", "NZ")]
    chain = prepared.positions[[where[atom] for atom in bonds]]
    assert np.linalg.norm(np.diff(chain, axis=0), axis=1) == pytest.approx([0.153, 0.149], abs=0.01)
    assert "residue LYS A2 gets CE" in caplog.text
    assert "residue SER A3 gets OG" in caplog.text


def test_a_missing_terminal_oxygen_is_mended(tmp_path: Path) -> None:
    prepared = from_pdb(tmp_path, [line for line in heavy("AKA") if " OXT " not in line])
    assert prepared.n_atoms == prepare(SystemSpec("x", sequence="AKA", platform="Reference")).n_atoms


def test_water_and_ions_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks.pdb")
    lines = heavy("AKA")
    lines[-1:] = [
        "HETATM   90  O   HOH A 201      30.000  30.000  30.000  1.00  0.00           O  \n",
        "HETATM   91 NA    NA A 202      40.000  30.000  30.000  1.00  0.00          NA  \n",
        "END\n",
    ]
    assert from_pdb(tmp_path, lines).digest == from_pdb(tmp_path, heavy("AKA")).digest
    assert "2 residues dropped, the solvent is implicit: HOH, NA" in caplog.text


def test_selenomethionine_becomes_methionine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks.pdb")
    lines = [
        line.replace("ATOM  ", "HETATM").replace(" SD  MET", "SE   MET").replace(" S  ", "SE  ")
        if " MET " in line
        else line
        for line in heavy("AMA")
    ]
    prepared = from_pdb(tmp_path, [line.replace("MET", "MSE") for line in lines])
    assert prepared.n_atoms == prepare(SystemSpec("x", sequence="AMA", platform="Reference")).n_atoms
    assert [residue.name for residue in topology_of(prepared).residues()] == ["ALA", "MET", "ALA"]
    assert "residue MSE A2 becomes MET" in caplog.text


def shifted(chain: list[str], angstrom: float) -> list[str]:
    """Return the ATOM records as a chain B, moved along x."""
    return [
        f"{line[:21]}B{line[22:30]}{float(line[30:38]) + angstrom:8.3f}{line[38:]}"
        for line in chain
        if line.startswith("ATOM")
    ]


def test_two_chains_have_separate_ends(tmp_path: Path) -> None:
    chain = [line for line in heavy("AKA") if not line.startswith("END")]
    prepared = from_pdb(tmp_path, [*chain, *shifted(chain, 30.0)])
    assert prepared.n_atoms == 2 * prepare(SystemSpec("x", sequence="AKA", platform="Reference")).n_atoms
    assert len(prepared.phi_indices) == 2


def test_close_cysteines_are_bridged(tmp_path: Path) -> None:
    lines = [line for line in heavy("C", cap=True) if line.startswith("ATOM")]
    positions = np.array([[float(line[start : start + 8]) for start in (30, 38, 46)] for line in lines])
    sulfur = positions[next(i for i, line in enumerate(lines) if " SG " in line)]
    outward = sulfur - positions.mean(axis=0)
    outward /= np.linalg.norm(outward)
    # Half a turn about an axis that passes the sulfur at half a disulfide bond's length.
    axis = np.cross(outward, [0.0, 0.0, 1.0])
    axis /= np.linalg.norm(axis)
    arms = positions - (sulfur + 1.02 * outward)
    turned = sulfur + 1.02 * outward + 2 * np.outer(arms @ axis, axis) - arms
    partner = [
        f"{line[:21]}B{line[22:30]}{x:8.3f}{y:8.3f}{z:8.3f}{line[54:]}"
        for line, (x, y, z) in zip(lines, turned, strict=True)
    ]
    prepared = from_pdb(tmp_path, [*lines, *partner])
    single = prepare(SystemSpec("x", sequence="C", cap=True, platform="Reference"))
    assert prepared.n_atoms == 2 * single.n_atoms - 2
    sulfurs = [atom.index for atom in topology_of(prepared).atoms() if atom.name == "SG"]
    length = np.linalg.norm(np.subtract(*prepared.positions[sulfurs]))
    assert length == pytest.approx(0.204, abs=0.005)


def test_first_model_and_first_alternate_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks.pdb")
    atoms = [line for line in heavy("AKA") if line.startswith("ATOM")]
    cb = next(line for line in atoms if " CB  LYS" in line)
    twice = atoms[:]
    twice[atoms.index(cb) : atoms.index(cb) + 1] = [
        f"{cb[:16]}A{cb[17:]}",
        f"{cb[:16]}B{cb[17:30]}  88.000{cb[38:]}",
    ]
    model = ["MODEL        1\n", *twice, "ENDMDL\n", "MODEL        2\n", *atoms, "ENDMDL\n"]
    assert from_pdb(tmp_path, model).digest == from_pdb(tmp_path, heavy("AKA")).digest
    assert "of several models the first is used" in caplog.text
    assert "of alternate locations the first is used" in caplog.text


def gap() -> list[str]:
    return [line for line in heavy("AAKAA") if " LYS " not in line]


def with_ligand() -> list[str]:
    ligand = [
        f"HETATM   9{i}  C{i}  LIG A 301      4{i}.000  30.000  30.000  1.00  0.00           C  \n" for i in range(3)
    ]
    return [*heavy("AKA")[:-1], *ligand, "END\n"]


def on_top_of_each_other() -> list[str]:
    chain = [line for line in heavy("AKA") if not line.startswith("END")]
    return [*chain, *shifted(chain, 0.3)]


def wrong_hydrogen() -> list[str]:
    pdb = prepare(SystemSpec("x", sequence="AKA", platform="Reference")).topology_pdb
    return [line.replace(" HA  LYS", " HX9 LYS") for line in pdb.splitlines(keepends=True)]


def without_position() -> list[str]:
    lines = heavy("AKA")
    lines[3] = f"{lines[3][:30]}     nan{lines[3][38:]}"
    return lines


BAD_FILES = {
    "empty": (lambda: [], "holds no ATOM record: give a file in PDB format"),
    "garbage": (lambda: ["not a structure\n"], "holds no ATOM record"),
    "ligand": (with_ligand, "holds residue LIG A301, which ff14SB does not know: remove it, or add parameters"),
    "phosphoserine": (
        lambda: [line.replace("SER", "SEP") for line in heavy("ASA")],
        "holds residue SEP A2, which ff14SB does not know",
    ),
    "gap": (
        gap,
        "chain is broken between residue ALA A2 and residue ALA A4, .* A apart: model the missing residues",
    ),
    "backbone": (
        lambda: [line for line in heavy("AKA") if " CA  LYS" not in line],
        "residue LYS A2 lacks CA of its backbone: complete it",
    ),
    "overlap": (on_top_of_each_other, "atom N of residue ALA A1 and atom N of residue ALA B1 lie on top"),
    "hydrogen": (wrong_hydrogen, "holds residue LYS A2, whose atoms match no residue .*take the hydrogens out"),
    "single": (lambda: heavy("H"), "holds residue HIS A1, .* cap a chain of a single residue"),
    "position": (without_position, "line 4 has no position in columns 31 to 54: mend or remove that line"),
    "truncated": (lambda: [heavy("AKA")[0][:20] + "\n"], "line 1 has no position"),
    "duplicate": (
        lambda: [heavy("AKA")[0], *heavy("AKA")],
        "cannot be understood .*duplicate atom.*: mend it or fetch it anew",
    ),
    "ter": (lambda: ["TER\n", *heavy("AKA")], "cannot be understood .*: mend it or fetch it anew"),
    "water only": (
        lambda: ["HETATM   90  O   HOH A 201      30.000  30.000  30.000  1.00  0.00           O  \n"],
        "holds no amino acid: give a protein or a peptide",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    lines, message = BAD_FILES[kind]
    with pytest.raises(BadInput, match=message) as caught:
        from_pdb(tmp_path, lines())
    assert str(tmp_path / "input.pdb") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing.pdb cannot be read \(No such file or directory\): give"):
        prepare(SystemSpec("x", pdb=str(tmp_path / "nothing.pdb")))
    with pytest.raises(BadInput, match=r"cannot be read \(Is a directory\)"):
        prepare(SystemSpec("x", pdb=str(tmp_path)))
    packed = tmp_path / "packed.pdb"
    packed.write_bytes(b"\x1f\x8b\x08\x00\xff\xfe")
    with pytest.raises(BadInput, match="packed.pdb is not text: give an uncompressed PDB file"):
        prepare(SystemSpec("x", pdb=str(packed)))


# ---- specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SystemSpec("x"), "'x' has nothing that it is made from: give one of sequence, pdb"),
        (SystemSpec("x", sequence="AA", pdb="y.pdb"), "has sequence 'AA' and pdb 'y.pdb': give one of sequence"),
        (SystemSpec("x", pdb="y.pdb", cap=True), "cap is for sequences: put ACE and NME into y.pdb"),
        (SystemSpec("x", sequence="AXA"), "'AXA' holds 'X', which names no amino acid"),
        (SystemSpec("x", sequence="A"), "'A' is a lone amino acid, .*: set cap"),
        (SystemSpec("x", sequence="AA", temperature_K=0.0), "temperature 0.0 K is not possible"),
        (SystemSpec("x", sequence="AA", temperature_K=float("nan")), "temperature nan K is not possible"),
        (SystemSpec("x", sequence="AA", seed=0), "seed 0 is out of range: give an integer from 1"),
        (SystemSpec("x", sequence="AA", platform="Abacus"), "platform 'Abacus' is not usable here"),
    ],
)
def test_bad_specs_are_refused(spec: SystemSpec, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        prepare(spec)


def test_named_system_takes_conditions_and_lists_what_it_knows() -> None:
    spec = named_system("chignolin", temperature_K=340.0, platform="CPU", seed=4)
    assert spec == SystemSpec("chignolin", sequence="YYDPETGTWY", temperature_K=340.0, platform="CPU", seed=4)
    with pytest.raises(BadInput, match="'chignolen': choose one of alanine-dipeptide, chignolin"):
        named_system("chignolen")
    assert all(spec.name == name for name, spec in NAMED_SYSTEMS.items())


def test_overlapping_atoms_that_cannot_be_minimised_are_refused() -> None:
    system = openmm.System()
    force = openmm.NonbondedForce()
    for _ in range(2):
        system.addParticle(12.0)
        force.addParticle(0.0, 0.3, 1.0)
    system.addForce(force)
    with pytest.raises(BadInput, match="^here .*: look for atoms that overlap"):
        minimise(system, np.zeros((2, 3)), "here")


# ---- platforms


@pytest.mark.parametrize(
    ("working", "n_atoms", "chosen"),
    [
        ({"Reference", "CPU"}, 22, "Reference"),
        ({"Reference", "CPU"}, 60, "Reference"),
        ({"Reference", "CPU"}, 61, "CPU"),
        ({"Reference", "CPU", "OpenCL"}, 22, "OpenCL"),
        ({"Reference", "CPU", "OpenCL", "HIP"}, 166, "HIP"),
        ({"Reference", "CPU", "OpenCL", "HIP", "CUDA"}, 166, "CUDA"),
    ],
)
def test_auto_takes_the_best_platform(
    monkeypatch: pytest.MonkeyPatch, working: set[str], n_atoms: int, chosen: str
) -> None:
    monkeypatch.setattr(platforms, "works", working.__contains__)
    assert resolve_platform("auto", n_atoms) == chosen


def test_a_platform_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "works", {"Reference", "CPU"}.__contains__)
    with pytest.raises(BadInput, match="'CUDA' is not usable here: choose auto or one of Reference, CPU$"):
        resolve_platform("CUDA", 22)
    assert resolve_platform("CPU", 22) == "CPU"


def test_host_platforms_work_and_unknown_ones_do_not() -> None:
    assert resolve_platform("Reference", 10_000) == "Reference"
    assert resolve_platform("CPU", 1) == "CPU"
    with pytest.raises(BadInput, match="'cpu' is not usable here: choose auto or one of Reference, CPU"):
        resolve_platform("cpu", 1)


def test_one_thread_on_the_cpu_and_mixed_precision_on_gpus(chignolin: PreparedSystem) -> None:
    assert platform_properties("Reference") == {}
    assert platform_properties("OpenCL") == {"Precision": "mixed"}
    context = make_context(chignolin, replace(DYNAMICS, platform="CPU"))
    assert context.getPlatform().getPropertyValue(context, "Threads") == "1"


@pytest.mark.gpu
def test_gpu_agrees_with_the_host(chignolin: PreparedSystem) -> None:
    if not platforms.works("CUDA"):
        pytest.skip("no CUDA device")
    assert resolve_platform("auto", 22) == "CUDA"
    context = make_context(chignolin, replace(DYNAMICS, platform="CUDA"))
    assert context.getPlatform().getPropertyValue(context, "Precision") == "mixed"
    energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    system = openmm.XmlSerializer.deserialize(chignolin.system_xml)
    assert energy == pytest.approx(energy_and_forces(system, chignolin.positions)[0], abs=0.1)
