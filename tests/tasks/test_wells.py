"""The double well goes through everything that a molecule does."""

from dataclasses import replace
from pathlib import Path

import MDAnalysis
import numpy as np
import openmm
import pytest

from tasks.engine import energy_of, make_context
from tasks.equilibrate import equilibrate
from tasks.errors import BadInput
from tasks.files import publish
from tasks.infer import embed
from tasks.messages import EmbedSpec, EquilibrateSpec, SegmentSpec, StoreSpec, TrainSpec
from tasks.prepared import PreparedSystem
from tasks.simulate import run_segment
from tasks.systems import named_system, prepare
from tasks.train import train
from tasks.transport import fetch, ship

INLINE = StoreSpec("inline", "inline")
KT = 0.00831446261815324 * 300


@pytest.fixture(scope="module")
def well() -> PreparedSystem:
    return prepare(named_system("double-well", temperature_K=310))


@pytest.fixture
def hops(well: PreparedSystem, segment: SegmentSpec) -> SegmentSpec:
    """10 ps of 10 fs, of which 100 frames are kept."""
    dynamics = replace(
        segment.dynamics, n_steps=1000, frame_steps=10, timestep_ps=0.01, friction_per_ps=50.0, platform=well.platform
    )
    return replace(
        segment,
        system=ship(well.to_arrays(), INLINE),
        system_id=well.digest,
        start=ship(well.basis(), INLINE),
        dynamics=dynamics,
    )


def test_energy_and_forces_are_those_of_the_formula(well: PreparedSystem, hops: SegmentSpec) -> None:
    context = make_context(well, hops.dynamics)
    assert context.getSystem().getParticleMass(0)._value == 40.0
    assert context.getPlatform().getName() == "Reference"
    a = 0.3
    for x, y, z in [(-a, 0, 0), (0, 0, 0), (a, 0, 0), (0.2, 0.1, -0.05), (-0.5, 0, 0.2)]:
        context.setPositions([[x, y, z]])
        state = context.getState(energy=True, forces=True)
        energy = 8 * KT * ((x / a) ** 2 - 1) ** 2 + 100 * (y**2 + z**2)
        force = [-32 * KT * ((x / a) ** 2 - 1) * x / a**2, -200 * y, -200 * z]
        assert energy_of(state) == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(state.getForces(asNumpy=True)._value[0], force, atol=1e-8)


def test_it_starts_at_the_left_minimum(well: PreparedSystem) -> None:
    np.testing.assert_allclose(well.positions, [[-0.3, 0, 0]], atol=1e-12)
    assert (well.name, well.n_atoms, len(well.phi_indices), well.box) == ("double-well", 1, 0, None)
    for indices in (well.feature_indices, well.stored_indices, well.restrained_indices):
        assert indices.tolist() == [0]


def test_a_walker_is_distributed_as_boltzmann_says(hops: SegmentSpec, tmp_path: Path, well: PreparedSystem) -> None:
    long = replace(hops, dynamics=replace(hops.dynamics, n_steps=200_000, frame_steps=200), run_dir=str(tmp_path))
    result = run_segment(long)
    assert result.mean_temperature_K == pytest.approx(300, abs=25)
    publish(tmp_path, result.trajectory)
    (tmp_path / "topology.pdb").write_text(well.topology_pdb)
    universe = MDAnalysis.Universe(str(tmp_path / "topology.pdb"), str(tmp_path / "trajectories" / "00000003.dcd"))
    x, y, z = (np.array([step.positions[0] for step in universe.trajectory]) / 10).T
    # Spread of a spring of 200 kJ/mol/nm^2; frames 2 ps apart, the spring forgets within 10.
    assert [y.std(), z.std()] == pytest.approx([np.sqrt(KT / 200)] * 2, rel=0.15)
    assert x.mean() == pytest.approx(-0.29, abs=0.03)


def test_it_is_equilibrated(well: PreparedSystem, hops: SegmentSpec) -> None:
    result = equilibrate(EquilibrateSpec(1, 1, 0, hops.system, hops.start, 0, 20.0, 5, hops.dynamics, INLINE, None))
    assert fetch(result.state)["positions"].shape == (1, 1, 3)
    assert result.mean_density is None


@pytest.mark.parametrize("embedding", ["pca", "aae"])
def test_models_learn_where_it_is(hops: SegmentSpec, well: PreparedSystem, embedding: str) -> None:
    frames = run_segment(hops).frames
    look = EmbedSpec(
        task_id=5, attempt=1, system=hops.system, system_id=well.digest, batches=((3, frames),), reference=None,
        reference_number=1, model=None, model_version=0, embedding=embedding, candidates="novel", n_candidates=4,
        novelty="sparsity", neighbours=5, latent=2, max_reference=100, max_frontier=20, seed=1, store=INLINE,
        run_dir=None,
    )  # fmt: skip
    first = embed(look)
    assert first.coverage.metric == "pc_cells"
    assert first.coverage.value > 10
    learned = train(TrainSpec(6, 1, first.reference, None, 1, embedding, 2, 3, 32, 1, INLINE, None))
    later = run_segment(replace(hops, segment_id=4, seed=2)).frames
    spec = replace(look, reference=first.reference, reference_number=2, model=learned.model, model_version=1)
    result = embed(replace(spec, batches=((4, later),)))
    assert np.isfinite(result.scores).all()
    # An embedding of places: the farther frames are apart, the more their embeddings are.
    if embedding == "pca":
        latent = fetch(result.reference)["latent"]
        points = fetch(result.reference)["points"][:, 0]
        main = int(np.argmax(points.std(axis=0)))
        assert max(abs(np.corrcoef(latent[:, k], points[:, main])[0, 1]) for k in range(2)) > 0.7


def test_one_frame_is_enough_to_begin(hops: SegmentSpec) -> None:
    from tasks.models import fit_pca, load_model

    model = fit_pca(fetch(hops.start)["positions"].astype(np.float32), 2)
    again = load_model(model.to_bytes())
    np.testing.assert_array_equal(again.embed(np.ones((1, 1, 3), np.float32)), np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"solvent": "explicit"}, "--solvent explicit"),
        ({"force_field": ("a.xml", "b.xml")}, "--forcefield a.xml,b.xml"),
    ],
)
def test_what_is_for_molecules_is_refused(changes: dict, said: str) -> None:
    with pytest.raises(BadInput, match=f"^{said} is for molecules and double-well is a particle .*: drop it"):
        prepare(replace(named_system("double-well"), **changes))


def test_starts_are_states_or_structures(well: PreparedSystem, hops: SegmentSpec, tmp_path: Path) -> None:
    context = make_context(well, hops.dynamics)
    context.setPositions([[0.1, 0.0, 0.0]])
    (tmp_path / "0.xml").write_text(openmm.XmlSerializer.serialize(context.getState(positions=True)))
    (tmp_path / "1.pdb").write_text(well.topology_pdb.replace("-3.000", " 2.000"))
    prepared = prepare(replace(named_system("double-well"), basis_states=str(tmp_path)))
    np.testing.assert_allclose(prepared.starts[:, 0, 0], [0.1, 0.2], atol=1e-6)
