"""The pool of sites that segments run at: who has workers, who has room, and where a bundle goes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from agents.state import Destination

Presence = Literal["here", "away", "gone"]

# Said instead of a number of workers where an executor's interchange ended: nothing reaches its workers any more.
GONE = -1


class Pool:
    """Sites that come and go while a campaign runs; a lone one is always there.

    Attributes
    ----------
    places
        In the order of ``--simulate-site``.
    workers
        Tells how many workers an executor has now, or `GONE`.
    shared_by
        Tells how many campaigns share the workers.
    unproven
        Executors that have not answered their probe: nothing is sent there, whatever workers they have.

    Parameters
    ----------
    patience_s
        How long a site may have no worker before it counts as away.
    """

    def __init__(self, places: Sequence[Destination], patience_s: float) -> None:
        self.places = tuple(places)
        self.workers: Callable[[str], int] = lambda executor: 1
        self.shared_by: Callable[[], int] = lambda: 1
        self.unproven: set[str] = set()
        self._patience_s = patience_s
        self._presence: dict[str, Presence] = {place.executor: "here" for place in places}
        self._seen: dict[str, float] = {}

    @property
    def here(self) -> list[Destination]:
        """The sites that have workers."""
        return [place for place in self.places if self.presence(place) == "here"]

    @property
    def slots(self) -> int:
        """Workers of the sites that are here, or of all where none is; of shared ones this campaign's part."""
        return sum(self.share(place) for place in self.here or self.places)

    @property
    def all_slots(self) -> int:
        """Workers of all sites, whether they are here or not; of shared ones this campaign's part."""
        return sum(self.share(place) for place in self.places)

    def share(self, place: Destination) -> int:
        """Return how many of a site's workers this campaign keeps busy: together, those that share them keep all."""
        return math.ceil(place.slots / self.shared_by())

    def presence(self, place: Destination) -> Presence:
        """Return how a site stood when it was last looked at."""
        return self._presence[place.executor]

    def leave_out(self, executor: str) -> None:
        """Send nothing there until `admit` is called."""
        self.unproven.add(executor)
        self._presence[executor] = "away"

    def admit(self, executor: str) -> None:
        """Use a site, once it has workers."""
        self.unproven.discard(executor)

    def differs(self, now: float) -> bool:
        """Return whether `look` would find something new."""
        return any(self._judge(place, now) != self.presence(place) for place in self.places)

    def look(self, now: float) -> list[str]:
        """See who has workers, and return what has changed as sentences."""
        news = []
        for place in self.places:
            found = self._judge(place, now)
            if found != self.presence(place):
                self._presence[place.executor] = found
                news.append(self._told(place, found))
        return news

    def _judge(self, place: Destination, now: float) -> Presence:
        executor, before = place.executor, self.presence(place)
        # There is nowhere else to go from a lone site, and the task server tells when it is gone.
        if len(self.places) == 1 or before == "gone":
            return before
        n_workers = self.workers(executor)
        if n_workers == GONE:
            return "gone"
        if executor in self.unproven:
            return "away"
        if n_workers > 0:
            self._seen[executor] = now
            return "here"
        silent_s = now - self._seen.setdefault(executor, now)
        return "away" if silent_s > self._patience_s else before

    def _told(self, place: Destination, found: Presence) -> str:
        if found == "here":
            return f"site {place.site} is back"
        if found == "gone":
            return f"site {place.site} is gone for good, since its Parsl interchange ended: segments go elsewhere"
        return (
            f"site {place.site} has had no worker for --heartbeat-threshold-s {self._patience_s:g} s: segments go "
            "elsewhere until it has one again"
        )

    # Where to -----------------------------------------------------------------------------------------------------

    def with_room(self, out: Mapping[str, int], per_slot: int) -> Destination | None:
        """Return where the next bundle goes; None where every site has so many per slot.

        A worker that has nothing to do comes before any weight.

        Parameters
        ----------
        out
            Bundles at each executor.
        """
        free = [place for place in self.here if out.get(place.executor, 0) < self.share(place)]
        return _lightest(free or [p for p in self.here if out.get(p.executor, 0) < per_slot * self.share(p)], out)

    def lightest(self, out: Mapping[str, int]) -> Destination:
        """Return the site with the fewest bundles for its slots and weight, whether it has room or not."""
        alive = [place for place in self.places if self.presence(place) != "gone"]
        return _lightest(self.here or alive or self.places, out) or self.places[0]

    def elsewhere(self, place: Destination, out: Mapping[str, int]) -> Destination:
        """Return another site than that where something went wrong, if one is here."""
        others = [other for other in self.here if other.executor != place.executor]
        found = _lightest(others, out)
        if found is None:
            return place if self.presence(place) != "gone" else self.lightest(out)
        return found


def _lightest(places: Iterable[Destination], out: Mapping[str, int]) -> Destination | None:
    return min(places, key=lambda place: out.get(place.executor, 0) / (place.slots * place.weight), default=None)


class Load:
    """How many bundles are out at each executor; a segment that is tried again elsewhere counts there."""

    def __init__(self) -> None:
        self.out: Counter[str] = Counter()
        self._where: dict[int, tuple[str, int]] = {}
        self._left: Counter[tuple[str, int]] = Counter()

    def put(self, segment_id: int, bundle: int, executor: str) -> None:
        """Note that a segment of a bundle is sent there."""
        self.take(segment_id)
        where = self._where[segment_id] = executor, bundle
        self.out[executor] += not self._left[where]
        self._left[where] += 1

    def places_of(self, bundle: int) -> set[str]:
        """Return the executors where segments of a bundle are."""
        return {executor for executor, its in self._left if its == bundle}

    def take(self, segment_id: int) -> None:
        """Note that a segment is not out any more."""
        where = self._where.pop(segment_id, None)
        if where is None:
            return
        self._left[where] -= 1
        if not self._left[where]:
            del self._left[where]
            self.out[where[0]] -= 1
