"""Series that stay small however long they go on."""

from __future__ import annotations

import math
from dataclasses import dataclass

# As many as a chart has room for.
MOST_BINS = 300


@dataclass(frozen=True, slots=True)
class Point:
    """What fell into a bin.

    Attributes
    ----------
    x
        Where the last of it is.
    """

    x: float
    n: int
    total: float
    last: float

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return self.total / self.n


class Bins:
    """Values along an axis, in bins of one width that doubles whenever there would be too many of them.

    Edges are multiples of the width, so what comes of values does not hang on how they were handed in.

    Parameters
    ----------
    width
        In the beginning.
    most
        Bins from the first to the last, empty ones included.
    """

    def __init__(self, width: float, most: int = MOST_BINS) -> None:
        self.width = width
        self._most = most
        self._bins: dict[int, Point] = {}
        self._ends: tuple[int, int] | None = None

    def add(self, x: float, value: float) -> None:
        """Put a value into its bin."""
        self._put(self._reach(x), x, value)

    def add_span(self, begin: float, end: float) -> None:
        """Put a stretch of the axis into the bins that it crosses, each its part."""
        if end <= begin:
            return
        # The second may widen them.
        self._reach(begin)
        last = self._reach(end)
        for number in range(math.floor(begin / self.width), last + 1):
            part = min(end, (number + 1) * self.width) - max(begin, number * self.width)
            if part > 0:
                self._put(number, number * self.width, part)

    def points(self) -> list[Point]:
        """Return the bins that have something, from left to right."""
        return [self._bins[number] for number in sorted(self._bins)]

    def dense(self) -> tuple[float, list[float]]:
        """Return the left edge of the first bin, and the totals of all from the first to the last."""
        if self._ends is None:
            return 0.0, []
        low, high = self._ends
        totals = [self._bins[n].total if n in self._bins else 0.0 for n in range(low, high + 1)]
        return low * self.width, totals

    def _reach(self, x: float) -> int:
        """Return the bin of a place, with bins wide enough for it and all others."""
        number = math.floor(x / self.width)
        low, high = (number, number) if self._ends is None else self._ends
        low, high = min(low, number), max(high, number)
        while high - low >= self._most:
            self._widen()
            number, low, high = number >> 1, low >> 1, high >> 1
        self._ends = low, high
        return number

    def _put(self, number: int, x: float, value: float) -> None:
        before = self._bins.get(number)
        n, total = (0, 0.0) if before is None else (before.n, before.total)
        self._bins[number] = Point(x, n + 1, total + value, value)

    def _widen(self) -> None:
        self.width *= 2
        wider: dict[int, Point] = {}
        for number in sorted(self._bins):
            each, left = self._bins[number], wider.get(number >> 1)
            n, total = (0, 0.0) if left is None else (left.n, left.total)
            wider[number >> 1] = Point(each.x, n + each.n, total + each.total, each.last)
        self._bins = wider


class Window:
    """How much of the last minutes was covered by stretches of time, to a few seconds.

    Parameters
    ----------
    length_s, slice_s
        Of the minutes, and of what is counted together.
    """

    def __init__(self, length_s: float, slice_s: float = 5.0) -> None:
        self._length, self._slice = length_s, slice_s
        self._covered: dict[int, float] = {}
        self._newest = 0

    def add_span(self, begin: float, end: float) -> None:
        """Take in a stretch, in any order."""
        self._newest = max(self._newest, math.floor(end / self._slice))
        oldest = self._newest - math.ceil(self._length / self._slice)
        for number in range(max(oldest, math.floor(begin / self._slice)), math.floor(end / self._slice) + 1):
            part = min(end, (number + 1) * self._slice) - max(begin, number * self._slice)
            if part > 0:
                self._covered[number] = self._covered.get(number, 0.0) + part
        for number in [each for each in self._covered if each < oldest]:
            del self._covered[number]

    def within(self, begin: float) -> float:
        """Return the seconds covered since then; stretches of several workers add up."""
        first = begin / self._slice
        return sum(
            part * min(1.0, number + 1 - first) for number, part in self._covered.items() if number + 1 > first
        )
