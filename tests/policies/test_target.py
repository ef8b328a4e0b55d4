"""Targets: what is read as a box, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.target import parse_target
from tasks.errors import BadInput

INF = float("inf")
PHI_PSI = ("phi", "psi")


@pytest.mark.parametrize(
    ("expression", "low", "high"),
    [
        ("phi >= 40", (40, -INF), (INF, INF)),
        ("40 <= phi", (40, -INF), (INF, INF)),
        ("phi >= 40 and -60 <= psi < 60", (40, -60), (INF, 60)),
        ("(psi < +60.5) and phi >= -1e1 and psi < 50", (-10, -INF), (INF, 50)),
        ("60 > psi >= -60", (-INF, -60), (INF, 60)),
    ],
)
def test_a_box(expression, low, high):
    target = parse_target(expression, PHI_PSI)
    assert (target.low, target.high) == (low, high)
    assert target.contains(np.array(target.point))


@given(
    bound=st.floats(-1e6, 1e6, width=32),
    operator=st.sampled_from(["<", "<=", ">", ">="]),
    mirrored=st.booleans(),
    step=st.integers(-1, 1),
)
def test_strict_and_inclusive_bounds_differ_by_the_bound_alone(bound, operator, mirrored, step):
    x = np.nextafter(np.float32(bound), np.float32(step * np.inf)) if step else np.float32(bound)
    target = parse_target(f"{bound!r} {operator} x" if mirrored else f"x {operator} {bound!r}", ("x",))
    left, right = (bound, float(x)) if mirrored else (float(x), bound)
    wanted = {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[operator]
    assert bool(target.contains(np.array([x]))) == wanted


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("x > 1", "x is no dimension: name one of phi, psi"),
        ("phi > 3 and phi < 2", "nothing satisfies what it asks of phi: widen"),
        ("2 < phi < 2", "nothing satisfies"),
        ("phi > 3 or psi > 2", "it is more than a box: write comparisons joined by and"),
        ("not phi > 3", "it is more than a box"),
        ("phi", "it is more than a box"),
        ("phi > 3 and psi", "it is more than a box"),
        ("phi == 3", "phi == 3 bounds nothing: compare with <, <=, > or >="),
        ("phi > psi", "psi is no finite number"),
        ("phi > 2 * 3", "2 * 3 is no finite number"),
        ("phi > True", "True is no finite number"),
        ("phi > 1e400", "is no finite number"),
        ("phi > '3'", "'3' is no finite number"),
        ("1 < 2", "1 < 2 names no dimension: name one of phi, psi"),
        ("__import__('os').getcwd() > 3", "names no dimension"),
        ("phi >", "it cannot be read"),
        ("", "it cannot be read"),
        ("phi > 3\x00", "it cannot be read"),
    ],
)
def test_what_is_no_box_is_refused(expression, said):
    with pytest.raises(BadInput) as refused:
        parse_target(expression, PHI_PSI)
    assert str(refused.value).startswith(f'--target "{expression}" cannot be used, for ')
    assert said in str(refused.value)
