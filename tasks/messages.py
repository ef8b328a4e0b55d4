"""Every type that travels between the Thinker and a task: small, frozen, free of coordinates.

Coordinates, velocities, weights and reference sets travel as a `Ref`, the address of named arrays in a
ProxyStore store. Lengths are in nm, times in ps, energies in kJ/mol, temperatures in K, unless a name says else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tasks.imd_bounds import ImdCounts

Topic = Literal["equilibrate", "simulate", "infer", "glance", "coordinate", "train", "move", "gather", "hook"]
StoreKind = Literal["file", "redis", "globus", "endpoint", "inline"]
Embedding = Literal["aae", "pca", "none"]
Candidates = Literal["novel", "nearest", "uniform", "none"]
Novelty = Literal["sparsity", "lof", "least-counts"]
Precision = Literal["single", "mixed", "double"]
WhenSlow = Literal["drop", "wait"]
Solvent = Literal["implicit", "explicit", "vacuum"]
Role = Literal["md", "ml", "host"]
Cargo = tuple[Literal["frames", "batch", "offer", "basis"], int]
EventKind = Literal["zmq", "redis"]
CoordinateKind = Literal["aae", "phi-psi", "rmsd", "position", "function"]
Moment = Literal["before-segment", "after-segment", "after-campaign", "continue-until"]


# Batches of a running segment that may be on their way at once.
MOST_AHEAD = 4


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """How any process opens one of the campaign's stores.

    Attributes
    ----------
    name
        Unique in the campaign; also the prefix of the keys in a shared server.
    kind
        Backend; ``inline`` is no store: the bytes travel in the message.
    options
        What the connector needs: ``(("store_dir", ...),)``, ``(("hostname", ...), ("port", ...))``.
    threshold
        Bytes below which optional arguments (not coordinates) travel inline.
    """

    name: str
    kind: StoreKind
    options: tuple[tuple[str, str], ...] = ()
    threshold: int = 0


@dataclass(frozen=True, slots=True)
class Ref:
    """Where named arrays lie: a key in a store, or the packed bytes themselves (``data``)."""

    store: StoreSpec
    key: tuple[str, ...] = ()
    n_bytes: int = 0
    data: bytes | None = field(default=None, repr=False)

    @property
    def place(self) -> StoreKind:
        """The backend that has them; ``inline`` where they travel in the message."""
        return self.store.kind if self.data is None else "inline"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file that a task left in the run directory, or on a node's scratch.

    Attributes
    ----------
    path
        Relative to the run directory; on scratch a name.
    staged
        Where the task put it, until its result is committed: two attempts at one task never write over each other.
        None where it is at ``path`` already.
    node
        Host on whose scratch it is; None in the run directory.
    """

    path: str
    sha256: str
    n_bytes: int
    staged: str | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where trajectories wait on a node, in a folder for each host.

    Attributes
    ----------
    folder
        The campaign's own; on a disk of the node.
    gather_every
        So many are brought into the run directory together.
    """

    folder: str
    gather_every: int


@dataclass(frozen=True, slots=True)
class Member:
    """A trajectory in an archive."""

    segment_id: int
    name: str
    sha256: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Archive:
    """Trajectories of a node in the run directory, as one compressed file."""

    file: FileRecord
    node: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class TaskError:
    """Why a task failed: a kind to count (`tasks.errors`), the exception as Python shows it, and its traceback."""

    kind: str
    exception: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one task of a bundle: its result or its error, when it ran (UNIX seconds) and on which device.

    Attributes
    ----------
    device
        As the worker was pinned to it; None where it was not.
    rss_bytes
        The most memory that the worker had resident until it ended, whatever it did before.
    """

    value: Any
    error: TaskError | None
    started: float
    ended: float
    device: str | None = None
    rss_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Dynamics:
    """How every segment of a campaign is integrated.

    Attributes
    ----------
    n_steps, frame_steps
        Steps of a segment, and steps between two kept frames; the second divides the first.
    platform
        Name of an OpenMM platform.
    min_seconds
        Wall time a segment is padded to, standing for a slower engine.
    precision
        Of a GPU's arithmetic.
    """

    n_steps: int
    frame_steps: int
    timestep_ps: float
    temperature_K: float
    friction_per_ps: float
    platform: str
    min_seconds: float = 0.0
    precision: Precision = "mixed"

    @property
    def n_frames(self) -> int:
        """Frames a segment yields, the end frame included and the start frame not."""
        return self.n_steps // self.frame_steps

    @property
    def segment_ps(self) -> float:
        """Simulated time of a segment."""
        return self.n_steps * self.timestep_ps

    @property
    def frame_ps(self) -> float:
        """Simulated time between two kept frames."""
        return self.frame_steps * self.timestep_ps


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A progress coordinate: what weighted ensemble bins (`tasks.coordinate`).

    It holds nothing that grows with the system: atoms and structures are those of the prepared system.

    Attributes
    ----------
    names
        Of its dimensions.
    latent
        Of an embedding, which dimensions of it.
    function, here
        The user's, as ``module:function``, and where the campaign was started: its modules can be imported.
    """

    kind: CoordinateKind
    names: tuple[str, ...]
    latent: tuple[int, ...] = ()
    function: str | None = None
    here: str | None = None

    @property
    def n_dimensions(self) -> int:
        """Numbers of a frame."""
        return len(self.names)

    @property
    def learned(self) -> bool:
        """Whether a model is needed."""
        return self.kind == "aae"


@dataclass(frozen=True, slots=True)
class Feed:
    """Where batches of frames of running segments are told of (`tasks.feed`).

    Attributes
    ----------
    namespace, events, options
        As of `tasks.stream.StreamSpec`; the submit host listens.
    campaign
        Number of the campaign among those of the main process.
    ahead
        Batches of a segment that may be on their way: the bound of what is held for it.
    """

    namespace: str
    events: EventKind
    options: tuple[tuple[str, str], ...]
    campaign: int
    ahead: int = MOST_AHEAD


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks at a segment while it runs (`tasks.live`).

    Attributes
    ----------
    every
        Frames of a batch.
    may_stop
        Whether they may end the segment.
    on_frames, here
        The user's function, as ``module:function``, and where the campaign was started: its modules can be imported.
    timeout_s
        What a call may take.
    imd_host
        Address that IMD clients may connect to; None for no server.
    when_slow
        Whether a frame that a client has no room for, or a batch that the feed has none for, is dropped or waits.
    command
        The user's, which runs beside the segment as a client; needs ``imd_host``.
    feed
        Where batches go that are embedded while the segment runs; None for nowhere.
    """

    every: int
    may_stop: bool
    on_frames: str | None = None
    here: str = ""
    timeout_s: float = 0.0
    imd_host: str | None = None
    when_slow: WhenSlow = "drop"
    command: str | None = None
    feed: Feed | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the user's function said of a batch of frames, which ends ``until_ps`` after its segment began."""

    until_ps: float
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Fed:
    """What became of the batches of a segment while it ran.

    Attributes
    ----------
    sent, dropped
        Batches that went to the learning site, and those that did not, as there was no room or nobody.
    blocked_s
        How long the segment waited for room.
    stopped
        Whether the campaign ended the segment.
    error
        Why batches went no more; None where they did.
    """

    sent: int = 0
    dropped: int = 0
    blocked_s: float = 0.0
    stopped: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Watched:
    """What came of looking at a segment while it ran.

    Attributes
    ----------
    n_batches, n_failed
        That the user's function was called with, and of these the calls that failed, for the first time by ``error``.
    stopped
        Whether it ended the segment.
    seen, n_left_out
        Values of the newest batches, and for how many more there was no room.
    imd
        What clients of its IMD server did; None where there was none.
    command
        How the command beside it ended (``exit code 0``, ``signal SIGTERM``); None where there was none.
    fed
        What went to the learning site; None where nothing was to.
    """

    n_batches: int = 0
    n_failed: int = 0
    error: str | None = None
    stopped: bool = False
    seen: tuple[Seen, ...] = ()
    n_left_out: int = 0
    imd: ImdCounts | None = None
    command: str | None = None
    fed: Fed | None = None


@dataclass(frozen=True, slots=True)
class SegmentSpec:
    """One segment to run; equal specs give equal dynamics (``attempt`` plays no part).

    Attributes
    ----------
    parent_id, parent_frame
        Segment and frame (from 0) it starts at. Without a segment it is a basis state, and the frame its number where
        there are several.
    system
        A prepared system (`tasks.prepared.PreparedSystem`), under its digest ``system_id``.
    start, start_row
        ``positions`` (n_starts, n_atoms, 3), and ``velocities`` alike if they are to be carried on; otherwise
        velocities are drawn at the temperature. ``box`` (n_starts, 3, 3) where the box is not the system's own.
    seed
        Of the drawn velocities and of the thermostat; 1 <= seed < 2**31.
    run_dir
        Where the trajectory goes; None if the site does not share it.
    scratch
        Where it waits to be gathered; None if it goes there at once.
    coordinate
        Progress coordinate to compute, or to leave the learning site what it needs for; None for neither.
    replica
        Of weighted ensembles side by side, the one that it belongs to.
    watch
        Who looks at it while it runs; None for nobody.
    """

    segment_id: int
    attempt: int
    walker_id: int
    iteration: int
    parent_id: int | None
    parent_frame: int | None
    system: Ref
    system_id: str
    start: Ref
    start_row: int
    seed: int
    dynamics: Dynamics
    store: StoreSpec
    run_dir: str | None
    trajectory_format: Literal["dcd", "xtc"] = "dcd"
    scratch: Scratch | None = None
    coordinate: Coordinate | None = None
    replica: int = 0
    watch: Watch | None = None


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What the Thinker learns of a segment.

    Attributes
    ----------
    frames
        ``positions`` (n_frames, n_atoms, 3) float32; ``box`` (n_frames, 3, 3) float32 if the system is periodic.
        ``start`` (1, n_features, 3) float32, the start as the model sees it, where the coordinate is learned.
    end
        ``positions`` and ``velocities`` (1, n_atoms, 3) float64, to carry on from; ``box`` (1, 3, 3) likewise.
    archive
        What was gathered on the node after it, where there was enough.
    pcoord
        Progress coordinate (n_frames + 1, n_dimensions) of the start and of each frame, float32
        (`tasks.coordinate.unpack_pcoord`); empty where none was asked for, or a model is needed.
    watched
        What came of looking at it while it ran; None where nobody did.
    """

    segment_id: int
    attempt: int
    n_frames: int
    n_atoms: int
    simulated_ps: float
    potential_energy_kj_mol: float
    mean_temperature_K: float
    frames: Ref
    end: Ref
    trajectory: FileRecord | None
    seconds: dict[str, float]
    archive: Archive | None = None
    pcoord: bytes = b""
    watched: Watched | None = None


@dataclass(frozen=True, slots=True)
class EquilibrateSpec:
    """A basis state to bring to the campaign's temperature and pressure; equal specs give equal dynamics.

    Attributes
    ----------
    number
        Of the basis state, from 0.
    start, start_row
        As in `SegmentSpec`.
    duration_ps
        Simulated time, to be divided into four quarters.
    run_dir
        Where the State is kept; None if the site does not share it.
    """

    task_id: int
    attempt: int
    number: int
    system: Ref
    start: Ref
    start_row: int
    duration_ps: float
    seed: int
    dynamics: Dynamics
    store: StoreSpec
    run_dir: str | None


@dataclass(frozen=True, slots=True)
class EquilibrateResult:
    """An equilibrated basis state, and what equilibration showed.

    Attributes
    ----------
    state
        ``positions`` (1, n_atoms, 3) float64, for walkers to begin at; ``box`` (1, 3, 3) if the system is periodic.
    state_file
        The same with its velocities, as OpenMM serialises a State.
    mean_temperature_K
        Of the last quarter.
    density_before, mean_density
        At the start and of the last quarter, in g/ml; None where the system is not periodic.
    """

    task_id: int
    attempt: int
    state: Ref
    state_file: FileRecord | None
    n_atoms: int
    simulated_ps: float
    potential_energy_kj_mol: float
    mean_temperature_K: float
    density_before: float | None
    mean_density: float | None
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class EmbedSpec:
    """New frames to look at, against the reference set that the frames before them left.

    Attributes
    ----------
    batches
        ``(segment_id, frames)`` of each new segment.
    reference
        None for the first inference of a campaign.
    reference_number
        Number of the reference set that this task makes.
    model
        None for version 0 without pretrained weights: principal components of the first frames.
    candidates
        Which frames are offered as starts: the most novel, of these the nearest to the system's target, a uniform
        sample of all, or none.
    neighbours
        The k of the k-th nearest neighbour (sparsity) or of LOF.
    max_reference, max_frontier
        Bounds on the frames that novelty is measured against, and on those kept whole to start from.
    """

    task_id: int
    attempt: int
    system: Ref
    system_id: str
    batches: tuple[tuple[int, Ref], ...]
    reference: Ref | None
    reference_number: int
    model: Ref | None
    model_version: int
    embedding: Embedding
    candidates: Candidates
    n_candidates: int
    novelty: Novelty
    neighbours: int
    latent: int
    max_reference: int
    max_frontier: int
    seed: int
    store: StoreSpec
    run_dir: str | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of conformation space the campaign's saved frames have visited."""

    metric: str
    value: float
    cells_deg: int | None


@dataclass(frozen=True, slots=True)
class Nearest:
    """The frame that came nearest to the target, and its distance after superposition."""

    segment_id: int
    frame: int
    rmsd_nm: float


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """What inference found.

    Attributes
    ----------
    reference
        The next reference set.
    starts
        ``positions`` (n_candidates, n_atoms, 3) float32, in the order asked for, and ``box`` (n_candidates, 3, 3) if
        the system is periodic; None if none were asked for.
    start_ids
        ``(segment_id, frame)`` of each candidate.
    scores
        Novelty of each candidate, larger is newer.
    segment_novelty
        Mean novelty of each new segment's frames, in the order of the batches.
    n_reference
        Frames in the next reference set.
    nearest
        Of all frames looked at so far; None where the system has no target.
    """

    task_id: int
    attempt: int
    model_version: int
    reference: Ref
    reference_file: FileRecord | None
    starts: Ref | None
    start_ids: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]
    segment_novelty: tuple[float, ...]
    coverage: Coverage
    n_frames: int
    n_reference: int
    seconds: dict[str, float]
    nearest: Nearest | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames of a segment that runs.

    Attributes
    ----------
    stream, number
        As `tasks.stream` counts them.
    first, n_frames
        Number of its first frame in the segment, from 0, and how many there are.
    made
        When the last of them was there, UNIX seconds of the worker's clock.
    points
        ``points`` (n_frames, n_points, 3) float32: what the model sees of them, in nm.
    """

    segment_id: int
    attempt: int
    stream: int
    number: int
    first: int
    n_frames: int
    made: float
    points: Ref


@dataclass(frozen=True, slots=True)
class GlanceSpec:
    """Batches of running segments to embed, and to compare with what is known; nothing is remembered of them."""

    task_id: int
    attempt: int
    batches: tuple[Batch, ...]
    reference: Ref
    reference_number: int
    model: Ref | None
    model_version: int
    novelty: Novelty
    neighbours: int
    seed: int
    store: StoreSpec


@dataclass(frozen=True, slots=True)
class GlanceResult:
    """What a glance saw.

    Attributes
    ----------
    rarity
        Of each batch, how many of the frames known so far are less novel than its most novel frame: from 0 to 1.
    novelty
        Mean novelty of each batch's frames.
    embedded
        When it was done, UNIX seconds of the worker's clock.
    """

    task_id: int
    attempt: int
    model_version: int
    rarity: tuple[float, ...]
    novelty: tuple[float, ...]
    n_frames: int
    embedded: float
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class CoordinateSpec:
    """Frames whose progress coordinate is to be computed, all by one model version.

    Attributes
    ----------
    batches
        ``(segment_id, arrays)``: frames of a segment, the start first where they hold it, or its end state.
    basis, basis_rows
        ``positions`` (n_rows, n_atoms, 3) and any ``box`` of basis states, and which of them.
    basis_numbers
        Which basis states these rows are.
    model
        None where the coordinate needs none.
    """

    task_id: int
    attempt: int
    system: Ref
    system_id: str
    coordinate: Coordinate
    batches: tuple[tuple[int, Ref], ...]
    model: Ref | None
    model_version: int
    store: StoreSpec
    basis: Ref | None = None
    basis_rows: tuple[int, ...] = ()
    basis_numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CoordinateResult:
    """Progress coordinates, float32 (`tasks.coordinate.unpack_pcoord`).

    Attributes
    ----------
    pcoord
        ``(segment_id, rows)`` of each batch, in their order: a row for each frame, after the start's where that was
        there.
    basis
        A row for each basis state that was asked for.
    n_frames
        Rows in all.
    """

    task_id: int
    attempt: int
    model_version: int
    pcoord: tuple[tuple[int, bytes], ...]
    basis: bytes
    n_frames: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """A model to refine on a reference set.

    Attributes
    ----------
    model
        Weights to start from; None starts afresh.
    model_version
        Version that this task makes.
    """

    task_id: int
    attempt: int
    reference: Ref
    model: Ref | None
    model_version: int
    embedding: Embedding
    latent: int
    epochs: int
    batch: int
    seed: int
    store: StoreSpec
    run_dir: str | None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A new model version, and the mean loss of each epoch by name."""

    task_id: int
    attempt: int
    model_version: int
    model: Ref
    model_file: FileRecord | None
    n_frames: int
    device: str
    losses: dict[str, tuple[float, ...]]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class MoveSpec:
    """Data to put again in a store that their consumer reaches.

    Attributes
    ----------
    cargo
        What they are: the frames of a segment, or the candidates that an inference offers; and its number.
    """

    task_id: int
    attempt: int
    cargo: Cargo
    source: Ref
    store: StoreSpec


@dataclass(frozen=True, slots=True)
class MoveResult:
    """The same arrays at their new address."""

    task_id: int
    attempt: int
    moved: Ref
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class GatherSpec:
    """All trajectories that are pending where this task runs, to be brought into the run directory."""

    task_id: int
    attempt: int
    scratch: Scratch
    run_dir: str


@dataclass(frozen=True, slots=True)
class GatherResult:
    """Where that was, and what it made of them; no archive where nothing was pending."""

    task_id: int
    attempt: int
    node: str
    archive: Archive | None
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class SegmentSummary:
    """A segment as the user's hooks see it; before it has run, what is not known yet is None.

    Attributes
    ----------
    parent_id, parent_frame
        As in `SegmentSpec`.
    potential_energy_kj_mol
        Of the end frame.
    trajectory, topology
        Relative to the run directory; the first is None where its site does not share it, or a node
        keeps it on its scratch.
    steered, novelty
        Whether the policy chose the start among candidates, and the score for which it did.
    """

    segment_id: int
    parent_id: int | None
    parent_frame: int | None
    walker_id: int
    iteration: int
    steered: bool
    novelty: float | None = None
    n_frames: int | None = None
    n_atoms: int | None = None
    simulated_ps: float | None = None
    potential_energy_kj_mol: float | None = None
    mean_temperature_K: float | None = None
    trajectory: str | None = None
    topology: str = "topology.pdb"


@dataclass(frozen=True, slots=True)
class HookSpec:
    """A hook to run: a function of the user's, or a command.

    Attributes
    ----------
    hook
        ``module:function``, or a command line, which no shell reads.
    segment
        What it is about; None after the campaign.
    here
        Where the campaign was started: its modules can be imported, and commands run in it.
    timeout_s
        Wall time after which it is stopped.
    """

    task_id: int
    attempt: int
    moment: Moment
    hook: str
    segment: SegmentSummary | None
    run_dir: str
    here: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class HookResult:
    """The numbers that a hook returned, by name; of ``continue-until`` it is ``reached``, 1 or 0."""

    task_id: int
    attempt: int
    values: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """What an executor is asked before work is sent to it.

    Attributes
    ----------
    role
        ``md``, ``ml`` or ``host``: decides what is imported (and stays warm).
    platforms
        OpenMM platforms that segments will ask for; none where none will run.
    stores
        Stores that its tasks will use; each is written, read and emptied again.
    run_dir
        Where its tasks will write; None where they will not.
    scratch
        Where they will keep trajectories until these are gathered.
    bulk_bytes
        Size of an object whose way into each store and back is timed; 0 where nobody asks how fast they are.
    left
        What the campaign's host put into the stores: to be found there, or they are others of the same name.
    """

    role: Role
    platforms: tuple[str, ...]
    stores: tuple[StoreSpec, ...]
    run_dir: str | None
    scratch: str | None = None
    bulk_bytes: int = 0
    left: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreSpeed:
    """How fast a store is from where a worker runs.

    Attributes
    ----------
    round_trip_s
        Seconds to write and read some bytes.
    bytes_per_s
        Of one large object, written and read: twice its size over the seconds of both.
    """

    kind: str
    round_trip_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What an executor answered.

    Attributes
    ----------
    tasks_digest
        Of the source of `tasks` there; equal on both sides or no work is sent.
    problems
        Sentences, empty where all is well.
    stores
        By name, those that were timed.
    took_s
        Seconds that answering took.
    round_trip_s
        Seconds that a task without work takes to come back, less what it ran; None where that was not timed.
    """

    host: str
    python: str
    versions: dict[str, str]
    tasks_digest: str
    device: str
    platforms: tuple[str, ...]
    free_disk_bytes: int
    problems: tuple[str, ...]
    stores: dict[str, StoreSpeed] = field(default_factory=dict)
    took_s: float = 0.0
    round_trip_s: float | None = None
