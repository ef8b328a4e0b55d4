"""Molecules from files of Amber, GROMACS and OpenMM; the same small molecule in each, written here."""

import math
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from tasks.errors import BadInput
from tasks.inputs import read_amber, read_gromacs, read_openmm
from tasks.systems import SystemSpec, prepare

# A made-up alcohol, C-C-O-H, with one water beside it.
NAMES = ["C1", "C2", "O1", "H1", "O", "H1", "H2"]
TYPES = ["CT", "CT", "OH", "HO", "OW", "HW", "HW"]
NUMBERS = [6, 6, 8, 1, 8, 1, 1]
MASSES = [12.01, 12.01, 16.0, 1.008, 16.0, 1.008, 1.008]
CHARGES = [0.1, 0.15, -0.65, 0.4, -0.834, 0.417, 0.417]
KINDS = ["CT", "OH", "HO", "OW", "HW"]
SIGMA_NM = dict(zip(KINDS, [0.34, 0.31, 0.0, 0.315, 0.0], strict=True))
EPSILON_KJ = dict(zip(KINDS, [0.45, 0.88, 0.0, 0.636, 0.0], strict=True))
BONDS = [(0, 1, 0.153, 250_000.0), (1, 2, 0.142, 260_000.0), (2, 3, 0.096, 460_000.0)]
WATER_BONDS = [(4, 5, 0.09572, 460_000.0), (4, 6, 0.09572, 460_000.0), (5, 6, 0.15136, 460_000.0)]
ANGLES = [(0, 1, 2, 1.91, 418.0), (1, 2, 3, 1.90, 460.0)]
POSITIONS = np.array(
    [
        [0.100, 0.100, 0.100],
        [0.253, 0.100, 0.100],
        [0.300, 0.234, 0.100],
        [0.396, 0.234, 0.104],
        [0.560, 0.240, 0.110],
        [0.620, 0.310, 0.110],
        [0.620, 0.170, 0.112],
    ]
)
BOX_NM = 2.4


def section(name: str, kind: str, values: list) -> str:
    """Return a section of a prmtop file."""
    form, width, a_line = {"a": ("20a4", 4, 20), "E": ("5E16.8", 16, 5), "I": ("10I8", 8, 10)}[kind]
    shown = {"a": "{:<4}", "E": "{:16.8E}", "I": "{:8d}"}[kind]
    text = "".join(shown.format(value) for value in values)
    lines = [text[i : i + width * a_line] for i in range(0, len(text), width * a_line)] or [""]
    return f"%FLAG {name}\n%FORMAT({form})\n" + "\n".join(lines) + "\n"


def write_amber(folder: Path, *, periodic: bool) -> tuple[Path, Path]:
    """Write the molecule as prmtop and inpcrd."""
    pairs = [(KINDS[i], KINDS[j]) for i in range(5) for j in range(i + 1)]
    sigma6 = [((SIGMA_NM[a] + SIGMA_NM[b]) / 2 * 10) ** 6 for a, b in pairs]
    depth = [math.sqrt(EPSILON_KJ[a] * EPSILON_KJ[b]) / 4.184 for a, b in pairs]
    table = [1 + max(i, j) * (max(i, j) + 1) // 2 + min(i, j) for i in range(5) for j in range(5)]
    excluded = [[1, 2, 3], [2, 3], [3], [], [5, 6], [6], []]
    all_bonds = [*BONDS, *WATER_BONDS]
    with_h = [n for n, bond in enumerate(all_bonds) if 1 in (NUMBERS[bond[0]], NUMBERS[bond[1]])]
    without_h = [n for n in range(len(all_bonds)) if n not in with_h]

    def triples(which: list[int]) -> list[int]:
        return [v for n in which for v in (3 * all_bonds[n][0], 3 * all_bonds[n][1], n + 1)]

    def angle(n: int) -> list[int]:
        return [*(3 * atom for atom in ANGLES[n][:3]), n + 1]

    n_excluded = sum(len(atoms) or 1 for atoms in excluded)
    pointers = [7, 5, len(with_h), len(without_h), 1, 1, 0, 0, 0, 0, n_excluded, 2, len(without_h), 1, 0, 6, 2, 0, 5]
    pointers += [0] * 8 + [int(periodic), 4, 0, 0]
    sections = [
        section("TITLE", "a", ["MOL"]),
        section("POINTERS", "I", pointers),
        section("ATOM_NAME", "a", NAMES),
        section("CHARGE", "E", [18.2223 * charge for charge in CHARGES]),
        section("ATOMIC_NUMBER", "I", NUMBERS),
        section("MASS", "E", MASSES),
        section("ATOM_TYPE_INDEX", "I", [1 + KINDS.index(kind) for kind in TYPES]),
        section("NUMBER_EXCLUDED_ATOMS", "I", [len(atoms) or 1 for atoms in excluded]),
        section("NONBONDED_PARM_INDEX", "I", table),
        section("RESIDUE_LABEL", "a", ["MOL", "WAT"]),
        section("RESIDUE_POINTER", "I", [1, 5]),
        section("BOND_FORCE_CONSTANT", "E", [bond[3] / 4.184 / 200 for bond in all_bonds]),
        section("BOND_EQUIL_VALUE", "E", [bond[2] * 10 for bond in all_bonds]),
        section("ANGLE_FORCE_CONSTANT", "E", [each[4] / 4.184 / 2 for each in ANGLES]),
        section("ANGLE_EQUIL_VALUE", "E", [each[3] for each in ANGLES]),
        *(section(f"DIHEDRAL_{name}", "E", []) for name in ("FORCE_CONSTANT", "PERIODICITY", "PHASE")),
        section("SOLTY", "E", [0.0] * 5),
        section("LENNARD_JONES_ACOEF", "E", [4 * e * s6**2 for e, s6 in zip(depth, sigma6, strict=True)]),
        section("LENNARD_JONES_BCOEF", "E", [4 * e * s6 for e, s6 in zip(depth, sigma6, strict=True)]),
        section("BONDS_INC_HYDROGEN", "I", triples(with_h)),
        section("BONDS_WITHOUT_HYDROGEN", "I", triples(without_h)),
        section("ANGLES_INC_HYDROGEN", "I", angle(1)),
        section("ANGLES_WITHOUT_HYDROGEN", "I", angle(0)),
        section("DIHEDRALS_INC_HYDROGEN", "I", []),
        section("DIHEDRALS_WITHOUT_HYDROGEN", "I", []),
        section("EXCLUDED_ATOMS_LIST", "I", [a + 1 for atoms in excluded for a in (atoms or [-1])]),
        section("HBOND_ACOEF", "E", []),
        section("HBOND_BCOEF", "E", []),
        section("HBCUT", "E", []),
        section("AMBER_ATOM_TYPE", "a", TYPES),
        section("TREE_CHAIN_CLASSIFICATION", "a", ["M"] * 7),
        section("JOIN_ARRAY", "I", [0] * 7),
        section("IROTAT", "I", [0] * 7),
        section("RADII", "E", [1.7, 1.7, 1.5, 1.2, 1.5, 1.2, 1.2]),
        section("SCREEN", "E", [0.72, 0.72, 0.85, 0.85, 0.85, 0.85, 0.85]),
    ]
    if periodic:
        sections += [
            section("SOLVENT_POINTERS", "I", [1, 2, 2]),
            section("ATOMS_PER_MOLECULE", "I", [4, 3]),
            section("BOX_DIMENSIONS", "E", [90.0, *[10 * BOX_NM] * 3]),
        ]
    prmtop, coordinates = folder / "mol.prmtop", folder / "mol.rst7"
    prmtop.write_text("%VERSION  VERSION_STAMP = V0001.000  DATE = 01/01/01  00:00:00\n" + "".join(sections))
    numbers = [f"{value:12.7f}" for value in 10 * POSITIONS.ravel()]
    lines = ["".join(numbers[i : i + 6]) for i in range(0, len(numbers), 6)]
    if periodic:
        lines.append("".join(f"{value:12.7f}" for value in [*[10 * BOX_NM] * 3, 90.0, 90.0, 90.0]))
    coordinates.write_text("MOL\n    7\n" + "\n".join(lines) + "\n")
    return prmtop, coordinates


def write_gromacs(folder: Path, *, periodic: bool) -> tuple[Path, Path]:
    """Write the molecule as top and gro."""
    mass = dict(zip(TYPES, MASSES, strict=True))
    number = dict(zip(TYPES, NUMBERS, strict=True))
    lines = ["[ defaults ]", "1 2 no 1.0 1.0", "[ atomtypes ]"]
    lines += [f"{k} {number[k]} {mass[k]} 0.0 A {SIGMA_NM[k]} {EPSILON_KJ[k]}" for k in KINDS]
    for name, atoms, bonds, angles in (("MOL", range(4), BONDS, ANGLES), ("SOL", range(4, 7), WATER_BONDS, [])):
        first = atoms[0] - 1
        lines += ["[ moleculetype ]", f"{name} 3", "[ atoms ]"]
        lines += [f"{a - first} {TYPES[a]} 1 {name} {NAMES[a]} 1 {CHARGES[a]} {MASSES[a]}" for a in atoms]
        lines += ["[ bonds ]", *(f"{a - first} {b - first} 1 {length} {k}" for a, b, length, k in bonds)]
        if angles:
            lines += ["[ angles ]"]
            lines += [f"{a + 1} {b + 1} {c + 1} 1 {math.degrees(theta)} {k}" for a, b, c, theta, k in angles]
            # Amber's list above leaves out every pair of the alcohol; so does an exclusion of its ends.
            lines += ["[ exclusions ]", "1 4"]
    lines += ["[ system ]", "alcohol", "[ molecules ]", "MOL 1", "SOL 1", ""]
    top, gro = folder / "mol.top", folder / "mol.gro"
    top.write_text("\n".join(lines))
    atoms = [
        f"{1 + (i > 3):5d}{'SOL' if i > 3 else 'MOL':<5}{NAMES[i]:>5}{i + 1:5d}" + "".join(f"{x:8.3f}" for x in p)
        for i, p in enumerate(POSITIONS)
    ]
    box = " ".join([f"{BOX_NM if periodic else 0:10.5f}"] * 3)
    gro.write_text("\n".join(["alcohol", "    7", *atoms, box, ""]))
    return top, gro


def energy(system: openmm.System) -> float:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(POSITIONS)
    return context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def forces_of(system: openmm.System) -> set[str]:
    return {type(force).__name__ for force in system.getForces()}


READERS = {"amber": (write_amber, read_amber), "gromacs": (write_gromacs, read_gromacs)}


# ---- what the files say


@pytest.mark.parametrize("kind", READERS)
def test_files_with_a_box_are_explicit(tmp_path: Path, kind: str) -> None:
    write, read = READERS[kind]
    molecule = read(*write(tmp_path, periodic=True), None)
    np.testing.assert_allclose(molecule.box, BOX_NM * np.eye(3), atol=1e-6)
    np.testing.assert_allclose(molecule.positions, POSITIONS, atol=1e-6)
    (nonbonded,) = (f for f in molecule.system.getForces() if isinstance(f, openmm.NonbondedForce))
    assert nonbonded.getNonbondedMethod() == openmm.NonbondedForce.PME
    assert nonbonded.getCutoffDistance().value_in_unit(unit.nanometer) == pytest.approx(0.9)


@pytest.mark.parametrize(("kind", "solvent"), [("amber", "OBC2"), ("gromacs", "none")])
def test_files_without_a_box_are_not_periodic(tmp_path: Path, kind: str, solvent: str) -> None:
    write, read = READERS[kind]
    molecule = read(*write(tmp_path, periodic=False), None)
    assert molecule.box is None
    born = forces_of(molecule.system) & {"GBSAOBCForce", "CustomGBForce"}
    assert bool(born) == (solvent == "OBC2")


@pytest.mark.parametrize("kind", READERS)
def test_bonds_to_hydrogen_are_rigid_and_hydrogens_heavy(tmp_path: Path, kind: str) -> None:
    write, read = READERS[kind]
    system = read(*write(tmp_path, periodic=False), "vacuum").system
    rigid = {tuple(sorted(system.getConstraintParameters(i)[:2])) for i in range(system.getNumConstraints())}
    assert rigid == {(2, 3), (4, 5), (4, 6), (5, 6)}
    masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(7)]
    assert masses[3] == pytest.approx(3.0)
    assert sum(masses) == pytest.approx(sum(MASSES))


@pytest.mark.parametrize("periodic", [False, True])
def test_amber_and_gromacs_files_of_a_molecule_give_one_energy(tmp_path: Path, periodic: bool) -> None:
    solvent = "explicit" if periodic else "vacuum"
    amber = read_amber(*write_amber(tmp_path, periodic=periodic), solvent)
    gromacs = read_gromacs(*write_gromacs(tmp_path, periodic=periodic), solvent)
    one, other = energy(amber.system), energy(gromacs.system)
    assert abs(one) > 1
    # Amber rounds the constant of Coulomb's law.
    assert one == pytest.approx(other, rel=2e-3)


def test_a_serialised_system_is_taken_as_it_is(tmp_path: Path) -> None:
    source = read_gromacs(*write_gromacs(tmp_path, periodic=True), None)
    source.system.addForce(openmm.CustomExternalForce("x"))
    xml, pdb = tmp_path / "s.xml", tmp_path / "s.pdb"
    xml.write_text(openmm.XmlSerializer.serialize(source.system))
    app.PDBFile.writeFile(source.topology, source.positions * unit.nanometer, pdb.open("w"))
    molecule = read_openmm(xml, pdb)
    assert openmm.XmlSerializer.serialize(molecule.system) == xml.read_text()
    np.testing.assert_allclose(molecule.positions, POSITIONS, atol=1e-4)
    prepared = prepare(
        SystemSpec("s", openmm_system=(str(xml), str(pdb)), pressure_bar=1.0, platform="Reference", features="all")
    )
    assert prepared.system_xml == xml.read_text()


# ---- what makes no sense


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("periodic", "asked", "said"), [(True, "vacuum", "have a box"), (False, "explicit", "no box")]
)
def test_a_solvent_that_files_do_not_hold_is_refused(
    tmp_path: Path, kind: str, periodic: bool, asked: str, said: str
) -> None:
    write, read = READERS[kind]
    with pytest.raises(BadInput, match=rf"{said}.*--solvent {asked}"):
        read(*write(tmp_path, periodic=periodic), asked)


def test_gromacs_files_have_no_implicit_solvent(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no radii for --solvent implicit"):
        read_gromacs(*write_gromacs(tmp_path, periodic=False), "implicit")


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("content", [None, b"", b"hello\n", b"\xff\xfe\x00", b"[ atoms ]\n1 2\n", b"%FLAG CHARGE\n"])
def test_files_that_are_something_else_are_refused_by_name(
    tmp_path: Path, kind: str, which: int, content: bytes | None
) -> None:
    write, read = READERS[kind]
    files = write(tmp_path, periodic=False)
    files[which].unlink()
    if content is not None:
        files[which].write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read(*files, None)
    sentence = str(caught.value)
    assert str(files[which]) in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("kind", READERS)
def test_files_of_different_molecules_are_refused(tmp_path: Path, kind: str) -> None:
    write, read = READERS[kind]
    topology, coordinates = write(tmp_path, periodic=False)
    lines = coordinates.read_text().splitlines()
    if kind == "amber":
        lines[1:] = ["    2", "".join(f"{x:12.7f}" for x in range(6))]
    else:
        lines[1:-1] = ["    2", *lines[2:4]]
    coordinates.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput, match=r"has 7 atoms and .* 2: give files of the same molecule"):
        read(topology, coordinates, None)


def test_a_missing_include_file_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMXDATA", str(tmp_path / "nowhere"))
    top, gro = write_gromacs(tmp_path, periodic=False)
    top.write_text('#include "amber99sb.ff/forcefield.itp"\n' + top.read_text())
    with pytest.raises(BadInput, match=r"includes amber99sb.ff/forcefield.itp, which .*set GMXDATA"):
        read_gromacs(top, gro, None)


def test_include_files_beside_the_topology_are_found(tmp_path: Path) -> None:
    top, gro = write_gromacs(tmp_path, periodic=False)
    text = top.read_text()
    (tmp_path / "all.itp").write_text(text)
    top.write_text('#include "all.itp"\n')
    assert read_gromacs(top, gro, None).system.getNumParticles() == 7


@pytest.mark.parametrize(
    ("xml", "pdb", "said"),
    [
        (None, "", "s.xml cannot be used"),
        ("", "", "s.xml cannot be used"),
        ("<System>", "", "s.xml cannot be used"),
        (openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001)), "", "holds a VerletIntegrator"),
        (openmm.XmlSerializer.serialize(openmm.System()), None, "s.pdb cannot be used"),
        (openmm.XmlSerializer.serialize(openmm.System()), "ATOM  nonsense\n", "s.pdb cannot be used"),
    ],
)
def test_bad_openmm_files_are_refused(tmp_path: Path, xml: str | None, pdb: str | None, said: str) -> None:
    for name, content in (("s.xml", xml), ("s.pdb", pdb)):
        if content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=said) as caught:
        read_openmm(tmp_path / "s.xml", tmp_path / "s.pdb")
    assert "\n" not in str(caught.value)


def test_a_system_with_other_atoms_than_its_pdb_file_is_refused(tmp_path: Path) -> None:
    source = read_gromacs(*write_gromacs(tmp_path, periodic=False), None)
    app.PDBFile.writeFile(source.topology, source.positions * unit.nanometer, (tmp_path / "s.pdb").open("w"))
    source.system.addParticle(1.0)
    (tmp_path / "s.xml").write_text(openmm.XmlSerializer.serialize(source.system))
    with pytest.raises(BadInput, match=r"has 8 particles and PDB file .* 7 atoms"):
        read_openmm(tmp_path / "s.xml", tmp_path / "s.pdb")


# ---- prepared


@pytest.mark.parametrize("kind", READERS)
def test_files_are_prepared_to_run(tmp_path: Path, kind: str) -> None:
    files = tuple(map(str, READERS[kind][0](tmp_path, periodic=True)))
    prepared = prepare(SystemSpec("mol", platform="Reference", **{kind: files}))
    assert prepared.n_atoms == 7
    assert "MonteCarloBarostat" in prepared.system_xml
    assert prepared.stored_indices.tolist() == [0, 1, 2, 3]
    assert prepared.feature_indices.tolist() == [0, 1, 2]
    constant = prepare(SystemSpec("mol", platform="Reference", pressure_bar=0.0, **{kind: files}))
    assert "Barostat" not in constant.system_xml


def test_a_box_too_small_for_the_cutoff_is_refused(tmp_path: Path) -> None:
    top, gro = write_gromacs(tmp_path, periodic=True)
    gro.write_text(gro.read_text().replace("2.40000", "1.70000"))
    spec = SystemSpec("mol", gromacs=(str(top), str(gro)), platform="Reference")
    with pytest.raises(BadInput, match=r"box 1.7 nm wide, less than twice the cutoff of 0.9 nm"):
        prepare(spec)


def test_molecules_cut_by_the_box_are_put_together(tmp_path: Path) -> None:
    top, gro = write_gromacs(tmp_path, periodic=True)
    whole = prepare(SystemSpec("mol", gromacs=(str(top), str(gro)), platform="Reference"))
    # The oxygen of the alcohol and a hydrogen of the water on the other side.
    lines = gro.read_text().splitlines()
    for line, x in ((4, 2.7), (8, -1.78)):
        lines[line] = lines[line][:20] + f"{x:8.3f}" + lines[line][28:]
    gro.write_text("\n".join(lines) + "\n")
    cut = prepare(SystemSpec("mol", gromacs=(str(top), str(gro)), platform="Reference"))
    np.testing.assert_allclose(cut.positions, whole.positions, atol=1e-3)
