"""Settings that are fine one by one and cannot work together, each told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from campaign.flags import flag, shown
from policies import measure, policy
from tasks.coordinate import latent_dimensions

if TYPE_CHECKING:
    from campaign.settings import Settings

# OpenMM counts the steps of a segment in a C int.
_MOST_STEPS = 2**31 - 1

# What `params.json` tells where nobody asked for anything.
_GATHER_EVERY = 50

# Six digits are what a message shows; a value copied from one must pass.
_RATIO_TOLERANCE = 1e-5


def contradictions(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each contradiction, the most basic first."""
    yield from _molecule(settings)
    yield from _solvent(settings)
    yield from _platform(settings)
    yield from _frames(settings)
    yield from _batches(settings)
    yield from _imd(settings)
    yield from _stream(settings)
    yield from _equilibration(settings)
    yield from _learning(settings)
    yield from _ensemble(settings)
    yield from _patience(settings)
    yield from _stores(settings)
    yield from _bundle(settings)
    yield from _scratch(settings)
    yield from _redis(settings)
    yield from _endpoints(settings)
    yield from _ssh(settings)
    yield from _ending(settings)


def _molecule(settings: Settings) -> Iterator[str]:
    named = {
        "system": settings.system,
        "sequence": settings.sequence,
        "pdb": settings.pdb,
        "amber": settings.amber,
        "gromacs": settings.gromacs,
        "openmm_system": settings.openmm_system,
    }
    given = [f"{flag(name)} {shown(value)}" for name, value in named.items() if value is not None]
    if len(given) > 1:
        yield f"{' and '.join(given)} name different molecules: give only one of them"
    if settings.cap and settings.sequence is None:
        yield "--cap puts caps on a --sequence and none is given: add --sequence SEQ or drop --cap"


def _solvent(settings: Settings) -> Iterator[str]:
    built = settings.amber is None and settings.gromacs is None and settings.openmm_system is None
    of_water: dict[str, object] = {"padding_nm": settings.padding_nm, "ionic_strength": settings.ionic_strength}
    of_force_field: dict[str, object] = {"forcefield": settings.forcefield}
    of_any: dict[str, object] = {"solvent": settings.solvent, "pressure_bar": settings.pressure_bar}
    if settings.openmm_system is not None:
        for text in _given(of_any | of_water | of_force_field):
            yield f"{text} would change --openmm-system, which is taken as it is: drop one of them"
    if not built:
        for text in _given(of_water | of_force_field):
            yield f"{text} is for molecules that are built here, and --amber and --gromacs bring theirs: drop it"
    if built and settings.solvent != "explicit":
        for text in _given(of_water):
            yield f"{text} is for explicit water: add --solvent explicit or drop it"
    if settings.pressure_bar is not None and settings.solvent != "explicit" and (built or settings.solvent):
        yield f"--pressure-bar {settings.pressure_bar:g} is for explicit water: add --solvent explicit or drop it"


def _given(values: Mapping[str, object]) -> Iterator[str]:
    """Yield flag and value of each setting that has one."""
    for name, value in values.items():
        if value is not None:
            yield f"{flag(name)} {shown(value)}"


def _platform(settings: Settings) -> Iterator[str]:
    if settings.precision != "mixed" and settings.platform in ("CPU", "Reference"):
        yield (
            f"--precision {settings.precision} is for GPUs, and --platform {settings.platform} is none: "
            "drop one of them"
        )
    if settings.segments_per_device is not None and settings.platform in ("CPU", "Reference"):
        yield (
            f"--segments-per-device {settings.segments_per_device} is for GPUs, and --platform {settings.platform} "
            "is none: drop one of them"
        )


def _frames(settings: Settings) -> Iterator[str]:
    step_ps = settings.timestep_fs / 1000
    segment_ps, frame_ps = settings.segment_ps, settings.frame_ps
    # A hair of tolerance: 0.004 ps is no shorter than 4 fs.
    if frame_ps < step_ps * (1 - 1e-9):
        yield (
            f"--frame-ps {frame_ps:g} is less than one step of --timestep-fs {settings.timestep_fs:g}, "
            f"so there would be more frames than steps: give at least --frame-ps {step_ps:g}"
        )
    ratio = segment_ps / frame_ps
    n_frames = max(1, round(ratio))
    if abs(ratio - n_frames) > _RATIO_TOLERANCE * n_frames:
        yield (
            f"--frame-ps {frame_ps:g} does not divide --segment-ps {segment_ps:g}: "
            f"give --frame-ps {segment_ps / n_frames:g} ({n_frames} in a segment)"
        )
    if segment_ps / step_ps > _MOST_STEPS:
        yield (
            f"--segment-ps {segment_ps:g} takes more than {_MOST_STEPS} steps of "
            f"--timestep-fs {settings.timestep_fs:g}: give a shorter segment"
        )


def _batches(settings: Settings) -> Iterator[str]:
    every_ps, frame_ps, segment_ps = settings.stream_every_ps, settings.frame_ps, settings.segment_ps
    if every_ps is None:
        return
    if settings.on_frames is None and not settings.stream:
        yield (
            f"--stream-every-ps {every_ps:g} is how often --on-frames is called and --stream sends: add one of "
            "these, or drop this"
        )
    ratio = every_ps / frame_ps
    n_frames = max(1, round(ratio))
    if abs(ratio - n_frames) > _RATIO_TOLERANCE * n_frames:
        yield (
            f"--stream-every-ps {every_ps:g} is no multiple of --frame-ps {frame_ps:g}: "
            f"give --stream-every-ps {n_frames * frame_ps:g} ({n_frames} frames)"
        )
    if every_ps > segment_ps * (1 + _RATIO_TOLERANCE):
        yield f"--stream-every-ps {every_ps:g} is longer than --segment-ps {segment_ps:g}: give less"


def _imd(settings: Settings) -> Iterator[str]:
    if settings.serves:
        return
    if settings.imd_host is not None:
        yield f"--imd-host {shown(settings.imd_host)} is where --imd listens: add that, or drop this"
    if settings.stream_when_slow != "drop" and not settings.stream:
        yield (
            f"--stream-when-slow {settings.stream_when_slow} is about --imd and --stream: add one of these, or "
            "drop this"
        )


def _stream(settings: Settings) -> Iterator[str]:
    if not settings.stream:
        if settings.stop_below is not None:
            yield f"--stop-below {settings.stop_below:g} judges what --stream sends: add that, or drop this"
        return
    if settings.is_ensemble:
        yield (
            "--stream would judge, and end, the segments of a weighted ensemble by what they find, which biases it: "
            "drop it, or look at them with --on-frames"
        )
        return
    learns = policy(settings.policy).learns
    if not learns or not settings.infer_every:
        given = "--infer-every 0" if learns else f"--policy {shown(settings.policy)}"
        yield f"--stream compares frames with what learning knows, and {given} learns nothing: drop one of them"
    if settings.no_proxystore or settings.ps_backends["simulate"] == "none":
        yield "--stream puts batches into the store of segments, and there is none: choose a --simulate-ps-backend"
    if settings.stop_below is not None and settings.lockstep:
        yield (
            f"--stop-below {settings.stop_below:g} ends segments when a verdict comes, which --lockstep must not "
            "depend on: drop one of them"
        )


def _equilibration(settings: Settings) -> Iterator[str]:
    shortest_ps = 4 * settings.timestep_fs / 1000
    # A hair of tolerance, as above.
    if 0 < settings.equilibrate_ps < shortest_ps * (1 - 1e-9):
        yield (
            f"--equilibrate-ps {settings.equilibrate_ps:g} has no step of --timestep-fs {settings.timestep_fs:g} in "
            f"each of its quarters: give 0 for none, or at least --equilibrate-ps {shortest_ps:g}"
        )
    if settings.equilibrate_ps / shortest_ps > _MOST_STEPS / 2:
        yield (
            f"--equilibrate-ps {settings.equilibrate_ps:g} takes more than {_MOST_STEPS} steps of "
            f"--timestep-fs {settings.timestep_fs:g}: give a shorter one"
        )


def _learning(settings: Settings) -> Iterator[str]:
    chosen, named = policy(settings.policy), f"--policy {shown(settings.policy)}"
    if settings.aae_weights is not None:
        weights = f"--aae-weights {shown(settings.aae_weights)}"
        if not settings.learns:
            yield f"{weights} and {named}, which uses no model, exclude each other: drop one of them"
        if settings.embedding == "pca":
            yield f"{weights} and --embedding pca exclude each other: give --embedding aae or drop the weights"
    if measure(settings.policy) not in (settings.novelty, None):
        yield (
            f"{named} and --novelty {settings.novelty} are different measures of novelty: "
            "drop --novelty, or give --policy novelty"
        )
    if settings.infer_every == 0 and (settings.learns or chosen.candidates != "none"):
        yield (
            f"--infer-every 0 means no inference, and {named} needs it: "
            "give --infer-every 1 or more, or --policy plain"
        )
    if settings.max_reference <= settings.neighbours:
        yield (
            f"--neighbours {settings.neighbours} needs a reference set larger than "
            f"--max-reference {settings.max_reference}: raise the second or lower the first"
        )


def _ensemble(settings: Settings) -> Iterator[str]:
    defaults = {"walkers_per_bin": 4, "replicas": 1}
    names = ("pcoord", "bins", "walkers_per_bin", "basis_states", "target", "replicas", "max_iterations")
    if not settings.is_ensemble:
        for name in names:
            if (value := getattr(settings, name)) != defaults.get(name):
                yield f"{flag(name)} {shown(value)} needs --policy weighted-ensemble: add it, or drop this"
        return
    if settings.basis_states is not None and settings.start:
        yield (
            f"--basis-states {shown(settings.basis_states)} and --start both say where walkers begin: "
            "drop one of them"
        )
    if settings.control:
        yield "--control compares coverage, which weighted ensemble is not about: drop it"
    if settings.target is not None and settings.retrains:
        yield (
            f"--target {shown(settings.target)} would move whenever the model behind --pcoord {settings.pcoord} is "
            "trained: add --no-retrain with --aae-weights, or choose another coordinate"
        )
    if settings.learns and settings.no_retrain and settings.aae_weights is None:
        yield (f"--no-retrain leaves --pcoord {settings.pcoord} without a model: add --aae-weights FILE, or drop it")
    if settings.learns and max(latent_dimensions(settings.pcoord or "aae")) >= settings.latent:
        yield (
            f"--pcoord {settings.pcoord} names dimensions from 0 to --latent {settings.latent} less one: raise the "
            "second or name others"
        )


def _patience(settings: Settings) -> Iterator[str]:
    if settings.min_segment_seconds >= settings.task_timeout:
        yield (
            f"--min-segment-seconds {settings.min_segment_seconds:g} leaves every segment to run into "
            f"--task-timeout {settings.task_timeout:g}: raise the second or lower the first"
        )
    calls = settings.has_hooks or settings.on_frames is not None
    if calls and settings.hook_timeout >= settings.task_timeout:
        yield (
            f"--hook-timeout {settings.hook_timeout:g} leaves a hook to run into --task-timeout "
            f"{settings.task_timeout:g}: raise the second or lower the first"
        )
    if settings.heartbeat_threshold_s <= settings.heartbeat_s:
        yield (
            f"--heartbeat-threshold-s {settings.heartbeat_threshold_s:g} would give up a worker between two beats of "
            f"--heartbeat-s {settings.heartbeat_s:g}: give a threshold of several beats"
        )


def _stores(settings: Settings) -> Iterator[str]:
    backends = settings.ps_backends
    of_topics = [f"{flag(f'{topic}_ps_backend')} {backend}" for topic, backend in backends.items() if backend]
    paths = {"ps_file_dir": settings.ps_file_dir, "ps_globus_config": settings.ps_globus_config}
    of_stores = [f"{flag(name)} {shown(path)}" for name, path in paths.items() if path is not None]
    if settings.ps_endpoints is not None:
        of_stores.append(f"--ps-endpoints {','.join(settings.ps_endpoints)}")
    if settings.no_proxystore:
        for unused in of_topics + of_stores:
            yield f"{unused} has no meaning with --no-proxystore: drop one of them"
    if "globus" in backends.values() and settings.ps_globus_config is None:
        by_globus = next(text for text in of_topics if text.endswith("globus"))
        yield f"{by_globus} has no endpoints: add --ps-globus-config FILE (globus_config.json is an example)"
    if settings.ps_globus_config is not None and "globus" not in backends.values():
        yield (
            f"--ps-globus-config {shown(settings.ps_globus_config)} is used by no topic: "
            "add --simulate-ps-backend globus (or infer, train) or drop it"
        )
    if "endpoint" in backends.values() and settings.ps_endpoints is None:
        by_endpoint = next(text for text in of_topics if text.endswith("endpoint"))
        yield (
            f"{by_endpoint} has no endpoints: add --ps-endpoints UUID,UUID as `proxystore-endpoint list` tells them "
            "at each site (between sites they need UDP, and a relay server that all reach)"
        )
    if settings.ps_endpoints is not None and "endpoint" not in backends.values():
        yield (
            f"--ps-endpoints {','.join(settings.ps_endpoints)} is used by no topic: "
            "add --simulate-ps-backend endpoint (or infer, train) or drop it"
        )
    # A backend that was left open may become `file` when the sites are known.
    if settings.ps_file_dir is not None and not {"file", None} & set(backends.values()):
        yield (
            f"--ps-file-dir {shown(settings.ps_file_dir)} is used by no topic ({', '.join(of_topics)}): "
            "give one of them the backend file or drop the directory"
        )


def _bundle(settings: Settings) -> Iterator[str]:
    bundle = settings.bundle or 1
    if bundle > 1 and (settings.no_proxystore or settings.simulate_ps_backend == "none"):
        yield (
            f"--bundle {bundle} would put the coordinates of {bundle} segments into one message, as they go through "
            "no store: give --bundle 1, or --simulate-ps-backend file or redis"
        )
    # How many walkers an ensemble has, its bins decide.
    if bundle > settings.walkers and not settings.is_ensemble:
        yield (
            f"--bundle {bundle} takes more walkers than --walkers {settings.walkers}: "
            f"give --walkers {bundle} or more, or a smaller bundle"
        )


def _scratch(settings: Settings) -> Iterator[str]:
    if settings.scratch is not None:
        if settings.after_segment:
            yield (
                f"--after-segment {settings.after_segment[0]} would find no trajectory: --scratch keeps it on its "
                "node until it is gathered: use --after-campaign, or drop --scratch"
            )
        return
    if "gather_every" in settings.model_fields_set and settings.gather_every != _GATHER_EVERY:
        yield (
            f"--gather-every {settings.gather_every} gathers from --scratch and none is given: add --scratch DIR or "
            "drop it"
        )
    if settings.stage_env is not None:
        yield (
            f"--stage-env {shown(settings.stage_env)} is unpacked into --scratch and none is given: "
            "add --scratch DIR or drop it"
        )


def _redis(settings: Settings) -> Iterator[str]:
    if settings.redishost is not None and settings.redisport is None:
        yield f"--redishost {shown(settings.redishost)} has no port: add --redisport N (6379 is usual)"
    if _may_use_redis(settings):
        return
    for name, value in {"redishost": settings.redishost, "redisport": settings.redisport}.items():
        if value is not None:
            yield (
                f"{flag(name)} {shown(value)} is used by nothing: add --queue redis or "
                "--simulate-ps-backend redis (or infer, train), or drop it"
            )


def _may_use_redis(settings: Settings) -> bool:
    if settings.queue == "redis" or "redis" in settings.ps_backends.values():
        return True
    # Where ends do not share the run directory, a backend that was left open becomes Redis.
    left_open = None in settings.ps_backends.values() and not settings.no_proxystore
    return left_open and not {*_pool(settings), settings.ml_site} <= {"local", "local-b"}


def _endpoints(settings: Settings) -> Iterator[str]:
    named = {"simulate": settings.simulate_endpoint, "ml": settings.ml_endpoint}
    sites = {"simulate": settings.simulate_site, "ml": settings.ml_site}
    for topic, endpoint in named.items():
        if endpoint is not None and sites[topic] != "local":
            yield (
                f"--{topic}-endpoint {shown(endpoint)} takes the place of --{topic}-site {shown(sites[topic])}: "
                "drop one"
            )
    if any(named.values()) and not settings.no_proxystore:
        left_open = [topic for topic, backend in settings.ps_backends.items() if backend is None]
        if left_open:
            flags = ", ".join(f"--{topic}-ps-backend" for topic in left_open)
            yield (
                f"what an endpoint reaches only you know: add {flags} (file where it shares --ps-file-dir, redis "
                "with a --redishost that it reaches, globus, endpoint, or none for small molecules)"
            )


def _ssh(settings: Settings) -> Iterator[str]:
    uses_it = "ssh" in {*_pool(settings), settings.ml_site}
    if uses_it and settings.ssh_host is None:
        yield "site ssh is a host that you name, and none is named: add --ssh-host HOST"
    if not uses_it and settings.ssh_host is not None:
        yield f"--ssh-host {shown(settings.ssh_host)} is used by nothing: add --ml-site ssh or --simulate-site ssh"
    if settings.ssh_tunnel == "manual" and settings.ssh_port is None:
        yield "--ssh-tunnel manual goes through a tunnel of yours and no port is named: add --ssh-port PORT"
    if settings.ssh_tunnel == "auto" and settings.ssh_port is not None:
        yield f"--ssh-port {settings.ssh_port} is that of your own tunnel: add --ssh-tunnel manual, or drop it"


def _pool(settings: Settings) -> set[str]:
    """Return the names of the sites of segments."""
    return {share.partition(":")[0].strip() for share in settings.simulate_site.split(",")}


def _ending(settings: Settings) -> Iterator[str]:
    if settings.min_model_versions > 0 and not settings.retrains:
        reason = "--no-retrain" if settings.no_retrain else f"--policy {shown(settings.policy)}"
        yield (
            f"--min-model-versions {settings.min_model_versions} is never reached with {reason}, which trains no "
            "model: give --min-model-versions 0 or drop the other"
        )
    if settings.control and policy(settings.policy).candidates == "none":
        yield (
            f"--control compares with a plain run, and --policy {shown(settings.policy)} is one: "
            "give --no-control or another --policy (novelty, random)"
        )
