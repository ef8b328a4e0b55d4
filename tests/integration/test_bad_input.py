"""Bad input: one sentence with thing, value and remedy, exit code 2, and nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sites.redis_server import free_port
from tasks.models import fit_pca
from tasks.peptides import peptide_pdb
from tests.integration.conftest import ROOT, small_disk


def refuse(tmp_path: Path, *flags: str, home: Path | None = None) -> str:
    """Return the sentence with which a command is refused."""
    before = snapshot(tmp_path)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *flags],
        cwd=ROOT,
        env=os.environ | {"HOME": str(home or tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert out == ""
    (sentence,) = err.splitlines()
    assert sentence.startswith("wayfinder: ")
    assert snapshot(tmp_path) == before
    # Others' tests may begin campaigns there meanwhile; a run directory is called after its process.
    assert list((ROOT / "runs").glob(f"*-{process.pid}")) == []
    return sentence


def snapshot(folder: Path) -> set[Path]:
    """Everything in a folder; an empty directory for keys may stay in the home."""
    return {
        path for path in folder.rglob("*") if path.name not in (".wayfinder", ".cache") and ".cache" not in path.parts
    }


def test_unknown_system(tmp_path: Path) -> None:
    sentence = refuse(tmp_path, "--system", "villin", "--run-dir", str(tmp_path / "run"))
    assert "--system villin" in sentence
    assert "alanine-dipeptide" in sentence


def test_unknown_policy(tmp_path: Path) -> None:
    sentence = refuse(tmp_path, "--policy", "greedy", "--run-dir", str(tmp_path / "run"))
    assert "--policy greedy" in sentence
    assert "least-counts, lof, weighted-ensemble, rmsd:FILE or MODULE:POLICY" in sentence


def test_target_that_is_another_molecule(tmp_path: Path) -> None:
    target = tmp_path / "target.pdb"
    target.write_text(peptide_pdb("GG"))
    sentence = refuse(tmp_path, "--policy", f"rmsd:{target}", "--run-dir", str(tmp_path / "run"))
    assert f"--policy rmsd:{target} has 2 residues" in sentence


def test_unknown_site(tmp_path: Path) -> None:
    sentence = refuse(tmp_path, "--ml-site", "frontier", "--run-dir", str(tmp_path / "run"))
    assert "site frontier is not known" in sentence
    assert "local" in sentence


@pytest.mark.parametrize("content", [None, "", "no structure\n"])
def test_unreadable_pdb(tmp_path: Path, content: str | None) -> None:
    pdb = tmp_path / "mine.pdb"
    if content is not None:
        pdb.write_text(content)
    assert str(pdb) in refuse(tmp_path, "--pdb", str(pdb), "--run-dir", str(tmp_path / "run"))


def test_impossible_combination(tmp_path: Path) -> None:
    assert "--no-proxystore" in refuse(tmp_path, "--no-proxystore", "--infer-ps-backend", "file")


def test_run_directory_that_exists(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    sentence = refuse(tmp_path, "--run-dir", str(tmp_path / "run"), "--max-segments", "5")
    assert f"{tmp_path / 'run'} exists already" in sentence


def test_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = refuse(tmp_path, "--run-dir", str(tmp_path / "file" / "deep" / "run"), "--max-segments", "5")
    assert "cannot be made" in sentence
    assert "--run-dir" in sentence


def test_full_disk(tmp_path: Path) -> None:
    sentence = refuse(tmp_path, "--min-free-mb", "900000000", "--run-dir", str(tmp_path / "a" / "run"))
    assert "--min-free-mb" in sentence
    assert "MB free" in sentence


def test_weights_of_another_shape(tmp_path: Path) -> None:
    weights = tmp_path / "weights.npz"
    weights.write_bytes(fit_pca(np.random.default_rng(0).normal(size=(50, 7, 3)).astype(np.float32), 4).to_bytes())
    sentence = refuse(tmp_path, "--aae-weights", str(weights), "--run-dir", str(tmp_path / "run"))
    assert "7" in sentence
    assert "10" in sentence


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    sentence = refuse(tmp_path, "--aae-weights", str(tmp_path / "none.pt"), "--run-dir", str(tmp_path / "run"))
    assert f"--aae-weights {tmp_path / 'none.pt'} cannot be read" in sentence


def test_missing_cuda(tmp_path: Path) -> None:
    import openmm

    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if "CUDA" in names:
        pytest.skip("this machine has OpenMM's CUDA platform")
    sentence = refuse(tmp_path, "--platform", "CUDA", "--run-dir", str(tmp_path / "run"))
    assert "CUDA" in sentence
    assert "Reference" in sentence


def test_redis_that_does_not_answer(tmp_path: Path) -> None:
    port = str(free_port())
    sentence = refuse(
        *(tmp_path, "--queue", "redis", "--redishost", "127.0.0.1", "--redisport", port),
        *("--run-dir", str(tmp_path / "run")),
    )
    assert f"127.0.0.1:{port}" in sentence


def test_port_that_is_taken(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        sentence = refuse(tmp_path, "--queue", "redis", "--redisport", port, "--run-dir", str(tmp_path / "run"))
    assert f"port {port}" in sentence
    assert "--redisport" in sentence


def test_store_that_the_site_does_not_reach(tmp_path: Path) -> None:
    sentence = refuse(tmp_path, "--ml-site", "local-no-redis", "--infer-ps-backend", "redis")
    assert "--infer-ps-backend redis" in sentence
    assert "local-no-redis" in sentence


def test_no_endpoint_of_proxystore_runs_here(tmp_path: Path) -> None:
    flags = ("--infer-ps-backend", "endpoint")
    sentence = refuse(tmp_path, *flags)
    assert sentence.startswith(
        "wayfinder: --infer-ps-backend endpoint has no endpoints: add --ps-endpoints UUID,UUID"
    )
    sentence = refuse(tmp_path, *flags, "--ps-endpoints", "7c4f1a52-0d8e-4b6e-9a55-3f2f6f0f8a11")
    assert "--ps-endpoints: none of the ProxyStore endpoints 7c4f1a52-0d8e-4b6e-9a55-3f2f6f0f8a11 runs on" in sentence
    assert "need UDP between them, and a relay server" in sentence


def test_unknown_flag(tmp_path: Path) -> None:
    assert "--max-segmens" in refuse(tmp_path, "--max-segmens", "5")


@pytest.mark.parametrize("name", ["a run", "it's", "a$b"])
def test_path_that_start_scripts_cannot_take(tmp_path: Path, name: str) -> None:
    sentence = refuse(tmp_path, "--run-dir", str(tmp_path / "deep" / name), "--max-segments", "5")
    assert "start scripts" in sentence
    assert "--run-dir" in sentence


def test_home_that_cannot_be_written(tmp_path: Path) -> None:
    flags = ("--run-dir", str(tmp_path / "deep" / "run"), "--ps-file-dir", str(tmp_path / "stores" / "x"))
    assert "set HOME" in refuse(tmp_path, *flags, "--max-segments", "5", home=Path("/proc"))


def test_disk_that_is_full_although_nothing_was_asked_of_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8k") as disk:
        sentence = refuse(tmp_path, "--run-dir", str(disk / "run"), "--min-free-mb", "0", "--max-segments", "5")
    assert str(tmp_path / "disk") in sentence
