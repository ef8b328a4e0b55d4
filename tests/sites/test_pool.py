"""What --simulate-site names, and what it cannot."""

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sites.pool import Share, shares
from tasks.errors import BadInput


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("local", [("local", 1.0)]),
        ("A,B,C", [("A", 1.0), ("B", 1.0), ("C", 1.0)]),
        ("A,B:2, C:0.5", [("A", 1.0), ("B", 2.0), ("C", 0.5)]),
        ("A:1e-3", [("A", 0.001)]),
    ],
)
def test_sites_come_in_order_with_their_weights(text, named):
    assert shares(text) == tuple(Share(*each) for each in named)


@pytest.mark.parametrize("told", ["0", "-1", "two", "nan", "inf", "", "1:2"])
def test_a_weight_that_is_none_is_refused(told):
    with pytest.raises(BadInput) as caught:
        shares(f"A,B:{told}")
    sentence = str(caught.value)
    assert sentence.startswith(f"--simulate-site A,B:{told}: the weight ")
    assert "of site B is no positive number: give one, as in B:2" in sentence


@pytest.mark.parametrize("text", ["A,A", "A,B,A:2"])
def test_a_site_is_named_once(text):
    with pytest.raises(BadInput, match=f"--simulate-site {text} names site A twice: name each site once"):
        shares(text)


@pytest.mark.parametrize("text", ["", ",", "A,", ":2", "A,,B"])
def test_a_site_has_a_name(text):
    with pytest.raises(BadInput, match="lacks the name of a site"):
        shares(text)


@given(st.text())
def test_whatever_is_named_is_taken_or_refused_in_a_sentence(text):
    with suppress(BadInput):
        named = shares(text)
        assert len({share.site for share in named}) == len(named) == text.count(",") + 1
        assert all(0 < share.weight < math.inf for share in named)
