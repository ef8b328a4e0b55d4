"""``python run.py``: a campaign on this machine or across several; ``python run.py --help`` lists verbs and flags."""

from __future__ import annotations

import os
import sys
import time

_BEGAN = time.monotonic()

if __name__ == "__main__" and "WAYFINDER_RUN" not in os.environ:
    # Start over with the run's id in the environment, where every process of the run inherits it; with one thread per
    # library; and with the environment's programs (Parsl's interchange) on PATH.
    import uuid

    _scripts = os.path.dirname(sys.executable)
    _threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    _path = os.pathsep.join([_scripts, os.environ.get("PATH", os.defpath)])
    os.execve(
        sys.executable,
        [sys.executable, *sys.argv],
        # Parsl names its processes with setproctitle, which would write over the id unless told to spare it.
        {**os.environ, **_threads, "PATH": _path, "WAYFINDER_RUN": uuid.uuid4().hex, "SPT_NOENV": "1"},
    )

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from parsl.executors.base import ParslExecutor

import config
from agents.launch import Plan, probe_executors, run_campaign
from agents.probing import ProbeFailed, problems
from agents.state import Destination
from agents.supervisor import Signals
from campaign.cli import Command, parse
from campaign.faults import reach
from campaign.rundir import RunDirectory
from campaign.settings import Settings
from campaign.stores import Stores
from campaign.summary import Summary, describe
from sites import globus_store, local, redis_server
from sites.site import REACHES_ALL, Resources, Site
from tasks import models, systems
from tasks.errors import BadInput
from tasks.messages import StoreKind, Topic

RUNS = Path(__file__).parent / "runs"

COMPLETE, FAILED, BAD_INPUT = 0, 1, 2


def main(argv: list[str]) -> int:
    """Run a command and return its exit code."""
    try:
        command = parse(argv)
        return probe(command) if command.verb == "probe" else start(command)
    except BadInput as error:
        print(f"wayfinder: {error}", file=sys.stderr)
        return BAD_INPUT


def start(command: Command) -> int:
    """Run a campaign, and its control if one is asked for."""
    settings = command.settings
    with Signals() as signals:
        prepared = systems.prepare(_system_spec(settings))
        _check_weights(settings, prepared)
        run_dir, summary = _run(settings, command.run_dir, prepared, signals, _BEGAN)
        print("\n".join(summary.lines()))
        if settings.control and summary.status == "complete":
            print(_run_control(settings, run_dir, summary, prepared, signals))
        print(f"run directory: {run_dir.path}", flush=True)
        return _exit_code(summary, signals)


def probe(command: Command) -> int:
    """Ask every executor what it is, print that, and leave nothing behind."""
    settings = command.settings
    with Signals() as signals, tempfile.TemporaryDirectory(prefix="wayfinder-") as folder, ExitStack() as stack:
        prepared = systems.prepare(_system_spec(settings))
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
    print(json.dumps(told, indent=2) if command.json else "\n".join(_told(told)))
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
        return systems.named_system(
            settings.system, temperature_K=settings.temperature, platform=settings.platform, seed=settings.seed
        )
    return systems.SystemSpec(
        name=settings.sequence or (settings.pdb.stem if settings.pdb else ""),
        sequence=settings.sequence,
        cap=settings.cap,
        pdb=None if settings.pdb is None else str(settings.pdb),
        temperature_K=settings.temperature,
        platform=settings.platform,
        seed=settings.seed,
    )


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
            stack.enter_context(_logging(run_dir.log))
            run_dir.write_inputs(settings.as_config(), prepared.topology_pdb)
            plan = _plan(settings, sites, kinds, run_dir, prepared, began, stack)
            print(_announcement(settings, prepared, run_dir), flush=True)
            summary = run_campaign(plan, signals)
            reach("before-summary")
            run_dir.write_json("summary.json", summary.as_dict())
    except BadInput:
        run_dir.remove()
        raise
    return run_dir, summary


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
    redis = _redis(settings, kinds, run_dir, stack)
    file_dir = (
        run_dir.proxystore if settings.ps_file_dir is None else settings.ps_file_dir / f"wayfinder-{run_id[:12]}"
    )
    address = None if redis is None else (redis.host, redis.port)
    stores = Stores(kinds, run_id, settings.ps_threshold, file_dir, address, settings.ps_globus_config)
    private_dir = _private_dir(run_id)
    stack.callback(shutil.rmtree, private_dir, ignore_errors=True)
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
    started = redis_server.start(settings.redisport, run_dir.path / "logs" / "redis.log")
    stack.callback(started.stop)
    return started


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
    _, summary = _run(control, run_dir.path / "control", prepared, signals, time.monotonic())
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
