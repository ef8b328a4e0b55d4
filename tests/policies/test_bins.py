"""``--bins``: its grammar, what is refused, and the warning about a target that nothing leads to."""

import numpy as np
import pytest

from policies.bins import Adaptive, Rectilinear, Voronoi, outside, parse_bins
from policies.target import parse_target
from tasks.errors import BadInput

INF = float("inf")
X, XY = ("x",), ("x", "y")


@pytest.mark.parametrize(
    ("text", "names", "bins"),
    [
        ("rectilinear:0,1", X, Rectilinear(((-INF, 0, 1, INF),))),
        ("rectilinear:-inf,0,1,inf", X, Rectilinear(((-INF, 0, 1, INF),))),
        ("rectilinear: 0 , 1e1 ; -inf,2", XY, Rectilinear(((-INF, 0, 10, INF), (-INF, 2, INF)))),
        ("mab:20", X, Adaptive((20,))),
        ("mab:20,5", XY, Adaptive((20, 5))),
        ("voronoi:30", XY, Voronoi(30)),
    ],
)
def test_what_it_names(text, names, bins):
    assert parse_bins(text, names) == bins


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("grid:3", X, "it is none of the kinds there are: write rectilinear:E0"),
        ("rectilinear", X, "it is none of the kinds"),
        ("", X, "it is none of the kinds"),
        ("rectilinear:0,2,1", X, "bins of x overlap (2 comes before 1): give rising edges"),
        ("rectilinear:0,0", X, "bins of x overlap (0 comes before 0)"),
        ("rectilinear:1,1.000000001", X, "bins of x overlap"),
        ("rectilinear:0,inf,1", X, "bins of x overlap"),
        ("rectilinear:0,1e39", X, "bins of x overlap"),
        ("rectilinear:0,a", X, "the edges of x are no numbers"),
        ("rectilinear:", X, "the edges of x are no numbers"),
        ("rectilinear:0,nan", X, "an edge of x is nan"),
        ("rectilinear:0,1", XY, "it has 1 dimension and the progress coordinate 2: give edges for each of x, y"),
        ("rectilinear:0,1;0,1", X, "it has 2 dimensions and the progress coordinate 1"),
        ("mab:3", XY, "it has 1 dimension and the progress coordinate 2: give a number for each of x, y"),
        ("mab:0", X, "0 is no number of bins: give one from 1 to 65535"),
        ("mab:2.5", X, "2.5 is no number of bins"),
        ("voronoi:0", X, "0 is no number of bins"),
        ("voronoi:-3", X, "-3 is no number of bins"),
        ("voronoi:", X, "nothing is no number of bins"),
        ("voronoi:70000", X, "70000 is no number of bins"),
    ],
)
def test_what_is_refused(text, names, said):
    with pytest.raises(BadInput) as refused:
        parse_bins(text, names)
    assert str(refused.value).startswith(f"--bins {text} cannot be used, for ")
    assert said in str(refused.value)


def test_more_bins_than_westpa_numbers():
    edges = ",".join(map(str, range(300)))
    with pytest.raises(BadInput, match="it makes 90601 bins: give edges for at most 65535"):
        parse_bins(f"rectilinear:{edges};{edges}", XY)


@pytest.mark.parametrize(
    ("bins", "target", "warned"),
    [
        ("rectilinear:0,1,2", "x > 2.5", False),
        ("rectilinear:0,1,2", "x > 3.5", True),
        ("rectilinear:0,1,2", "x < -1.5", True),
        ("rectilinear:0,1,2", "1 < x < 1.5", False),
        ("rectilinear:0", "x > 5", True),
        ("rectilinear:-inf,inf", "x > 5", False),
        ("mab:5", "x > 1e6", False),
        ("voronoi:5", "x > 1e6", False),
    ],
)
def test_a_target_outside_the_bins(bins, target, warned):
    said = outside(parse_bins(bins, X), parse_target(target, X), X)
    assert (said is not None) == warned
    if said:
        assert said.startswith(f'--target "{target}" lies outside the bins of x, which end at')


def test_the_target_of_the_double_well_is_near_enough():
    edges = ",".join(f"{0.3 * edge:g}" for edge in np.linspace(-1.05, 0.85, 31))
    assert outside(parse_bins(f"rectilinear:{edges}", X), parse_target("x > 0.27", X), X) is None
