"""WESTPA's data manager, told what an iteration is in our arrays; the only place that speaks WESTPA's objects.

WESTPA is imported when a manager is made: it takes a second, which campaigns without weighted ensemble need not wait.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from campaign.west.record import Binning, Ended, Layout, starts_of
from policies.iteration import Iteration


def make_manager(path: Path, layout: Layout) -> Any:
    """Return a `WESTDataManager` for a file, closed; no configuration file and no environment tells it anything."""
    from westpa.core.data_manager import WESTDataManager
    from westpa.core.systems import WESTSystem
    from westpa.core.yamlcfg import YAMLConfig

    # Its __init__ would read /etc/westpa/westrc and ~/.westrc, which are about the user's own simulations.
    config = YAMLConfig.__new__(YAMLConfig)
    config._data = {}
    rc = SimpleNamespace(config=config)
    manager = WESTDataManager(rc=rc)
    manager.we_h5filename = str(path)  # through the configuration, $ and ~ in it would be expanded
    manager.system = WESTSystem(rc=rc)
    manager.system.pcoord_ndim, manager.system.pcoord_len = layout.n_dimensions, layout.pcoord_length
    manager.system.pcoord_dtype = np.float32
    return manager


def write_beginning(manager: Any, layout: Layout, first: Iteration, binning: Binning) -> None:
    """Make the file, with basis and target states and the walkers of the first iteration."""
    from westpa.core.states import BasisState, TargetState

    basis = layout.basis
    manager.prepare_backing()
    manager.save_target_states([TargetState(each.name, each.pcoord) for each in layout.targets])
    manager.create_ibstate_group(
        [
            BasisState(name, float(probability), pcoord=pcoord, auxref=name)
            for name, probability, pcoord in zip(basis.names, basis.probabilities, basis.pcoord, strict=True)
        ]
    )
    _prepare(manager, layout, first, starts_of(first, basis), binning)


def write_ended(manager: Any, layout: Layout, ended: Ended) -> None:
    """Complete the iteration that ended, and prepare the one that follows."""
    iteration, following = ended.iteration, ended.resampled.following
    manager.update_segments(iteration.number, _completed(ended))
    summary = manager.get_iter_summary(iteration.number)
    summary["walltime"] = summary["cputime"] = float(np.sum(ended.seconds))
    manager.update_iter_summary(summary, iteration.number)
    starts = ended.starts_of_following(layout.basis)
    _prepare(manager, layout, following, starts, ended.binning)
    manager.save_new_weight_data(following.number, _new_weights(layout, ended, starts))


def _completed(ended: Ended) -> list[Any]:
    from westpa.core.segment import Segment

    columns = (ended.iteration.weights, ended.iteration.parents, ended.resampled.endpoints, ended.seconds)
    return [
        Segment(
            n_iter=ended.iteration.number,
            seg_id=number,
            weight=weight,
            parent_id=parent,
            endpoint_type=endpoint,
            pcoord=ended.pcoord[number],
            status=Segment.SEG_STATUS_COMPLETE,
            walltime=seconds,
            cputime=seconds,
        )
        for number, (weight, parent, endpoint, seconds) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    ]


def _prepare(manager: Any, layout: Layout, iteration: Iteration, starts: np.ndarray, binning: Binning) -> None:
    """Write the walkers of an iteration that begins; the tools take the file's current iteration for unfinished."""
    _add_initial_states(manager, layout, iteration, starts)
    manager.prepare_iteration(iteration.number, _prepared(layout, iteration, starts))
    pickled, digest = binning.mapper.pickle_and_hash()
    manager.save_iter_binning(iteration.number, digest, pickled, binning.target_counts)
    summary = manager.get_iter_summary(iteration.number)
    populations = np.bincount(binning.mapper.assign(starts), iteration.weights)
    occupied = populations[populations > 0]
    summary["min_bin_prob"], summary["max_bin_prob"] = occupied.min(), occupied.max()
    summary["min_seg_prob"], summary["max_seg_prob"] = iteration.weights.min(), iteration.weights.max()
    manager.update_iter_summary(summary, iteration.number)
    manager.current_iteration = iteration.number


def _prepared(layout: Layout, iteration: Iteration, starts: np.ndarray) -> list[Any]:
    from westpa.core.segment import Segment

    pcoord = np.zeros((len(starts), layout.pcoord_length, layout.n_dimensions), np.float32)
    pcoord[:, 0] = starts
    rows = zip(iteration.weights.tolist(), iteration.parents.tolist(), iteration.lineage, strict=True)
    return [
        Segment(
            n_iter=iteration.number,
            seg_id=number,
            weight=weight,
            parent_id=parent,
            wtg_parent_ids=carried,
            pcoord=pcoord[number],
            status=Segment.SEG_STATUS_PREPARED,
        )
        for number, (weight, parent, carried) in enumerate(rows)
    ]


def _add_initial_states(manager: Any, layout: Layout, iteration: Iteration, starts: np.ndarray) -> None:
    """Add those made for an iteration; their numbers are their rows in WESTPA's table."""
    from westpa.core.states import InitialState

    if not iteration.initial:
        return
    rows = {-1 - parent: row for row, parent in enumerate(iteration.parents.tolist()) if parent < 0}
    states = [
        InitialState(
            state_id=each.number,
            basis_state_id=each.basis,
            iter_created=max(1, iteration.number - 1),
            iter_used=iteration.number if each.number in rows else InitialState.ISTATE_UNUSED,
            istate_type=InitialState.ISTATE_TYPE_BASIS,
            istate_status=InitialState.ISTATE_STATUS_PREPARED,
            pcoord=starts[rows[each.number]] if each.number in rows else layout.basis.pcoord[each.basis],
        )
        for each in iteration.initial
    ]
    table = manager.find_ibstate_group(iteration.number)
    n_known = len(table["istate_index"]) if "istate_index" in table else 0
    n_needed = max(each.number for each in iteration.initial) + 1
    if n_needed > n_known:
        manager.create_initial_states(n_needed - n_known, n_iter=iteration.number)
    manager.update_initial_states(states, n_iter=iteration.number)


def _new_weights(layout: Layout, ended: Ended, starts: np.ndarray) -> list[Any]:
    from westpa.core.we_driver import NewWeightEntry

    if not ended.resampled.recycled:
        return []
    following = ended.resampled.following
    started = {-1 - parent: row for row, parent in enumerate(following.parents.tolist()) if parent < 0}
    basis_of = {each.number: layout.basis.pcoord[each.basis] for each in following.initial}
    target_of = _targets_by_bin(layout, ended.binning)
    return [
        NewWeightEntry(
            NewWeightEntry.NW_SOURCE_RECYCLED,
            each.weight,
            prev_seg_id=each.walker,
            prev_init_pcoord=ended.pcoord[each.walker, 0],
            prev_final_pcoord=ended.pcoord[each.walker, -1],
            # Merged away, it began nowhere.
            new_init_pcoord=starts[started[each.initial]] if each.initial in started else basis_of[each.initial],
            target_state_id=target_of.get(int(ended.resampled.bins[each.walker]), 0),
            initial_state_id=each.initial,
        )
        for each in ended.resampled.recycled
    ]


def _targets_by_bin(layout: Layout, binning: Binning) -> dict[int, int]:
    if len(layout.targets) < 2:
        return {}
    bins = binning.mapper.assign(np.array([each.pcoord for each in layout.targets], np.float32))
    return {number: target for target, number in enumerate(bins.tolist())}
