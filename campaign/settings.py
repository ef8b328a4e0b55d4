"""Every setting of a campaign: its flag, default, unit, help and bounds, written once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self
from uuid import UUID

from pydantic import (
    ConfigDict,
    JsonValue,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from campaign.contradictions import contradictions
from campaign.ensemble_settings import ENSEMBLE, EnsembleSettings
from campaign.flags import flag, shown, unknown, wanted
from campaign.hooks import check_hook, check_predicate
from campaign.live_settings import LIVE, LiveSettings
from campaign.setting import setting
from policies import CHOICES, POLICIES, TARGET, Policy, measure, policy, target_file
from tasks.coordinate import coordinate_kind, rmsd_file
from tasks.errors import BadInput
from tasks.messages import Dynamics, Novelty, Precision, Solvent, Topic

Backend = Literal["file", "redis", "globus", "endpoint", "none"]
Platform = Literal["auto", "Reference", "CPU", "CUDA", "OpenCL", "HIP"]

GROUPS = ("problem", "learning", "weighted ensemble", "compute", "network", "ProxyStore", "limits", "hooks", LIVE)

# Each of these names the molecule, so only one of them may be given.
MOLECULE = frozenset({"system", "sequence", "pdb", "amber", "gromacs", "openmm_system"})

# These bring their own force field, and say themselves what solvent they hold.
FORCE_FIELDS = frozenset({"amber", "gromacs", "openmm_system"})

# What explicit solvent is made of, and what holds where nothing is said of it.
SOLVENT = frozenset({"solvent", "padding_nm", "ionic_strength", "pressure_bar", "equilibrate_ps"})
# Water that is added is cold once minimised, and leaves gaps.
_ADDED_WATER = {"padding_nm": 1.0, "ionic_strength": 0.15, "equilibrate_ps": 20.0}
_PRESSURE_BAR = 1.0
# A particle without bonds bears longer steps, and has a rate that is known at this friction.
_DOUBLE_WELL = {"timestep_fs": 10.0, "friction": 50.0}

# A policy of ours, or what is looked for: a file after `rmsd:`, an attribute after the name of a module.
_POLICY_PATTERN = rf"^({'|'.join(POLICIES)}|[^:]+:.+)$"

# Any of these says where the campaign ends; without them it is the demonstration.
_ENDS = frozenset({"max_segments", "max_ns", "max_minutes", "max_iterations"})

_BACKEND_CHOICE = "file where both ends share the run directory, else redis"

# Four months: longer than any campaign, shorter than what operating systems accept as a timeout.
_LONGEST_S = 1e7


class Settings(EnsembleSettings, LiveSettings):
    """What a campaign is told to do; equal settings describe equal campaigns.

    A None among the given values counts as not given. Defaults that depend on other settings are settled when the
    model is made, so that `as_config` shows what holds: alanine dipeptide where no molecule is named; 1 ns, three
    model versions and a control run where no limit is set.

    Raises
    ------
    BadInput
        For a value that cannot be used and for settings that contradict each other, in one sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    system: Literal["alanine-dipeptide", "chignolin", "double-well"] | None = setting(
        "problem",
        None,
        "molecule that comes with Wayfinder, or a particle in a double well (10 fs, friction 50 /ps)",
        default_text="alanine-dipeptide if no other is named",
    )
    sequence: str | None = setting(
        "problem", None, "peptide to build, in one-letter codes", metavar="SEQ", min_length=1
    )
    cap: bool = setting("problem", False, "put ACE and NME caps on the ends of --sequence")
    pdb: Path | None = setting("problem", None, "structure to start from, in PDB format", metavar="FILE")
    amber: tuple[Path, Path] | None = setting(
        "problem", None, "topology and coordinates (inpcrd, rst7) made with Amber's tools", metavar="PRMTOP COORDS"
    )
    gromacs: tuple[Path, Path] | None = setting(
        "problem", None, "topology and coordinates made with GROMACS' tools", metavar="TOP GRO"
    )
    openmm_system: tuple[Path, Path] | None = setting(
        "problem", None, "System that OpenMM serialised, taken as it is, and a structure", metavar="XML PDB"
    )
    solvent: Solvent | None = setting(
        "problem",
        None,
        "implicit water (OBC2), explicit water (a box of TIP3P-FB and salt, particle-mesh Ewald), or none",
        default_text="what files of Amber and GROMACS hold, else implicit",
    )
    padding_nm: float | None = setting(
        "problem",
        None,
        "explicit water between the molecule and each face of the box",
        "nm",
        default_text="1 where water is added",
        gt=0,
        le=100,
    )
    ionic_strength: float | None = setting(
        "problem",
        None,
        "salt in explicit water, beside what neutralises the molecule",
        "mol/l",
        default_text="0.15 where water is added",
        ge=0,
        le=5,
    )
    pressure_bar: float | None = setting(
        "problem",
        None,
        "pressure of explicit water; 0 keeps the volume",
        "bar",
        default_text="1 in explicit water",
        ge=0,
        le=1e5,
    )
    forcefield: tuple[str, ...] | None = setting(
        "problem",
        None,
        "XML files of OpenMM's force fields, with commas between them or one a flag",
        metavar="XML[,XML]",
        default_text="amber14/protein.ff14SB.xml, with amber14/tip3pfb.xml in explicit water",
        min_length=1,
    )
    features: str | None = setting(
        "problem",
        None,
        "atoms that the model sees, as a selection of MDAnalysis",
        metavar="SELECTION",
        default_text="heavy atoms, or alpha carbons from 40 residues on",
        min_length=1,
    )
    store: str | None = setting(
        "problem",
        None,
        "atoms that trajectories keep, as a selection of MDAnalysis",
        metavar="SELECTION",
        default_text="all but water and its salt",
        min_length=1,
    )
    temperature: float = setting("problem", 300.0, "temperature of the thermostat", "K", gt=0)
    timestep_fs: float = setting(
        "problem", 4.0, "time step; 4 fs is possible because hydrogens are made heavy", "fs", ge=0.01, le=10
    )
    friction: float = setting("problem", 1.0, "friction of the Langevin thermostat", "/ps", gt=0)
    platform: Platform = setting(
        "problem", "auto", "OpenMM platform; auto takes a GPU if there is one, else the faster of Reference and CPU"
    )
    start: tuple[Path, ...] | None = setting(
        "problem",
        None,
        "structure with the same atoms for walkers to begin at, in turn: a file or a folder of them; may be repeated",
        metavar="FILE",
        default_text="the molecule as it was named",
        min_length=1,
    )
    minimise: bool = setting("problem", True, "relax structures before anything else; otherwise they must be sound")
    equilibrate_ps: float = setting(
        "problem",
        0.0,
        "dynamics that bring each structure to temperature and pressure, once, before the first segment",
        "ps",
        default_text="20 where water is added, else 0",
        ge=0,
        le=1e6,
    )
    precision: Precision = setting("problem", "mixed", "precision of a GPU's arithmetic")
    segment_ps: float = setting("problem", 2.0, "simulated time of a segment, rounded to frames", "ps", gt=0, le=1e6)
    frame_ps: float = setting(
        "problem", 0.25, "simulated time between two kept frames, rounded to whole steps", "ps", gt=0, le=1e6
    )
    walkers: int = setting("problem", 4, "replicas of the molecule", "walkers", ge=1)
    policy: str = setting(
        "problem",
        "novelty",
        "where segments start: at novel frames (least-counts, lof: by that measure; rmsd: those nearest to the "
        "structure in FILE), at random frames, where the walker's last one ended (plain), or as a policy of your own "
        "chooses",
        choices=CHOICES,
        pattern=_POLICY_PATTERN,
    )
    seed: int = setting("problem", 1, "seed of every random choice", ge=1, le=2**31 - 1)
    min_segment_seconds: float = setting(
        "problem", 0.0, "pad each segment to this wall time, as a slower engine would take", "s", ge=0, le=_LONGEST_S
    )
    trajectory_format: Literal["dcd", "xtc"] = setting("problem", "dcd", "format of the kept trajectories")

    embedding: Literal["aae", "pca"] = setting(
        "learning", "aae", "model that frames are compared in: adversarial autoencoder or principal components"
    )
    novelty: Novelty = setting(
        "learning",
        "sparsity",
        "score of a frame: distance to its neighbours, local outlier factor, or how few frames are in its cluster",
        default_text="sparsity, or what --policy is named after",
    )
    neighbours: int = setting("learning", 10, "neighbours that the novelty score looks at", "frames", ge=1)
    latent: int = setting("learning", 8, "size of the embedding", "dimensions", ge=1)
    infer_every: int = setting(
        "learning",
        4,
        "new segments that start an inference; 0 for none (with --policy plain, or an ensemble that learns nothing)",
        "segments",
        default_text="4; 0 for an ensemble that learns nothing",
        ge=0,
    )
    retrain_every: int = setting("learning", 100, "new segments that start a training", "segments", ge=1)
    first_epochs: int = setting("learning", 15, "length of the first training", "epochs", ge=1)
    epochs: int = setting("learning", 5, "length of every later training", "epochs", ge=1)
    batch: int = setting("learning", 64, "frames in a training step", "frames", ge=1)
    max_reference: int = setting(
        "learning", 2000, "frames that models are trained on and novelty is measured against", "frames", ge=2
    )
    aae_weights: Path | None = setting(
        "learning", None, "pretrained autoencoder to start from, as model version 0", metavar="FILE"
    )
    no_retrain: bool = setting("learning", False, "only infer: keep model version 0 throughout")
    lockstep: bool = setting(
        "learning", False, "repeatable decisions: apply results in the order of ids, and let segments wait for it"
    )
    candidates_per_walker: int = setting(
        "learning", 4, "starts that an inference offers for each walker", "starts", ge=1
    )

    simulate_site: str = setting(
        "compute",
        "local",
        "site of the segments, or several: A,B:2,C gives B twice the weight of the others",
        metavar="SITE[:WEIGHT][,SITE...]",
        min_length=1,
    )
    ml_site: str = setting("compute", "local", "site of training and inference", metavar="SITE", min_length=1)
    simulate_endpoint: str | None = setting(
        "compute", None, "Globus Compute endpoint of the segments, in place of a site", metavar="UUID", min_length=1
    )
    ml_endpoint: str | None = setting(
        "compute", None, "Globus Compute endpoint of training and inference, likewise", metavar="UUID", min_length=1
    )
    simulate_workers: int | None = setting(
        "compute",
        None,
        "segments that run at once on this machine",
        "workers",
        default_text="2; on GPUs as many as they take",
        ge=1,
    )
    segments_per_device: int | None = setting(
        "compute",
        None,
        "segments that run at once on each GPU, by NVIDIA's Multi-Process Service where it is installed",
        "segments",
        default_text="1",
        ge=1,
        le=48,  # clients that MPS serves on a device
    )
    ml_workers: int = setting("compute", 1, "trainings and inferences that run at once", "workers", ge=1)
    bundle: int | None = setting(
        "compute",
        None,
        "segments that travel and run as one task",
        "segments",
        default_text="as many short ones as make a task last 0.3 s, where there are walkers enough for all workers",
        ge=1,
        le=1000,
    )
    scratch: Path | None = setting(
        "compute",
        None,
        "folder on a disk of each node where segments keep their trajectories until these are gathered",
        metavar="DIR",
        default_text="none: each goes to the run directory at once",
    )
    gather_every: int = setting(
        "compute",
        50,
        "trajectories on a node's --scratch that make an archive in the run directory",
        "segments",
        ge=1,
        le=100_000,
    )
    stage_env: Path | None = setting(
        "compute",
        None,
        "packed environment (tar, as of conda-pack) that each node unpacks once into --scratch for its workers",
        metavar="ARCHIVE",
    )
    max_attempts: int = setting("compute", 3, "times a task is tried before it is given up", "attempts", ge=1)
    task_timeout: float = setting(
        "compute",
        3600.0,
        "wall time from sending after which a task counts as lost",
        "s",
        gt=0,
        le=_LONGEST_S,
    )
    start_timeout: float = setting(
        "compute", 180.0, "wall time in which the first worker must answer", "s", gt=0, le=_LONGEST_S
    )
    idle_block_s: float = setting(
        "compute", 120.0, "time without work after which a batch job is given back", "s", gt=0, le=_LONGEST_S
    )
    heartbeat_s: float = setting(
        "compute", 2.0, "time between two signs of life of a worker pool", "s", gt=0, le=_LONGEST_S
    )
    heartbeat_threshold_s: float = setting(
        "compute", 10.0, "silence after which a worker pool counts as lost", "s", gt=0, le=_LONGEST_S
    )

    queue: Literal["pipe", "redis"] = setting("network", "pipe", "what carries messages to the task server")
    redishost: str | None = setting(
        "network",
        None,
        "host of a running Redis server",
        metavar="HOST",
        default_text="a private server is started where one is needed",
        min_length=1,
    )
    redisport: int | None = setting(
        "network",
        None,
        "port of the Redis server, or of the private one",
        default_text="a free one if private",
        ge=1,
        le=65535,
    )

    ssh_host: str | None = setting(
        "network", None, "host of the site `ssh`, as in ~/.ssh/config", metavar="HOST", min_length=1
    )
    ssh_config: Path | None = setting(
        "network", None, "ssh configuration to use", metavar="FILE", default_text="~/.ssh/config"
    )
    ssh_init: str | None = setting(
        "network", None, "shell line that brings Python and `tasks` on the PATH of that host", metavar="LINE"
    )
    ssh_dir: str = setting(
        "network",
        "/tmp/wayfinder",
        "folder for work and logs on that host",
        metavar="DIR",
        pattern=r"^/[\w@%+=:,./-]+$",
    )
    ssh_tunnel: Literal["auto", "manual"] = setting(
        "network", "auto", "whether each block opens its tunnel, or you did: ssh -R PORT:127.0.0.1:PORT HOST"
    )
    ssh_port: int | None = setting(
        "network", None, "port of your own tunnel, for --ssh-tunnel manual", ge=1, le=65535
    )

    simulate_ps_backend: Backend | None = setting(
        "ProxyStore", None, "store of what segments produce", default_text=_BACKEND_CHOICE
    )
    infer_ps_backend: Backend | None = setting(
        "ProxyStore", None, "store of what inference produces", default_text=_BACKEND_CHOICE
    )
    train_ps_backend: Backend | None = setting(
        "ProxyStore", None, "store of what training produces", default_text=_BACKEND_CHOICE
    )
    ps_threshold: int = setting(
        "ProxyStore",
        100_000,
        "size from which an argument goes through a store; coordinates always do",
        "bytes",
        ge=0,
    )
    ps_file_dir: Path | None = setting(
        "ProxyStore", None, "directory of the file stores", metavar="DIR", default_text="one in the run directory"
    )
    ps_globus_config: Path | None = setting(
        "ProxyStore", None, "Globus endpoints of the backend globus, as globus_config.json", metavar="FILE"
    )
    ps_endpoints: tuple[str, ...] | None = setting(
        "ProxyStore",
        None,
        "ProxyStore's endpoints of the backend endpoint, one running at each site (pip install "
        "'proxystore[endpoints]'); between sites they need UDP, and a relay server that all reach by websockets",
        metavar="UUID[,UUID]",
        min_length=1,
    )
    no_proxystore: bool = setting("ProxyStore", False, "send everything through the queues")

    max_segments: int | None = setting("limits", None, "stop after this many segments", "segments", ge=1)
    max_ns: float | None = setting(
        "limits", None, "stop after this much simulated time", "ns", default_text="none; 1 if no limit is set", gt=0
    )
    max_minutes: float | None = setting("limits", None, "stop after this much wall time", "min", gt=0, le=1e5)
    min_model_versions: int = setting(
        "limits",
        0,
        "do not stop at --max-segments or --max-ns before this many models were trained",
        "models",
        default_text="0; 3 if no limit is set",
        ge=0,
    )
    control: bool = setting(
        "limits",
        False,
        "run plain dynamics of equal length afterwards and print its coverage beside",
        default_text="off; on if no limit is set",
    )
    report: bool = setting("limits", True, "write report.html in the run directory when the campaign has ended")
    grace_s: float = setting(
        "limits", 10.0, "time that results may still arrive in after SIGINT or SIGTERM", "s", ge=0, le=_LONGEST_S
    )
    walltime: float | None = setting(
        "limits",
        None,
        "wall time after which this command will be ended: no segment is sent that would not be back before",
        "min",
        default_text="what Slurm says, where the command is in a job of it",
        gt=0,
        le=1e5,
    )
    min_free_mb: int = setting(
        "limits", 200, "free disk space without which nothing is started, and a campaign waits", "MB", ge=0
    )
    max_pause_minutes: float = setting(
        "limits", 60.0, "wait so long for room on the disk, then end in order", "min", ge=0, le=1e5
    )

    before_segment: tuple[str, ...] | None = setting(
        "hooks",
        None,
        "run before each segment: module:function, called with the run directory and the segment, or a command; "
        "repeated, one after the other",
        metavar="HOOK",
        whole=True,
        min_length=1,
    )
    after_segment: tuple[str, ...] | None = setting(
        "hooks", None, "run after each segment, likewise", metavar="HOOK", whole=True, min_length=1
    )
    after_campaign: tuple[str, ...] | None = setting(
        "hooks",
        None,
        "run once at the end, when all is learnt, likewise (without a segment)",
        metavar="HOOK",
        whole=True,
        min_length=1,
    )
    continue_until: str | None = setting(
        "hooks", None, "end the campaign once module:function returns True for a segment", metavar="MODULE:FUNCTION"
    )
    hook_timeout: float = setting(
        "hooks", 600.0, "wall time that a hook may take, or a call for a batch of frames", "s", gt=0, le=_LONGEST_S
    )
    hook_workers: int = setting("hooks", 1, "hooks that run at once, on the submit host", "workers", ge=1)

    @model_validator(mode="wrap")
    @classmethod
    def _settle_or_refuse(
        cls, values: object, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        try:
            return handler(_settled(values) if isinstance(values, Mapping) else values)
        except ValidationError as error:
            raise BadInput(_sentence(error.errors()[0], info.context or {})) from None

    @field_validator(
        "pdb",
        "aae_weights",
        "ps_file_dir",
        "ps_globus_config",
        "scratch",
        "stage_env",
        "ssh_config",
        "basis_states",
        mode="before",
    )
    @classmethod
    def _absolute(cls, value: object) -> object:
        """Make paths absolute, for workers and reruns that have another working directory."""
        return _absolute(value)

    @field_validator("amber", "gromacs", "openmm_system", "start", mode="before")
    @classmethod
    def _all_absolute(cls, value: object) -> object:
        """Make several paths absolute; files hold them as a list."""
        return tuple(map(_absolute, value)) if isinstance(value, list | tuple) else value

    @field_validator("policy", mode="before")
    @classmethod
    def _absolute_target(cls, value: object) -> object:
        """Make the path of a target absolute."""
        file = target_file(value) if isinstance(value, str) else None
        return value if file is None else f"{TARGET}{_absolute(file)}"

    @field_validator("pcoord", mode="before")
    @classmethod
    def _absolute_structure(cls, value: object) -> object:
        """Make the path of the structure absolute that a coordinate is measured from."""
        file = rmsd_file(value) if isinstance(value, str) else None
        return value if file is None else f"rmsd:{_absolute(file)}"

    @field_validator("pcoord")
    @classmethod
    def _is_coordinate(cls, value: str | None) -> str | None:
        """Refuse what is no progress coordinate."""
        if value is not None:
            coordinate_kind(value)
        return value

    @field_validator("policy")
    @classmethod
    def _importable(cls, value: str) -> str:
        """Refuse a user's policy that is none, before anything is started."""
        policy(value)
        return value

    @field_validator("ps_endpoints")
    @classmethod
    def _are_uuids(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Refuse what names no endpoint, and write the others as ProxyStore does."""
        return None if value is None else tuple(map(_endpoint, value))

    @field_validator("before_segment", "after_segment", "after_campaign")
    @classmethod
    def _can_be_run(cls, value: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        """Refuse a hook that cannot be run, before anything is started."""
        for hook in value or ():
            check_hook(flag(str(info.field_name)), hook)
        return value

    @field_validator("continue_until")
    @classmethod
    def _can_be_asked(cls, value: str | None) -> str | None:
        """Refuse what is no function of a segment."""
        if value is not None:
            check_predicate("--continue-until", value)
        return value

    @field_validator("before_segment", "after_segment", "after_campaign", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        """Take a list, as files hold it."""
        return tuple(value) if isinstance(value, list) else value

    @field_validator("forcefield", "ps_endpoints", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        """Take a list for the words of a setting; an empty word is no text."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(word or None for word in value)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        for sentence in contradictions(self):
            raise BadInput(sentence)
        return self

    @property
    def ps_backends(self) -> dict[Topic, Backend | None]:
        """Backend of each topic's store; None where the campaign is to choose one."""
        return {
            "simulate": self.simulate_ps_backend,
            "infer": self.infer_ps_backend,
            "train": self.train_ps_backend,
        }

    @property
    def is_ensemble(self) -> bool:
        """Whether walkers carry weights."""
        return self.policy == ENSEMBLE

    @property
    def learns(self) -> bool:
        """Whether the campaign needs a model."""
        if self.is_ensemble:
            return self.pcoord is not None and coordinate_kind(self.pcoord) == "aae"
        return policy(self.policy).learns

    @property
    def retrains(self) -> bool:
        """Whether the campaign makes model versions beyond 0."""
        return self.learns and not self.no_retrain

    @property
    def has_hooks(self) -> bool:
        """Whether anything of the user's is run beside the campaign."""
        chains = (self.before_segment, self.after_segment, self.after_campaign, self.continue_until)
        return any(chains)

    @property
    def ends(self) -> tuple[str | int | float | None, ...]:
        """What ends the campaign: another of these, and it goes on."""
        of_iterations = () if self.max_iterations is None else (self.max_iterations,)
        return (self.continue_until, self.target_segments, self.max_minutes, *of_iterations)

    def dynamics(self, platform: str) -> Dynamics:
        """Return how segments are integrated, in whole steps.

        The steps between two frames are ``frame_ps`` over the time step rounded to a whole number (half to even), and
        a segment is as many of these as frames fit into ``segment_ps``: 0.25 ps at 4 fs is 62.5 steps, so 62, and a
        segment of 2 ps becomes 8 frames x 62 steps x 4 fs = 1.984 ps.

        Parameters
        ----------
        platform
            OpenMM's name of the platform that ``auto`` was resolved to.
        """
        timestep_ps = self.timestep_fs / 1000
        frame_steps = round(self.frame_ps / timestep_ps)
        return Dynamics(
            n_steps=round(self.segment_ps / self.frame_ps) * frame_steps,
            frame_steps=frame_steps,
            timestep_ps=timestep_ps,
            temperature_K=self.temperature,
            friction_per_ps=self.friction,
            platform=platform,
            min_seconds=self.min_segment_seconds,
            precision=self.precision,
        )

    @property
    def batch_frames(self) -> int:
        """Frames of a batch that is looked at while a segment runs."""
        dynamics = self.dynamics("")
        if self.stream_every_ps is None:
            return max(1, dynamics.n_frames // 10)
        return round(self.stream_every_ps / self.frame_ps)

    @property
    def target_segments(self) -> int | None:
        """After how many whole segments the campaign has what it was asked for; None where only time ends it."""
        return self.segments_left(0, 0.0)

    def segments_left(self, segments: int, simulated_ps: float) -> int | None:
        """Return how many whole segments are missing to what was asked for; None where only time ends it.

        Parameters
        ----------
        segments, simulated_ps
            What there is: less of the second than as many whole segments have, where some ended early.
        """
        left = [] if self.max_segments is None else [self.max_segments - segments]
        if self.max_ns is not None:
            # Times are sums of binary fractions: do not run another segment for the last digit.
            left.append(math.ceil((1000 * self.max_ns - simulated_ps) / self.dynamics("").segment_ps - 1e-6))
        return min(left, default=None)

    def as_config(self) -> dict[str, JsonValue]:
        """Return every setting for `params.json`; read back through ``--config`` it gives equal settings."""
        return self.model_dump(mode="json")


def _absolute(value: object) -> object:
    if isinstance(value, str | Path) and str(value) and "\0" not in str(value):
        return Path(os.path.expanduser(value)).absolute()
    return value


def _endpoint(text: str) -> str:
    try:
        found = UUID(text)
    except ValueError:
        found = None
    # ProxyStore makes version 4, and takes others for one of it.
    if found is None or found.version != 4:
        raise BadInput(
            f"--ps-endpoints {shown(text)} is no UUID of an endpoint: give those that `proxystore-endpoint list` "
            "tells at each site, with commas between them"
        )
    return str(found)


def _settled(given: Mapping[str, object]) -> dict[str, object]:
    """Return what was given, with the defaults that depend on it."""
    values = {name: value for name, value in given.items() if value is not None}
    if not values.keys() & MOLECULE:
        values["system"] = "alanine-dipeptide"
    if values.get("system") == "double-well":
        values = {**_DOUBLE_WELL, **values}
    if values.get("solvent") == "explicit":
        values.setdefault("pressure_bar", _PRESSURE_BAR)
        if not values.keys() & FORCE_FIELDS:
            values = {**_ADDED_WATER, **values}
    name = str(values.get("policy", "novelty"))
    if measure(name) is not None:
        values.setdefault("novelty", measure(name))
    if name == ENSEMBLE:
        values.setdefault("pcoord", "position" if values.get("system") == "double-well" else "aae:0,1")
        if not str(values["pcoord"]).startswith("aae"):
            # Nothing is learnt, and coverage is not what it is run for.
            values.setdefault("infer_every", 0)
    if not values.keys() & _ENDS:
        chosen = _policy_if_known(name)
        values["max_ns"] = 1.0
        wanted = chosen.learns and not values.get("no_retrain") and name != ENSEMBLE
        values.setdefault("min_model_versions", 3 if wanted else 0)
        values.setdefault("control", chosen.candidates != "none")
    return values


def _policy_if_known(name: str) -> Policy:
    """Return a policy, and plain dynamics for one that is refused soon, where its source is known."""
    try:
        return policy(name)
    except BadInput:
        return POLICIES["plain"]


def _sentence(error: ErrorDetails, sources: Mapping[str, str]) -> str:
    """Return one of pydantic's errors as a sentence with flag, value and remedy.

    Parameters
    ----------
    sources
        Setting -> file it was read from; a setting without one came from the command line.
    """
    name = str(error["loc"][0])
    source = f" in {sources[name]}" if name in sources else ""
    if name not in Settings.model_fields:
        return unknown(name, Settings.model_fields, f"as a setting{source}")
    value = shown(error["input"])
    return f"{flag(name)} {value}{source} cannot be used: give {wanted(Settings.model_fields[name])}"
