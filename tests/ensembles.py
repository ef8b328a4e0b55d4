"""Weighted ensembles for tests: Brownian dynamics in a double well, resampled by WESTPA's own driver."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np

from campaign.west.record import Binning, Ended, Layout, Target
from policies.iteration import BasisStates, Endpoint, InitialState, Iteration, Recycled, Resampled

SOURCE, TARGET = -1.0, 0.9
EDGES = [-np.inf, *np.linspace(-1.05, TARGET, 11), np.inf]


def double_well(n_points: int = 6, recycles: bool = True) -> Layout:
    """Return the layout of an ensemble of particles in a 1-D double well whose target is the right one."""
    basis = BasisStates(("left",), np.ones(1), np.array([[SOURCE]]))
    return Layout(1, n_points, basis, (Target("right", np.array([1.2])),) if recycles else ())


def rectilinear(per_bin: int = 4, recycles: bool = True) -> Binning:
    """Return bins along the coordinate, the last of them the target."""
    from westpa.core.binning import RectilinearBinMapper

    mapper = RectilinearBinMapper([EDGES])
    counts = np.full(mapper.nbins, per_bin)
    counts[-1] = 0 if recycles else per_bin
    return Binning(mapper, counts)


def around_target(bins: str) -> Binning:
    """Return bins that ``--bins`` names, around a target that is one bin of its own."""
    from policies.bins import parse_bins
    from policies.mappers import build
    from policies.target import parse_target

    centres = np.linspace(-1, 0.8, 9, dtype=np.float32)[:, None]
    space = build(parse_bins(bins, ["x"]), parse_target(f"x >= {TARGET}", ["x"]), 1, centres)
    counts = np.full(space.n_bins, 4)
    counts[space.target_bin] = 0
    return Binning(space.mapper, counts)


def beginning(n_walkers: int) -> Iteration:
    """Return a first iteration whose walkers all start at the basis state."""
    parents = -1 - np.arange(n_walkers)
    states = tuple(InitialState(number, 0) for number in range(n_walkers))
    weights = np.full(n_walkers, 1 / n_walkers)
    return Iteration(1, weights, parents, tuple((parent,) for parent in parents.tolist()), states)


def run(layout: Layout, binning: Binning, n_iterations: int, seed: int, n_walkers: int = 8) -> Iterator[Ended]:
    """Yield the iterations of an ensemble as they end."""
    rng = np.random.default_rng(seed)
    driver = _driver(layout, binning, seed)
    iteration, x, n_states = beginning(n_walkers), np.full(n_walkers, SOURCE, np.float32), n_walkers
    for _ in range(n_iterations):
        pcoord = _propagate(x, layout.pcoord_length, rng)
        resampled, x, n_states = _resample(driver, layout, iteration, pcoord, n_states)
        yield Ended(iteration, pcoord, rng.uniform(0.1, 0.2, len(pcoord)), resampled, binning)
        iteration = resampled.following


def _propagate(x: np.ndarray, n_points: int, rng: np.random.Generator) -> np.ndarray:
    """Overdamped dynamics in V = 4 (x^2 - 1)^2 at unit temperature."""
    points = [x.astype(np.float64)]
    for _ in range(n_points - 1):
        now = points[-1]
        for _ in range(4):
            now = now - 0.005 * 16 * now * (now**2 - 1) + 0.1 * rng.normal(size=len(x))
        points.append(now)
    return np.stack(points, 1)[:, :, None].astype(np.float32)


def _driver(layout: Layout, binning: Binning, seed: int):
    from westpa.core.systems import WESTSystem
    from westpa.core.we_driver import WEDriver
    from westpa.core.yamlcfg import YAMLConfig

    rc = SimpleNamespace(config=YAMLConfig())
    system = WESTSystem(rc=rc)
    system.pcoord_ndim, system.pcoord_len = layout.n_dimensions, layout.pcoord_length
    system.bin_mapper, system.bin_target_counts = binning.mapper, binning.target_counts
    driver = WEDriver(rc=rc, system=system)
    driver.rng = np.random.Generator(np.random.MT19937(seed))
    return driver


def _resample(driver, layout: Layout, iteration: Iteration, pcoord: np.ndarray, n_states: int):
    """Return what WESTPA makes of walkers, where the following start, and how many initial states there are then."""
    from westpa.core.segment import Segment
    from westpa.core.states import InitialState as TheirState
    from westpa.core.states import TargetState

    segments = [
        Segment(
            n_iter=iteration.number, seg_id=i, weight=weight, parent_id=0, pcoord=pcoord[i],
            endpoint_type=Segment.SEG_ENDPOINT_CONTINUES, status=Segment.SEG_STATUS_COMPLETE,
        )
        for i, weight in enumerate(iteration.weights)
    ]  # fmt: skip
    driver.new_iteration(
        target_states=[TargetState(each.name, each.pcoord, i) for i, each in enumerate(layout.targets)]
    )
    driver.assign(segments)
    made = tuple(InitialState(n_states + i, 0) for i in range(driver.n_istates_needed))
    driver.add_initial_states([TheirState(each.number, 0, 0, pcoord=layout.basis.pcoord[0]) for each in made])
    driver.construct_next()
    chosen = list(driver.next_iter_segments)
    recycled = [Recycled(each.prev_seg_id, each.weight, each.initial_state_id) for each in driver.new_weights or ()]
    lineage = [tuple(each.wtg_parent_ids) for each in chosen]
    parents = np.array([each.parent_id for each in chosen])
    following = Iteration(
        iteration.number + 1, np.array([each.weight for each in chosen]), parents, tuple(lineage), made
    )
    endpoints = np.array([Endpoint(each.endpoint_type) for each in segments], np.uint8)
    bins = driver.bin_mapper.assign(pcoord[:, -1]).astype(np.int64)
    x = np.array([each.pcoord[0, 0] for each in chosen], np.float32)
    return Resampled(following, endpoints, bins, tuple(recycled)), x, n_states + len(made)
