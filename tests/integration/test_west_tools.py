"""WESTPA's own tools, run on a west.h5 of ours with the west.cfg that `export` writes: their numbers are ours."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from campaign.rundir import LEDGER, SYSTEM
from campaign.west.file import WestFile, west_name
from campaign.west.record import Ended
from tests.ensembles import EDGES, around_target, beginning, double_well, rectilinear, run

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
N = 60

# The `STEADY` scheme by hand, as west.cfg says.
ASSIGN = ("w_assign", "--serial", "--subsample", "--config-from-file", "--scheme-name")


@dataclass(frozen=True)
class Exported:
    """A run directory, and what is in its west.h5."""

    path: Path
    series: list[Ended]

    def tool(self, *command: str) -> str:
        """Run a program of WESTPA's beside west.h5, with no more in its environment than a user has."""
        program = Path(sys.executable).parent / command[0]
        given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(
            [program, *command[1:]], cwd=self.path, env=given, capture_output=True, text=True, timeout=200, input=""
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    @property
    def flux(self) -> list[float]:
        return [each.resampled.flux for each in self.series]


def export(path: Path, *flags: str) -> None:
    command = [sys.executable, CHECKOUT / "run.py", "export", path, "--west-cfg", *flags]
    told = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1] == f"run directory: {path}"


def exported(path: Path, binning, n_iterations: int = N, recycles: bool = True) -> Exported:
    path.mkdir()
    for name in (LEDGER, SYSTEM):
        (path / name).touch()
    series = written(path, binning, n_iterations, recycles)
    export(path)
    return Exported(path, series)


def written(path: Path, binning, n_iterations: int, recycles: bool = True, replica: int = 0) -> list[Ended]:
    """Write an ensemble's file, and return what is in it."""
    layout = double_well(recycles=recycles)
    series = list(run(layout, binning, n_iterations, seed=5 + replica))
    WestFile(path / west_name(replica), layout).rebuild(beginning(8), binning, series)
    return series


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("steady") / "run", rectilinear())


def test_w_pdist_and_plothist(steady: Exported) -> None:
    """An iteration's histogram is that of its walkers' points after the start, which is their parents' last."""
    bounds = np.linspace(-2, 2, 41).astype(np.float32)
    steady.tool("w_pdist", "--serial", "-b", f"[{bounds.tolist()}]")
    with h5py.File(steady.path / "pdist.h5") as file:
        histograms = file["histograms"][...]
    assert len(histograms) == N
    for row, each in zip(histograms, steady.series, strict=True):
        points = each.pcoord[:, 1 if each.iteration.number > 1 else 0 :, 0]
        weights = np.repeat(each.iteration.weights, points.shape[1])
        # Not by `np.histogram`, whose running sum rounds small weights away.
        ours = np.bincount(np.digitize(points.ravel(), bounds) - 1, weights, len(bounds) - 1)
        ours /= np.sum(ours * np.diff(bounds))
        assert row == pytest.approx(ours, rel=1e-12)
    for mode in ("instant", "average", "evolution"):
        steady.tool("plothist", mode, "pdist.h5", "-o", f"{mode}.pdf")
        assert (steady.path / f"{mode}.pdf").read_bytes().startswith(b"%PDF")


def test_w_assign_and_w_direct(steady: Exported) -> None:
    """With only ends as visits, the flux into the target is ours in every iteration, to the last digit or so.

    Without ``--subsample`` a walker that was in the target and left it within an iteration counts too: more flux than
    there was weight recycled.
    """
    steady.tool(*ASSIGN, "STEADY")
    with h5py.File(steady.path / "ANALYSIS/STEADY/assign.h5") as file:
        assert list(file["state_labels"]) == [b"source", b"target"]
        for row, each in zip(file["assignments"][...], steady.series, strict=True):
            assert np.array_equal(row[: len(each.pcoord), -1], each.resampled.bins)
    told = steady.tool("w_direct", "--serial", "all", "-a", "ANALYSIS/STEADY/assign.h5", "--disable-correl")
    with h5py.File(steady.path / "direct.h5") as file:
        assert file["total_fluxes"][:, 1] == pytest.approx(steady.flux, rel=1e-12, abs=1e-18)
        assert file["conditional_fluxes"][:, 0, 1] == pytest.approx(steady.flux, rel=1e-12, abs=1e-18)
        assert file["arrivals"][:, 1].tolist() == [len(each.resampled.recycled) for each in steady.series]
        assert file["avg_total_fluxes"]["expected"][1] == pytest.approx(np.mean(steady.flux), rel=1e-12)
        # Flux by the weight that last was in the source, which is all but what is in the target: ours by all of it.
        rate, in_target = file["avg_rates"]["expected"][0, 1], file["avg_color_probs"]["expected"][1]
        assert rate == pytest.approx(np.mean(steady.flux) / (1 - in_target), rel=1e-3)
        assert in_target < 0.01
    assert "b'source' -> b'target'" in told


def test_w_assign_on_its_own(steady: Exported) -> None:
    """Bins from west.h5 itself, no configuration."""
    steady.tool("w_assign", "--serial", "--states", "a:-1.0", "b:1.2", "-o", "own.h5", "-r", "/nowhere")
    with h5py.File(steady.path / "own.h5") as file:
        assert file.attrs["nbins"] == len(EDGES) - 1


def test_w_ipa(steady: Exported) -> None:
    steady.tool("w_ipa", "-ao", "--serial")
    with h5py.File(steady.path / "ANALYSIS/STEADY/direct.h5") as file:
        assert file["total_fluxes"][:, 1] == pytest.approx(steady.flux, rel=1e-12, abs=1e-18)
        estimate = file["target_flux_evolution"][-1, 1]
    # Correlation makes it leave out iterations that fill no whole block.
    assert estimate["ci_lbound"] < np.mean(steady.flux) < estimate["ci_ubound"]


def test_w_trace(steady: Exported) -> None:
    for walker in (0, len(steady.series[-1].pcoord) - 1):
        steady.tool("w_trace", f"{N}:{walker}")
        told = np.loadtxt(steady.path / f"traj_{N}_{walker}_trace.txt")
        ours, now = [], walker
        for each in reversed(steady.series):
            weight, end = each.iteration.weights[now], each.pcoord[now, -1, 0]
            ours.append((each.iteration.number, now, weight, each.seconds[now], end))
            now = int(each.iteration.parents[now])
            if now < 0:
                break
        # The first line of the trace is the initial state.
        assert told[0, :2].tolist() == [0, -1 - now]
        assert told[1:, [0, 1, 2, 3, 5]] == pytest.approx(np.array(ours[::-1]), rel=1e-5)


def test_w_succ(steady: Exported) -> None:
    assert_successes_are_ours(steady)


def test_a_further_ensemble(steady: Exported) -> None:
    """Its tools run in its own directory, and what they tell is of no other ensemble."""
    series = written(steady.path, rectilinear(), n_iterations=40, replica=1)
    export(steady.path, "--replica", "1")
    second = Exported(steady.path / "west-1", series)
    assert_successes_are_ours(second)
    second.tool(*ASSIGN, "STEADY")
    with h5py.File(second.path / "ANALYSIS/STEADY/assign.h5") as file:
        for row, each in zip(file["assignments"][...], series, strict=True):
            assert np.array_equal(row[: len(each.pcoord), -1], each.resampled.bins)


def assert_successes_are_ours(given: Exported) -> None:
    given.tool("w_succ", "-o", "successful.txt")
    told = np.loadtxt(given.path / "successful.txt")
    ours = sorted(
        (each.iteration.number, one.walker, one.weight, each.pcoord[one.walker, -1, 0])
        for each in given.series
        for one in each.resampled.recycled
    )
    assert len(ours) > 20
    assert told == pytest.approx(np.array(ours), rel=1e-5)


@pytest.mark.parametrize("bins", ["rectilinear:-0.9,-0.6,-0.3,0,0.3,0.6", "mab:6", "voronoi:9"])
def test_bins_around_a_target(tmp_path: Path, bins: str) -> None:
    """MAB's move, so that a fixed grid stands for them; the target is one bin, and so the flux is ours."""
    given = exported(tmp_path / "run", around_target(bins), n_iterations=40)
    # Boundaries need no Wayfinder where the tools run.
    assert ("campaign.west" in (given.path / "west.cfg").read_text()) == (bins == "voronoi:9")
    given.tool("w_ipa", "-ao", "--serial")
    with h5py.File(given.path / "ANALYSIS/STEADY/direct.h5") as file:
        assert sum(given.flux) > 0
        assert file["total_fluxes"][:, 1] == pytest.approx(given.flux, rel=1e-12, abs=1e-18)
    if bins.startswith("rectilinear"):
        with h5py.File(given.path / "ANALYSIS/STEADY/assign.h5") as file:
            for row, each in zip(file["assignments"][...], given.series, strict=True):
                assert np.array_equal(row[: len(each.pcoord), -1], each.resampled.bins)


def test_in_equilibrium(tmp_path: Path) -> None:
    free = exported(tmp_path / "run", rectilinear(recycles=False), n_iterations=25, recycles=False)
    free.tool("w_ipa", "-ao", "--serial")
    free.tool("w_pdist", "--serial")
    free.tool("w_succ", "-o", "successful.txt")
    assert all(line.startswith("#") for line in (free.path / "successful.txt").read_text().splitlines())
    with h5py.File(free.path / "ANALYSIS/EQUILIBRIUM/assign.h5") as file:
        assert list(file["state_labels"]) == [b"source", b"far"]


def test_elsewhere(steady: Exported, tmp_path: Path) -> None:
    export(steady.path, "--out", str(tmp_path))
    Exported(tmp_path, steady.series).tool("w_pdist", "--serial")
    assert (tmp_path / "pdist.h5").exists()
