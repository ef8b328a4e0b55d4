import hashlib
import io
import pickle
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import MDAnalysis
import numpy as np
import pytest
from MDAnalysis.analysis.dihedrals import Ramachandran
from MDAnalysis.analysis.rms import rmsd
from scipy import stats
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from tasks import infer, warm
from tasks.files import publish
from tasks.infer import embed
from tasks.messages import EmbedResult, EmbedSpec, Ref, SegmentSpec, StoreSpec
from tasks.models import Model, fit_pca, load_model
from tasks.prepared import PreparedSystem
from tasks.reference import ReferenceSet
from tasks.simulate import run_segment
from tasks.systems import SystemSpec, prepare
from tasks.transport import evict, fetch, keys, ship

INLINE = StoreSpec("inline", "inline")
N_SEGMENTS, N_FRAMES = 8, 25

Frames = dict[int, np.ndarray]


def dynamics_of(prepared: PreparedSystem, segment: SegmentSpec) -> Frames:
    """Return segments of a warm run that follow on, 25 frames each, by ids that do not follow on."""
    hot = replace(segment.dynamics, n_steps=500, temperature_K=450.0)
    spec = replace(segment, system=ship(prepared.to_arrays(), INLINE), system_id=prepared.digest, dynamics=hot)
    start, frames = ship({"positions": prepared.positions[None]}, INLINE), {}
    for number in range(N_SEGMENTS):
        result = run_segment(replace(spec, start=start, seed=number + 1))
        start, frames[100 - 7 * number] = result.end, fetch(result.frames)["positions"]
    return frames


@pytest.fixture(scope="module")
def frames(alanine: PreparedSystem, segment: SegmentSpec) -> Frames:
    return dynamics_of(alanine, segment)


@pytest.fixture(scope="module")
def first(alanine: PreparedSystem, segment: SegmentSpec, frames: Frames) -> EmbedSpec:
    """The first inference of a campaign, of two segments."""
    return EmbedSpec(
        task_id=50,
        attempt=1,
        system=segment.system,
        system_id=alanine.digest,
        batches=batches(frames, range(2)),
        reference=None,
        reference_number=1,
        model=None,
        model_version=0,
        embedding="pca",
        candidates="novel",
        n_candidates=6,
        novelty="sparsity",
        neighbours=5,
        latent=3,
        max_reference=30,
        max_frontier=20,
        seed=2,
        store=INLINE,
        run_dir=None,
    )


def batches(frames: Frames, numbers: Iterable[int]) -> tuple[tuple[int, Ref], ...]:
    """Return the n-th segments' ids and frames."""
    ids = list(frames)
    return tuple((ids[number], ship({"positions": frames[ids[number]]}, INLINE)) for number in numbers)


def then(spec: EmbedSpec, result: EmbedResult, new: tuple[tuple[int, Ref], ...], **changes) -> EmbedSpec:
    """Return the inference that follows on another."""
    number = spec.reference_number + 1
    return replace(spec, reference=result.reference, reference_number=number, batches=new, **changes)


def campaign(spec: EmbedSpec, frames: Frames) -> list[EmbedResult]:
    """Look at all segments, two at a time."""
    results = [embed(spec)]
    for number in range(2, N_SEGMENTS, 2):
        spec = then(spec, results[-1], batches(frames, [number, number + 1]))
        results.append(embed(spec))
    return results


def reference_of(result: EmbedResult) -> ReferenceSet:
    return ReferenceSet.from_arrays(fetch(result.reference))


def pca_of(result: EmbedResult) -> Model:
    return load_model(reference_of(result).pca.tobytes())


def names(ids: np.ndarray) -> list[tuple[int, int]]:
    return [(int(segment), int(frame)) for segment, frame in ids]


def assert_equal_results(one: EmbedResult, other: EmbedResult) -> None:
    def plain(result: EmbedResult) -> EmbedResult:
        return replace(result, attempt=1, seconds={}, reference=INLINE, starts=None)

    assert plain(one) == plain(other)
    for name, array in fetch(one.reference).items():
        np.testing.assert_array_equal(array, fetch(other.reference)[name])
    if one.starts is not None:
        np.testing.assert_array_equal(fetch(one.starts)["positions"], fetch(other.starts)["positions"])


# ---- scores


def directly(latent: np.ndarray, measure: str, k: int) -> np.ndarray:
    if measure == "lof":
        return -LocalOutlierFactor(n_neighbors=k).fit(latent).negative_outlier_factor_
    return NearestNeighbors(n_neighbors=k).fit(latent).kneighbors()[0][:, -1]


@pytest.mark.parametrize("measure", ["sparsity", "lof"])
def test_first_scores_are_those_of_scikit_learn(
    alanine: PreparedSystem, frames: Frames, first: EmbedSpec, measure: str
) -> None:
    result = embed(replace(first, novelty=measure))
    ids = [(segment, frame) for segment in list(frames)[:2] for frame in range(N_FRAMES)]
    points = np.concatenate([frames[segment] for segment in list(frames)[:2]])[:, alanine.feature_indices]
    scores = directly(fit_pca(points, 3).embed(points), measure, 5)
    # Frames may tie: two may be each other's fifth neighbour.
    assert result.scores == pytest.approx(np.sort(scores)[::-1][:6], rel=1e-5)
    assert [scores[ids.index(start)] for start in result.start_ids] == pytest.approx(list(result.scores), rel=1e-5)
    assert result.segment_novelty == pytest.approx([scores[:25].mean(), scores[25:].mean()], rel=1e-5)
    assert (result.task_id, result.attempt, result.model_version, result.n_frames) == (50, 1, 0, 50)


@pytest.mark.parametrize("measure", ["sparsity", "lof"])
def test_later_scores_are_against_all_that_is_remembered(
    alanine: PreparedSystem, frames: Frames, first: EmbedSpec, measure: str
) -> None:
    first = replace(first, novelty=measure)
    before = embed(first)
    new = list(frames)[2:4]
    result = embed(then(first, before, batches(frames, [2, 3])))
    remembered = reference_of(before)
    # Frames that are both in the sample and on the frontier count once.
    known = {(segment, frame): frames[segment][frame] for segment in new for frame in range(N_FRAMES)}
    known |= {(segment, frame): frames[segment][frame] for segment, frame in names(remembered.frontier.ids)}
    offered = len(known)
    known |= {(segment, frame): frames[segment][frame] for segment, frame in names(remembered.sample.ids)}
    assert 70 < len(known) < 50 + 20 + 30
    points = np.stack(list(known.values()))[:, alanine.feature_indices]
    scores = directly(pca_of(before).embed(points), measure, 5)
    score_of = dict(zip(known, scores[:offered], strict=False))
    best = sorted(score_of.values(), reverse=True)[:20]
    frontier = names(reference_of(result).frontier.ids)
    assert [score_of[frame] for frame in frontier] == pytest.approx(best, rel=1e-5)
    assert list(result.start_ids) == frontier[:6]
    assert result.scores == pytest.approx(best[:6], rel=1e-5)
    assert result.segment_novelty == pytest.approx([scores[:25].mean(), scores[25:50].mean()], rel=1e-5)


def test_an_autoencoder_scores_by_its_own_latent(alanine: PreparedSystem, first: EmbedSpec) -> None:
    from tasks import aae
    from tasks.models import AAEModel, fit_alignment

    points = np.concatenate([fetch(ref)["positions"] for _, ref in first.batches])[:, alanine.feature_indices]
    network = aae.new_autoencoder(aae.Architecture(points.shape[1], 4), seed=1)
    model = AAEModel(fit_alignment(points), network)
    result = embed(replace(first, embedding="aae", latent=4, model=shipped(model)))
    scores = directly(model.embed(points), "sparsity", 5)
    assert result.scores == pytest.approx(np.sort(scores)[::-1][:6], rel=1e-5)
    assert reference_of(result).sample.latent.shape == (30, 4)


@pytest.mark.parametrize("n_frames", [1, 2, 4])
def test_a_campaign_may_begin_with_few_frames(frames: Frames, first: EmbedSpec, n_frames: int) -> None:
    few = ((9, ship({"positions": frames[100][:n_frames]}, INLINE)),)
    result = embed(replace(first, batches=few))
    assert result.n_reference == len(result.start_ids) == n_frames
    assert np.isfinite(result.scores).all()
    later = embed(then(first, result, batches(frames, [1])))
    assert len(later.start_ids) == 6
    assert np.isfinite(later.scores).all()


# ---- models and their versions


def shipped(model: Model, store: StoreSpec = INLINE) -> Ref:
    return ship({"model": np.frombuffer(model.to_bytes(), dtype=np.uint8)}, store)


@pytest.fixture
def other_model(alanine: PreparedSystem, frames: Frames) -> Model:
    """Principal components of the last segment, as version 1."""
    return fit_pca(list(frames.values())[-1][:, alanine.feature_indices], 3)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of frames that models were asked to embed."""
    counts: list[int] = []

    class Counting:
        def __init__(self, model: Model) -> None:
            self.model = model
            self.latent = model.latent

        def embed(self, points: np.ndarray) -> np.ndarray:
            counts.append(len(points))
            return self.model.embed(points)

    for module in (infer, warm):
        monkeypatch.setattr(module, "load_model", lambda data: Counting(load_model(data)))
    return counts


def test_only_new_frames_are_embedded_by_the_same_version(
    frames: Frames, first: EmbedSpec, embedded: list[int]
) -> None:
    before = embed(first)
    assert sum(embedded) == 50
    embedded.clear()
    embed(then(first, before, batches(frames, [2])))
    assert embedded == [25]


def test_all_is_embedded_anew_by_another_version(
    frames: Frames, first: EmbedSpec, other_model: Model, embedded: list[int]
) -> None:
    before = embed(first)
    embedded.clear()
    changed = then(first, before, batches(frames, [2]), model=shipped(other_model), model_version=1)
    result = embed(changed)
    assert sorted(embedded) == [20, 25, 30]
    embedded.clear()
    embed(then(changed, result, batches(frames, [3])))
    assert embedded == [25]


def test_versions_never_mix(frames: Frames, first: EmbedSpec, other_model: Model) -> None:
    before = embed(first)
    changed = then(first, before, batches(frames, [2]), model=shipped(other_model), model_version=1)
    result = embed(changed)
    assert result.model_version == 1
    for inference in (result, embed(then(changed, result, batches(frames, [3])))):
        after = reference_of(inference)
        assert after.model_version == 1
        assert {segment for segment, _ in names(after.sample.ids)} >= set(list(frames)[:3])
        for part in (after.sample, after.frontier):
            np.testing.assert_array_equal(part.latent, other_model.embed(part.points))
            assert not np.isclose(part.latent, pca_of(before).embed(part.points)).all(axis=1).any()


def test_a_model_of_another_latent_replaces_the_first(frames: Frames, first: EmbedSpec) -> None:
    before = embed(first)
    wider = fit_pca(reference_of(before).sample.points, 5)
    result = embed(then(first, before, batches(frames, [2]), model=shipped(wider), model_version=1, latent=5))
    assert reference_of(result).sample.latent.shape == (30, 5)


def test_a_warm_worker_fetches_system_and_model_once(
    alanine: PreparedSystem, frames: Frames, first: EmbedSpec, other_model: Model, file_store: StoreSpec
) -> None:
    unseen = replace(alanine, name="unseen")
    spec = replace(
        first,
        system=ship(unseen.to_arrays(), file_store),
        system_id=unseen.digest,
        model=shipped(other_model, file_store),
        model_version=1,
    )
    before = embed(spec)
    evict(spec.system)
    evict(spec.model)
    assert len(keys(file_store)) == 0
    assert embed(then(spec, before, batches(frames, [2]))).n_frames == 25


def test_without_embedding_neither_torch_nor_scikit_learn_nor_openmm_is_needed(
    frames: Frames, first: EmbedSpec
) -> None:
    spec = replace(first, embedding="none", candidates="uniform")
    script = (
        "import pickle, sys\n"
        "sys.modules['torch'] = sys.modules['sklearn'] = sys.modules['openmm'] = None\n"
        "from tasks.infer import embed\n"
        "result = embed(pickle.load(sys.stdin.buffer))\n"
        "sys.stdout.buffer.write(pickle.dumps(result))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(spec),
        cwd=Path(infer.__file__).parents[1],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr.decode()
    result = pickle.loads(answer.stdout)  # noqa: S301 - our own child wrote it
    assert_equal_results(result, embed(spec))
    assert reference_of(result).sample.latent.shape == (30, 0)
    assert len(result.start_ids) == 6
    assert set(result.scores) == set(result.segment_novelty) == {0.0}


# ---- bounds


@pytest.mark.parametrize("candidates", ["novel", "uniform"])
def test_cost_stops_growing_at_the_bounds(frames: Frames, first: EmbedSpec, candidates: str) -> None:
    results = campaign(replace(first, candidates=candidates), frames)
    for number, result in enumerate(results, start=1):
        after = reference_of(result)
        assert (after.number, after.n_seen) == (number, 50 * number)
        assert len(after.sample) == result.n_reference == 30
        assert len(after.frontier) == len(after.frontier_positions) == 20
        for part in (after.sample, after.frontier):
            assert len(set(names(part.ids))) == len(part)
    assert len({result.reference.n_bytes for result in results}) == 1
    # The sample remembers the whole campaign, not its end.
    assert len({segment for segment, _ in names(after.sample.ids)}) == N_SEGMENTS


def test_what_is_remembered_is_what_was_seen(alanine: PreparedSystem, frames: Frames, first: EmbedSpec) -> None:
    after = reference_of(campaign(first, frames)[-1])
    for part in (after.sample, after.frontier):
        wanted = np.stack([frames[segment][frame] for segment, frame in names(part.ids)])
        np.testing.assert_array_equal(part.points, wanted[:, alanine.feature_indices])
    np.testing.assert_array_equal(after.frontier_positions, wanted)


# ---- candidates


@pytest.mark.parametrize("candidates", ["novel", "uniform"])
def test_candidates_are_the_frames_they_are_called(frames: Frames, first: EmbedSpec, candidates: str) -> None:
    for result in campaign(replace(first, candidates=candidates), frames):
        positions = fetch(result.starts)["positions"]
        assert positions.shape == (6, 22, 3)
        assert positions.dtype == np.float32
        assert len(set(result.start_ids)) == len(result.scores) == 6
        wanted = np.stack([frames[segment][frame] for segment, frame in result.start_ids])
        np.testing.assert_array_equal(positions, wanted)


def test_the_best_candidate_comes_first(frames: Frames, first: EmbedSpec) -> None:
    for result in campaign(first, frames):
        assert list(result.scores) == sorted(result.scores, reverse=True)
        assert result.scores[-1] > np.mean(result.segment_novelty)


@pytest.fixture(scope="module")
def towards(alanine: PreparedSystem, frames: Frames, first: EmbedSpec) -> EmbedSpec:
    """The first inference of a campaign that steers to the last frame of all."""
    target = list(frames.values())[-1][-1, alanine.feature_indices].astype(np.float64)
    steered = replace(alanine, target=target)
    system = ship(steered.to_arrays(), INLINE)
    return replace(first, candidates="nearest", system=system, system_id=steered.digest)


def test_of_the_newest_frames_the_nearest_to_the_target_come_first(
    alanine: PreparedSystem, frames: Frames, first: EmbedSpec, towards: EmbedSpec
) -> None:
    target = list(frames.values())[-1][-1, alanine.feature_indices]
    whole_frontier = replace(first, n_candidates=20)
    for result, novel in zip(campaign(towards, frames), campaign(whole_frontier, frames), strict=True):
        score_of = dict(zip(novel.start_ids, novel.scores, strict=True))
        points = {(segment, frame): frames[segment][frame, alanine.feature_indices] for segment, frame in score_of}
        distance = {name: rmsd(points[name], target, superposition=True) for name in points}
        assert list(result.start_ids) == sorted(distance, key=distance.__getitem__)[:6]
        assert list(result.scores) == [score_of[name] for name in result.start_ids]
        assert result.segment_novelty == novel.segment_novelty


def test_the_nearest_frame_of_all_is_remembered(alanine: PreparedSystem, frames: Frames, towards: EmbedSpec) -> None:
    target = list(frames.values())[-1][-1, alanine.feature_indices]
    distance: dict[tuple[int, int], float] = {}
    for number, result in enumerate(campaign(towards, frames)):
        for segment in list(frames)[2 * number : 2 * number + 2]:
            for frame, positions in enumerate(frames[segment]):
                points = positions[alanine.feature_indices]
                distance[segment, frame] = rmsd(points, target, superposition=True)
        nearest = min(distance, key=distance.__getitem__)
        assert result.nearest is not None
        assert (result.nearest.segment_id, result.nearest.frame) == nearest
        assert result.nearest.rmsd_nm == pytest.approx(distance[nearest], abs=1e-6)
        assert reference_of(result).nearest == result.nearest
    assert result.nearest.rmsd_nm == pytest.approx(0, abs=1e-6)


def test_without_a_target_nothing_is_near(first: EmbedSpec) -> None:
    assert embed(first).nearest is None


def test_uniform_candidates_favour_no_frame(frames: Frames, first: EmbedSpec) -> None:
    spec = replace(first, embedding="none", candidates="uniform", n_candidates=3, max_frontier=8)
    counts, firsts = np.zeros(100), np.zeros(100)
    segments = list(frames)
    n_draws = 400
    for seed in range(n_draws):
        before = embed(replace(spec, seed=seed))
        result = embed(then(replace(spec, seed=seed), before, batches(frames, [2, 3])))
        assert result.scores == (0.0, 0.0, 0.0)
        rows = [N_FRAMES * segments.index(segment) + frame for segment, frame in result.start_ids]
        np.add.at(counts, rows, 1)
        firsts[rows[0]] += 1
    low, high = stats.chi2.ppf([0.0005, 0.9995], 99)
    chance = 0.03
    statistic = ((counts - n_draws * chance) ** 2).sum() / (n_draws * chance * (1 - chance)) * 99 / 100
    assert low < statistic < high
    # In no order either: candidates are handed out from the first.
    assert low < ((firsts - n_draws / 100) ** 2).sum() / (n_draws / 100) < high


def test_without_candidates_no_frame_is_kept_whole(frames: Frames, first: EmbedSpec) -> None:
    for result in campaign(replace(first, candidates="none"), frames):
        assert result.starts is None
        assert result.start_ids == result.scores == ()
        assert len(reference_of(result).frontier_positions) == 0
        assert min(result.segment_novelty) > 0


def test_no_more_candidates_than_frames(frames: Frames, first: EmbedSpec) -> None:
    result = embed(replace(first, n_candidates=99))
    assert len(result.start_ids) == len(fetch(result.starts)["positions"]) == 20


# ---- coverage


def ramachandran_cells(prepared: PreparedSystem, positions: np.ndarray) -> set[tuple[int, int, int]]:
    """Return (residue, phi cell, psi cell) that MDAnalysis finds visited."""
    universe = MDAnalysis.Universe(
        io.StringIO(prepared.topology_pdb),
        10 * positions,
        topology_format="PDB",
        format=MDAnalysis.coordinates.memory.MemoryReader,
    )
    angles = Ramachandran(universe.select_atoms("not resname ACE NME")).run().results.angles
    cells = np.floor((angles + 180) / 15).astype(int)
    return {(residue, *cells[frame, residue]) for frame, residue in np.ndindex(cells.shape[:2])}


def test_coverage_is_a_count_of_ramachandran_cells(alanine: PreparedSystem, frames: Frames, first: EmbedSpec) -> None:
    results = campaign(first, frames)
    seen = [np.concatenate(list(frames.values())[: 2 * number]) for number in (1, 2, 3, 4)]
    values = [result.coverage.value for result in results]
    assert values == [len(ramachandran_cells(alanine, positions)) for positions in seen]
    assert values == sorted(values)
    assert values[-1] > values[0] > 5
    assert {(result.coverage.metric, result.coverage.cells_deg) for result in results} == {("phi_psi_cells", 15)}


def test_frames_seen_again_cover_nothing_new(frames: Frames, first: EmbedSpec) -> None:
    before = embed(first)
    again = tuple((segment + 1000, ref) for segment, ref in first.batches)
    assert embed(then(first, before, again)).coverage == before.coverage


def test_without_phi_and_psi_coverage_is_of_principal_components(segment: SegmentSpec, first: EmbedSpec) -> None:
    prepared = prepare(SystemSpec("two", sequence="GG", platform="Reference"))
    frames = dynamics_of(prepared, segment)
    spec = replace(
        first,
        system=ship(prepared.to_arrays(), INLINE),
        system_id=prepared.digest,
        batches=batches(frames, range(2)),
    )
    results = campaign(spec, frames)
    points = np.concatenate(list(frames.values()))[:, prepared.feature_indices]
    # The plane of the first inference, for good.
    plane = fit_pca(points[:50], 3).embed(points)[:, :2]
    values = [result.coverage.value for result in results]
    assert values == [len(np.unique(np.floor(plane[:n] / 0.5), axis=0)) for n in (50, 100, 150, 200)]
    assert values == sorted(values)
    assert {(result.coverage.metric, result.coverage.cells_deg) for result in results} == {("pc_cells", None)}


# ---- repeatability


@pytest.mark.parametrize("measure", ["sparsity", "least-counts"])
@pytest.mark.parametrize("candidates", ["novel", "uniform"])
def test_an_equal_spec_gives_an_equal_result(frames: Frames, first: EmbedSpec, candidates: str, measure: str) -> None:
    spec = replace(first, candidates=candidates, novelty=measure)
    second = then(spec, embed(spec), batches(frames, [2, 3]))
    one = embed(second)
    embed(replace(second, seed=77))
    again = embed(replace(second, attempt=2))
    assert again.attempt == 2
    assert_equal_results(one, again)


def test_another_seed_remembers_other_frames(first: EmbedSpec) -> None:
    one, other = (names(reference_of(embed(replace(first, seed=seed))).sample.ids) for seed in (1, 2))
    assert one != other


def test_every_inference_draws_anew(frames: Frames, first: EmbedSpec) -> None:
    spec = replace(first, embedding="none", candidates="uniform")
    one, other = (embed(replace(spec, reference_number=number)).start_ids for number in (1, 2))
    assert one != other


# ---- what is left behind


def test_the_reference_is_a_file_without_pickle(tmp_path: Path, frames: Frames, first: EmbedSpec) -> None:
    spec = replace(first, run_dir=str(tmp_path))
    before = embed(spec)
    result = embed(then(spec, before, batches(frames, [2])))
    for each in (before, result):
        publish(tmp_path, each.reference_file)
    assert [file.relative_to(tmp_path).as_posix() for file in sorted(tmp_path.rglob("*.*"))] == [
        "models/reference-000001.npz",
        "models/reference-000002.npz",
    ]
    record = result.reference_file
    assert record.path == "models/reference-000002.npz"
    data = (tmp_path / record.path).read_bytes()
    assert (record.sha256, record.n_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    with np.load(tmp_path / record.path, allow_pickle=False) as file:
        kept = dict(file)
    travelling = fetch(result.reference)
    assert kept.keys() == travelling.keys()
    for name, array in kept.items():
        np.testing.assert_array_equal(array, travelling[name])
    # Whatever reads the file can go on from it.
    assert_equal_results(
        embed(then(spec, result, batches(frames, [3]))),
        embed(then(spec, replace(result, reference=ship(kept, INLINE)), batches(frames, [3]))),
    )


def test_without_a_run_directory_no_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: EmbedSpec
) -> None:
    monkeypatch.chdir(tmp_path)
    assert embed(first).reference_file is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("threshold", "n_stored"), [(0, 2), (10**9, 1)])
def test_starts_go_to_the_store_and_small_references_need_not(
    first: EmbedSpec, file_store: StoreSpec, threshold: int, n_stored: int
) -> None:
    result = embed(replace(first, store=replace(file_store, threshold=threshold)))
    assert len(keys(file_store)) == n_stored
    assert result.starts.data is None
    assert (result.reference.data is None) == (threshold == 0)
