"""The ledger's iterations as west.h5 takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from campaign.iterations import Past, past
from campaign.ledger import Ledger
from campaign.west.record import Binning, Ended
from policies.iteration import Iteration


def replay(
    ledger: Ledger, replica: int, current: Iteration, binning_of: Callable[[Past], Binning], first: int = 1
) -> Iterator[Ended]:
    """Yield the iterations of an ensemble that ended, from one on, one at a time.

    Parameters
    ----------
    current
        The one that has not ended.
    binning_of
        Tells by which bins an iteration was resampled.

    Raises
    ------
    BrokenEnsemble
        When one cannot be right, or does not follow from the one before.
    """

    def with_current() -> Iterator[Past | Iteration]:
        yield from past(ledger, replica, first)
        yield current

    for each, following in pairwise(with_current()):
        assert isinstance(each, Past)
        if isinstance(following, Past):
            # By the model of the following iteration, which may not be that of this one.
            resampled, starts = each.resampled(following.iteration), following.pcoord[:, 0]
        else:
            resampled, starts = each.resampled(following), None
        yield Ended(each.iteration, each.pcoord, each.seconds, resampled, binning_of(each), starts)
