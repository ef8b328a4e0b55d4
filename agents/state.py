"""The state that the agents share: one home, one lock, never held while sending.

An agent changes the state and fills the `Outbox`; the Thinker commits, then empties the outbox.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np

from agents.pool import Pool
from campaign.iterations import Boundary
from campaign.ledger import FIRST_OTHER_ID, Ledger
from campaign.settings import Settings
from policies import Policy
from tasks.messages import (
    Archive,
    CoordinateSpec,
    Coverage,
    Dynamics,
    EmbedSpec,
    EquilibrateSpec,
    Feed,
    FileRecord,
    GatherSpec,
    GlanceSpec,
    HookSpec,
    MoveSpec,
    Ref,
    Scratch,
    SegmentSpec,
    StoreSpec,
    Topic,
    TrainSpec,
)

logger = logging.getLogger(__name__)

# What learning goes on from.
Learnt = Literal["model", "reference"]

# Segment and frame that a segment starts at; where there is no segment, a basis state and its number.
Origin = tuple[int | None, int | None]

# Run where segments do, at any site of their pool.
POOLED: frozenset[Topic] = frozenset({"equilibrate", "simulate", "gather"})

TaskSpec = (
    EquilibrateSpec
    | SegmentSpec
    | EmbedSpec
    | GlanceSpec
    | CoordinateSpec
    | TrainSpec
    | MoveSpec
    | GatherSpec
    | HookSpec
)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a topic's tasks go.

    Attributes
    ----------
    method
        Name under which the task server knows the task there.
    slots
        Workers.
    reaches
        Kinds of store that its workers can open.
    store
        Where its tasks put their data.
    run_dir
        The run directory as its workers see it; None where they do not share it.
    weight
        Share of a site in its pool, per slot.
    scratch
        Where its workers keep trajectories until they are gathered; None where these go to the run directory at once.
    """

    site: str
    executor: str
    method: str
    slots: int
    reaches: frozenset[str]
    store: StoreSpec
    run_dir: str | None
    weight: float = 1.0
    scratch: Scratch | None = None

    def of(self, topic: Topic) -> Destination:
        """Return the same workers for another topic."""
        return replace(self, method=f"{topic}@{self.site}")


@dataclass(frozen=True, slots=True)
class Molecule:
    """What the agents know of the prepared system: where it lies, for each topic that needs it."""

    name: str
    digest: str
    n_atoms: int
    refs: dict[Topic, Ref]
    n_starts: int = 1


@dataclass(frozen=True, slots=True)
class Start:
    """Where a segment begins; ``novelty`` is the score for which it was chosen."""

    ref: Ref
    row: int
    parent_id: int | None
    parent_frame: int | None
    steered: bool = False
    novelty: float | None = None

    @property
    def origin(self) -> Origin:
        """Segment and frame, by which a start is quarantined."""
        return self.parent_id, self.parent_frame


@dataclass(slots=True)
class Walker:
    """A replica that advances by segments.

    Attributes
    ----------
    own
        Where it would carry on.
    segment_id
        What it runs; None while it is idle.
    """

    walker_id: int
    own: Start
    segment_id: int | None = None


@dataclass(slots=True)
class CandidateSet:
    """Starts offered by an inference; ``number`` counts inferences.

    Attributes
    ----------
    since
        First segment that could begin at one of them.
    """

    number: int
    ref: Ref
    ids: tuple[tuple[int, int], ...]
    scores: np.ndarray
    used: np.ndarray
    since: int = 0

    def told(self) -> dict[str, Any]:
        """Return what the ledger keeps; how often each was used follows from the segments since."""
        return {name: getattr(self, name) for name in ("number", "ref", "ids", "scores", "since")}


@dataclass(frozen=True, slots=True)
class Send:
    """A task to send. ``info`` travels along and ends up in the trace; tasks of one ``bundle`` travel together."""

    topic: Topic
    method: str
    spec: TaskSpec
    info: dict[str, Any]
    bundle: int | None = None


def bundles(sends: Iterable[Send]) -> Iterator[list[Send]]:
    """Yield the tasks that travel together; one that belongs to no bundle travels alone."""
    for (bundle, _), group in groupby(sends, key=lambda send: (send.bundle, send.method)):
        together = list(group)
        yield from [together] if bundle is not None else ([send] for send in together)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a running segment is told: how many of its batches were taken, or that it may end."""

    stream: int
    taken: int | None = None


@dataclass(slots=True)
class Outbox:
    """What is to be done once the ledger has committed.

    Attributes
    ----------
    notes
        Sentences for the screen.
    removals
        Files that are not needed any more, relative to the run directory.
    boundaries
        Iterations of weighted ensembles that ended.
    published, discarded
        Files of results that were accepted, which are moved to their places, and of results that came too late.
    receipts
        What running segments are told of the batches that they sent.
    """

    sends: list[Send] = field(default_factory=list)
    evictions: list[Ref] = field(default_factory=list)
    records: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    removals: list[str] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    boundaries: list[Boundary] = field(default_factory=list)
    published: list[FileRecord] = field(default_factory=list)
    discarded: list[FileRecord] = field(default_factory=list)


class Holds:
    """Who still needs which data; the last one to let go has them evicted."""

    def __init__(self) -> None:
        self._holders: dict[Ref, set[object]] = {}
        self.created = 0
        self.evicted = 0

    def take(self, ref: Ref, holder: object) -> None:
        """Note that ``holder`` needs the data."""
        if ref not in self._holders:
            self._holders[ref] = set()
            self.created += ref.data is None
        self._holders[ref].add(holder)

    def drop(self, ref: Ref, holder: object) -> list[Ref]:
        """Let go; return the data that nobody needs any more."""
        holders = self._holders.get(ref)
        if holders is None:
            return []
        holders.discard(holder)
        if holders:
            return []
        del self._holders[ref]
        self.evicted += ref.data is None
        return [ref] if ref.data is None else []

    def drop_all(self) -> list[Ref]:
        """Let everything go, at the end."""
        left = self.refs()
        self._holders.clear()
        self.evicted += len(left)
        return left

    def recount(self, created: int) -> None:
        """Go on from the figure of earlier processes: of so many objects, what is held now is left."""
        self.created = created
        self.evicted = created - len(self)

    def refs(self) -> list[Ref]:
        """Return what lies in stores and is needed."""
        return [ref for ref in self._holders if ref.data is None]

    def __len__(self) -> int:
        return len(self.refs())


@dataclass(slots=True)
class Counts:
    """Running figures of a campaign; none of them grows with its length.

    Attributes
    ----------
    watched
        Batches of frames that the user's function was called with, calls that failed, segments that it stopped.
    fed
        Batches of running segments that went to the learning site and that did not, those that were looked at, and
        segments that the campaign ended.
    first_started, last_ended
        Of the segments of this process (UNIX seconds); those of earlier ones took ``span_before_s``.
    sent_before, segments_before
        Segments that earlier processes sent, and of which they had results.
    """

    segments: int = 0
    steered: int = 0
    frames: int = 0
    simulated_ps: float = 0.0
    inferences: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    watched: Counter[str] = field(default_factory=Counter)
    fed: Counter[str] = field(default_factory=Counter)
    compute_s: dict[tuple[str, Topic], float] = field(default_factory=lambda: defaultdict(float))
    first_started: float | None = None
    last_ended: float | None = None
    span_before_s: float = 0.0
    sent_before: int = 0
    segments_before: int = 0
    decisions_ms: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))
    n_decisions: int = 0
    n_sent: Counter[Topic] = field(default_factory=Counter)

    @property
    def span_s(self) -> float:
        """Time from first segment to last, without that between processes."""
        if self.first_started is None or self.last_ended is None:
            return self.span_before_s
        return self.span_before_s + self.last_ended - self.first_started


class CampaignState:
    """Everything the agents share.

    Attributes
    ----------
    lock
        Held while an agent decides and the ledger commits; never while something is sent.
    ending
        Why no new segments are sent, once that is so.
    ended_at
        When that was so (monotonic).
    until
        Why the campaign has what it was to go on for, as a hook of the user's said, once that is so.
    failure
        Why the campaign cannot go on, once that is so.
    end_of_time
        When the process will be ended from the outside, monotonic; None where nobody says.
    out_of_time
        Whether that is why no new segments are sent.
    paused
        Why nothing is sent for the time being.
    stores
        Where data of the campaign may lie, by name.
    pool
        The sites of segments; the first of them is their topic's destination.
    feed
        Where segments tell of batches of their frames while they run; None where they do not.
    find
        Returns data of an earlier process where this one's topic reaches them; None if they are lost.
    recover
        Returns the newest model, or reference set, that the run directory holds whole, and its model version.
    archives
        Yields the archives in the run directory of which nobody told.
    emptied
        Nodes on whose scratch nothing was left when this process began.
    elapsed_before_s
        Wall time that earlier processes of the campaign took.
    stopped
        Whether a person ended the campaign: then nothing at all is sent any more, not even a last inference.
    """

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        dynamics: Dynamics,
        molecule: Molecule,
        destinations: dict[Topic, Destination],
        ledger: Ledger,
        stores: Mapping[str, StoreSpec],
        pool: Sequence[Destination] = (),
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.dynamics = dynamics
        self.molecule = molecule
        self.destinations = destinations
        self.pool = Pool(pool or (destinations["simulate"],), settings.heartbeat_threshold_s)
        self.ledger = ledger
        self.stores = stores
        self.feed: Feed | None = None
        self.find: Callable[[Ref, Topic], Ref | None] = lambda ref, topic: ref
        self.recover: Callable[[Learnt], tuple[Ref, int] | None] = lambda what: None
        self.archives: Callable[[], Iterable[Archive]] = lambda: ()
        self.emptied: frozenset[str] = frozenset()
        self.lock = threading.RLock()
        self.rng = np.random.default_rng(settings.seed)
        self.outbox = Outbox()
        self.holds = Holds()
        self.proxies_left = 0
        self.counts = Counts()
        self.quarantine: set[Origin] = set()
        self.candidates: CandidateSet | None = None
        self.frames_to_look_at: deque[tuple[int, Ref]] = deque()
        self.unobserved: deque[tuple[int, Ref]] = deque()
        self.offered: deque[CandidateSet] = deque()
        self.observed_segments = 0
        self.inference_failures = 0
        self.reference: Ref | None = None
        self.reference_version = 0
        self.trained_at = 0
        self.model: Ref | None = None
        self.model_version = 0
        self.coverage: Coverage | None = None
        self.end_of_time: float | None = None
        self.out_of_time = False
        self.paused: str | None = None
        self.ending: str | None = None
        self.ended_at = math.inf
        self.until: str | None = None
        self.failure: str | None = None
        self.stopped = False
        self.began = time.monotonic()
        self.elapsed_before_s = 0.0
        self.reference_files: deque[str] = deque()
        self.next_segment_id = 0
        self.next_other_id = FIRST_OTHER_ID

    def new_segment_id(self) -> int:
        """Return the next segment's id."""
        self.next_segment_id += 1
        return self.next_segment_id - 1

    def new_task_id(self) -> int:
        """Return the next id of a task that is no segment."""
        self.next_other_id += 1
        return self.next_other_id - 1

    def hold(self, ref: Ref, holder: object) -> None:
        """Keep data until ``holder`` lets go."""
        self.holds.take(ref, holder)

    def release(self, refs: Iterable[Ref], holder: object) -> None:
        """Let data go; what nobody else needs is evicted after the commit."""
        for ref in refs:
            self.outbox.evictions += self.holds.drop(ref, holder)

    def retire_reference(self, newest: str) -> None:
        """Keep the file of the newest reference set and of the one before it; older ones serve nobody."""
        self.reference_files.append(newest)
        while len(self.reference_files) > 2:
            oldest = self.reference_files.popleft()
            self.ledger.drop_artifact(oldest)
            self.outbox.removals.append(oldest)

    def take_outbox(self) -> Outbox:
        """Return what is to be done, and start a new list."""
        outbox, self.outbox = self.outbox, Outbox()
        return outbox

    @property
    def target_segments(self) -> int | None:
        """After how many segments the campaign has what it was asked for, if the coming ones run to their ends."""
        left = self.settings.segments_left(self.counts.segments, self.counts.simulated_ps)
        return None if left is None else self.counts.segments + left

    @property
    def elapsed_s(self) -> float:
        """Wall time of the campaign so far, over all its processes."""
        return self.elapsed_before_s + time.monotonic() - self.began

    @property
    def quiet(self) -> bool:
        """Whether learning, too, sends nothing any more."""
        return self.stopped or self.out_of_time or self.failure is not None

    def warn(self, sentence: str) -> None:
        """Tell the user, and the log, what is not as it should be."""
        self.outbox.notes.append(sentence)
        logger.warning("%s", sentence)

    def end(self, reason: str) -> None:
        """Send no more segments; the first reason stands."""
        if self.ending is None:
            self.ending = reason
            self.ended_at = time.monotonic()

    def reach_until(self, reason: str) -> None:
        """Begin no more segments, as if the target were reached; the first reason stands."""
        if self.until is None:
            self.until = reason
            self.outbox.notes.append(reason)
            logger.info("%s", reason)

    def fail(self, reason: str) -> None:
        """End because the campaign cannot go on; the first reason stands."""
        if self.failure is None:
            self.failure = reason
        self.end(reason)
