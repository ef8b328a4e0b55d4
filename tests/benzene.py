"""Benzene, a ligand with parameters: no package that is installed here ships a protein with one.

Its values are GAFF's, from memory and rounded (types ca and ha; doi:10.1002/jcc.20035), with charges of 0.13: good
enough for dynamics that hold together, not for science.
"""

import io
import math
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from tasks.peptides import peptide_pdb

PROTEIN = "amber14/protein.ff14SB.xml"
_RING_NM, _HYDROGENS_NM = 0.139, 0.248
_AWAY_NM = 0.5


def write_parameters(folder: Path) -> Path:
    """Write a force-field file of OpenMM that goes with ff14SB."""
    atoms = [f'<Atom name="{e}{i}" type="bnz-{t}" charge="{q}"/>' for e, t, q in _KINDS for i in range(1, 7)]
    bonds = [f'<Bond atomName1="{one}" atomName2="{other}"/>' for one, other in _bonds()]
    path = folder / "benzene.xml"
    path.write_text(f"""<ForceField>
 <AtomTypes>
  <Type name="bnz-ca" class="bnz-ca" element="C" mass="12.01"/>
  <Type name="bnz-ha" class="bnz-ha" element="H" mass="1.008"/>
 </AtomTypes>
 <Residues><Residue name="BNZ">{"".join(atoms + bonds)}</Residue></Residues>
 <HarmonicBondForce>
  <Bond class1="bnz-ca" class2="bnz-ca" length="0.1387" k="400300"/>
  <Bond class1="bnz-ca" class2="bnz-ha" length="0.1087" k="288100"/>
 </HarmonicBondForce>
 <HarmonicAngleForce>
  <Angle class1="bnz-ca" class2="bnz-ca" class3="bnz-ca" angle="{math.radians(119.97)}" k="562"/>
  <Angle class1="bnz-ca" class2="bnz-ca" class3="bnz-ha" angle="{math.radians(120.01)}" k="405"/>
 </HarmonicAngleForce>
 <PeriodicTorsionForce ordering="amber">
  <Proper class1="" class2="bnz-ca" class3="bnz-ca" class4="" periodicity1="2" phase1="{math.pi}" k1="15.17"/>
  <Improper class1="bnz-ca" class2="" class3="" class4="bnz-ha" periodicity1="2" phase1="{math.pi}" k1="4.6"/>
 </PeriodicTorsionForce>
 <NonbondedForce coulomb14scale="0.8333333333333334" lj14scale="0.5">
  <UseAttributeFromResidue name="charge"/>
  <Atom type="bnz-ca" sigma="0.33997" epsilon="0.35982"/>
  <Atom type="bnz-ha" sigma="0.25996" epsilon="0.06276"/>
 </NonbondedForce>
</ForceField>
""")
    return path


def write_complex(folder: Path, sequence: str) -> Path:
    """Write a PDB file of a peptide's heavy atoms and, half a nanometre away, benzene with hydrogens and bonds."""
    peptide = app.PDBFile(io.StringIO(peptide_pdb(sequence, cap=False)))
    heavy = app.Modeller(peptide.topology, peptide.positions)
    place = np.array(peptide.positions.value_in_unit(unit.nanometer))
    corner = np.array([place[:, 0].max() + _AWAY_NM, *place[:, 1:].mean(axis=0)])
    heavy.add(*_benzene(corner))
    path = folder / "complex.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(heavy.topology, heavy.positions, file)
    return path


def write_system(folder: Path, structure: Path, parameters: Path) -> tuple[Path, Path]:
    """Write the complex as OpenMM serialises it, in vacuum and with light hydrogens, and its atoms as a PDB file."""
    force_field = app.ForceField(PROTEIN, str(parameters))
    pdb = app.PDBFile(str(structure))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(force_field, platform=openmm.Platform.getPlatformByName("Reference"))
    system = force_field.createSystem(modeller.topology, constraints=app.HBonds)
    xml, atoms = folder / "system.xml", folder / "system.pdb"
    xml.write_text(openmm.XmlSerializer.serialize(system))
    with atoms.open("w") as file:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, file)
    return xml, atoms


_KINDS = (("C", "ca", -0.13), ("H", "ha", 0.13))


def _bonds() -> list[tuple[str, str]]:
    return [(f"C{i}", f"C{i % 6 + 1}") for i in range(1, 7)] + [(f"C{i}", f"H{i}") for i in range(1, 7)]


def _benzene(corner: np.ndarray) -> tuple[app.Topology, unit.Quantity]:
    topology = app.Topology()
    residue = topology.addResidue("BNZ", topology.addChain())
    atoms, positions = {}, []
    for symbol, radius in (("C", _RING_NM), ("H", _HYDROGENS_NM)):
        for i in range(6):
            name = f"{symbol}{i + 1}"
            atoms[name] = topology.addAtom(name, app.Element.getBySymbol(symbol), residue)
            angle = math.pi / 3 * i
            positions.append(corner + radius * np.array([0.0, math.cos(angle), math.sin(angle)]))
    for one, other in _bonds():
        topology.addBond(atoms[one], atoms[other])
    return topology, np.array(positions) * unit.nanometer
