"""How a weighted ensemble is run: its coordinate, basis states and bins, as the settings name them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from campaign.settings import Settings
from policies.bins import Bins, Voronoi, outside, parse_bins
from policies.mappers import build, choose_centres
from policies.target import Target, parse_target
from policies.weighted_ensemble import Rule
from tasks.coordinate import parse_coordinate, require_small
from tasks.messages import Coordinate
from tasks.prepared import PreparedSystem

# Bins in each dimension where none are named.
_ADAPTIVE = 5


@dataclass(frozen=True, slots=True)
class Method:
    """How an ensemble is run.

    Attributes
    ----------
    names, probabilities
        Of the basis states; probabilities, (n_states,) float64, sum to one.
    warning
        What the user should know of the target; None where there is nothing.
    fixed
        The rule, where its bins are the same throughout; None for Voronoi cells.
    most_walkers
        Of an iteration where every bin is reached.

    Raises
    ------
    BadInput
        When there are too many bins.
    """

    coordinate: Coordinate
    names: tuple[str, ...]
    probabilities: np.ndarray
    bins: Bins
    target: Target | None
    walkers_per_bin: int
    warning: str | None = None
    fixed: Rule | None = field(init=False)
    most_walkers: int = field(init=False)

    def __post_init__(self) -> None:
        """Make the bins that never change once; where adaptive ones are, their mapper finds out itself."""
        centres = None
        if isinstance(self.bins, Voronoi):
            # Anywhere, but apart: how many they are is all that is asked of them here.
            centres = np.repeat(
                np.arange(self.bins.n, dtype=np.float32)[:, None], self.coordinate.n_dimensions, axis=1
            )
        rule = self._rule(centres)
        object.__setattr__(self, "fixed", rule if centres is None else None)
        object.__setattr__(self, "most_walkers", int(rule.counts.sum()))

    def rule(self, ends: np.ndarray) -> Rule:
        """Return how walkers are resampled.

        Parameters
        ----------
        ends : ndarray of shape (n_walkers, n_dimensions)
            Coordinates that walkers ended at, over which Voronoi centres are spread.
        """
        if self.fixed is not None:
            return self.fixed
        assert isinstance(self.bins, Voronoi)  # all others are fixed
        return self._rule(choose_centres(ends, self.bins.n))

    def _rule(self, centres: np.ndarray | None) -> Rule:
        space = build(self.bins, self.target, self.coordinate.n_dimensions, centres)
        return Rule(space, self.walkers_per_bin)


def method_of(settings: Settings, prepared: PreparedSystem) -> Method:
    """Return how the ensembles of a campaign are run.

    Raises
    ------
    BadInput
        When coordinate, bins or target cannot be had with this system.
    """
    assert settings.pcoord is not None  # the settings have a default
    coordinate = parse_coordinate(settings.pcoord, prepared, latent=settings.latent, here=str(Path.cwd()))
    require_small(coordinate, settings.dynamics(prepared.platform))
    default = "mab:" + ",".join([str(_ADAPTIVE)] * coordinate.n_dimensions)
    bins = parse_bins(settings.bins or default, coordinate.names)
    target = None if settings.target is None else parse_target(settings.target, coordinate.names)
    names, probabilities = _basis(prepared)
    return Method(
        coordinate,
        names,
        probabilities,
        bins,
        target,
        settings.walkers_per_bin,
        None if target is None else outside(bins, target, coordinate.names),
    )


def _basis(prepared: PreparedSystem) -> tuple[tuple[str, ...], np.ndarray]:
    if prepared.basis_names:
        return prepared.basis_names, prepared.basis_probabilities
    n = prepared.n_starts
    names = (prepared.name,) if n == 1 else tuple(f"{prepared.name}-{number}" for number in range(n))
    return names, np.full(n, 1 / n)
