"""Whole campaigns, learning included, on what users bring: five systems, from five kinds of input."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.benzene import PROTEIN, write_complex, write_parameters, write_system
from tests.integration.conftest import Campaign
from tests.integration.test_campaign import positions

pytestmark = pytest.mark.slow

# Three inferences and a training; friction that brings a minimised structure to its temperature within a segment.
SHORT = (
    *("--max-segments", "12", "--segment-ps", "1", "--frame-ps", "0.2", "--friction", "20", "--seed", "5"),
    *("--retrain-every", "8", "--first-epochs", "2", "--epochs", "1", "--min-model-versions", "1"),
    *("--candidates-per-walker", "2", "--neighbours", "5"),
)


def check(run: Campaign, *, n_stored: int) -> None:
    """Hold a campaign against what every one must be: learning, finite, at its temperature, and all on disk."""
    check_but_for_temperature(run, n_stored=n_stored)
    told = [line["task_info"] for line in run.traces("simulation")]
    # The mean kinetic energy of so few atoms over a picosecond is known within some percent.
    assert np.mean([info["mean_temperature_K"] for info in told[4:]]) == pytest.approx(300, rel=0.12)


def check_but_for_temperature(run: Campaign, *, n_stored: int) -> None:
    assert run.wait() == 0, run.err
    summary, traces = run.summary(), run.traces("simulation")
    assert summary["status"] == "complete"
    assert summary["segments"] == len(traces) >= 12
    assert summary["inferences"] >= 1
    assert summary["model_versions"] >= 1
    assert summary["failures"] == {}
    assert summary["coverage"]["metric"] == "phi_psi_cells"
    assert summary["coverage"]["value"] > 1
    told = [line["task_info"] for line in traces]
    assert all(math.isfinite(info["potential_energy_kj_mol"]) for info in told)
    frames = positions(run.run_dir, 0)
    assert frames.shape == (5, n_stored, 3)
    assert np.isfinite(frames).all()


def residues(pdb: Path) -> list[str]:
    """Residue name of each atom of a PDB file."""
    lines = pdb.read_text().splitlines()
    return [line[17:20].strip() for line in lines if line.startswith(("ATOM", "HETATM"))]


def test_chignolin(campaign: Callable[..., Campaign]) -> None:
    check(campaign("--system", "chignolin", *SHORT), n_stored=166)


def test_trp_cage_from_its_sequence(campaign: Callable[..., Campaign]) -> None:
    # TC5b (Neidigh, Fesinmeyer, Andersen 2002, doi:10.1038/nsb798).
    check(campaign("--sequence", "NLYIQWLKDGGPSSGRPPPS", *SHORT), n_stored=304)


def test_alanine_dipeptide_in_water(campaign: Callable[..., Campaign]) -> None:
    water = ("--solvent", "explicit", "--padding-nm", "0.6", "--equilibrate-ps", "1")
    run = campaign("--system", "alanine-dipeptide", *water, *SHORT)
    check(run, n_stored=22)
    assert set(residues(run.run_dir / "topology.pdb")) == {"ACE", "ALA", "NME"}


def test_a_protein_with_a_ligand_from_a_pdb_file(campaign: Callable[..., Campaign], tmp_path: Path) -> None:
    structure, parameters = write_complex(tmp_path, "YYDPETGTWY"), write_parameters(tmp_path)
    run = campaign("--pdb", str(structure), "--forcefield", f"{PROTEIN},{parameters}", *SHORT)
    check(run, n_stored=178)
    assert residues(run.run_dir / "topology.pdb").count("BNZ") == 12


def test_lysozyme_with_a_ligand_from_files_of_amber(campaign: Callable[..., Campaign]) -> None:
    """T4 lysozyme L99A with p-xylene (TMP), which openmmtools ships; so large that segments have five steps."""
    found = find_spec("openmmtools")
    if found is None or found.origin is None:
        pytest.skip("openmmtools, whose data hold a protein with a ligand, is not installed: make setup")
    folder = Path(found.origin).parent / "data" / "T4-lysozyme-L99A-implicit"
    run = campaign(
        *("--amber", str(folder / "complex.prmtop"), str(folder / "complex-minimized.crd"), "--no-minimise"),
        *("--features", "name CA or (resname TMP and not element H)"),
        *(*SHORT, "--segment-ps", "0.02", "--frame-ps", "0.004", "--embedding", "pca"),
    )
    check_but_for_temperature(run, n_stored=2621)
    assert residues(run.run_dir / "topology.pdb").count("TMP") == 18


def test_a_protein_with_a_ligand_as_openmm_serialised_it(campaign: Callable[..., Campaign], tmp_path: Path) -> None:
    files = write_system(tmp_path, write_complex(tmp_path, "AKAAE"), write_parameters(tmp_path))
    run = campaign("--openmm-system", *map(str, files), "--timestep-fs", "2", *SHORT)
    check(run, n_stored=len(residues(files[1])))
    assert residues(run.run_dir / "topology.pdb").count("BNZ") == 12
