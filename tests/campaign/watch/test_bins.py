"""Series that do not grow tell what longer ones would."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign.watch.bins import Bins, Window

PLACES = st.lists(st.floats(-1e6, 2e9, allow_nan=False, allow_subnormal=False), min_size=1, max_size=200)


@given(PLACES, st.integers(0, 100))
def test_the_order_of_values_changes_nothing(places, seed):
    bins, shuffled = Bins(1.0, most=20), Bins(1.0, most=20)
    for x in places:
        bins.add(x, 1.0)
    random.Random(seed).shuffle(places)
    for x in places:
        shuffled.add(x, 1.0)
    assert bins.dense() == shuffled.dense()


@given(PLACES)
def test_there_are_never_too_many_and_nothing_is_lost(places):
    bins = Bins(1.0, most=20)
    for x in places:
        bins.add(x, 2.0)
    begin, totals = bins.dense()
    assert len(totals) <= 20
    assert sum(totals) == 2.0 * len(places)
    assert begin <= min(places) < begin + bins.width
    assert max(places) < begin + bins.width * len(totals)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0.01, 1e4)), min_size=1, max_size=50))
def test_a_span_is_as_long_in_its_bins_as_it_is(spans):
    bins = Bins(1.0, most=30)
    for begin, length in spans:
        bins.add_span(begin, begin + length)
    assert sum(bins.dense()[1]) == pytest.approx(sum(length for _, length in spans))


def test_a_bin_tells_its_last_value_where_that_was_and_the_mean():
    bins = Bins(10.0)
    bins.add(1.0, 3.0)
    bins.add(4.0, 5.0)
    (point,) = bins.points()
    assert (point.x, point.last, point.mean, point.n) == (4.0, 5.0, 4.0, 2)


def test_empty_bins_have_nothing():
    assert Bins(1.0).points() == []
    assert Bins(1.0).dense() == (0.0, [])


def test_a_window_forgets_what_is_older():
    window = Window(60.0, slice_s=5.0)
    window.add_span(0.0, 10.0)
    window.add_span(100.0, 130.0)
    window.add_span(110.0, 120.0)
    assert window.within(0.0) == pytest.approx(40.0)
    assert window.within(115.0) == pytest.approx(20.0)
