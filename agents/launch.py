"""One campaign from start to end: everything it owns is begun here, and ended here in the opposite order."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from parsl.config import Config
from parsl.executors.base import ParslExecutor
from redis import RedisError

from agents import probing, server
from agents.lasting import begin_process, bring_in, finder, gather_here, mend, mend_learnt, park, recoverer
from agents.memory import Recollection
from agents.queues import Queues, pipe_queues, redis_queues
from agents.state import POOLED, CampaignState, Destination, Molecule
from agents.steering import Steering
from agents.summing import snapshot, summarise
from agents.supervisor import Room, Server, Signals, Supervisor
from agents.thinker import CampaignThinker
from campaign.archives import unknown_archives
from campaign.display import Display, tell
from campaign.guardian import Guardian
from campaign.ledger import Ledger
from campaign.limits import end_of_time
from campaign.processes import reap
from campaign.rundir import RunDirectory
from campaign.settings import Settings
from campaign.stores import Stores
from campaign.summary import Summary
from campaign.trace import Traces
from policies import policy
from tasks.bundle import run_bundle
from tasks.equilibrate import equilibrate
from tasks.errors import BadInput, TaskFailed
from tasks.gather import gather
from tasks.hook import run_hook
from tasks.infer import embed
from tasks.messages import Dynamics, ProbeReport, Ref, StoreSpec, Topic
from tasks.prepared import PreparedSystem
from tasks.probe import probe
from tasks.simulate import begin_segment
from tasks.train import train
from tasks.transport import move, ship

logger = logging.getLogger("wayfinder")

METHODS: dict[Topic, Callable[..., Any]] = {
    "equilibrate": equilibrate,
    "simulate": begin_segment,
    "infer": embed,
    "train": train,
    "move": move,
    "hook": run_hook,
    "gather": gather,
}


class RedisServer(Server, Protocol):
    """A server that knows its bounds."""

    @property
    def pid(self) -> int | None:
        """Its process, where it is the campaign's own."""
        ...

    def free_bytes(self) -> int | None:
        """Return the memory it may still take; None where there is no bound."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign needs from the outside.

    Attributes
    ----------
    campaign_id
        The same in every process of a campaign; ``run_id`` is this one's.
    resumed
        Whether an earlier process began the campaign.
    earlier
        ``run_id`` of the process before this one, if it was on this machine.
    guardian
        Ends what the main process leaves, should it be killed; started before anything else.
    executors
        Not started yet; they come to life in the task server's process.
    redis
        Host and port, and who tells when it is gone; None where nothing uses Redis.
    weights
        Pretrained model, packed; None to start from principal components.
    began
        When the command began, monotonic.
    pool
        The sites of segments; empty for the one of their destination.
    """

    settings: Settings
    run_dir: RunDirectory
    run_id: str
    campaign_id: str
    resumed: bool
    private_dir: Path
    guardian: Guardian
    prepared: PreparedSystem
    dynamics: Dynamics
    weights: bytes | None
    destinations: dict[Topic, Destination]
    executors: list[ParslExecutor]
    stores: Stores
    redis: tuple[str, int, RedisServer] | None
    began: float
    earlier: str | None = None
    pool: tuple[Destination, ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the campaign writes on this host."""
        stores = (dict(spec.options).get("store_dir") for spec in self.stores.specs if spec.kind == "file")
        return (self.run_dir.path, *(Path(folder) for folder in stores if folder is not None))

    @property
    def places(self) -> tuple[Destination, ...]:
        """The sites of segments."""
        return self.pool or (self.destinations["simulate"],)


def run_campaign(plan: Plan, signals: Signals) -> Summary:
    """Run a campaign to its end, whatever that is, and return its summary.

    Raises
    ------
    BadInput
        When an executor says that work would fail there; nothing was sent.
    """
    with _served(plan) as service, ExitStack() as stack:
        ledger = _open_ledger(plan.run_dir.ledger)
        stack.callback(ledger.close)
        try:
            steering = _steering(plan, ledger)
        except TaskFailed as error:
            raise BadInput(str(error)) from error
        state = steering.state
        traces = stack.enter_context(Traces(plan.run_dir.path))
        thinker = CampaignThinker(service.queues, steering, traces, plan.run_dir.path)
        try:
            spare = {place.executor for place in plan.places}
            reports = _ask(service, signals, spare)
            _refuse_problems(plan, reports)
            _leave_out_silent(state, spare - set(reports))
            _watch(service, thinker, signals)
        except probing.ProbeFailed as error:
            state.fail(str(error))
        finally:
            seconds = time.monotonic() - plan.began
            service.end()
            _bring_in(plan, ledger, state)
            _leave(plan, ledger, state, service.queues)
        logger.info("ended after %.0f s: %s", seconds, state.failure or state.ending or "the target was reached")
        summary = summarise(plan.settings, state, service.queues, signals.first, plan.began, seconds)
        _note_status(ledger, summary)
        return summary


def probe_executors(plan: Plan, signals: Signals) -> dict[str, ProbeReport]:
    """Return what each executor says of itself, by label; no work is sent.

    Raises
    ------
    ProbeFailed
        When one does not answer.
    """
    with _served(plan) as service:
        return _ask(service, signals)


@dataclass(frozen=True, slots=True)
class Service:
    """What runs as long as the campaign: queues, and the task server behind them."""

    queues: Queues
    task_server: server.SafeTaskServer
    attendance: server.Attendance
    plan: Plan

    def end(self) -> None:
        """End every process of the run but guardian and Redis server; a second call finds nothing to do."""
        if self.task_server.is_alive():
            server.stop(self.task_server, self.queues)
        redis = None if self.plan.redis is None else self.plan.redis[2].pid
        reap(self.plan.run_id, spare=[self.plan.guardian.pid, *([] if redis is None else [redis])])
        shutil.rmtree(self.plan.private_dir, ignore_errors=True)


@contextmanager
def _served(plan: Plan) -> Iterator[Service]:
    """Keep a task server running; no process of the run outlives this, nor the main process' death."""
    queues = _queues(plan)
    attendance = server.Attendance([place.executor for place in plan.places])
    task_server = _server(plan, queues, plan.guardian.life_line, attendance)
    service = Service(queues, task_server, attendance, plan)
    # Forked before this process has threads, a database or a device open.
    service.task_server.start()
    try:
        yield service
    finally:
        service.end()


def _queues(plan: Plan) -> Queues:
    if plan.settings.queue == "pipe":
        return pipe_queues()
    assert plan.redis is not None  # the settings ask for Redis, so the plan has one
    return redis_queues(plan.redis[0], plan.redis[1], plan.run_id, plan.earlier)


def _server(plan: Plan, queues: Queues, life_line: int, attendance: server.Attendance) -> server.SafeTaskServer:
    methods: list[tuple[str, Callable[..., Any], str]] = [
        (place.of(topic).method, partial(run_bundle, METHODS[topic]), place.executor)
        for topic, destination in plan.destinations.items()
        for place in (plan.places if topic in POOLED else (destination,))
    ]
    methods += [(probing.method_of(executor.label), probe, executor.label) for executor in plan.executors]
    config = Config(
        executors=plan.executors,
        run_dir=str(plan.run_dir.path / "logs" / "parsl"),
        retries=0,
        usage_tracking=0,
        initialize_logging=False,
        strategy="simple",
        strategy_period=1,
    )
    return server.SafeTaskServer(methods, queues, config, life_line, attendance)


def _steering(plan: Plan, ledger: Ledger) -> Steering:
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
    }
    begin_process(ledger, plan.run_id, plan.run_dir.path, about)
    if ledger.network is not None:
        logger.info("the ledger lies on %s: a rollback journal and a sync for every commit", ledger.network)
    state, basis = _state(plan, ledger)
    state.archives = lambda: unknown_archives(ledger, plan.run_dir.path)
    steering = Steering(state, basis)
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


def _state(plan: Plan, ledger: Ledger) -> tuple[CampaignState, Ref]:
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
    chosen = policy(settings.policy)
    state = CampaignState(
        settings, chosen, plan.dynamics, molecule, plan.destinations, ledger, plan.stores.by_name, plan.places
    )
    for ref in shipped.values():
        state.hold(ref, "system")
    return state, ship(plan.prepared.basis(), stores["simulate"])


def _ask(service: Service, signals: Signals, spare: Collection[str] = ()) -> dict[str, ProbeReport]:
    """Return each executor's report, unless waiting for one is in vain; of the spare ones one is enough."""
    plan, queues, task_server = service.plan, service.queues, service.task_server

    def trouble() -> str | None:
        if signals.first is not None:
            return f"{signals.first.name} was received while workers were starting"
        if not task_server.is_alive():
            return server.why_it_ended(task_server.exitcode)
        return None if plan.redis is None else plan.redis[2].trouble()

    asked = probing.questions(plan.destinations, plan.dynamics.platform, plan.stores.specs, plan.places)
    return probing.ask(queues, asked, plan.settings.start_timeout, trouble, spare)


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


def _admit_latecomers(service: Service, state: CampaignState) -> None:
    """Use a site that answers its probe late; one where work would fail is told, and stays out."""
    for executor, report in probing.late(service.queues) if state.pool.unproven else ():
        site = next(place.site for place in state.pool.places if place.executor == executor)
        if report is None:
            tell(f"site {site}, executor {executor}: its probe failed, so it is not used")
        elif problems := probing.problems(report):
            tell(f"site {site}, executor {executor}, is not used: {problems[0]}")
        else:
            state.pool.admit(executor)


def _refuse_problems(plan: Plan, reports: dict[str, ProbeReport]) -> None:
    """Refuse the campaign where work would fail."""
    sites = {place.executor: place.site for place in (*plan.destinations.values(), *plan.places)}
    for executor, report in reports.items():
        for problem in probing.problems(report):
            raise BadInput(f"site {sites[executor]}, executor {executor}: {problem}")
        versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
        logger.info(
            "executor %s: %s, %s, Python %s, %s", executor, report.host, report.device, report.python, versions
        )


def _watch(service: Service, thinker: CampaignThinker, signals: Signals) -> None:
    plan, state = service.plan, thinker.steering.state
    redis = None if plan.redis is None else plan.redis[2]
    state.began = time.monotonic()
    state.end_of_time = end_of_time(plan.settings.walltime, plan.began)
    state.pool.workers = service.attendance
    logger.info("%s: %s", plan.prepared.name, plan.settings.policy)
    with _display(thinker.steering) as display:

        def look() -> None:
            _admit_latecomers(service, state)
            display.update()

        settings = plan.settings
        room = Room(plan.folders, settings.min_free_mb * 1_000_000, 60 * settings.max_pause_minutes)
        supervisor = Supervisor(thinker, service.task_server, redis, signals, settings.grace_s, look, room)
        thinker.start()
        try:
            supervisor.watch()
        finally:
            supervisor.end()
    if state.failure is None and state.ending is None and not thinker.steering.finished:
        state.fail("the Thinker ended before its work was done; see runtime.log")


@contextmanager
def _display(steering: Steering) -> Iterator[Display]:
    display = Display(lambda: snapshot(steering))
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


def _bring_in(plan: Plan, ledger: Ledger, state: CampaignState) -> None:
    """Gather what workers of this host had no time for; a campaign of which segments are missing is not complete."""
    destination = plan.destinations["simulate"]
    if destination.scratch is None:
        return
    missing = bring_in(ledger, plan.run_dir.path, destination.scratch, destination.executor)
    if missing is not None:
        logger.warning("%s", missing)
        if not state.stopped:
            state.fail(missing)


def _leave(plan: Plan, ledger: Ledger, state: CampaignState, queues: Queues) -> None:
    """Leave the campaign so that a later process can go on: nothing running, nothing in the stores."""
    try:
        queues.flush()
    except RedisError as error:
        logger.warning("the queues could not be emptied: %s", error)
    parked = plan.stores.parked
    held = sum(ref.store != parked for ref in state.holds.refs())
    found = plan.stores.count()
    # On a full disk there is room again for what comes then.
    _sweep(plan.stores, ledger)
    try:
        ledger.abandon_running()
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
