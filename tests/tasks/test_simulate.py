import hashlib
import multiprocessing
import pickle
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import MDAnalysis
import numpy as np
import openmm
import pytest
from openmm import unit

from tasks import engine
from tasks.errors import BadInput, NotFinite, Unreachable
from tasks.files import publish
from tasks.messages import SegmentResult, SegmentSpec, StoreSpec
from tasks.prepared import PreparedSystem
from tasks.simulate import run_segment
from tasks.transport import evict, fetch, keys, ship

INLINE = StoreSpec("inline", "inline")


@pytest.fixture(scope="module")
def equilibrated(segment: SegmentSpec) -> SegmentSpec:
    """The segment, started from 40 ps of dynamics, velocities with it."""
    return replace(segment, start=run_segment(with_dynamics(segment, n_steps=10_000)).end)


def with_dynamics(spec: SegmentSpec, **changes) -> SegmentSpec:
    return replace(spec, dynamics=replace(spec.dynamics, **changes))


def starting_at(spec: SegmentSpec, **arrays: np.ndarray) -> SegmentSpec:
    return replace(spec, start=ship(arrays, INLINE), start_row=0)


def frames_of(result: SegmentResult) -> np.ndarray:
    return fetch(result.frames)["positions"]


def positions_only(result: SegmentResult) -> np.ndarray:
    return fetch(result.end)["positions"]


def assert_same_bits(one: SegmentResult, other: SegmentResult) -> None:
    np.testing.assert_array_equal(frames_of(one), frames_of(other))
    for name in ("positions", "velocities"):
        np.testing.assert_array_equal(fetch(one.end)[name], fetch(other.end)[name])
    assert one.potential_energy_kj_mol == other.potential_energy_kj_mol
    assert one.mean_temperature_K == other.mean_temperature_K


# ---- equal specs, equal dynamics


def test_an_equal_spec_gives_equal_bits_on_a_warm_context(segment: SegmentSpec, equilibrated: SegmentSpec) -> None:
    first = run_segment(segment)
    run_segment(replace(equilibrated, seed=5))
    second = run_segment(replace(segment, attempt=2))
    assert_same_bits(first, second)
    assert (first.attempt, second.attempt) == (1, 2)


def test_an_equal_spec_gives_equal_bits_in_another_process(equilibrated: SegmentSpec, segment: SegmentSpec) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        theirs = list(pool.map(run_segment, [equilibrated, segment]))
    assert_same_bits(theirs[0], run_segment(equilibrated))
    assert_same_bits(theirs[1], run_segment(segment))


@pytest.mark.parametrize("carried", [True, False], ids=["carried", "drawn"])
def test_another_seed_gives_other_dynamics(equilibrated: SegmentSpec, carried: bool) -> None:
    start = fetch(equilibrated.start)
    spec = starting_at(equilibrated, **(start if carried else {"positions": start["positions"]}))
    one, other = (frames_of(run_segment(replace(spec, seed=seed))) for seed in (1, 2))
    # Apart by more than rounding after the first frame already, and about as much as thermal motion at the end.
    assert np.abs(one[0] - other[0]).max() > 1e-3
    assert np.abs(one[-1] - other[-1]).max() > 1e-2


def test_the_start_row_chooses_the_start(alanine: PreparedSystem, segment: SegmentSpec) -> None:
    shifted = alanine.positions + [1.0, 2.0, 3.0]
    rows = replace(segment, start=ship({"positions": np.stack([alanine.positions, shifted])}, INLINE))
    assert_same_bits(run_segment(rows), run_segment(segment))
    apart = frames_of(run_segment(replace(rows, start_row=1))) - frames_of(run_segment(rows))
    assert apart.mean(axis=(0, 1)) == pytest.approx([1, 2, 3], abs=0.05)


# ---- frames and end state


def test_frames_leave_the_start_out_and_end_with_the_end_state(segment: SegmentSpec) -> None:
    result = run_segment(segment)
    frames = frames_of(result)
    assert frames.shape == (5, 22, 3)
    assert frames.dtype == np.float32
    assert (result.segment_id, result.n_frames, result.n_atoms) == (3, 5, 22)
    assert result.simulated_ps == pytest.approx(0.4)
    # Frame k is the end of a segment that stops there.
    for k in range(5):
        shorter = run_segment(with_dynamics(segment, n_steps=20 * (k + 1)))
        np.testing.assert_array_equal(frames[k], fetch(shorter.end)["positions"][0].astype(np.float32))


def test_end_state_is_whole(segment: SegmentSpec) -> None:
    end = fetch(run_segment(segment).end)
    assert set(end) == {"positions", "velocities"}
    assert all(array.shape == (1, 22, 3) and array.dtype == np.float64 for array in end.values())


def test_energy_and_temperature_are_those_of_the_state(alanine: PreparedSystem, segment: SegmentSpec) -> None:
    result = run_segment(with_dynamics(segment, frame_steps=100))
    end = fetch(result.end)
    system = openmm.XmlSerializer.deserialize(alanine.system_xml)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(end["positions"][0])
    energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert result.potential_energy_kj_mol == pytest.approx(energy, abs=1e-6)
    masses = np.array([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(22)])
    kinetic = 0.5 * (masses[:, None] * end["velocities"][0] ** 2).sum()
    # 66 degrees of freedom less 12 constraints and 3 of the centre of mass.
    assert result.mean_temperature_K == pytest.approx(2 * kinetic / (51 * 0.00831446), rel=1e-5)


# ---- velocities


def test_without_friction_two_segments_are_one_of_twice_the_length(equilibrated: SegmentSpec) -> None:
    free = with_dynamics(equilibrated, friction_per_ps=0.0)
    whole = run_segment(with_dynamics(free, n_steps=200))
    first = run_segment(free)
    second = run_segment(replace(free, start=first.end, seed=99))
    halves = np.concatenate([frames_of(first), frames_of(second)])
    # To the last bit, or nearly: chaos has no time to grow.
    np.testing.assert_allclose(halves, frames_of(whole), atol=1e-6)
    drawn = run_segment(starting_at(free, positions=positions_only(first)))
    assert np.abs(frames_of(drawn) - halves[5:]).max() > 1e-2


def test_velocities_are_carried_on_with_friction_too(equilibrated: SegmentSpec) -> None:
    one_step = with_dynamics(equilibrated, n_steps=1, frame_steps=1)
    before = fetch(equilibrated.start)

    def likeness(spec: SegmentSpec) -> float:
        after = fetch(run_segment(spec).end)["velocities"]
        return float(np.corrcoef(before["velocities"].ravel(), after.ravel())[0, 1])

    assert likeness(one_step) > 0.7
    assert abs(likeness(starting_at(one_step, positions=before["positions"]))) < 0.5


@pytest.mark.parametrize("carried", [True, False], ids=["carried", "drawn"])
def test_short_segments_keep_the_temperature(equilibrated: SegmentSpec, carried: bool) -> None:
    """Segments of 1 ps, each from the end of the one before it.

    Velocities drawn by OpenMM make it 316 K, and 323 K where one seed serves the thermostat too.
    """
    start, temperatures = equilibrated.start, []
    for seed in range(1, 301):
        spec = replace(with_dynamics(equilibrated, n_steps=250, frame_steps=10), start=start, seed=seed)
        result = run_segment(spec)
        temperatures.append(result.mean_temperature_K)
        # In single precision, as frames are kept.
        drawn = {"positions": positions_only(result).astype(np.float32)}
        start = result.end if carried else ship(drawn, INLINE)
    error = np.std(temperatures) / np.sqrt(len(temperatures))
    assert error < 3
    assert np.mean(temperatures) == pytest.approx(300, abs=9)


# ---- NaN


def broken_starts(alanine: PreparedSystem) -> dict[str, dict[str, np.ndarray]]:
    good = alanine.positions[None]
    holed, collapsed = good.copy(), np.zeros_like(good)
    holed[0, 3] = np.nan
    return {
        "a NaN": {"positions": holed},
        "atoms in one place": {"positions": collapsed},
        "velocities of NaN": {"positions": good, "velocities": np.full_like(good, np.nan)},
        "velocities beyond all bounds": {"positions": good, "velocities": np.full_like(good, 1e300)},
    }


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("what", ["a NaN", "atoms in one place", "velocities of NaN", "velocities beyond all bounds"])
def test_nan_is_refused_and_leaves_the_worker_sound(
    alanine: PreparedSystem, segment: SegmentSpec, platform: str, what: str
) -> None:
    good = with_dynamics(segment, platform=platform)
    before = run_segment(good)
    bad = starting_at(replace(good, segment_id=17), **broken_starts(alanine)[what])
    with pytest.raises(NotFinite, match=r"^segment 17 from segment 1 frame 4: .*NaN.*; a shorter --timestep-fs"):
        run_segment(bad)
    assert_same_bits(run_segment(good), before)


def test_a_refused_segment_leaves_nothing(tmp_path: Path, segment: SegmentSpec, file_store: StoreSpec) -> None:
    bad = starting_at(segment, positions=np.full((1, 22, 3), np.nan))
    with pytest.raises(NotFinite):
        run_segment(replace(bad, run_dir=str(tmp_path / "run"), store=file_store))
    assert not list(tmp_path.rglob("*"))


# ---- trajectories


@pytest.mark.parametrize(("kind", "off_by"), [("dcd", 1e-5), ("xtc", 0.00501)])
def test_mdanalysis_reads_the_trajectory(
    tmp_path: Path, alanine: PreparedSystem, segment: SegmentSpec, kind: str, off_by: float
) -> None:
    """Coordinates within ``off_by`` Angstrom: XTC keeps two decimals of them."""
    result = run_segment(replace(segment, run_dir=str(tmp_path), trajectory_format=kind))
    record = result.trajectory
    publish(tmp_path, record)
    assert record.path == f"trajectories/00000003.{kind}"
    data = (tmp_path / record.path).read_bytes()
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert record.n_bytes == len(data)
    (tmp_path / "topology.pdb").write_text(alanine.topology_pdb)
    universe = MDAnalysis.Universe(str(tmp_path / "topology.pdb"), str(tmp_path / record.path))
    assert universe.trajectory.n_frames == 5
    assert universe.trajectory.dt == pytest.approx(0.08, rel=1e-5)
    read, times = zip(*((universe.atoms.positions.copy(), step.time) for step in universe.trajectory), strict=True)
    assert times == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.40], rel=1e-5)
    assert np.abs(np.stack(read) - 10 * frames_of(result)).max() < off_by


def test_the_trajectory_holds_stored_atoms_only(
    tmp_path: Path, alanine: PreparedSystem, segment: SegmentSpec
) -> None:
    part = replace(alanine, stored_indices=np.array([4, 0, 8, 10]))
    spec = replace(segment, system=ship(part.to_arrays(), INLINE), system_id=part.digest, run_dir=str(tmp_path))
    result = run_segment(spec)
    assert frames_of(result).shape == (5, 22, 3)
    publish(tmp_path, result.trajectory)
    trajectory = MDAnalysis.coordinates.DCD.DCDReader(str(tmp_path / result.trajectory.path))
    read = np.stack([step.positions.copy() for step in trajectory])
    np.testing.assert_allclose(read, 10 * frames_of(result)[:, [4, 0, 8, 10]], atol=1e-5)


def test_without_a_run_directory_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment: SegmentSpec, file_store: StoreSpec
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = run_segment(replace(segment, store=file_store))
    assert result.trajectory is None
    assert len(keys(file_store)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_trajectory_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment: SegmentSpec
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    result = run_segment(replace(segment, run_dir=str(tmp_path / "run")))
    publish(tmp_path / "run", result.trajectory)
    assert not list(scratch.iterdir())
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["trajectories", "00000003.dcd"]


# ---- cost


def test_min_seconds_pads_and_changes_nothing_else(segment: SegmentSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    padded = run_segment(with_dynamics(segment, min_seconds=300.0))
    # What is reported is work, not sleep, and the two make up what was asked for.
    worked = sum(padded.seconds.values())
    assert worked < 100
    assert sum(slept) + worked == pytest.approx(300.0, abs=10)
    assert_same_bits(padded, run_segment(segment))


def test_a_warm_worker_does_not_fetch_the_system_again(segment: SegmentSpec, file_store: StoreSpec) -> None:
    spec = replace(
        with_dynamics(segment, friction_per_ps=1.5), system=ship(fetch(segment.system), file_store), run_dir=None
    )
    run_segment(spec)
    evict(spec.system)
    run_segment(spec)
    with pytest.raises(Unreachable, match="no longer holds"):
        run_segment(with_dynamics(spec, friction_per_ps=1.6))


def test_a_worker_keeps_few_contexts(segment: SegmentSpec) -> None:
    first = run_segment(segment)
    for friction in (2.0, 3.0, 4.0):
        run_segment(with_dynamics(segment, friction_per_ps=friction))
        assert len(engine._engines) <= engine.MAX_ENGINES
    assert_same_bits(run_segment(segment), first)


def test_an_unknown_platform_is_named(segment: SegmentSpec) -> None:
    with pytest.raises(BadInput, match="platform 'Abacus' is not usable here: choose auto or one of"):
        run_segment(with_dynamics(segment, platform="Abacus"))


def dumbbells(n_atoms: int) -> PreparedSystem:
    """Pairs of atoms on springs: any size, next to no work."""
    system = openmm.System()
    bonds = openmm.HarmonicBondForce()
    for atom in range(n_atoms):
        system.addParticle(12.0)
        if atom % 2:
            bonds.addBond(atom - 1, atom, 0.1, 1000.0)
    system.addForce(bonds)
    everything = np.arange(n_atoms)
    return PreparedSystem(
        name="dumbbells",
        system_xml=openmm.XmlSerializer.serialize(system),
        topology_pdb="",
        positions=np.outer(everything, [0.1, 0.0, 0.0]),
        feature_indices=everything,
        stored_indices=everything,
        restrained_indices=everything,
        phi_indices=np.empty((0, 4), np.int64),
        psi_indices=np.empty((0, 4), np.int64),
        platform="Reference",
    )


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_messages_do_not_grow_with_the_system(
    request: pytest.FixtureRequest, tmp_path: Path, segment: SegmentSpec, kind: str
) -> None:
    store = request.getfixturevalue(f"{kind}_store")
    sizes = []
    for n_atoms in (22, 2200):
        prepared = dumbbells(n_atoms)
        spec = replace(
            segment,
            system=ship(prepared.to_arrays(), store),
            system_id=prepared.digest,
            start=ship({"positions": prepared.positions[None]}, store),
            store=store,
            run_dir=str(tmp_path),
        )
        result = run_segment(spec)
        assert frames_of(result).shape == (5, n_atoms, 3)
        sizes.append((len(pickle.dumps(spec)), len(pickle.dumps(result))))
    small, large = sizes
    assert large == pytest.approx(small, rel=0.05)
    assert sum(large) < 8000
