"""Equilibration of a basis state: physics, repeatability, and what it leaves."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from openmm import unit

from tasks import equilibrate as module
from tasks.equilibrate import RESTRAINT_KJ_PER_MOL_NM2, equilibrate, quarter_steps
from tasks.errors import NotFinite
from tasks.files import publish
from tasks.messages import EquilibrateResult, EquilibrateSpec, SegmentSpec, StoreSpec
from tasks.prepared import PreparedSystem
from tasks.simulate import run_segment
from tasks.transport import fetch, ship

INLINE = StoreSpec("inline", "inline")


def spec_of(prepared: PreparedSystem, segment: SegmentSpec, duration_ps: float, **changes: Any) -> EquilibrateSpec:
    return EquilibrateSpec(
        task_id=2**40,
        attempt=1,
        number=3,
        system=ship(prepared.to_arrays(), INLINE),
        start=ship(prepared.basis(), INLINE),
        start_row=0,
        duration_ps=duration_ps,
        seed=11,
        dynamics=replace(segment.dynamics, platform=prepared.platform, **changes),
        store=INLINE,
        run_dir=None,
    )


@pytest.fixture(scope="module")
def spec(alanine: PreparedSystem, segment: SegmentSpec) -> EquilibrateSpec:
    return spec_of(alanine, segment, 1.0)


def positions_of(result: EquilibrateResult) -> np.ndarray:
    return fetch(result.state)["positions"]


# ---- what it does


def test_the_thermostat_s_temperature_is_reached(spec: EquilibrateSpec) -> None:
    results = [equilibrate(replace(spec, duration_ps=8.0, seed=seed)) for seed in range(1, 25)]
    temperatures = np.array([result.mean_temperature_K for result in results])
    error = temperatures.std(ddof=1) / len(temperatures) ** 0.5
    assert error < 10
    assert temperatures.mean() == pytest.approx(300, abs=20)
    assert {result.density_before for result in results} == {result.mean_density for result in results} == {None}


def test_restraints_and_half_steps_come_first_and_the_last_quarter_is_as_a_segment(
    monkeypatch: pytest.MonkeyPatch, water: PreparedSystem, segment: SegmentSpec
) -> None:
    seen: dict[str, Any] = {}
    sample, begin = module._sampled, module.Engine.begin

    def first(engine: module.Engine, *args: Any) -> None:
        begin(engine, *args)
        seen["first step"] = engine.integrator.getStepSize().value_in_unit(unit.picosecond)
        seen["first restraint"] = engine.context.getParameter("restraint")

    def last(engine: module.Engine, n_steps: int) -> Any:
        seen["last step"] = engine.integrator.getStepSize().value_in_unit(unit.picosecond)
        seen["friction"] = engine.integrator.getFriction().value_in_unit(unit.picosecond**-1)
        seen["restraint"] = engine.context.getParameter("restraint")
        seen["attempts"] = engine.barostat.getFrequency()
        seen["steps"] = engine.context.getStepCount()
        return sample(engine, n_steps)

    monkeypatch.setattr(module.Engine, "begin", first)
    monkeypatch.setattr(module, "_sampled", last)
    equilibrate(spec_of(water, segment, 0.4))
    assert seen == {
        "first step": 0.002,
        "first restraint": RESTRAINT_KJ_PER_MOL_NM2,
        "last step": 0.004,
        "friction": 1.0,
        "restraint": 0.0,
        "attempts": 25,
        "steps": 2 * 25 + 2 * 25,
    }


@pytest.mark.parametrize("periodic", [False, True])
def test_restraints_pull_back_the_solute_s_heavy_atoms(alanine: PreparedSystem, periodic: bool) -> None:
    assert len(alanine.restrained_indices) == 10
    system = openmm.System()
    for _ in range(alanine.n_atoms):
        system.addParticle(12.0)
    system.setDefaultPeriodicBoxVectors([3, 0, 0], [0, 3, 0], [0, 0, 3])
    system.addForce(module._restraint(alanine.positions, alanine.restrained_indices, periodic))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(alanine.positions + [0.1 + 3.0 * periodic, 0.0, 0.0])
    energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert energy == pytest.approx(10 * 0.5 * RESTRAINT_KJ_PER_MOL_NM2 * 0.1**2, rel=1e-6)


def test_water_is_not_restrained_and_its_box_breathes(water: PreparedSystem, segment: SegmentSpec) -> None:
    assert len(water.restrained_indices) == 10
    spec = spec_of(water, segment, 0.4)
    result = equilibrate(spec)
    box = fetch(result.state)["box"]
    assert box.shape == (1, 3, 3)
    assert not np.array_equal(box[0], water.box)
    system = openmm.XmlSerializer.deserialize(water.system_xml)
    masses = sum(system.getParticleMass(i)._value for i in range(water.n_atoms))
    assert result.density_before == pytest.approx(masses / 602.214 / np.prod(water.box.diagonal()), rel=1e-4)
    assert 0.8 < result.mean_density < 1.1
    np.testing.assert_array_equal(positions_of(equilibrate(replace(spec, attempt=2))), positions_of(result))


def test_without_a_barostat_the_box_stays(water: PreparedSystem, segment: SegmentSpec) -> None:
    system = openmm.XmlSerializer.deserialize(water.system_xml)
    (barostat,) = (i for i, force in enumerate(system.getForces()) if isinstance(force, openmm.MonteCarloBarostat))
    system.removeForce(barostat)
    rigid = replace(water, system_xml=openmm.XmlSerializer.serialize(system))
    result = equilibrate(spec_of(rigid, segment, 0.1))
    np.testing.assert_allclose(fetch(result.state)["box"][0], water.box, rtol=1e-12)
    assert result.mean_density == pytest.approx(result.density_before)


@pytest.mark.slow
def test_water_reaches_temperature_and_density(water: PreparedSystem, segment: SegmentSpec) -> None:
    result = equilibrate(spec_of(water, segment, 20.0))
    assert result.density_before < 0.93
    assert result.mean_temperature_K == pytest.approx(300, abs=15)
    assert result.mean_density == pytest.approx(1.0, abs=0.04)


# ---- repeatability, and what it leaves


def test_an_equal_spec_gives_equal_bits(spec: EquilibrateSpec) -> None:
    first, again = equilibrate(spec), equilibrate(replace(spec, attempt=2))
    np.testing.assert_array_equal(positions_of(first), positions_of(again))
    other = equilibrate(replace(spec, seed=12))
    assert np.abs(positions_of(first) - positions_of(other)).max() > 1e-2
    assert first.simulated_ps == pytest.approx(4 * quarter_steps(1.0, 0.004) * 0.004)


def test_the_state_is_kept_as_openmm_reads_it(spec: EquilibrateSpec, tmp_path: Path) -> None:
    result = equilibrate(replace(spec, run_dir=str(tmp_path)))
    assert result.state_file is not None
    assert result.state_file.path == "equilibrated/0003.xml"
    publish(tmp_path, result.state_file)
    content = (tmp_path / result.state_file.path).read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (
        result.state_file.sha256,
        result.state_file.n_bytes,
    )
    state = openmm.XmlSerializer.deserialize(content.decode())
    kept = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    np.testing.assert_array_equal(kept, positions_of(result)[0])
    assert len(state.getVelocities()) == 22
    assert equilibrate(spec).state_file is None
    assert [path.name for path in (tmp_path / "equilibrated").iterdir()] == ["0003.xml"]


def test_segments_begin_at_the_state(spec: EquilibrateSpec, segment: SegmentSpec) -> None:
    state = equilibrate(spec).state
    frame = fetch(run_segment(replace(segment, start=state, start_row=0)).frames)["positions"][0]
    assert np.abs(frame - fetch(state)["positions"][0]).max() < 0.1


def test_nan_is_told(spec: EquilibrateSpec) -> None:
    hot = replace(spec, dynamics=replace(spec.dynamics, timestep_ps=0.01, temperature_K=20_000.0))
    with pytest.raises(NotFinite, match="^equilibration of basis state 3: .*; a shorter --timestep-fs"):
        equilibrate(hot)
