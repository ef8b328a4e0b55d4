"""When a segment that still runs has nothing new to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# A batch may be dull by chance; of so many in a row each must be.
PATIENCE: Final = 2


def has_nothing_new(rarity: Sequence[float], below: float) -> bool:
    """Return whether a segment may end, and leave its worker to a better start.

    Parameters
    ----------
    rarity
        Of its batches so far, oldest first: how many of the frames known are less novel than its most novel frame.
    below
        What is rarer says something new.
    """
    return len(rarity) >= PATIENCE and max(rarity[-PATIENCE:]) < below
