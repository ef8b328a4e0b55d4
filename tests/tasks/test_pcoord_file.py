"""``python -m tasks.infer`` as a stock WESTPA ``runseg.sh`` calls it."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import MDAnalysis
import numpy as np
import pytest

import tasks
from tasks import aae
from tasks.files import publish
from tasks.messages import SegmentSpec
from tasks.models import AAEModel, Model, fit_alignment, fit_pca, load_model
from tasks.pcoord_file import main
from tasks.prepared import PreparedSystem
from tasks.simulate import run_segment
from tasks.transport import fetch


@dataclass(frozen=True)
class Files:
    """What a run leaves, and what is in it."""

    topology: Path
    trajectory: Path
    weights: Path
    out: Path
    points: np.ndarray
    model: Model

    def words(self, **changes: object) -> list[str]:
        chosen = {"topology": self.topology, "weights": self.weights, "out": self.out, **changes}
        trajectory = chosen.pop("trajectory", self.trajectory)
        flags = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
        return [*map(str, trajectory if isinstance(trajectory, list) else [trajectory]), *flags]


@pytest.fixture(scope="module")
def run(alanine: PreparedSystem, segment: SegmentSpec, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("run")
    result = run_segment(replace(segment, run_dir=str(folder)))
    publish(folder, result.trajectory)
    points = fetch(result.frames)["positions"][:, alanine.feature_indices]
    network = aae.new_autoencoder(aae.Architecture(points.shape[1], 3), seed=1)
    model = AAEModel(fit_alignment(points), network)
    (folder / "model.pt").write_bytes(model.to_bytes())
    (folder / "topology.pdb").write_text(alanine.topology_pdb)
    return Files(
        folder / "topology.pdb",
        folder / "trajectories" / "00000003.dcd",
        folder / "model.pt",
        folder / "out" / "pcoord.txt",
        points,
        load_model(model.to_bytes()),
    )


@pytest.fixture
def files(run: Files, tmp_path: Path) -> Files:
    (tmp_path / "out").mkdir()
    return replace(run, out=tmp_path / "out" / "pcoord.txt")


def test_a_command_without_openmm_writes_what_westpa_reads(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import westpa
    from westpa.core.propagators.loaders import pcoord_loader
    from westpa.core.segment import Segment
    from westpa.core.states import BasisState

    # OpenMM and what belongs to a campaign are not there.
    for name in ("openmm", "colmena", "parsl", "agents", "campaign", "policies"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not installed')")
    package = Path(tasks.__file__).parents[1]
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tasks.infer",
        *files.words(trajectory=[files.topology, files.trajectory]),
    ]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{package}", "PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), ended.stderr
    rows = np.loadtxt(files.out, dtype=np.float32)
    assert rows.shape == (6, 2)
    np.testing.assert_allclose(rows[1:], files.model.embed(files.points)[:, :2], atol=2e-6)

    class System:
        pcoord_len, pcoord_ndim, pcoord_dtype = 6, 2, np.float32

    monkeypatch.setattr(westpa.rc, "get_system_driver", System)
    segment = Segment()
    pcoord_loader("pcoord", str(files.out), segment, False)
    np.testing.assert_array_equal(segment.pcoord, rows)
    # As of a basis state in get_pcoord.sh.
    assert main(files.words(trajectory=files.topology)) == 0
    state = BasisState("state", 1.0)
    pcoord_loader("pcoord", str(files.out), state, True)
    np.testing.assert_array_equal(state.pcoord, rows[0])


def test_other_dimensions_and_atoms(files: Files, alanine: PreparedSystem, tmp_path: Path) -> None:
    alpha = fit_pca(files.points[:, :4], 3)
    (tmp_path / "model.npz").write_bytes(alpha.to_bytes())
    atoms = " ".join(str(index) for index in alanine.feature_indices[:4])
    changes = {"weights": tmp_path / "model.npz", "features": f"index {atoms}", "pcoord": "aae:2"}
    assert main(files.words(**changes)) == 0
    np.testing.assert_allclose(np.loadtxt(files.out), alpha.embed(files.points[:, :4])[:, 2], atol=1e-3)


def test_a_box_puts_molecules_together(files: Files, alanine: PreparedSystem, tmp_path: Path) -> None:
    assert main(files.words()) == 0
    whole = np.loadtxt(files.out)
    universe = MDAnalysis.Universe(str(files.topology), str(files.trajectory))
    with MDAnalysis.Writer(str(tmp_path / "torn.dcd"), 22) as writer:
        for step in universe.trajectory:
            universe.atoms[alanine.feature_indices[-3:]].positions += [20.0 * (step.frame + 1), -20.0, 0]
            universe.dimensions = [20.0, 20.0, 20.0, 90, 90, 90]
            writer.write(universe)
    assert main(files.words(trajectory=tmp_path / "torn.dcd")) == 0
    np.testing.assert_allclose(np.loadtxt(files.out), whole, atol=1e-4)


def bad(files: Files, folder: Path) -> dict[str, tuple[dict[str, object], str]]:
    """Return changed flags, and what is said of them."""
    (folder / "empty").touch()
    (folder / "words.pdb").write_text("no structure\n")
    lines = [
        line for line in files.topology.read_text().splitlines(keepends=True) if line.startswith(("ATOM", "HET"))
    ]
    (folder / "short.pdb").write_text("".join([*lines[:-1], "END\n"]))
    cut = folder / "cut.dcd"
    cut.write_bytes(files.trajectory.read_bytes()[:100])
    universe = MDAnalysis.Universe(str(files.topology))
    universe.atoms.positions = np.full((22, 3), np.nan)
    universe.atoms.write(str(folder / "nan.dcd"))
    nowhere = folder / "nowhere"
    return {
        "no trajectory": ({"trajectory": nowhere}, f"trajectory {nowhere} cannot be used (No such file"),
        "unknown format": ({"trajectory": folder / "empty"}, f"trajectory {folder / 'empty'} cannot be used ("),
        "cut trajectory": ({"trajectory": cut}, f"trajectory {cut} "),
        "trajectory of nan": ({"trajectory": folder / "nan.dcd"}, "holds coordinates that are no numbers: look at"),
        "no topology": ({"topology": nowhere}, f"--topology {nowhere} cannot be used (No such file"),
        "no PDB": ({"topology": folder / "words.pdb"}, "--topology "),
        "other atoms": ({"topology": folder / "short.pdb"}, f"give one of the atoms of {folder / 'short.pdb'}"),
        "no weights": ({"weights": nowhere}, f"--weights {nowhere} cannot be used (No such file"),
        "not weights": ({"weights": folder / "empty"}, "give a file that a campaign left in its folder models/"),
        "other points": ({"features": "name CA CB N C"}, "are for 10 points, and "),
        "bad selection": ({"features": "nome CA"}, "--features 'nome CA' is no selection"),
        "few atoms": ({"features": "name CA"}, "selects 1 atoms and must select 3"),
        "dimension": ({"pcoord": "aae:0,3"}, "dimension 3 is asked of model weights whose 3 dimensions count from 0"),
        "slip": ({"pcoord": "aae:a"}, "--pcoord aae:a names no dimensions"),
        "other coordinate": ({"pcoord": "phi-psi"}, "--pcoord phi-psi is no part of an embedding"),
        "no folder": ({"out": nowhere / "pcoord.txt"}, f"--out {nowhere}/pcoord.txt cannot be used (No such file"),
        "a folder": ({"out": folder / "out"}, f"--out {folder / 'out'} cannot be used ("),
    }


KINDS = [
    "no trajectory", "unknown format", "cut trajectory", "trajectory of nan", "no topology", "no PDB", "other atoms",
    "no weights", "not weights", "other points", "bad selection", "few atoms", "dimension", "slip",
    "other coordinate", "no folder", "a folder",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_a_sentence_and_leaves_nothing(
    files: Files, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    changes, said = bad(files, tmp_path)[kind]
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()  # what MDAnalysis has to say of writing these
    assert main(files.words(**changes)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert len(told.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bad_input_leaves_an_older_file_as_it_was(files: Files) -> None:
    files.out.write_text("1 2\n")
    assert main(files.words(pcoord="aae:7")) == 2
    assert files.out.read_text() == "1 2\n"


def test_a_missing_flag_is_said(files: Files, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(files.trajectory)])
    assert "--topology, --weights, --out" in capsys.readouterr().err
