"""``python run.py``: a campaign on this machine or across several; ``python run.py --help`` lists verbs and flags."""

from __future__ import annotations

import os
import sys
import time

_BEGAN = time.monotonic()

if __name__ == "__main__":
    import signal

    if os.environ.get("WAYFINDER_STARTED") != str(os.getpid()):
        # Start over with a new run's id in the environment, where every process of the run inherits it; with one
        # thread per library; and with the environment's programs (Parsl's interchange) on PATH. The process keeps its
        # number, by which it knows that it has started over.
        import uuid

        _threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        os.environ |= _threads
        os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
        os.environ["WAYFINDER_STARTED"] = str(os.getpid())
        os.environ["WAYFINDER_RUN"] = uuid.uuid4().hex
        # Parsl names its processes with setproctitle, which would write over the id unless told to spare it.
        os.environ["SPT_NOENV"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    # Until the campaign takes signals over, there is nothing to end in order.
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda number, frame: os._exit(128 + number))

import json
import logging
import re
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from parsl.executors.base import ParslExecutor

import config
from agents.launch import Plan, probe_executors, run_campaign
from agents.probing import ProbeFailed, problems
from agents.state import Destination
from agents.supervisor import Signals
from campaign.cli import Command, parse
from campaign.display import tell
from campaign.faults import reach
from campaign.preparing import prepare_aside
from campaign.rundir import RunDirectory
from campaign.settings import Settings
from campaign.stores import Stores
from campaign.summary import Summary, describe
from sites import globus_store, local, redis_server
from sites.site import REACHES_ALL, Resources, Site
from tasks import models, systems
from tasks.errors import BadInput
from tasks.messages import StoreKind, Topic
from tasks.transport import PASSWORD_VARIABLE

RUNS = Path(__file__).parent / "runs"

COMPLETE, FAILED, BAD_INPUT = 0, 1, 2


def main(argv: list[str]) -> int:
    """Run a command and return its exit code."""
    try:
        command = parse(argv)
        with Signals() as signals:
            run = probe if command.verb == "probe" else start
            return run(command, signals)
    except Interrupted as error:
        return error.exit_code
    except BadInput as error:
        print(f"wayfinder: {error}", file=sys.stderr)
        return BAD_INPUT


class Interrupted(Exception):
    """A signal came before anything was begun."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


def start(command: Command, signals: Signals) -> int:
    """Run a campaign, and its control if one is asked for."""
    settings = command.settings
    prepared = _prepare(settings, signals)
    run_dir, summary = _run(settings, command.run_dir, prepared, signals, _BEGAN)
    tell("\n".join(summary.lines()))
    if settings.control and summary.status == "complete":
        tell(_run_control(settings, run_dir, summary, prepared, signals))
    tell(f"run directory: {run_dir.path}")
    return _exit_code(summary, signals)


def _prepare(settings: Settings, signals: Signals) -> systems.PreparedSystem:
    answer = prepare_aside(_system_spec(settings), lambda: signals.first is not None)
    if answer is None or signals.first is not None:
        raise Interrupted(signals.first or signal.SIGINT)
    prepared, notes = answer
    for note in notes:
        tell(note)
    _check_weights(settings, prepared)
    return prepared


def probe(command: Command, signals: Signals) -> int:
    """Ask every executor what it is, print that, and leave nothing behind."""
    settings = command.settings
    prepared = _prepare(settings, signals)
    with tempfile.TemporaryDirectory(prefix="wayfinder-") as folder, ExitStack() as stack:
        sites = _sites(settings)
        run_dir = RunDirectory.create(Path(folder) / "probe", RUNS, prepared.name, 0)
        stack.enter_context(_logging(run_dir.log))
        plan = _plan(settings, sites, _store_kinds(settings, sites), run_dir, prepared, _BEGAN, stack)
        try:
            reports = probe_executors(plan, signals)
        except ProbeFailed as error:
            print(f"wayfinder: {error}", file=sys.stderr)
            return FAILED if signals.first is None else 128 + signals.first
        finally:
            plan.stores.sweep()
    told = {label: {**asdict(report), "problems": problems(report)} for label, report in reports.items()}
    tell(json.dumps(told, indent=2) if command.json else "\n".join(_told(told)))
    return BAD_INPUT if any(report["problems"] for report in told.values()) else COMPLETE


def _told(reports: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what each executor said, in lines."""
    for label, report in reports.items():
        yield f"{label}: {report['host']}, {report['device']}, Python {report['python']}"
        yield "  " + ", ".join(f"{name} {version}" for name, version in sorted(report["versions"].items()))
        if report["platforms"]:
            yield f"  OpenMM platforms {', '.join(report['platforms'])}"
        yield f"  {report['free_disk_bytes'] / 1e9:.1f} GB free"
        for problem in report["problems"] or ["ready"]:
            yield f"  {problem}"


def _system_spec(settings: Settings) -> systems.SystemSpec:
    if settings.system is not None:
        molecule = systems.named_system(settings.system)
    else:
        files = settings.amber or settings.gromacs or settings.openmm_system or (settings.pdb,)
        molecule = systems.SystemSpec(
            name=settings.sequence or (files[0].stem if files[0] else ""),
            sequence=settings.sequence,
            cap=settings.cap,
            pdb=None if settings.pdb is None else str(settings.pdb),
            amber=_as_text(settings.amber),
            gromacs=_as_text(settings.gromacs),
            openmm_system=_as_text(settings.openmm_system),
        )
    return replace(
        molecule,
        solvent=settings.solvent,
        padding_nm=_or_default(settings.padding_nm, molecule.padding_nm),
        ionic_strength_M=_or_default(settings.ionic_strength, molecule.ionic_strength_M),
        pressure_bar=_or_default(settings.pressure_bar, molecule.pressure_bar),
        force_field=settings.forcefield or (),
        features=settings.features,
        store=settings.store,
        starts=tuple(map(str, settings.start or ())),
        temperature_K=settings.temperature,
        platform=settings.platform,
        seed=settings.seed,
    )


def _or_default(given: float | None, default: float) -> float:
    return default if given is None else given


def _as_text(files: tuple[Path, Path] | None) -> systems.Files | None:
    return None if files is None else (str(files[0]), str(files[1]))


def _check_weights(settings: Settings, prepared: systems.PreparedSystem) -> None:
    weights = _weights(settings)
    if weights is not None:
        models.check_model(weights, len(prepared.feature_indices), settings.latent)


def _weights(settings: Settings) -> bytes | None:
    if settings.aae_weights is None:
        return None
    try:
        return settings.aae_weights.read_bytes()
    except OSError as error:
        raise BadInput(f"--aae-weights {settings.aae_weights} cannot be read: {error.strerror}") from error


def _run(
    settings: Settings, named: Path | None, prepared: systems.PreparedSystem, signals: Signals, began: float
) -> tuple[RunDirectory, Summary]:
    """Run one campaign in a directory of its own, which is removed again if the campaign never began."""
    sites = _sites(settings)
    kinds = _store_kinds(settings, sites)
    run_dir = RunDirectory.create(named, RUNS, prepared.name, settings.min_free_mb * 1_000_000)
    try:
        with ExitStack() as stack:
            plan = _set_up(settings, sites, kinds, run_dir, prepared, began, stack)
            tell(_announcement(settings, prepared, run_dir))
            summary = run_campaign(plan, signals)
            reach("before-summary")
            try:
                run_dir.write_json("summary.json", summary.as_dict())
            except OSError as error:
                reason = f"summary.json could not be written: {error.strerror}; {summary.reason or ''}".rstrip("; ")
                summary = replace(summary, status="failed", reason=reason)
    except BadInput:
        run_dir.remove()
        raise
    return run_dir, summary


def _set_up(
    settings: Settings,
    sites: dict[Topic, Site],
    kinds: dict[Topic, StoreKind],
    run_dir: RunDirectory,
    prepared: systems.PreparedSystem,
    began: float,
    stack: ExitStack,
) -> Plan:
    """Return the plan, with the inputs written and the log open."""
    try:
        stack.enter_context(_logging(run_dir.log))
        run_dir.write_inputs(settings.as_config(), prepared.topology_pdb)
        return _plan(settings, sites, kinds, run_dir, prepared, began, stack)
    except OSError as error:
        raise BadInput(f"run directory {run_dir.path} cannot be used: {error.strerror or error}") from error


def _announcement(settings: Settings, prepared: systems.PreparedSystem, run_dir: RunDirectory) -> str:
    limits = {
        "segments": settings.max_segments,
        "ns": settings.max_ns,
        "minutes": settings.max_minutes,
        "model versions": settings.min_model_versions or None,
    }
    until = ", ".join(f"{limit:g} {unit}" for unit, limit in limits.items() if limit is not None)
    return (
        f"{prepared.name}: {prepared.n_atoms} atoms on {prepared.platform}, policy {settings.policy}, "
        f"until {until or 'it is told to end'}; watch {run_dir.log}"
    )


def _plan(
    settings: Settings,
    sites: dict[Topic, Site],
    kinds: dict[Topic, StoreKind],
    run_dir: RunDirectory,
    prepared: systems.PreparedSystem,
    began: float,
    stack: ExitStack,
) -> Plan:
    """Return what the campaign needs; servers that are started here end with the stack."""
    run_id = os.environ["WAYFINDER_RUN"]
    private_dir = _private_dir(run_id)
    stack.callback(shutil.rmtree, private_dir, ignore_errors=True)
    for path in (run_dir.path, private_dir):
        _refuse_unquotable(path)
    redis = _redis(settings, kinds, run_dir, stack)
    file_dir = (
        run_dir.proxystore if settings.ps_file_dir is None else settings.ps_file_dir / f"wayfinder-{run_id[:12]}"
    )
    address = None if redis is None else (redis.host, redis.port)
    stores = Stores(kinds, run_id, settings.ps_threshold, file_dir, address, settings.ps_globus_config)
    stack.callback(stores.remove)
    resources = Resources(
        settings.simulate_workers,
        settings.ml_workers,
        private_dir,
        settings.heartbeat_s,
        settings.heartbeat_threshold_s,
    )
    destinations, executors = _destinations(sites, stores, resources, run_dir)
    return Plan(
        settings=settings,
        run_dir=run_dir,
        run_id=run_id,
        private_dir=private_dir,
        prepared=prepared,
        dynamics=settings.dynamics(prepared.platform),
        weights=_weights(settings),
        destinations=destinations,
        executors=executors,
        stores=stores,
        redis=None if redis is None else (redis.host, redis.port, redis),
        began=began,
    )


def _sites(settings: Settings) -> dict[Topic, Site]:
    return {"simulate": config.site(settings.simulate_site), "infer": config.site(settings.ml_site)}


def _store_kinds(settings: Settings, sites: dict[Topic, Site]) -> dict[Topic, StoreKind]:
    """Return the kind of each topic's store.

    Raises
    ------
    BadInput
        When a topic's own workers cannot reach it.
    """
    shared = all(site.shares_run_dir for site in sites.values())
    kinds: dict[Topic, StoreKind] = {}
    for topic, backend in settings.ps_backends.items():
        chosen = backend or ("file" if shared else "redis")
        kind: StoreKind = "inline" if settings.no_proxystore or chosen == "none" else chosen
        site = sites["simulate" if topic == "simulate" else "infer"]
        if kind not in site.reaches:
            raise BadInput(
                f"--{topic}-ps-backend {kind}: workers of site {site.name} reach only "
                f"{', '.join(sorted(site.reaches))}; choose one of these"
            )
        kinds[topic] = kind
    if settings.ps_globus_config is not None:
        globus_store.check(settings.ps_globus_config)
    return kinds


def _destinations(
    sites: dict[Topic, Site], stores: Stores, resources: Resources, run_dir: RunDirectory
) -> tuple[dict[Topic, Destination], list[ParslExecutor]]:
    """Return where each topic goes, and the executors; the submit host gets one if data must change stores."""
    simulate, learn = sites["simulate"], sites["infer"]
    if simulate.simulate is None or learn.learn is None:
        lacking = simulate.name if simulate.simulate is None else learn.name
        raise BadInput(
            f"site {lacking} has no executor for this topic: choose another with --simulate-site or --ml-site"
        )
    executors = [simulate.simulate(resources), learn.learn(resources)]

    def destination(topic: Topic, site: Site, executor: ParslExecutor, slots: int) -> Destination:
        seen = str(run_dir.path) if site.shares_run_dir else None
        method = f"{topic}@{site.name}"
        return Destination(site.name, executor.label, method, slots, site.reaches, stores.of[topic], seen)

    destinations: dict[Topic, Destination] = {
        "simulate": destination("simulate", simulate, executors[0], simulate.simulate_slots(resources)),
        "infer": destination("infer", learn, executors[1], learn.learn_slots(resources)),
        "train": destination("train", learn, executors[1], learn.learn_slots(resources)),
    }
    crossing = stores.of["simulate"].kind not in learn.reaches or stores.of["infer"].kind not in simulate.reaches
    if crossing:
        executors.append(local.submit_host(resources))
        store = stores.of["infer"]  # a move names its own store; this one is for the probe
        destinations["move"] = Destination("host", "host", "move@host", 1, REACHES_ALL, store, None)
    return destinations, executors


def _redis(
    settings: Settings, kinds: dict[Topic, StoreKind], run_dir: RunDirectory, stack: ExitStack
) -> redis_server.RedisServer | None:
    """Return the Redis server the campaign uses: the named one, or a private one; None where nothing needs it."""
    if settings.queue != "redis" and "redis" not in kinds.values():
        return None
    if settings.redishost is not None:
        return redis_server.connect(settings.redishost, settings.redisport or 6379)
    # By the environment, which workers inherit and which is never written down.
    os.environ[PASSWORD_VARIABLE] = secrets.token_hex(32)
    started = redis_server.start(settings.redisport, run_dir.path / "logs" / "redis.log")
    stack.callback(started.stop)
    return started


def _refuse_unquotable(path: Path) -> None:
    """Refuse a path that Parsl's start scripts, which quote nothing, would tear apart."""
    found = re.search(r"[^\w@%+=:,./-]", str(path))
    if found is not None:
        raise BadInput(
            f"path {path} holds {found[0]!r}, which Parsl's start scripts cannot take: choose --run-dir (and HOME) "
            "without blanks, quotes and the like"
        )


def _private_dir(run_id: str) -> Path:
    """Return a new directory for keys, in the home that nodes of a cluster share and other users cannot read."""
    path = Path.home() / ".wayfinder" / run_id
    try:
        path.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise BadInput(f"directory {path} for connection keys cannot be made: {error.strerror}; set HOME") from error
    return path


@contextmanager
def _logging(path: Path) -> Iterator[None]:
    """Log to the run's file: our story at INFO, the libraries' warnings."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for ours in ("wayfinder", "agents", "campaign", "sites", "tasks"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _run_control(
    settings: Settings, run_dir: RunDirectory, steered: Summary, prepared: systems.PreparedSystem, signals: Signals
) -> str:
    """Run plain MD of equal length in ``control/`` of the run directory; return both coverages in a sentence."""
    length = {"max_segments": steered.segments, "max_ns": None, "max_minutes": None}
    plain = {"policy": "plain", "control": False, "min_model_versions": 0, "aae_weights": None, "no_retrain": False}
    control = Settings.model_validate({**settings.as_config(), **length, **plain})
    try:
        _, summary = _run(control, run_dir.path / "control", prepared, signals, time.monotonic())
    except BadInput as error:
        return f"control: plain MD could not be run: {error}"
    if steered.coverage is None or summary.coverage is None or summary.status != "complete":
        return f"control: plain MD ended {summary.status}: {summary.reason}"
    ratio = steered.coverage.value / summary.coverage.value
    return (
        f"plain MD of equal length ({summary.simulated_ns:.3f} ns), coverage: {describe(summary.coverage)}; "
        f"steered / plain = {ratio:.2f} (one run each, one seed; steered frames are unweighted)"
    )


def _exit_code(summary: Summary, signals: Signals) -> int:
    if signals.first is not None:
        return 128 + signals.first
    return COMPLETE if summary.status == "complete" else FAILED


def leave(code: int) -> None:
    """End the process, also when a thread of a library would keep it alive for ever."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(thread.is_alive() and not thread.daemon for thread in others):
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
