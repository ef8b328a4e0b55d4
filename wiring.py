"""How a campaign is put together: sites, stores, servers and executors make a `Plan`. Wiring only."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import config
from agents.crew import Crew, Hands, RedisServer
from agents.launch import Plan
from agents.state import Destination
from campaign.archives import scratch_of
from campaign.guardian import Guardian
from campaign.molecule import read_weights
from campaign.resuming import Standing
from campaign.rundir import RunDirectory, make_private_dir, refuse_unquotable
from campaign.settings import Settings
from campaign.stores import Stores
from campaign.sweep import refuse_differing
from sites import endpoint_store, globus_store, local, redis_server, staging
from sites.globus import globus
from sites.pool import shares
from sites.site import REACHES_ALL, Resources, Site, SshAccess
from tasks.errors import BadInput
from tasks.messages import Feed, StoreKind, Topic
from tasks.platforms import GPU_PLATFORMS
from tasks.prepared import PreparedSystem
from tasks.stream.spec import LOOPBACK
from tasks.transport import PASSWORD_VARIABLE, TOKEN_VARIABLE

if TYPE_CHECKING:
    from campaign.method import Method


@dataclass(frozen=True, slots=True)
class PoolSite:
    """A site of the pool that segments run at, and its part of them."""

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
    method
        Of a weighted ensemble; None for other campaigns.
    """

    settings: Settings
    prepared: PreparedSystem
    pool: tuple[PoolSite, ...]
    learning: Site
    kinds: dict[Topic, StoreKind]
    began: float
    method: Method | None = None

    @classmethod
    def gather(cls, settings: Settings, prepared: PreparedSystem, began: float) -> Parts:
        """Return the parts that the settings ask for.

        Raises
        ------
        BadInput
            For a site that is not known or named twice, for a weight that is none, for a store that a site does not
            reach, and for servers that nobody would hear of.
        """
        pool = tuple(PoolSite(config.site(each.site), each.weight) for each in shares(settings.simulate_site))
        learning = config.site(settings.ml_site)
        if settings.simulate_endpoint is not None:
            pool = (PoolSite(globus("globus-simulate", settings.simulate_endpoint), 1),)
        if settings.ml_endpoint is not None:
            learning = globus("globus-learn", settings.ml_endpoint)
        _refuse_servers_unheard_of(settings, pool)
        kinds = _store_kinds(settings, pool, learning)
        return cls(settings, prepared, pool, learning, kinds, began, _method(settings, prepared))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Of segments, and of learning."""
        return (*(each.site for each in self.pool), self.learning)


@dataclass(frozen=True, slots=True)
class Member:
    """A campaign of this process.

    Attributes
    ----------
    before
        Where an earlier process left it; None for a new one.
    name
        What its messages to the user begin with; empty for a lone one.
    shared_by
        How many campaigns share the workers when this one begins.
    """

    parts: Parts
    run_dir: RunDirectory
    before: Standing | None = None
    name: str = ""
    shared_by: int = 1

    @property
    def older(self) -> frozenset[StoreKind]:
        """Kinds of the stores of earlier processes."""
        return frozenset() if self.before is None else self.before.store_kinds


def set_up(parts: Parts, run_dir: RunDirectory, stack: ExitStack, before: Standing | None = None) -> Plan:
    """Return the plan of a lone campaign, with the inputs written and the log open."""
    (plan,) = set_up_several([Member(parts, run_dir, before)], run_dir.path, stack)
    return plan


def set_up_several(members: Sequence[Member], home: Path, stack: ExitStack) -> list[Plan]:
    """Return the plans of campaigns that share their workers, with inputs written and logs open.

    Parameters
    ----------
    home
        Where servers and Parsl log: the directory of a lone campaign, or the folder of several.
    """
    for member in members:
        try:
            stack.enter_context(member.run_dir.logging())
            member.run_dir.write_inputs(member.parts.settings.as_config(), member.parts.prepared)
        except OSError as error:
            path = member.run_dir.path
            raise BadInput(f"run directory {path} cannot be used: {error.strerror or error}") from error
    try:
        crew = crew_of(members, home, stack)
        return [plan_of(member, crew, stack) for member in members]
    except OSError as error:
        raise BadInput(f"run directory {home} cannot be used: {error.strerror or error}") from error


def crew_of(members: Sequence[Member], home: Path, stack: ExitStack) -> Crew:
    """Return who works for the campaigns; servers that are started here end with the stack.

    Raises
    ------
    BadInput
        When settings of several differ in what is said of the workers.
    """
    parts = members[0].parts
    refuse_differing({member.name: member.parts.settings for member in members})
    run_id = os.environ["WAYFINDER_RUN"]
    private_dir = make_private_dir(run_id)
    stack.callback(shutil.rmtree, private_dir, ignore_errors=True)
    for path in (home, private_dir):
        refuse_unquotable(path)
    guardian = Guardian(run_id, private_dir)
    stack.callback(guardian.dismiss)
    closing = stack.enter_context(ExitStack())
    redis = _redis(members, home, stack)
    feed, door = _feed(members, run_id, redis, stack)
    resources = _resources(members, private_dir, redis, door)
    pool = _pool(parts.pool, resources)
    learning = _learning(parts.learning, resources)
    n_moves = any(_crossing(member.parts) for member in members)
    n_hooks = max(_n_hooks(member.parts.settings) for member in members)
    # Of hooks no more are sent at once than have workers of their own, so they are in no move's way.
    host = None
    if n_moves or n_hooks:
        host = Hands("host", local.submit_host(resources, n_moves + n_hooks), n_moves + n_hooks)
    earlier = {member.before.last_run_id for member in members if member.before is not None}
    return Crew(
        run_id=run_id,
        home=home,
        queue=parts.settings.queue,
        idle_block_s=parts.settings.idle_block_s,
        private_dir=private_dir,
        guardian=guardian,
        pool=pool,
        learning=learning,
        host=host,
        redis=redis,
        closing=closing,
        earlier=frozenset(run_id for run_id in earlier if run_id is not None),
        feed=feed,
        door=door,
    )


_LOOPBACK = frozenset({"127.0.0.1", "localhost"})


def _feed(
    members: Sequence[Member], run_id: str, redis: RedisServer | None, stack: ExitStack
) -> tuple[Feed | None, socket.socket | None]:
    """Return where running segments tell of batches, and the socket that listens there unless it is Redis.

    Raises
    ------
    BadInput
        When segments of a site would reach neither.
    """
    streaming = [member.parts for member in members if member.parts.settings.stream]
    if not streaming:
        return None, None
    namespace = f"wayfinder-feed-{run_id[:12]}"
    away = [each.site for parts in streaming for each in parts.pool if not _dials_back(each.site, parts.settings)]
    if not away:
        door = stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=1024))
        # By the environment, which workers inherit and which is never written down.
        os.environ[TOKEN_VARIABLE] = secrets.token_hex(32)
        return Feed(namespace, "zmq", (("host", LOOPBACK), ("port", str(door.getsockname()[1]))), 0), door
    if redis is None or any(parts.kinds["simulate"] != "redis" for parts in streaming):
        raise BadInput(
            f"--stream: segments of site {away[0].name} reach this host by no way that batches could be told of: add "
            "--simulate-ps-backend redis, with a server that they reach, or drop --stream"
        )
    return Feed(namespace, "redis", (("hostname", redis.host), ("port", str(redis.port))), 0), None


def _dials_back(site: Site, settings: Settings) -> bool:
    """Return whether workers of a site reach ports of this host's loopback; a tunnel by hand has those it has."""
    return site.dials_back and (site.shares_run_dir or settings.ssh_tunnel == "auto")


def _resources(
    members: Sequence[Member], private_dir: Path, redis: RedisServer | None, door: socket.socket | None
) -> Resources:
    settings = members[0].parts.settings
    # Only loopback has to be brought there: any other address is dialled as it is.
    forwards = () if redis is None or redis.host not in _LOOPBACK else (redis.port,)
    if door is not None:
        forwards = (*forwards, door.getsockname()[1])
    return Resources(
        settings.simulate_workers,
        settings.ml_workers,
        private_dir,
        settings.heartbeat_s,
        settings.heartbeat_threshold_s,
        settings.segments_per_device,
        any(member.parts.prepared.platform in GPU_PLATFORMS for member in members),
        unpacking=_unpacking(settings),
        ssh=_ssh(settings),
        forwards=forwards,
        task_timeout_s=settings.task_timeout,
    )


def _ssh(settings: Settings) -> SshAccess | None:
    if settings.ssh_host is None:
        return None
    return SshAccess(
        settings.ssh_host,
        settings.ssh_config,
        settings.ssh_init,
        settings.ssh_dir,
        settings.ssh_tunnel,
        settings.ssh_port,
    )


def plan_of(member: Member, crew: Crew, stack: ExitStack) -> Plan:
    """Return what a campaign needs; its stores are emptied with the stack."""
    parts, run_dir, before = member.parts, member.run_dir, member.before
    settings, prepared = parts.settings, parts.prepared
    began = before is not None and before.began
    weights = None if began else read_weights(settings, len(prepared.feature_indices))
    refuse_unquotable(run_dir.path)
    # Where a process was killed before it wrote down which campaign it began, this is another.
    campaign_id = (before.campaign_id if before is not None else "") or uuid.uuid4().hex
    stores = _stores(member, campaign_id, crew.redis)
    # A later process finds there what could not be parked; nothing is sure of that until the campaign ends.
    stores.left_in_place = before is not None
    stack.callback(stores.remove)

    def forget_redis() -> None:
        if not stores.left_in_place:
            shutil.rmtree(run_dir.redis, ignore_errors=True)

    crew.closing.callback(forget_redis)
    pool = _places(parts, crew, stores, run_dir)
    if settings.scratch is not None:
        pool = tuple(_keeps_on_nodes(place, settings, campaign_id) for place in pool)
    return Plan(
        crew=crew,
        settings=settings,
        run_dir=run_dir,
        campaign_id=campaign_id,
        resumed=before is not None,
        prepared=prepared,
        dynamics=settings.dynamics(prepared.platform),
        weights=weights,
        destinations=_destinations(parts, pool[0], crew, stores, run_dir),
        stores=stores,
        began=parts.began,
        pool=pool,
        name=member.name,
        shared_by=member.shared_by if before is None else before.shared_by,
        method=parts.method,
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


def _stores(member: Member, campaign_id: str, redis: RedisServer | None) -> Stores:
    settings, run_dir = member.parts.settings, member.run_dir
    file_dir = run_dir.proxystore
    if settings.ps_file_dir is not None:
        file_dir = settings.ps_file_dir / f"wayfinder-{campaign_id[:12]}"
    bounds = (site.max_inline_bytes for site in member.parts.sites)
    return Stores(
        member.parts.kinds,
        campaign_id,
        run_dir.parked,
        settings.ps_threshold,
        file_dir,
        None if redis is None else (redis.host, redis.port),
        settings.ps_globus_config,
        min((bound for bound in bounds if bound is not None), default=None),
        member.older,
        settings.ps_endpoints,
    )


def _refuse_servers_unheard_of(settings: Settings, pool: Sequence[PoolSite]) -> None:
    """Refuse to serve segments live at a site that cannot tell where, since it does not see the run directory."""
    for each in pool if settings.serves else ():
        if not each.site.shares_run_dir:
            raise BadInput(
                f"--imd serves segments on ports that site {each.site.name} cannot tell, for it does not share the "
                "run directory: drop it, or choose another site"
            )


def _store_kinds(settings: Settings, pool: Sequence[PoolSite], learning: Site) -> dict[Topic, StoreKind]:
    """Return the kind of each topic's store.

    Raises
    ------
    BadInput
        When a topic's own workers cannot reach it, or a site of a pool that of the candidates.
    """
    sites = (learning, *(each.site for each in pool))
    shared = all(site.shares_run_dir for site in sites)
    for site in sites:
        if site.max_inline_bytes is not None and settings.ps_threshold > site.max_inline_bytes:
            raise BadInput(
                f"--ps-threshold {settings.ps_threshold} lets messages to site {site.name} grow beyond the "
                f"{site.max_inline_bytes} bytes that are carried there: give less"
            )
    kinds: dict[Topic, StoreKind] = {}
    for topic, backend in settings.ps_backends.items():
        chosen = backend or ("file" if shared else "redis")
        kind: StoreKind = "inline" if settings.no_proxystore or chosen == "none" else chosen
        for site in [each.site for each in pool] if topic == "simulate" else [learning]:
            if kind not in site.reaches:
                raise BadInput(
                    f"--{topic}-ps-backend {kind}: workers of site {site.name} reach only "
                    f"{', '.join(sorted(site.reaches))}; choose one of these"
                )
        kinds[topic] = kind
    for each in pool if len(pool) > 1 else ():
        # A `move` task brings candidates to one site, not to several.
        if kinds["infer"] not in each.site.reaches:
            raise BadInput(
                f"--simulate-site {settings.simulate_site}: workers of site {each.site.name} do not reach the "
                f"store of the candidates, {kinds['infer']}, and these are moved only where segments run at one "
                f"site: choose an --infer-ps-backend that all of them reach, or leave {each.site.name} out"
            )
    if settings.ps_globus_config is not None:
        globus_store.check(settings.ps_globus_config)
    if settings.ps_endpoints is not None:
        endpoint_store.check(settings.ps_endpoints)
    return kinds


def _pool(shares: Sequence[PoolSite], resources: Resources) -> tuple[Hands, ...]:
    """Return an executor for each site of segments."""
    pool: list[Hands] = []
    for each in shares:
        site = each.site
        if site.simulate is None:
            raise _lacks_executor(site)
        suffix = f"-{site.name}" if len(shares) > 1 else ""
        its = replace(resources, label_suffix=suffix)
        executor = site.simulate(its)
        if executor.label in [other.executor.label for other in pool]:
            raise BadInput(
                f"--simulate-site: the executor of site {site.name} is called {executor.label}, as that of another "
                "site of the pool: make it with `sites.htex.htex`, or give it another label in config.py"
            )
        pool.append(Hands(site.name, executor, site.simulate_slots(its)))
    return tuple(pool)


def _learning(site: Site, resources: Resources) -> Hands:
    if site.learn is None:
        raise _lacks_executor(site)
    return Hands(site.name, site.learn(resources), site.learn_slots(resources))


def _crossing(parts: Parts) -> bool:
    """Return whether frames or candidates must be moved, as one end does not reach the other's store."""
    reaches = _reached_by_all(parts)
    return parts.kinds["simulate"] not in parts.learning.reaches or parts.kinds["infer"] not in reaches


def _reached_by_all(parts: Parts) -> frozenset[str]:
    """Return the stores that every site of segments reaches."""
    return frozenset.intersection(*(each.site.reaches for each in parts.pool))


def _n_hooks(settings: Settings) -> int:
    return settings.hook_workers if settings.has_hooks else 0


def _places(parts: Parts, crew: Crew, stores: Stores, run_dir: RunDirectory) -> tuple[Destination, ...]:
    """Return where segments go."""
    # What a segment needs may lie in any store, whichever site it runs at, and so may what it needs when tried again.
    reaches, store = _reached_by_all(parts), stores.of["simulate"]
    return tuple(
        Destination(
            hands.site,
            hands.executor.label,
            f"simulate@{hands.site}",
            hands.slots,
            reaches,
            store,
            str(run_dir.path) if each.site.shares_run_dir else None,
            each.weight,
        )
        for each, hands in zip(parts.pool, crew.pool, strict=True)
    )


def _destinations(
    parts: Parts, simulate: Destination, crew: Crew, stores: Stores, run_dir: RunDirectory
) -> dict[Topic, Destination]:
    """Return where each topic goes."""
    settings, learn, hands = parts.settings, parts.learning, crew.learning
    seen = str(run_dir.path) if learn.shares_run_dir else None

    def learning(topic: Topic) -> Destination:
        method = f"{topic}@{learn.name}"
        return Destination(
            learn.name, hands.executor.label, method, hands.slots, learn.reaches, stores.of[topic], seen
        )

    destinations: dict[Topic, Destination] = {
        "simulate": simulate,
        "infer": learning("infer"),
        "train": learning("train"),
    }
    if settings.stream:
        destinations["glance"] = destinations["infer"].of("glance")
    if parts.method is not None:
        destinations["coordinate"] = destinations["infer"].of("coordinate")
    store = stores.of["infer"]  # a move names its own store; this one is for the probe
    if _crossing(parts):
        destinations["move"] = Destination("host", "host", "move@host", 1, REACHES_ALL, store, None)
    if n_hooks := _n_hooks(settings):
        seen = str(run_dir.path)
        destinations["hook"] = Destination("host", "host", "hook@host", n_hooks, REACHES_ALL, store, seen)
    if settings.scratch is not None:
        destinations["gather"] = simulate.of("gather")
    if settings.equilibrate_ps:
        destinations["equilibrate"] = simulate.of("equilibrate")
    return destinations


def _method(settings: Settings, prepared: PreparedSystem) -> Method | None:
    if not settings.is_ensemble:
        return None
    # WESTPA takes a second to import, which other campaigns need not wait for.
    from campaign.method import method_of

    return method_of(settings, prepared)


def _lacks_executor(site: Site) -> BadInput:
    return BadInput(
        f"site {site.name} has no executor for this topic: choose another with --simulate-site or --ml-site"
    )


def _redis(members: Sequence[Member], home: Path, stack: ExitStack) -> redis_server.RedisServer | None:
    """Return the Redis server of the crew: the named one, or a private one; None where nothing needs it."""
    settings = members[0].parts.settings
    stored = any("redis" in {*member.parts.kinds.values(), *member.older} for member in members)
    if settings.queue != "redis" and not stored:
        return None
    if settings.redishost is not None:
        return redis_server.connect(settings.redishost, settings.redisport or 6379)
    if stored and len(members) > 1:
        raise BadInput(
            "a private Redis server keeps the data of one campaign, and these are several: name one with "
            "--redishost, or choose the backend file"
        )
    # By the environment, which workers inherit and which is never written down.
    os.environ[PASSWORD_VARIABLE] = secrets.token_hex(32)
    started = redis_server.start(
        settings.redisport, home / "logs" / "redis.log", members[0].run_dir.redis if stored else None
    )
    stack.callback(started.stop)
    return started
