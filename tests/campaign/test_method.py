"""How a weighted ensemble is run, as settings and system tell it."""

import numpy as np
import pytest

from campaign.method import method_of
from campaign.molecule import system_spec
from campaign.settings import Settings
from tasks.errors import BadInput
from tasks.systems import prepare

WELL = {"system": "double-well", "policy": "weighted-ensemble", "max_iterations": 3}


@pytest.fixture(scope="module")
def well():
    return prepare(system_spec(Settings(**WELL)))


def method(prepared, **more):
    return method_of(Settings(**WELL, **more), prepared)


def test_what_is_not_said_has_a_default(well):
    found = method(well)
    assert (found.coordinate.names, found.target, found.walkers_per_bin) == (("x",), None, 4)
    assert found.names == ("double-well",)
    assert found.probabilities.tolist() == [1.0]
    # Five adaptive bins, one for each end, and two before bottlenecks.
    assert found.rule(np.zeros((1, 1))).space.n_bins >= 5


@pytest.mark.parametrize(
    ("bins", "target", "most"),
    [
        ("rectilinear:-0.2,0,0.2", None, 16),
        ("rectilinear:-0.2,0,0.2", "x > 0.25", 16),
        ("voronoi:7", None, 28),
    ],
)
def test_walkers_are_bounded_by_the_bins(well, bins, target, most):
    assert method(well, bins=bins, target=target).most_walkers == most


def test_voronoi_cells_follow_what_was_reached(well):
    space = method(well, bins="voronoi:3").rule(np.array([[-0.3], [0.0], [0.3], [0.31]])).space
    bins, _ = space.assign(np.array([[-0.3], [0.0], [0.3], [0.31]]), np.full(4, 0.25))
    assert len(set(bins.tolist())) == 3


def test_a_target_that_no_bins_lead_to_is_told(well):
    told = method(well, bins="rectilinear:-0.3,-0.25", target="x > 0.27").warning
    assert told is not None
    assert "walkers are not led there" in told
    assert method(well, bins="rectilinear:-0.3,0,0.25", target="x > 0.27").warning is None


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"bins": "rectilinear:1,0"}, "bins of x overlap"),
        ({"bins": "grid:3"}, "it is none of the kinds there are"),
        ({"target": "y > 1"}, "y is no dimension"),
        ({"target": "x > 1 and x < 0"}, "nothing satisfies"),
        ({"frame_ps": 0.01, "segment_ps": 40.0}, "keep fewer frames"),
    ],
)
def test_what_cannot_be_is_refused(well, more, sentence):
    with pytest.raises(BadInput, match=sentence):
        method(well, **more)
