"""west.h5: what WESTPA reads in it is what we had."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from campaign.west.config import export_config
from campaign.west.file import WestFile, replicas_in, west_name
from campaign.west.manager import make_manager
from campaign.west.record import Ended, Layout, Target
from policies.iteration import BasisStates, BrokenEnsemble, InitialState, Iteration, Recycled, Resampled
from tasks.errors import BadInput
from tests.ensembles import beginning, double_well, rectilinear, run

N = 30
LAYOUT = double_well()


@pytest.fixture(scope="module")
def series():
    """An ensemble in which walkers were recycled."""
    ended = list(run(LAYOUT, rectilinear(), N, seed=1))
    assert sum(len(each.resampled.recycled) for each in ended) > 20
    return ended


@pytest.fixture
def west(tmp_path):
    return WestFile(tmp_path / "west.h5", LAYOUT)


@pytest.fixture
def written(west, series):
    west.begin(beginning(8), rectilinear())
    for each in series:
        west.append(each)
    return west


@pytest.fixture
def manager(written):
    """WESTPA's own reader."""
    opened = make_manager(written.path, LAYOUT)
    opened.open_backing("r")
    yield opened
    opened.close_backing()


def test_westpa_reads_the_walkers_that_we_had(manager, series):
    assert manager.current_iteration == N + 1
    for each in series:
        segments = manager.get_segments(each.iteration.number)
        assert [segment.weight for segment in segments] == each.iteration.weights.tolist()
        assert [segment.parent_id for segment in segments] == each.iteration.parents.tolist()
        assert [segment.endpoint_type for segment in segments] == each.resampled.endpoints.tolist()
        assert [segment.walltime for segment in segments] == each.seconds.tolist()
        assert {segment.status_text for segment in segments} == {"SEG_STATUS_COMPLETE"}
        assert np.array_equal([segment.pcoord for segment in segments], each.pcoord)
    following = manager.get_segments(N + 1)
    assert [segment.weight for segment in following] == series[-1].resampled.following.weights.tolist()
    assert {segment.status_text for segment in following} == {"SEG_STATUS_PREPARED"}


def test_weight_is_traced_to_who_had_it(manager, series):
    """In WESTPA's weight graph, weight that was recycled comes from the walker that reached the target."""
    for each in series:
        following = manager.get_segments(each.iteration.number + 1)
        for segment, carried in zip(following, each.resampled.following.lineage, strict=True):
            assert segment.wtg_parent_ids == set(carried)
            assert min(segment.wtg_parent_ids) >= 0
    assert [segment.wtg_parent_ids for segment in manager.get_segments(1)] == [{-1 - i} for i in range(8)]


def test_a_walker_starts_where_its_parent_ended(manager):
    for number in range(2, N + 2):
        before, after = (manager.get_segments(each) for each in (number - 1, number))
        for segment in after:
            start = before[segment.parent_id].pcoord[-1] if segment.parent_id >= 0 else LAYOUT.basis.pcoord[0]
            assert np.array_equal(segment.pcoord[0], np.asarray(start, np.float32))


def test_states_are_told(manager, series):
    (basis,), (target,) = manager.get_basis_states(N), manager.get_target_states(N)
    assert (basis.label, basis.probability, basis.auxref, basis.pcoord) == ("left", 1, "left", [-1])
    assert (target.label, target.pcoord) == ("right", [np.float32(1.2)])
    states = manager.get_initial_states(N)
    made = [*beginning(8).initial, *(state for each in series for state in each.resampled.following.initial)]
    assert [state.state_id for state in states] == [each.number for each in made]
    used = {-1 - parent: 1 for parent in beginning(8).parents.tolist()}
    for each in series:
        following = each.resampled.following
        used |= {-1 - parent: following.number for parent in following.parents.tolist() if parent < 0}
    assert [state.iter_used for state in states] == [used.get(each.number, 0) for each in made]
    assert {state.istate_type for state in states} == {1}


def test_recycling_is_told(manager, series):
    for each in series:
        entries = manager.get_new_weight_data(each.iteration.number + 1)
        told = [(entry.prev_seg_id, entry.weight, entry.initial_state_id) for entry in entries]
        assert told == [(one.walker, one.weight, one.initial) for one in each.resampled.recycled]
        for entry in entries:
            assert entry.target_state_id == 0
            assert np.array_equal(entry.prev_final_pcoord, each.pcoord[entry.prev_seg_id, -1])
            assert entry.new_init_pcoord == [-1]


def test_bins_and_summaries_are_told(manager, series):
    for each in series:
        number, binning = each.resampled.following.number, each.binning
        group = manager.get_iter_group(number)
        mapper = manager.get_bin_mapper(group.attrs["binhash"])
        assert np.array_equal(mapper.boundaries, binning.mapper.boundaries)
        assert np.array_equal(group["bin_target_counts"], binning.target_counts)
        summary, weights = manager.get_iter_summary(number), each.resampled.following.weights
        populations = np.bincount(mapper.assign(group["pcoord"][:, 0]), weights)
        assert summary["n_particles"] == len(weights)
        assert summary["norm"] == pytest.approx(1, abs=1e-12)
        assert (summary["min_seg_prob"], summary["max_seg_prob"]) == (weights.min(), weights.max())
        assert summary["max_bin_prob"] == populations.max()
        assert summary["min_bin_prob"] == populations[populations > 0].min()
        walltime = manager.get_iter_summary(each.iteration.number)["walltime"]
        assert walltime == pytest.approx(each.seconds.sum())
    assert len(manager.we_h5file["bin_topologies/index"]) == 1


def test_a_learned_coordinate_may_change_between_iterations(west, series):
    """Row 0 of an iteration is what the new model says, and the iteration before keeps what the old one said."""
    west.begin(beginning(8), rectilinear())
    first, second = series[:2]
    shifted = first.starts_of_following(LAYOUT.basis) + np.float32(0.25)
    west.append(replace(first, starts=shifted))
    with h5py.File(west.path) as file:
        assert np.array_equal(file["iterations/iter_00000001/pcoord"], first.pcoord)
        assert np.array_equal(file["iterations/iter_00000002/pcoord"][:, 0], shifted)
    west.append(second)
    assert west.holds(second)


def test_two_dimensions_several_basis_states_and_targets(tmp_path):
    from westpa.core.binning import RectilinearBinMapper

    basis = BasisStates(("a", "b"), np.array([0.25, 0.75]), np.array([[0.0, 1.0], [0.5, 2.0]]))
    targets = (Target("near", np.array([3.5, 0.5])), Target("far", np.array([4.5, 0.5])))
    layout = Layout(2, 2, basis, targets)
    mapper = RectilinearBinMapper([[-np.inf, 3, 4, np.inf], [-np.inf, np.inf]])
    binning = replace(rectilinear(), mapper=mapper, target_counts=np.array([2, 0, 0]))
    first = Iteration(
        1, np.array([0.25, 0.75]), np.array([-1, -2]), ((-1,), (-2,)), tuple(map(InitialState, (0, 1), (0, 1)))
    )
    pcoord = np.array([[[0, 1], [3.1, 0]], [[0.5, 2], [4.1, 0]]], np.float32)
    # State 2 is used by both, for state 3 was merged away.
    following = Iteration(
        2, np.array([0.5, 0.5]), np.array([-3, -3]), ((0, 1),) * 2, (InitialState(2, 1), InitialState(3, 0))
    )
    resampled = Resampled(
        following, np.array([3, 3], np.uint8), np.array([1, 2]), (Recycled(0, 0.25, 2), Recycled(1, 0.75, 3))
    )
    west = WestFile(tmp_path / "west.h5", layout)
    west.begin(first, binning)
    west.append(Ended(first, pcoord, np.ones(2), resampled, binning))
    reader = make_manager(west.path, layout)
    reader.open_backing("r")
    assert [entry.target_state_id for entry in reader.get_new_weight_data(2)] == [0, 1]
    assert [state.basis_state_id for state in reader.get_initial_states(2)] == [0, 1, 1, 0]
    assert [state.iter_used for state in reader.get_initial_states(2)] == [1, 1, 2, 0]
    assert [segment.wtg_parent_ids for segment in reader.get_segments(2)] == [{0, 1}] * 2
    assert np.array_equal(reader.get_segments(2)[1].pcoord[0], [0.5, 2])
    reader.close_backing()


def test_what_does_not_belong_together_is_refused_and_nothing_written(west, series):
    west.begin(beginning(8), rectilinear())
    before = west.path.read_bytes()
    first = series[0]
    wrong = [
        (ValueError, series[1]),
        (BrokenEnsemble, replace(first, pcoord=first.pcoord[:, 1:])),
        (BrokenEnsemble, replace(first, seconds=first.seconds[1:])),
        (BrokenEnsemble, replace(first, resampled=series[1].resampled)),
    ]
    for error, each in wrong:
        with pytest.raises(error):
            west.append(each)
    assert west.path.read_bytes() == before
    assert list(west.path.parent.iterdir()) == [west.path]


@pytest.mark.parametrize("wrong", [{"pcoord_length": 1}, {"n_dimensions": 2}])
def test_a_layout_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match="give 2 or more|have shapes"):
        replace(LAYOUT, **wrong)


def test_nothing_is_left_behind_in_the_process(tmp_path):
    """Neither output nor environment, search path, loggers, nor WESTPA before a file is written."""
    code = """
import logging, os, sys, pathlib
from campaign.west.file import WestFile
from campaign.west.config import export_config
assert not [name for name in sys.modules if name.split(".")[0] in ("westpa", "tables", "mdtraj")]
from tests.ensembles import beginning, double_well, rectilinear, run
layout = double_well()
binning = rectilinear()
before = dict(os.environ), list(sys.path), os.getcwd(), list(logging.root.handlers), logging.root.level
west = WestFile(pathlib.Path(sys.argv[1]), layout)
west.begin(beginning(8), binning)
for each in run(layout, binning, 20, seed=1):
    west.append(each)
export_config(west.path.parent)
assert before == (dict(os.environ), list(sys.path), os.getcwd(), list(logging.root.handlers), logging.root.level)
import westpa
assert westpa.rc._data_manager is westpa.rc._system is None
"""
    (tmp_path / ".westrc").write_text("west: {data: {west_data_file: elsewhere.h5, iter_prec: 3}}")
    told = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "west.h5"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_a_name_is_taken_as_it_is(tmp_path, series):
    folder = tmp_path / "$HOME ~"
    folder.mkdir()
    west = WestFile(folder / "west.h5", LAYOUT)
    west.begin(beginning(8), rectilinear())
    west.append(series[0])
    assert [each.name for each in folder.iterdir()] == ["west.h5"]


def test_appending_costs_the_same_however_long_the_campaign(tmp_path):
    """CPU time: other processes are on these cores."""
    west, binning = WestFile(tmp_path / "west.h5", LAYOUT), rectilinear(2)
    west.begin(beginning(8), binning)
    spent = []
    for each in run(LAYOUT, binning, 200, seed=3):
        began = time.process_time()
        west.append(each)
        spent.append(time.process_time() - began)
    assert np.median(spent[-40:]) < 1.6 * np.median(spent[20:60])


def test_export_is_of_a_weighted_ensemble_with_an_iteration(tmp_path, west, series):
    with pytest.raises(BadInput, match=r"has no west\.h5"):
        export_config(tmp_path)
    west.begin(beginning(8), rectilinear())
    with pytest.raises(BadInput, match="no complete iteration"):
        export_config(tmp_path)
    west.append(series[0])
    with pytest.raises(BadInput, match="no directory"):
        export_config(tmp_path, tmp_path / "missing")
    other = tmp_path / "other"
    other.mkdir()
    (other / "west.h5").symlink_to("gone")
    for _ in range(2):
        assert export_config(tmp_path, other) == other / "west.cfg"
    (other / "west.h5").unlink()
    (other / "west.h5").touch()
    with pytest.raises(BadInput, match="another west.h5"):
        export_config(tmp_path, other)
    west.path.write_bytes(b"")
    with pytest.raises(BadInput, match="cannot be read"):
        export_config(tmp_path)


@pytest.fixture
def side_by_side(tmp_path, series):
    """A run of two ensembles: the second has its iterations, the first is only begun."""
    run = tmp_path / "run"
    run.mkdir()
    WestFile(run / west_name(0), LAYOUT).begin(beginning(8), rectilinear())
    WestFile(run / west_name(1), LAYOUT).rebuild(beginning(8), rectilinear(), series[:2])
    return run


def test_a_further_ensemble_is_exported_to_a_directory_of_its_own(side_by_side, tmp_path):
    folder = side_by_side / "west-1"
    for _ in range(2):
        assert export_config(side_by_side, replica=1) == folder / "west.cfg"
    assert {each.name for each in folder.iterdir()} == {"west.cfg", "west.h5"}
    assert not (side_by_side / "west.cfg").exists()
    told = yaml.load((folder / "west.cfg").read_text(), yaml.UnsafeLoader)["west"]
    assert told["data"]["west_data_file"] == "west.h5"
    # The link goes with the run.
    moved = side_by_side.rename(tmp_path / "moved")
    assert (moved / "west-1/west.h5").samefile(moved / "west-1.h5")


def test_a_further_ensemble_is_exported_where_the_user_says(side_by_side, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    assert export_config(side_by_side, other, replica=1) == other / "west.cfg"
    assert (other / "west.h5").samefile(side_by_side / "west-1.h5")
    assert not (side_by_side / "west-1").exists()
    with pytest.raises(BadInput, match=r"no complete iteration"):
        export_config(side_by_side, other)


def test_an_export_that_cannot_be_leaves_nothing(side_by_side, tmp_path):
    def there():
        return sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    (tmp_path / "other").mkdir()
    WestFile(side_by_side / west_name(2), LAYOUT).begin(beginning(8), rectilinear())
    before = there()
    for out, replica, sentence in [
        (None, 3, r"^--replica 3 is no ensemble with an iteration that ended in \S+/run: give 0 or 1 or 2$"),
        (None, 10**300, "^--replica 10{300} is no ensemble"),
        (None, 2, "no complete iteration"),
        (tmp_path / "other", 2, "no complete iteration"),
        (tmp_path / "missing", 1, "no directory: make it first"),
        (side_by_side, 1, r"/run has another west\.h5: give --out a directory without"),
    ]:
        with pytest.raises(BadInput, match=sentence):
            export_config(side_by_side, out, replica)
        assert there() == before
    # The name of the first ensemble's file is not taken by another, even while it is free.
    (side_by_side / "west.h5").unlink()
    with pytest.raises(BadInput, match=r"has another west\.h5"):
        export_config(side_by_side, side_by_side, 1)
    assert not (side_by_side / "west.h5").is_symlink()
    with pytest.raises(BadInput, match="^--replica 0 is no ensemble .* give 1 or 2$"):
        export_config(side_by_side)


def test_ensembles_are_known_by_their_files(tmp_path):
    assert replicas_in(tmp_path) == []
    names = [west_name(replica) for replica in (0, 2, 10)]
    assert names == ["west.h5", "west-2.h5", "west-10.h5"]
    for name in [*names, "west-02.h5", "west-x.h5", "west-1.h5.old", ".west-3.h5.part"]:
        (tmp_path / name).touch()
    assert replicas_in(tmp_path) == [0, 2, 10]


def test_source_and_target_must_be_apart(tmp_path, series):
    layout = replace(LAYOUT, targets=(Target("here", np.array([-1.01])),))
    west = WestFile(tmp_path / "west.h5", layout)
    west.rebuild(beginning(8), rectilinear(), series[:1])
    with pytest.raises(BadInput, match="cannot tell them apart"):
        export_config(tmp_path)
