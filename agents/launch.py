"""Campaigns from start to end: everything they own is begun here, and ended here in the opposite order."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from redis import RedisError

from agents import probing
from agents.actor import Actor
from agents.crew import Crew, Service, served
from agents.feed import FeedInlet
from agents.lasting import begin_process, bring_in, finder, gather_here, mend, mend_learnt, park, recoverer
from agents.memory import Recollection
from agents.pool import Pool
from agents.server import why_it_ended
from agents.state import POOLED, CampaignState, Destination, Molecule
from agents.steering import Steering
from agents.summing import snapshot, summarise
from agents.supervisor import Charge, Room, Signals, Supervisor
from agents.thinker import CampaignThinker
from campaign.archives import unknown_archives
from campaign.display import Display, Overview, tell
from campaign.ledger import Ledger
from campaign.limits import end_of_time
from campaign.rundir import RunDirectory
from campaign.settings import Settings
from campaign.stores import Stores
from campaign.summary import Summary
from campaign.trace_files import Traces
from policies import Policy, policy
from policies.iteration import BrokenEnsemble
from tasks.announce import forget_announcements
from tasks.errors import BadInput, TaskFailed
from tasks.messages import Dynamics, ProbeReport, Ref, StoreSpec, Topic
from tasks.prepared import PreparedSystem
from tasks.transport import ship

if TYPE_CHECKING:
    from campaign.method import Method

logger = logging.getLogger("wayfinder")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign needs from the outside.

    Attributes
    ----------
    crew
        Who works for it, and perhaps for others.
    name
        What its messages to the user begin with; empty for a lone campaign.
    shared_by
        How many campaigns shared the workers when this one began.
    campaign_id
        The same in every process of a campaign.
    resumed
        Whether an earlier process began the campaign.
    weights
        Pretrained model, packed; None to start from principal components.
    began
        When the command began, monotonic.
    pool
        The sites of segments; empty for the one of their destination.
    """

    crew: Crew
    settings: Settings
    run_dir: RunDirectory
    campaign_id: str
    resumed: bool
    prepared: PreparedSystem
    dynamics: Dynamics
    weights: bytes | None
    destinations: dict[Topic, Destination]
    stores: Stores
    began: float
    pool: tuple[Destination, ...] = ()
    name: str = ""
    shared_by: int = 1
    method: Method | None = None

    @property
    def n_walkers(self) -> tuple[int, int]:
        """How many walkers there are, at least and at most.

        Those of weighted ensembles, all replicas together, are as many as if one bin of each were reached, and every
        bin; before a first model there are no bins, and ``--walkers`` in each.
        """
        settings, method = self.settings, self.method
        if method is None:
            return settings.walkers, settings.walkers
        of_each = [method.walkers_per_bin, method.most_walkers]
        if method.coordinate.learned and settings.aae_weights is None:
            of_each.append(settings.walkers)
        return settings.replicas * min(of_each), settings.replicas * max(of_each)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the campaign writes on this host."""
        stores = (dict(spec.options).get("store_dir") for spec in self.stores.specs if spec.kind == "file")
        # Nodes have a scratch of their own; if this host is none, this is but its disk.
        scratch = self.settings.scratch
        here = () if scratch is None else (next(p for p in (scratch, *scratch.parents) if p.exists()),)
        return (self.run_dir.path, *(Path(folder) for folder in stores if folder is not None), *here)

    @property
    def places(self) -> tuple[Destination, ...]:
        """The sites of segments."""
        return self.pool or (self.destinations["simulate"],)

    @property
    def work(self) -> Iterator[tuple[Topic, Destination]]:
        """What is done where."""
        for topic, destination in self.destinations.items():
            for place in self.places if topic in POOLED else (destination,):
                yield topic, place.of(topic)


@dataclass(slots=True)
class _Running:
    """A campaign of this process.

    Attributes
    ----------
    complete_at
        When it had all that it was to have (monotonic), and the ledger told so.
    """

    plan: Plan
    ledger: Ledger
    actor: Actor
    complete_at: float | None = None

    @property
    def state(self) -> CampaignState:
        return self.actor.state


def run_campaigns(plans: Sequence[Plan], signals: Signals) -> list[Summary]:
    """Run campaigns of one crew to their ends, whatever these are, and return their summaries.

    Raises
    ------
    BadInput
        When an executor says that work would fail there; nothing was sent.
    """
    with served(plans[0].crew, (work for plan in plans for work in plan.work)) as service, ExitStack() as stack:
        campaigns = [_begin(number, plan, service, stack) for number, plan in enumerate(plans)]
        try:
            _make_sure_of_workers(service, campaigns, signals)
            feed = _feed(service.crew, campaigns, stack)
            _watch(service, campaigns, signals, feed)
        except probing.ProbeFailed as error:
            for each in campaigns:
                each.state.fail(str(error))
        finally:
            ended = time.monotonic()
            service.end()
            _flush(service)
            for each in campaigns:
                with each.plan.run_dir.in_focus():
                    _leave_in_order(each)
        return [_conclude(each, service, signals, ended) for each in campaigns]


def probe_executors(plan: Plan, signals: Signals) -> dict[str, ProbeReport]:
    """Return what each executor says of itself, by label, and how fast the ways to it are; no work is sent.

    Raises
    ------
    ProbeFailed
        When one does not answer.
    """
    with served(plan.crew, plan.work) as service:
        left = [ship({"probe": np.zeros(1)}, store) for store in plan.stores.specs]
        plan.stores.know(left)
        asked, timeout_s = _questions([plan], [left], probing.BULK_BYTES), plan.settings.start_timeout
        trouble = _trouble(service, signals)
        reports = probing.ask(service.queues, asked, timeout_s, trouble)
        return probing.timed(service.queues, asked, reports, timeout_s, trouble)


def _begin(number: int, plan: Plan, service: Service, stack: ExitStack) -> _Running:
    with plan.run_dir.in_focus():
        ledger = _open_ledger(plan.run_dir.ledger)
        stack.callback(ledger.close)
        try:
            steering = _steering(number, plan, ledger)
        except TaskFailed as error:
            raise BadInput(str(error)) from error
        except BrokenEnsemble as error:
            raise BadInput(
                f"{plan.run_dir.path} holds a weighted ensemble that cannot be right ({error}): restore its ledger "
                "from a copy"
            ) from error
    stack.callback(forget_announcements, plan.run_dir.path)
    traces = stack.enter_context(Traces(plan.run_dir.path))
    actor = Actor(number, plan.name, service.queues, steering, traces, plan.run_dir)
    if steering.ensembles is not None and plan.method is not None:
        from agents.chronicle import Chronicle

        actor.chronicle = Chronicle(plan.run_dir.path, steering.ensembles, plan.method, actor.tell)
        actor.chronicle.catch_up()
        if plan.method.warning is not None:
            actor.tell(plan.method.warning)
    if plan.settings.serves:
        actor.tell(_about_imd(plan.settings))
    return _Running(plan, ledger, actor)


def _about_imd(settings: Settings) -> str:
    host = settings.imd_host or "127.0.0.1"
    ends = "see and pause" if settings.is_ensemble else "see, pause and end"
    return f"--imd has no authentication: whoever reaches {host} on the workers' hosts can {ends} segments"


def _conclude(campaign: _Running, service: Service, signals: Signals, ended: float) -> Summary:
    plan, state = campaign.plan, campaign.state
    # What came after it was complete is nothing to it.
    stopped_by = signals.first if campaign.complete_at is None else None
    seconds = (campaign.complete_at or ended) - plan.began
    with plan.run_dir.in_focus():
        logger.info("ended after %.0f s: %s", seconds, state.failure or state.ending or "the target was reached")
        traffic = service.queues.traffic[campaign.actor.number]
        ensembles = None
        if campaign.actor.chronicle is not None:
            campaign.actor.chronicle.catch_up()
            ensembles = campaign.actor.chronicle.summary()
        summary = summarise(plan.settings, state, traffic, stopped_by, plan.began, seconds, ensembles)
        _note_status(campaign.ledger, summary)
    return summary


def _steering(number: int, plan: Plan, ledger: Ledger) -> Steering:
    """Return the campaign's logic, where an earlier process left it if there was one.

    Raises
    ------
    TaskFailed
        When a store does not take the system.
    """
    swept = mend(ledger, plan.run_dir.path, plan.stores) if plan.resumed else 0
    settings = plan.settings
    about = {
        "campaign": plan.campaign_id,
        "settings": settings.as_config(),
        "system": plan.prepared.name,
        "target": settings.target_segments,
        "shared_by": plan.shared_by,
        "workers": [(place.site, topic, place.slots) for topic, place in plan.work],
    }
    begin_process(ledger, plan.crew.run_id, plan.run_dir.path, about)
    if ledger.network is not None:
        logger.info("the ledger lies on %s: a rollback journal and a sync for every commit", ledger.network)
    state, basis = _state(number, plan, ledger)
    state.archives = lambda: unknown_archives(ledger, plan.run_dir.path)
    steering = Steering(state, basis, plan.method)
    if plan.resumed:
        state.find = finder(plan.destinations, plan.stores)
        scratch = plan.destinations["simulate"].scratch
        state.emptied = frozenset() if scratch is None else gather_here(scratch, plan.run_dir.path)
        state.recover = recoverer(ledger, plan.run_dir.path, plan.stores.of["infer"])
        Recollection(steering).restore()
        mend_learnt(ledger, plan.run_dir.path, state.model)
        logger.info("resumed at segment %d; %d objects of no use were swept", state.counts.segments, swept)
    if plan.weights is not None and not steering.resumed:
        store = plan.stores.of["infer"]
        state.model = ship({"model": np.frombuffer(plan.weights, np.uint8)}, store, always=False)
        state.hold(state.model, "model")
    return steering


def _policy(settings: Settings) -> Policy:
    """Return the policy; a weighted ensemble needs a model only where its coordinate is one's."""
    return policy(settings.policy if settings.learns or not settings.is_ensemble else "plain")


def _state(number: int, plan: Plan, ledger: Ledger) -> tuple[CampaignState, Ref]:
    """Return the campaign's state, and the address of where walkers begin; system and weights are shipped.

    Raises
    ------
    BadInput
        When a store does not take them.
    """
    stores = plan.stores.of
    arrays = plan.prepared.to_arrays()
    shipped: dict[StoreSpec, Ref] = {store: ship(arrays, store) for store in plan.stores.specs}
    molecule = Molecule(
        plan.prepared.name,
        plan.prepared.digest,
        plan.prepared.n_atoms,
        {"simulate": shipped[stores["simulate"]], "infer": shipped[stores["infer"]]},
        plan.prepared.n_starts,
    )
    settings = plan.settings
    chosen = _policy(settings)
    state = CampaignState(
        settings, chosen, plan.dynamics, molecule, plan.destinations, ledger, plan.stores.by_name, plan.places
    )
    if settings.stream and plan.crew.feed is not None:
        state.feed = replace(plan.crew.feed, campaign=number)
    for ref in shipped.values():
        state.hold(ref, "system")
    return state, ship(plan.prepared.basis(), stores["simulate"])


def _make_sure_of_workers(service: Service, campaigns: Sequence[_Running], signals: Signals) -> None:
    """Let no campaign begin where work would fail, and each do without the sites that do not answer.

    Raises
    ------
    BadInput
        When an executor says that work would fail there.
    ProbeFailed
        When one does not answer that cannot be done without.
    """
    plans = [each.plan for each in campaigns]
    spare = set(service.crew.segment_labels)
    # The system lies in the stores by now: who works must find it there.
    left = [set(each.state.molecule.refs.values()) for each in campaigns]
    timeout_s = plans[0].settings.start_timeout
    reports = probing.ask(service.queues, _questions(plans, left), timeout_s, _trouble(service, signals), spare)
    sites = {place.executor: place.site for plan in plans for _, place in plan.work}
    for executor, report in reports.items():
        for problem in probing.problems(report):
            raise BadInput(f"site {sites[executor]}, executor {executor}: {problem}")
        versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
        logger.info(
            "executor %s: %s, %s, Python %s, %s", executor, report.host, report.device, report.python, versions
        )
    for each in campaigns:
        _leave_out_silent(each.state, spare - set(reports))


def _questions(plans: Sequence[Plan], left: Sequence[Collection[Ref]], bulk_bytes: int = 0) -> list[probing.Question]:
    """Return what is asked of each executor; ``left`` is what each campaign put into its stores."""
    return probing.together(
        question
        for plan, refs in zip(plans, left, strict=True)
        for question in probing.questions(
            plan.destinations, plan.dynamics.platform, plan.stores.specs, plan.places, bulk_bytes, refs
        )
    )


def _trouble(service: Service, signals: Signals) -> Callable[[], str | None]:
    """Return what tells why waiting for workers is in vain, once it is."""

    def trouble() -> str | None:
        if signals.first is not None:
            return f"{signals.first.name} was received while workers were starting"
        if not service.task_server.is_alive():
            return why_it_ended(service.task_server.exitcode)
        return None if service.crew.redis is None else service.crew.redis.trouble()

    return trouble


def _leave_out_silent(state: CampaignState, silent: Collection[str]) -> None:
    """Begin without the sites of a pool that did not answer."""
    for place in state.pool.places:
        if place.executor in silent:
            state.pool.leave_out(place.executor)
            sentence = (
                f"site {place.site} did not answer within --start-timeout {state.settings.start_timeout:g} s: "
                "the campaign begins without it"
            )
            logger.warning("%s", sentence)
            state.outbox.notes.append(sentence)


def _admit_latecomers(service: Service, pools: Sequence[Pool]) -> None:
    """Use a site that answers its probe late; one where work would fail is told, and stays out."""
    for executor, report in probing.late(service.queues) if any(pool.unproven for pool in pools) else ():
        site = next(hands.site for hands in service.crew.pool if hands.executor.label == executor)
        if report is None:
            tell(f"site {site}, executor {executor}: its probe failed, so it is not used")
        elif problems := probing.problems(report):
            tell(f"site {site}, executor {executor}, is not used: {problems[0]}")
        else:
            for pool in pools:
                pool.admit(executor)


def _feed(crew: Crew, campaigns: Sequence[_Running], stack: ExitStack) -> FeedInlet | None:
    """Return where batches of running segments are heard of, until the stack is closed.

    Made once the task server is forked, which must not have the thread of a socket.
    """
    if crew.feed is None:
        return None
    stores = [each.plan.stores.of["simulate"] for each in campaigns]
    # ZeroMQ closes what it is given.
    feed = FeedInlet(crew.feed, None if crew.door is None else os.dup(crew.door.fileno()), stores)
    stack.callback(feed.close)
    for each in campaigns:
        each.actor.feed = feed
    return feed


def _watch(service: Service, campaigns: Sequence[_Running], signals: Signals, feed: FeedInlet | None) -> None:
    """Let the campaigns go on until all are over."""
    actors = [each.actor for each in campaigns]
    for each in campaigns:
        plan, state = each.plan, each.state
        state.began = time.monotonic()
        state.end_of_time = end_of_time(plan.settings.walltime, plan.began)
        state.pool.workers = service.attendance
        state.pool.shared_by = _sharing(actors, plan)
        with plan.run_dir.in_focus():
            logger.info("%s: %s", plan.prepared.name, plan.settings.policy)
    thinker = CampaignThinker(service.queues, actors, feed)
    pools = [each.state.pool for each in campaigns]
    slots = sum(hands.slots for hands in service.crew.pool)
    with _display(actors, slots) as display:

        def look() -> None:
            _admit_latecomers(service, pools)
            for each in campaigns:
                _note_completion(each)
            display.update()

        charges = [_charge(each) for each in campaigns]
        supervisor = Supervisor(thinker, charges, service.task_server, service.crew.redis, signals, look)
        thinker.start()
        try:
            supervisor.watch()
        finally:
            supervisor.end()
            for each in campaigns:
                _note_completion(each)
    for actor in actors:
        if actor.state.failure is None and actor.state.ending is None and not actor.steering.finished:
            actor.state.fail("the Thinker ended before its work was done; see runtime.log")


def _sharing(actors: Sequence[Actor], plan: Plan) -> Callable[[], int]:
    """Return what tells how many campaigns share the workers: those that are not over.

    In lockstep it is as many as began, in whatever process, for how much is out decides what the next segment knows.
    """
    if plan.settings.lockstep or len(actors) == 1:
        return lambda: plan.shared_by if plan.settings.lockstep else 1
    return lambda: max(1, sum(not actor.ended for actor in actors))


def _note_completion(campaign: _Running) -> None:
    """Let the ledger tell that a campaign is complete, though others of the process go on."""
    state = campaign.state
    told_to_end = state.failure is not None or state.stopped or state.out_of_time or campaign.actor.dismissed
    if campaign.complete_at is not None or not campaign.actor.ended or told_to_end:
        return
    campaign.complete_at = time.monotonic()
    try:
        with state.lock, campaign.ledger.transaction():
            campaign.ledger.set_meta("status", "complete")
    except sqlite3.Error as error:
        state.fail(f"the ledger could not be written: {error}; free some space on its disk")


def _charge(campaign: _Running) -> Charge:
    settings = campaign.plan.settings
    room = Room(campaign.plan.folders, settings.min_free_mb * 1_000_000, 60 * settings.max_pause_minutes)
    return Charge(campaign.actor, settings.grace_s, room)


@contextmanager
def _display(actors: Sequence[Actor], slots: int) -> Iterator[Display]:
    if len(actors) == 1:
        display = Display(lambda: snapshot(actors[0].steering))
    else:
        display = Display(
            lambda: Overview(tuple(snapshot(a.steering) for a in actors), sum(a.over for a in actors), slots)
        )
    try:
        yield display
    finally:
        display.close()


def _open_ledger(path: Path) -> Ledger:
    try:
        return Ledger(path)
    except sqlite3.Error as error:
        raise BadInput(
            f"ledger {path} cannot be made ({error}): free some space, or name another place with --run-dir"
        ) from error


def _leave_in_order(campaign: _Running) -> None:
    """Leave a campaign; what goes wrong with it is nothing to others."""
    try:
        _bring_in(campaign)
        _leave(campaign)
    except (sqlite3.Error, OSError, RedisError, TaskFailed) as error:
        logger.exception("the campaign could not be left in order")
        campaign.state.fail(f"the campaign could not be left in order: {error}; resume mends it")


def _bring_in(campaign: _Running) -> None:
    """Gather what workers of this host had no time for; a campaign of which segments are missing is not complete."""
    plan, ledger, state = campaign.plan, campaign.ledger, campaign.state
    destination = plan.destinations["simulate"]
    if destination.scratch is None:
        return
    missing = bring_in(ledger, plan.run_dir.path, destination.scratch, destination.executor)
    if missing is not None:
        logger.warning("%s", missing)
        if not (state.stopped or state.out_of_time):
            state.fail(missing)


def _flush(service: Service) -> None:
    try:
        service.queues.flush()
    except RedisError as error:
        logger.warning("the queues could not be emptied: %s", error)


def _leave(campaign: _Running) -> None:
    """Leave the campaign so that a later process can go on: nothing running, nothing in the stores."""
    plan, ledger, state = campaign.plan, campaign.ledger, campaign.state
    parked = plan.stores.parked
    held = sum(ref.store != parked for ref in state.holds.refs())
    plan.stores.know(state.holds.refs())
    found = plan.stores.count()
    # On a full disk there is room again for what comes then.
    _sweep(plan.stores, ledger)
    try:
        ledger.abandon_running()
        if campaign.complete_at is None:
            with ledger.transaction():
                ledger.set_meta("status", "interrupted")
    except sqlite3.Error as error:
        state.fail(f"the ledger could not be written: {error}; free some space on its disk")
    park(ledger, plan.stores)
    _sweep(plan.stores, ledger)
    # What attempts left that never came back was made, too.
    made = state.holds.created + max(0, found - held)
    state.holds.drop_all()
    state.proxies_left = plan.stores.count()
    state.holds.created, state.holds.evicted = made, made - state.proxies_left


def _sweep(stores: Stores, ledger: Ledger) -> None:
    """Empty the stores of all that no later process needs."""
    needed = ledger.referenced()
    stores.left_in_place = any(name != stores.parked.name for name, _ in needed)
    try:
        stores.sweep(keep=needed)
    except (TaskFailed, RedisError) as error:
        # A Redis server that is gone has nothing left to empty.
        logger.warning("a store could not be emptied: %s", error)


def _note_status(ledger: Ledger, summary: Summary) -> None:
    try:
        with ledger.transaction():
            ledger.set_meta("status", summary.status)
            ledger.set_meta("reason", summary.reason)
    except sqlite3.Error as error:
        logger.warning("the ledger does not tell how the campaign ended: %s", error)
