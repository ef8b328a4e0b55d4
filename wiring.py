"""How a campaign is put together: sites, stores, servers and executors make a `Plan`. Wiring only."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from parsl.executors.base import ParslExecutor

import config
from agents.launch import Plan
from agents.state import Destination
from campaign.archives import scratch_of
from campaign.guardian import Guardian
from campaign.molecule import read_weights
from campaign.resuming import Standing
from campaign.rundir import RunDirectory, make_private_dir, refuse_unquotable
from campaign.settings import Settings
from campaign.stores import Stores
from sites import globus_store, local, redis_server, staging
from sites.pool import shares
from sites.site import REACHES_ALL, Resources, Site
from tasks.errors import BadInput
from tasks.messages import StoreKind, Topic
from tasks.platforms import GPU_PLATFORMS
from tasks.prepared import PreparedSystem
from tasks.transport import PASSWORD_VARIABLE


@dataclass(frozen=True, slots=True)
class Member:
    """A site of the pool that segments run at."""

    site: Site
    weight: float


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of, before it has a directory.

    Attributes
    ----------
    pool, learning
        Sites of the segments, and the one of training and inference.
    kinds
        Kind of each topic's store.
    began
        Monotonic.
    """

    settings: Settings
    prepared: PreparedSystem
    pool: tuple[Member, ...]
    learning: Site
    kinds: dict[Topic, StoreKind]
    began: float

    @classmethod
    def gather(cls, settings: Settings, prepared: PreparedSystem, began: float) -> Parts:
        """Return the parts that the settings ask for.

        Raises
        ------
        BadInput
            For a site that is not known or named twice, for a weight that is none, and for a store that a site does
            not reach.
        """
        pool = tuple(Member(config.site(share.site), share.weight) for share in shares(settings.simulate_site))
        learning = config.site(settings.ml_site)
        return cls(settings, prepared, pool, learning, _store_kinds(settings, pool, learning), began)


def set_up(parts: Parts, run_dir: RunDirectory, stack: ExitStack, before: Standing | None = None) -> Plan:
    """Return the plan, with the inputs written and the log open."""
    try:
        stack.enter_context(run_dir.logging())
        run_dir.write_inputs(parts.settings.as_config(), parts.prepared)
        return plan_of(parts, run_dir, stack, before)
    except OSError as error:
        raise BadInput(f"run directory {run_dir.path} cannot be used: {error.strerror or error}") from error


def plan_of(parts: Parts, run_dir: RunDirectory, stack: ExitStack, before: Standing | None = None) -> Plan:
    """Return what the campaign needs; servers that are started here end with the stack.

    Parameters
    ----------
    before
        Where an earlier process left the campaign; None for a new one.
    """
    settings, prepared = parts.settings, parts.prepared
    began = before is not None and before.began
    weights = None if began else read_weights(settings, len(prepared.feature_indices))
    run_id = os.environ["WAYFINDER_RUN"]
    private_dir = make_private_dir(run_id)
    stack.callback(shutil.rmtree, private_dir, ignore_errors=True)
    for path in (run_dir.path, private_dir):
        refuse_unquotable(path)
    guardian = Guardian(run_id, private_dir)
    stack.callback(guardian.dismiss)
    campaign_id = run_id if before is None else before.campaign_id
    older: frozenset[StoreKind] = frozenset() if before is None else before.store_kinds
    cleaning = stack.enter_context(ExitStack())  # after the servers have ended
    redis = _redis(parts, run_dir, older, stack)
    stores = _stores(parts, run_dir, campaign_id, redis, older)
    # A later process finds there what could not be parked; nothing is sure of that until the campaign ends.
    stores.left_in_place = before is not None
    stack.callback(stores.remove)

    def forget_redis() -> None:
        if not stores.left_in_place:
            shutil.rmtree(run_dir.redis, ignore_errors=True)

    cleaning.callback(forget_redis)
    resources = Resources(
        settings.simulate_workers,
        settings.ml_workers,
        private_dir,
        settings.heartbeat_s,
        settings.heartbeat_threshold_s,
        settings.segments_per_device,
        prepared.platform in GPU_PLATFORMS,
        unpacking=_unpacking(settings),
    )
    pool, executors = _pool(parts.pool, stores, resources, run_dir)
    if settings.scratch is not None:
        pool = tuple(_keeps_on_nodes(place, settings, campaign_id) for place in pool)
    destinations = _destinations(parts, pool[0], stores, resources, run_dir, executors)
    if settings.scratch is not None:
        destinations["gather"] = pool[0].of("gather")
    if settings.equilibrate_ps:
        destinations["equilibrate"] = pool[0].of("equilibrate")
    return Plan(
        settings=settings,
        run_dir=run_dir,
        run_id=run_id,
        campaign_id=campaign_id,
        resumed=before is not None,
        private_dir=private_dir,
        guardian=guardian,
        prepared=prepared,
        dynamics=settings.dynamics(prepared.platform),
        weights=weights,
        destinations=destinations,
        executors=executors,
        stores=stores,
        redis=None if redis is None else (redis.host, redis.port, redis),
        began=parts.began,
        earlier=None if before is None else before.last_run_id,
        pool=pool,
    )


def _unpacking(settings: Settings) -> tuple[str, ...]:
    """Return the shell lines that give workers the environment of ``--stage-env``."""
    if settings.stage_env is None or settings.scratch is None:
        return ()
    return tuple(staging.unpacking(settings.stage_env, settings.scratch))


def _keeps_on_nodes(place: Destination, settings: Settings, campaign_id: str) -> Destination:
    """Return a site whose segments keep their trajectories on their nodes, where workers gather them."""
    if place.run_dir is None:
        raise BadInput(
            f"--scratch {settings.scratch}: workers of site {place.site} gather into the run directory, which they "
            "do not see; drop it, or name a site that shares it with --simulate-site"
        )
    return replace(place, scratch=scratch_of(settings, campaign_id))


def _stores(
    parts: Parts,
    run_dir: RunDirectory,
    campaign_id: str,
    redis: redis_server.RedisServer | None,
    older: frozenset[StoreKind],
) -> Stores:
    settings = parts.settings
    file_dir = run_dir.proxystore
    if settings.ps_file_dir is not None:
        file_dir = settings.ps_file_dir / f"wayfinder-{campaign_id[:12]}"
    address = None if redis is None else (redis.host, redis.port)
    globus = settings.ps_globus_config
    threshold = settings.ps_threshold
    return Stores(parts.kinds, campaign_id, run_dir.parked, threshold, file_dir, address, globus, older)


def _store_kinds(settings: Settings, pool: Sequence[Member], learning: Site) -> dict[Topic, StoreKind]:
    """Return the kind of each topic's store.

    Raises
    ------
    BadInput
        When a topic's own workers cannot reach it, or a site of a pool that of the candidates.
    """
    shared = all(site.shares_run_dir for site in (learning, *(member.site for member in pool)))
    kinds: dict[Topic, StoreKind] = {}
    for topic, backend in settings.ps_backends.items():
        chosen = backend or ("file" if shared else "redis")
        kind: StoreKind = "inline" if settings.no_proxystore or chosen == "none" else chosen
        for site in [member.site for member in pool] if topic == "simulate" else [learning]:
            if kind not in site.reaches:
                raise BadInput(
                    f"--{topic}-ps-backend {kind}: workers of site {site.name} reach only "
                    f"{', '.join(sorted(site.reaches))}; choose one of these"
                )
        kinds[topic] = kind
    for member in pool if len(pool) > 1 else ():
        # A `move` task brings candidates to one site, not to several.
        if kinds["infer"] not in member.site.reaches:
            raise BadInput(
                f"--simulate-site {settings.simulate_site}: workers of site {member.site.name} do not reach the "
                f"store of the candidates, {kinds['infer']}, and these are moved only where segments run at one "
                f"site: choose an --infer-ps-backend that all of them reach, or leave {member.site.name} out"
            )
    if settings.ps_globus_config is not None:
        globus_store.check(settings.ps_globus_config)
    return kinds


def _pool(
    members: Sequence[Member], stores: Stores, resources: Resources, run_dir: RunDirectory
) -> tuple[tuple[Destination, ...], list[ParslExecutor]]:
    """Return where segments go, and an executor for each site."""
    # What a segment needs may lie in any store, whichever site it runs at, and so may what it needs when tried again.
    reaches = frozenset.intersection(*(member.site.reaches for member in members))
    places: list[Destination] = []
    executors: list[ParslExecutor] = []
    for member in members:
        site = member.site
        if site.simulate is None:
            raise _lacks_executor(site)
        suffix = f"-{site.name}" if len(members) > 1 else ""
        its = replace(resources, label_suffix=suffix)
        executor = site.simulate(its)
        if executor.label in [other.label for other in executors]:
            raise BadInput(
                f"--simulate-site: the executor of site {site.name} is called {executor.label}, as that of another "
                "site of the pool: make it with `sites.htex.htex`, or give it another label in config.py"
            )
        executors.append(executor)
        seen = str(run_dir.path) if site.shares_run_dir else None
        places.append(
            Destination(
                site.name,
                executor.label,
                f"simulate@{site.name}",
                site.simulate_slots(its),
                reaches,
                stores.of["simulate"],
                seen,
                member.weight,
            )
        )
    return tuple(places), executors


def _destinations(
    parts: Parts,
    simulate: Destination,
    stores: Stores,
    resources: Resources,
    run_dir: RunDirectory,
    executors: list[ParslExecutor],
) -> dict[Topic, Destination]:
    """Return where each topic goes, and add executors; the submit host gets one for moves and hooks."""
    learn = parts.learning
    if learn.learn is None:
        raise _lacks_executor(learn)
    executor = learn.learn(resources)
    executors.append(executor)
    slots, seen = learn.learn_slots(resources), str(run_dir.path) if learn.shares_run_dir else None

    def learning(topic: Topic) -> Destination:
        method = f"{topic}@{learn.name}"
        return Destination(learn.name, executor.label, method, slots, learn.reaches, stores.of[topic], seen)

    destinations: dict[Topic, Destination] = {
        "simulate": simulate,
        "infer": learning("infer"),
        "train": learning("train"),
    }
    crossing = stores.of["simulate"].kind not in learn.reaches or stores.of["infer"].kind not in simulate.reaches
    n_hooks = parts.settings.hook_workers if parts.settings.has_hooks else 0
    store = stores.of["infer"]  # a move names its own store; this one is for the probe
    if crossing or n_hooks:
        # Of hooks no more are sent at once than have workers of their own, so they are in no move's way.
        executors.append(local.submit_host(resources, crossing + n_hooks))
    if crossing:
        destinations["move"] = Destination("host", "host", "move@host", 1, REACHES_ALL, store, None)
    if n_hooks:
        seen = str(run_dir.path)
        destinations["hook"] = Destination("host", "host", "hook@host", n_hooks, REACHES_ALL, store, seen)
    return destinations


def _lacks_executor(site: Site) -> BadInput:
    return BadInput(
        f"site {site.name} has no executor for this topic: choose another with --simulate-site or --ml-site"
    )


def _redis(
    parts: Parts, run_dir: RunDirectory, older: frozenset[StoreKind], stack: ExitStack
) -> redis_server.RedisServer | None:
    """Return the Redis server the campaign uses: the named one, or a private one; None where nothing needs it."""
    settings = parts.settings
    stored = "redis" in {*parts.kinds.values(), *older}
    if settings.queue != "redis" and not stored:
        return None
    if settings.redishost is not None:
        return redis_server.connect(settings.redishost, settings.redisport or 6379)
    # By the environment, which workers inherit and which is never written down.
    os.environ[PASSWORD_VARIABLE] = secrets.token_hex(32)
    started = redis_server.start(
        settings.redisport, run_dir.path / "logs" / "redis.log", run_dir.redis if stored else None
    )
    stack.callback(started.stop)
    return started
