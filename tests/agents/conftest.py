"""A campaign without queues and workers: the test answers what the steering sends, in an order of its choice."""

from __future__ import annotations

import base64
import itertools
import json
import math
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.attempts import Failure
from agents.memory import Recollection
from agents.pool import GONE
from agents.simulate import QUEUED_PER_WORKER
from agents.state import POOLED, CampaignState, Destination, Molecule, Outbox, Send
from agents.steering import Steering
from agents.topic import Outcome, task_id
from campaign.ledger import FIRST_OTHER_ID, Ledger
from campaign.method import Method
from campaign.settings import Settings
from policies import policy
from tasks.messages import (
    Archive,
    Batch,
    Coverage,
    EmbedResult,
    EmbedSpec,
    EquilibrateResult,
    EquilibrateSpec,
    FileRecord,
    GatherResult,
    GatherSpec,
    GlanceResult,
    GlanceSpec,
    HookResult,
    HookSpec,
    Member,
    MoveResult,
    MoveSpec,
    Ref,
    Scratch,
    SegmentResult,
    SegmentSpec,
    StoreKind,
    StoreSpec,
    Topic,
    TrainResult,
    TrainSpec,
)

N_ATOMS = 22
KINDS = ("nan", "worker_lost", "manager_lost", "unreachable", "error")

Key = tuple[Topic, int]


class Campaign:
    """Steering, its ledger, and the stores and workers of a campaign as the test imagines them.

    After every step `check` holds the steering to what it promises at every moment.

    Parameters
    ----------
    crossing
        Segments and learning reach no common store, so that data have to be moved both ways.
    inline
        Data travel in messages, not through stores.
    n_starts
        Structures that walkers begin from.
    until
        Segment from which on `--continue-until` is true.
    pool, weights
        Slots and weight of each site of segments; without them there is one, of ``slots`` slots.
    nodes
        On whose scratch trajectories wait; none where they go to the run directory at once.
    method
        Of a weighted ensemble.
    """

    def __init__(
        self,
        path: Path,
        *,
        slots: int = 2,
        crossing: bool = False,
        inline: bool = False,
        n_starts: int = 1,
        until: int | None = None,
        pool: tuple[int, ...] = (),
        weights: tuple[float, ...] = (),
        nodes: int = 0,
        method: Method | None = None,
        **settings: Any,
    ) -> None:
        if settings.get("bundle"):
            settings["bundle"] = min(settings["bundle"], settings.get("walkers", 4))
        self.settings = Settings(**{"max_segments": 12, **settings})
        self.path = path
        self.method = method
        self.n_starts = n_starts
        self.until = until
        self.n_kills = 0
        self.made: set[Ref] = set()
        self.stored: set[Ref] = set()
        self.outstanding: dict[Key, Send] = {}
        self.abandoned: list[Send] = []
        self.sent: list[Send] = []
        self.records: list[tuple[str, str]] = []
        self.removals: list[str] = []
        self.n_outcomes = 0
        self.looked_with: set[int] = set()
        self.fed: dict[int, int] = {}
        self.unanswered: set[tuple[int, int]] = set()
        self.told_to_end: list[int] = []
        self._beginning = False
        self._most_before = 0
        self._serial = itertools.count()
        self._clock = itertools.count(1_700_000_000)
        sim_kind, learn_kind = _kinds(crossing, inline)
        simulate_store, learn_store = StoreSpec("sim", sim_kind), StoreSpec("learn", learn_kind)
        self.stores = {spec.name: spec for spec in (simulate_store, learn_store)}
        self.gone: set[str] = set()
        self.destinations: dict[Topic, Destination] = {
            "simulate": _destination("simulate", slots, frozenset({sim_kind, "inline"}), simulate_store),
            "infer": _destination("infer", 1, frozenset({learn_kind, "inline"}), learn_store),
            "train": _destination("train", 1, frozenset({learn_kind, "inline"}), learn_store),
        }
        if self.settings.stream:
            self.destinations["glance"] = self.destinations["infer"].of("glance")
        if method is not None:
            self.destinations["coordinate"] = self.destinations["infer"].of("coordinate")
        if crossing:
            self.destinations["move"] = _destination("move", 1, frozenset({"file", "redis", "inline"}), learn_store)
        if self.settings.has_hooks:
            workers = self.settings.hook_workers
            self.destinations["hook"] = _destination("hook", workers, frozenset({"inline"}), learn_store)
        self.pending: dict[str, list[Member]] = {f"node{i}": [] for i in range(nodes)}
        self.archives: dict[str, Archive] = {}
        self.emptied: frozenset[str] = frozenset()
        self.n_lost = 0
        if nodes:
            scratch = Scratch("/scratch", self.settings.gather_every)
            self.destinations["simulate"] = replace(self.destinations["simulate"], scratch=scratch)
            self.destinations["gather"] = replace(self.destinations["simulate"], method="gather@imagined")
        if self.settings.equilibrate_ps:
            self.destinations["equilibrate"] = replace(self.destinations["simulate"], method="equilibrate@site")
        self.pool = [self.destinations["simulate"]]
        self.present = {place.executor for place in self.pool}
        if pool:
            self.join(pool, weights)
        self._open()

    def join(self, slots: tuple[int, ...], weights: tuple[float, ...] = ()) -> None:
        """Let the next process have these sites."""
        self.pool = [
            replace(self.pool[0], site=f"site-{i}", executor=f"cpu-{i}", slots=n, weight=weight).of("simulate")
            for i, (n, weight) in enumerate(zip(slots, weights or (1.0,) * len(slots), strict=True))
        ]
        self.destinations["simulate"] = self.pool[0]
        self.present = {place.executor for place in self.pool}

    def _open(self) -> None:
        """Do what a process does before it sends anything."""
        self.ledger = Ledger(self.path)
        self.reader = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        if self.n_kills:
            self.ledger.abandon_running()
            needed = self.ledger.referenced()
            self.stored = {ref for ref in self.stored if (ref.store.name, ref.key) in needed}
        simulate_store = self.destinations["simulate"].store
        system = self.put(simulate_store, "system")
        self.state = CampaignState(
            self.settings,
            policy(self.settings.policy if self.settings.learns or not self.settings.is_ensemble else "plain"),
            self.settings.dynamics("Reference"),
            Molecule("imagined", "digest", N_ATOMS, {"simulate": system, "infer": system}, self.n_starts),
            self.destinations,
            self.ledger,
            self.stores,
            self.pool,
        )
        self.state.pool.workers = lambda executor: GONE if executor in self.gone else executor in self.present
        self.state.hold(system, "system")
        self.state.archives = lambda: [
            archive for path, archive in self.archives.items() if not self.ledger.knows_archive(path)
        ]
        self.state.emptied = self.emptied
        self.basis = self.put(simulate_store, "basis")
        self.steering = Steering(self.state, self.basis, self.method)
        if self.n_kills:
            Recollection(self.steering).restore()

    def kill(self) -> Outbox:
        """Let the process die, and another go on; what is out, and what is not committed, is lost."""
        self.close()
        self.n_kills += 1
        # Another process may have fewer slots.
        self._most_before = self.steering.simulate.n_bundles
        self.outstanding.clear()
        self.abandoned.clear()
        self.unanswered.clear()
        self.gone.clear()
        self.present = {place.executor for place in self.pool}
        self._open()
        return self.begin()

    def close(self) -> None:
        self.reader.close()
        self.ledger.close()

    # What the test does -----------------------------------------------------------------------------------------

    def begin(self) -> Outbox:
        self._beginning = True
        try:
            return self.take(self.steering.begin())
        finally:
            self._beginning = False

    def answer(self, send: Send, failure: str | None = None) -> Outbox:
        """Let an attempt that is out come back, with a failure of that kind or well."""
        del self.outstanding[send.topic, task_id(send.spec)]
        return self.deliver(send, self.outcome(send, failure))

    def abandon(self, send: Send) -> Outbox:
        """Let an attempt's deadline pass; it may still be answered with `answer_late`."""
        agent = self.steering.agents[send.topic]
        key = task_id(send.spec)
        agent.in_flight[key] = replace(agent.in_flight[key], deadline=-math.inf)
        del self.outstanding[send.topic, key]
        self.abandoned.append(send)
        return self.take(self.steering.keep_time())

    def answer_late(self, send: Send, failure: str | None = None) -> Outbox:
        """Let a result come that nobody waits for: of an abandoned attempt, or once more of one that was answered."""
        return self.deliver(send, self.outcome(send, failure))

    def feed(self, send: Send) -> Outbox:
        """Let a segment that is out send a batch of its frames."""
        spec = send.spec
        stream = 1000 * spec.segment_id + spec.attempt
        number = self.fed[stream] = self.fed.get(stream, -1) + 1
        points = self.put(spec.store, f"batch {stream}.{number}")
        self.unanswered.add((stream, number))
        batch = Batch(spec.segment_id, spec.attempt, stream, number, 2 * number, 2, float(next(self._clock)), points)
        return self.take(self.steering.hear([batch]))

    def lose_node(self, node: str) -> None:
        """Let a node die with what is on its scratch."""
        self.n_lost += 1
        self.pending[node].clear()

    def gather(self, node: str) -> Archive | None:
        """Do what a worker on a node does; a report of it may come or not."""
        members, self.pending[node] = tuple(self.pending[node]), []
        if not members:
            return None
        path = f"archives/{node}-{len(self.archives):06d}.tar.gz"
        self.archives[path] = Archive(FileRecord(path, "0" * 64, 100), node, members)
        return self.archives[path]

    def leave(self, executor: str) -> Outbox:
        """Let a site of the pool be without workers for too long."""
        self.present.discard(executor)
        self.state.pool._seen[executor] = -math.inf
        return self._notice()

    def vanish(self, executor: str) -> Outbox:
        """Let the interchange of a site end, while another goes on."""
        self.present.discard(executor)
        self.gone.add(executor)
        return self._notice()

    def come_back(self, executor: str) -> Outbox:
        """Let a site have workers again."""
        self.present.add(executor)
        return self._notice()

    def _notice(self) -> Outbox:
        if self.present:
            for (topic, key), send in list(self.outstanding.items()):
                if topic in POOLED and send.info["executor"] not in self.present:
                    self.abandoned.append(self.outstanding.pop((topic, key)))
        return self.take(self.steering.keep_time())

    def stop(self) -> Outbox:
        return self.take(self.steering.stop("SIGINT was received"))

    def out(self, topic: Topic) -> list[Send]:
        """Return what is out, oldest first."""
        return [send for (of, _), send in self.outstanding.items() if of == topic]

    def play(self, order: random.Random, faults: dict[str, float] | None = None, max_steps: int = 20_000) -> None:
        """Answer in random order until the campaign is over.

        Parameters
        ----------
        faults
            Chance of ``fail``, ``abandon``, ``late`` (an abandoned attempt answers after all) and ``repeat`` (an
            answer comes twice, with data of its own) and ``kill`` (another process goes on), at each step; in a pool
            of ``leave`` (a site loses its workers), ``back`` (it has some again) and ``vanish`` (it never will); with
            scratch of ``lose`` (a node dies with what is on it) and ``silent`` (a node is gathered, and no report
            comes).
        """
        chance = Counter(faults or {})
        for _ in range(max_steps):
            if self.steering.finished:
                return
            self._let_sites_come_and_go(order, chance)
            if self.steering.finished:
                return
            assert self.outstanding, "nothing is out, and the campaign is not over"
            if chance["batch"] and order.random() < chance["batch"]:
                for running in self._with_room()[:1]:
                    self.feed(running)
            send = order.choice(list(self.outstanding.values()))
            if order.random() < chance["abandon"]:
                self.abandon(send)
                continue
            failed = order.random() < chance["fail"]
            self.answer(send, order.choice(KINDS) if failed else None)
            if order.random() < chance["repeat"]:
                self.answer_late(send, order.choice([None, "error"]))
            if self.pending and order.random() < chance["lose"]:
                self.lose_node(order.choice(list(self.pending)))
            if self.pending and order.random() < chance["silent"]:
                self.gather(order.choice(list(self.pending)))
            if order.random() < chance["kill"]:
                self.kill()
                continue
            if self.abandoned and order.random() < chance["late"]:
                self.answer_late(self.abandoned.pop(order.randrange(len(self.abandoned))))
        raise AssertionError(f"the campaign is not over after {max_steps} steps")

    def _with_room(self) -> list[Send]:
        """Return the segments that are not too far ahead of who looks at their batches."""
        ahead = Counter(stream for stream, _ in self.unanswered)
        return [send for send in self.out("simulate") if ahead[1000 * send.spec.segment_id + send.spec.attempt] < 4]

    def _let_sites_come_and_go(self, order: random.Random, chance: Counter[str]) -> None:
        present, away = sorted(self.present), [p.executor for p in self.pool if not self._there(p.executor)]
        if present and len(self.pool) > 1 and order.random() < chance["leave"]:
            self.leave(order.choice(present))
        elif len(present) > 1 and order.random() < chance["vanish"]:
            self.vanish(order.choice(present))
        if away and (not self.present or order.random() < chance["back"]):
            self.come_back(order.choice(away))
        if not self.present:
            self.come_back(order.choice([p.executor for p in self.pool if not self._there(p.executor)]))

    def _there(self, executor: str) -> bool:
        return executor in self.present or executor in self.gone

    def end(self) -> None:
        """Drop what is held at the end; nothing that was ever made may be left then."""
        left = self.state.holds.drop_all()
        if self.steering.finished and not self.state.quiet:
            assert set(left) <= self._kept_throughout(), "data of the past were kept to the end"
        for ref in left:
            self.evict(ref)
        assert self.stored == set()
        assert len(self.state.holds) == 0
        n_made = sum(ref.data is None for ref in self.made)
        assert (self.state.holds.created, self.state.holds.evicted) == (n_made, n_made)

    def _kept_throughout(self) -> set[Ref | None]:
        """Return what a campaign may hold although nothing is out: never more than of the present."""
        state = self.state
        candidates = None if state.candidates is None else state.candidates.ref
        system = state.molecule.refs["simulate"]
        return {
            system,
            *self._basis(),
            state.reference,
            state.model,
            candidates,
            *self._of_walkers(),
            *self._of_given_up(),
        }

    def _of_walkers(self) -> set[Ref]:
        return {walker.own.ref for walker in self.steering.simulate.walkers.all}

    def _of_given_up(self) -> set[Ref]:
        """Return where tasks began that a person may let run again."""
        told = self.query("SELECT spec FROM task WHERE state IN ('fizzled', 'quarantined') AND spec IS NOT NULL")
        return {self._start(json.loads(spec)["start"]["$ref"]) for (spec,) in told if '"start"' in spec}

    def _start(self, told: list[Any]) -> Ref:
        name, key, n_bytes, data = told
        return Ref(self.stores[name], tuple(key), n_bytes, None if data is None else base64.b64decode(data))

    def _basis(self) -> set[Ref]:
        return {start.ref for start in self.steering.simulate.walkers.basis.starts}

    # What the workers do ----------------------------------------------------------------------------------------

    def put(self, store: StoreSpec, name: str) -> Ref:
        label = f"{name}#{next(self._serial)}"
        ref = Ref(store, data=label.encode()) if store.kind == "inline" else Ref(store, (label,), 100)
        self.made.add(ref)
        if ref.data is None:
            self.stored.add(ref)
        return ref

    def outcome(self, send: Send, failure: str | None = None) -> Outcome:
        ended = next(self._clock)
        return Outcome(
            task_id=task_id(send.spec),
            attempt=send.spec.attempt,
            value=None if failure else self._result(send.spec),
            failure=Failure(failure, f"{failure} on purpose", "Traceback ...") if failure else None,
            line=lambda more: json.dumps({"task_info": {**send.info, **more}}, allow_nan=False),
            started=None if failure else ended - 1.0,
            ended=None if failure else float(ended),
            host="node",
            worker="0",
        )

    def _result(self, spec: Any) -> Any:
        makers: dict[type, Callable[[Any], Any]] = {
            EquilibrateSpec: self._equilibrated,
            SegmentSpec: self._segment,
            EmbedSpec: self._embedded,
            GlanceSpec: self._glanced,
            TrainSpec: self._trained,
            GatherSpec: self._gathered,
            MoveSpec: lambda move: MoveResult(move.task_id, move.attempt, self.put(move.store, "moved"), {}),
            HookSpec: self._hooked,
        }
        return makers[type(spec)](spec)

    def _equilibrated(self, spec: EquilibrateSpec) -> EquilibrateResult:
        return EquilibrateResult(
            task_id=spec.task_id,
            attempt=spec.attempt,
            state=self.put(spec.store, f"state {spec.number}.{spec.attempt}"),
            state_file=FileRecord(f"equilibrated/{spec.number:04d}.xml", "0" * 64, 100),
            n_atoms=N_ATOMS,
            simulated_ps=spec.duration_ps,
            potential_energy_kj_mol=-100.0,
            mean_temperature_K=301.0,
            density_before=0.9,
            mean_density=1.01,
            seconds={"integrate": 1.0},
        )

    def _segment(self, spec: SegmentSpec) -> SegmentResult:
        name = f"{spec.segment_id}.{spec.attempt}"
        trajectory = FileRecord(f"trajectories/{spec.segment_id:08d}.dcd", "0" * 64, 100)
        archive = None
        if spec.scratch is not None:
            node = f"node{next(self._serial) % len(self.pending)}"
            # Equal specs give equal dynamics, whatever the attempt.
            member = Member(
                spec.segment_id, f"{spec.segment_id:08d}.{spec.attempt}.dcd", f"{spec.segment_id:064d}", 9
            )
            self.pending[node].append(member)
            trajectory = FileRecord(member.name, member.sha256, member.n_bytes, node=node)
            archive = self.gather(node) if len(self.pending[node]) >= spec.scratch.gather_every else None
        return SegmentResult(
            segment_id=spec.segment_id,
            attempt=spec.attempt,
            n_frames=spec.dynamics.n_frames,
            n_atoms=N_ATOMS,
            simulated_ps=spec.dynamics.segment_ps,
            potential_energy_kj_mol=-100.0,
            mean_temperature_K=300.0,
            frames=self.put(spec.store, f"frames {name}"),
            end=self.put(spec.store, f"end {name}"),
            trajectory=trajectory,
            seconds={"dynamics": 1.0},
            archive=archive,
        )

    def _gathered(self, spec: GatherSpec) -> GatherResult:
        node = f"node{next(self._serial) % len(self.pending)}"
        return GatherResult(spec.task_id, spec.attempt, node, self.gather(node), {"gather": 0.1})

    def _embedded(self, spec: EmbedSpec) -> EmbedResult:
        name = f"{spec.reference_number}.{spec.attempt}"
        frames = [(segment, frame) for segment, _ in spec.batches for frame in range(3)]
        wanted = 0 if spec.candidates == "none" else min(spec.n_candidates, len(frames))
        # Of the spec alone, so that equal specs give equal answers.
        chosen = np.random.default_rng(spec.reference_number).permutation(len(frames))[:wanted]
        return EmbedResult(
            task_id=spec.task_id,
            attempt=spec.attempt,
            model_version=spec.model_version,
            reference=self.put(spec.store, f"reference {name}"),
            reference_file=FileRecord(f"models/reference-{spec.reference_number:06d}.npz", "0" * 64, 100),
            starts=self.put(spec.store, f"starts {name}") if wanted else None,
            start_ids=tuple(frames[i] for i in chosen),
            scores=tuple(1.0 / (rank + 1) for rank in range(wanted)),
            segment_novelty=tuple(0.5 for _ in spec.batches),
            coverage=Coverage("phi/psi cells", float(spec.reference_number), 15),
            n_frames=len(frames),
            n_reference=len(frames),
            seconds={"embed": 0.1},
        )

    def _glanced(self, spec: GlanceSpec) -> GlanceResult:
        rarity = tuple(np.random.default_rng(spec.task_id).random(len(spec.batches)))
        return GlanceResult(
            spec.task_id, spec.attempt, spec.model_version, rarity, rarity, 2, 0.0, {"fetch": 0.1, "embed": 0.1}
        )

    def _trained(self, spec: TrainSpec) -> TrainResult:
        name = f"model {spec.model_version}.{spec.attempt}"
        return TrainResult(
            task_id=spec.task_id,
            attempt=spec.attempt,
            model_version=spec.model_version,
            model=self.put(spec.store, name),
            model_file=FileRecord(f"models/model-{spec.model_version:06d}.pt", "0" * 64, 100),
            n_frames=100,
            device="cpu",
            losses={"total": (2.0, 1.0)},
            seconds={"train": 1.0},
        )

    def _hooked(self, spec: HookSpec) -> HookResult:
        if spec.moment == "continue-until":
            reached = self.until is not None and spec.segment.segment_id >= self.until
            return HookResult(spec.task_id, spec.attempt, {"reached": float(reached)}, {})
        return HookResult(spec.task_id, spec.attempt, {"value": float(spec.task_id)}, {})

    # What must hold at every moment -----------------------------------------------------------------------------

    def deliver(self, send: Send, outcome: Outcome) -> Outbox:
        self.n_outcomes += 1
        agent = self.steering.agents[send.topic]
        flight = agent.in_flight.get(outcome.task_id)
        applies = flight is not None and flight.spec.attempt == outcome.attempt
        if applies and isinstance(outcome.value, EmbedResult):
            self.looked_with.add(outcome.value.model_version)
        return self.take(self.steering.handle(send.topic, outcome))

    def take(self, outbox: Outbox) -> Outbox:
        """Do what the Thinker does with an outbox, and check it."""
        for send in outbox.sends:
            self._check_send(send)
            self.outstanding[send.topic, task_id(send.spec)] = send
            self.sent.append(send)
        for ref in outbox.evictions:
            self.evict(ref)
        # What was out when a process died is sent again first, whatever it is.
        if not self.settings.lockstep and not self._beginning:
            regained = self.steering.simulate.again
            learning = [send.topic != "simulate" for send in outbox.sends if task_id(send.spec) not in regained]
            assert learning == sorted(learning), "a slot waited for learning to be sent"
        for receipt in outbox.receipts:
            if receipt.taken is None:
                self.told_to_end.append(receipt.stream)
            else:
                self.unanswered -= {(receipt.stream, number) for number in range(receipt.taken)}
        self.records += outbox.records
        self.removals += outbox.removals
        self.check()
        return outbox

    def evict(self, ref: Ref) -> None:
        assert ref in self.stored, f"{ref} was evicted before, or never made"
        self.stored.remove(ref)

    def _check_send(self, send: Send) -> None:
        key = task_id(send.spec)
        assert (send.topic, key) not in self.outstanding
        before = [other.spec for other in self.sent if other.topic == send.topic and task_id(other.spec) == key]
        # A file that nobody gathered in time is computed anew, with attempts of its own.
        turns = 1 + (key in self.steering.simulate.again)
        most = 3 * self.settings.max_attempts * turns + self.n_kills + self.n_lost
        assert send.spec.attempt == len(before) + 1 <= most
        if before:
            # Each process ships the system anew.
            again = {"system": before[0].system} if hasattr(send.spec, "system") else {}
            if send.topic == "simulate" and key in self.steering.simulate.again:
                again["dynamics"] = before[0].dynamics  # as long as it was, which may be shorter
            assert replace(send.spec, attempt=1, **again) == before[0]
            self._check_site_of_a_retry(send)
        elif send.topic == "simulate" and self.settings.before_segment:
            assert send.info["executor"] in (self.present or {place.executor for place in self.pool})
            self._check_hooks_are_over(key)
        elif send.topic == "simulate":
            assert send.info["executor"] in (self.present or {place.executor for place in self.pool})
            assert key == 1 + max((s.spec.segment_id for s in self.sent if s.topic == "simulate"), default=-1)
            # In lockstep one decision applies several results, and sends after each of them.
            quarantined = set() if self.settings.lockstep else self.state.quarantine
            assert (send.spec.parent_id, send.spec.parent_frame) not in quarantined
            self._check_another_is_wanted()
        else:
            assert key >= FIRST_OTHER_ID
        if isinstance(send.spec, TrainSpec) and send.spec.model_version > 1:
            assert send.spec.model_version - 1 in self.looked_with, "trained again before the last model was used"
        for ref in self.steering.agents[send.topic].inputs(send.spec):
            assert ref.data is not None or ref.store.kind in self.destinations[send.topic].reaches

    def _check_hooks_are_over(self, segment_id: int) -> None:
        told = "SELECT state FROM task WHERE kind = 'hook' AND parent_id = ? AND spec LIKE '%before-segment%'"
        assert {state for (state,) in self.query(told, segment_id)} <= {"complete", "fizzled"}

    def _check_site_of_a_retry(self, send: Send) -> None:
        last = next(s for s in reversed(self.sent) if s.topic == send.topic and task_id(s.spec) == task_id(send.spec))
        if send.topic in POOLED and not self._beginning and self.present - {last.info["executor"]}:
            assert send.info["executor"] in self.present - {last.info["executor"]}, "it was not sent elsewhere"

    def _check_another_is_wanted(self) -> None:
        target = self.state.target_segments
        if target is not None and self.state.model_version >= self.settings.min_model_versions:
            assert self.state.counts.segments + self.steering.simulate.n_pending <= target, (
                "more was sent than needed"
            )

    def check(self) -> None:
        in_flight = {(topic, key) for topic, agent in self.steering.agents.items() for key in agent.in_flight}
        assert in_flight == set(self.outstanding)
        for send in self.outstanding.values():
            for ref in self.steering.agents[send.topic].inputs(send.spec):
                assert ref.data is not None or ref in self.stored, f"{send.topic} needs {ref}, which is gone"
        assert {ref for ref in (*self._basis(), self.state.reference, self.state.model) if ref and not ref.data} <= (
            self.stored
        )
        assert len(self.out("infer")) <= 1
        assert len(self.out("glance")) <= 1
        assert len(self.out("train")) <= 1
        self._check_slots()
        self._check_ledger()

    def _check_slots(self) -> None:
        simulate, size = self.steering.simulate, self.steering.simulate.bundle_size()
        slots = sum(place.slots for place in self.pool)
        places = QUEUED_PER_WORKER * slots
        extra = len(simulate.running_again)
        # What is tried again at another site comes on top there.
        if len(self.pool) == 1 or self.settings.lockstep:
            most = max(places, self._most_before)
            assert simulate.n_bundles <= most + extra
            assert simulate.n_pending <= most * size + extra
        if self.settings.lockstep:
            assert len(self.out("simulate")) <= simulate.n_pending + len(simulate.again)
        else:
            self._check_load()
            fresh = [send for send in self.out("simulate") if task_id(send.spec) not in simulate.again]
            assert len(fresh) + len(simulate._held_back) == simulate.n_pending
        waits = self.settings.lockstep and any(self.out(topic) for topic in ("infer", "train", "move", "hook"))
        if self.out("equilibrate"):
            assert not any(send.topic == "simulate" for send in self.sent), "a segment did not wait for its start"
            waits = True
        assert len(self.out("hook")) <= self.settings.hook_workers
        if self.state.ending is None and self.state.until is None and not waits and self.starts_left():
            target = self.state.target_segments
            missing = math.inf if target is None else max(0, target - self.state.counts.segments)
            wanted = missing > simulate.n_pending and simulate.walkers.n_idle
            if len(self.pool) > 1 and not self.settings.lockstep:
                if wanted:
                    self._check_sites(size)
                return
            assert not wanted or simulate.n_bundles >= places or slots <= simulate.n_bundles, "a slot was lost"
            assert not wanted or simulate.n_bundles >= places or simulate.walkers.n_idle < size, (
                "a whole bundle waits"
            )
            if size == 1:
                assert simulate.n_pending >= min(places, self.settings.walkers, missing), "a slot was lost"

    def _check_sites(self, size: int) -> None:
        simulate = self.steering.simulate
        for place in self.pool:
            out = simulate.out.get(place.executor, 0)
            assert place.executor not in self.present or place.slots <= out, "a slot was lost"
            full = out >= QUEUED_PER_WORKER * place.slots
            assert place.executor not in self.present or full or simulate.walkers.n_idle < size, (
                "a whole bundle waits"
            )

    def _check_load(self) -> None:
        out: dict[str, set[int]] = {}
        for send in self.out("simulate"):
            if task_id(send.spec) in self.steering.simulate.again:
                continue
            bundle = self.steering.simulate._bundle_of[send.spec.segment_id]
            out.setdefault(send.info["executor"], set()).add(bundle)
        # What waits for the hooks before it takes room where it was to go.
        for segment_id in self.steering.simulate._held_back:
            executor, bundle = self.steering.simulate._load._where[segment_id]
            out.setdefault(executor, set()).add(bundle)
        assert +Counter(self.steering.simulate.out) == {executor: len(bundles) for executor, bundles in out.items()}

    def starts_left(self) -> bool:
        """Tell whether there is a start that is not quarantined."""
        starts = [
            *(s.origin for s in self.steering.simulate.walkers.basis.starts),
            *(w.own.origin for w in self.steering.simulate.walkers.all),
        ]
        offered = () if self.state.candidates is None else self.state.candidates.ids
        return any(origin not in self.state.quarantine for origin in (*starts, *offered))

    def _check_ledger(self) -> None:
        counts, simulate = self.state.counts, self.steering.simulate
        states = Counter(dict(self.query("SELECT kind || ' ' || state, count(*) FROM task GROUP BY kind, state")))
        for topic, agent in self.steering.agents.items():
            assert states[f"{topic} running"] == len(agent.in_flight)
        n_computed = states["simulate computed"]
        assert n_computed == len(simulate.computed)
        if not self.settings.lockstep:
            assert states["simulate complete"] + n_computed + len(simulate.again) == counts.segments
            quarantined = "SELECT count(DISTINCT ifnull(parent_id, '') || ' ' || ifnull(parent_frame, '')) FROM task"
            (lost,) = self.query(f"{quarantined} WHERE state = 'quarantined'")[0]
            assert lost == counts.quarantined == len(self.state.quarantine)
        assert states["infer complete"] == counts.inferences
        assert states["train complete"] == self.state.model_version
        outcomes = Counter(dict(self.query("SELECT ifnull(outcome, 'out'), count(*) FROM attempt GROUP BY outcome")))
        assert outcomes.pop("out", 0) == len(self.outstanding)
        assert outcomes.pop("success", 0) == n_computed + sum(
            n for key, n in states.items() if key.endswith(" complete")
        )
        failures = Counter(counts.failures)
        n_abandoned = outcomes.pop("abandoned", 0)
        assert n_abandoned == 0 or self.n_kills
        outcomes["lost"] += outcomes.pop("late", 0)  # it counted as lost when it was given up
        assert +outcomes == +failures
        sent = dict(self.query("SELECT kind, count(*) FROM attempt JOIN task ON id = task_id GROUP BY kind"))
        assert Counter(sent) == +counts.n_sent
        artifacts = Counter(dict(self.query("SELECT kind, count(*) FROM artifact GROUP BY kind")))
        if self.pending:
            assert artifacts["trajectory"] == n_computed + states["simulate complete"]
            on_nodes = self.query("SELECT count(*) FROM artifact WHERE path LIKE 'scratch:%'")
            assert on_nodes == [(n_computed,)]
        else:
            assert artifacts["trajectory"] == counts.segments
        assert artifacts["model"] == self.state.model_version
        assert artifacts["reference"] == min(2, counts.inferences)
        assert self.query("SELECT count(*) FROM record") == [(len(self.records),)]
        assert len(self.records) == self.n_outcomes
        assert simulate.n_pending >= 0

    def query(self, sql: str, *values: Any) -> list[Any]:
        return self.reader.execute(sql, values).fetchall()


def _kinds(crossing: bool, inline: bool) -> tuple[StoreKind, StoreKind]:
    if inline:
        return "inline", "inline"
    return ("redis", "file") if crossing else ("file", "file")


def _destination(topic: Topic, slots: int, reaches: frozenset[str], store: StoreSpec) -> Destination:
    executor = {"simulate": "cpu", "infer": "gpu", "train": "gpu", "move": "host", "hook": "host"}[topic]
    return Destination("imagined", executor, f"{topic}@imagined", slots, reaches, store, "/run")


@pytest.fixture(scope="session")
def open_campaign(tmp_path_factory) -> Callable[..., Any]:
    """Open a campaign that is closed again, and its ledger removed; of the session, so that hypothesis can use it."""
    folder = tmp_path_factory.mktemp("campaigns")
    number = itertools.count()

    @contextmanager
    def opened(**options: Any) -> Iterator[Campaign]:
        path = folder / f"ledger-{next(number)}.sqlite"
        campaign = Campaign(path, **options)
        try:
            yield campaign
        finally:
            campaign.close()
            path.unlink()

    return opened


@pytest.fixture
def make_campaign(open_campaign):
    """Return a campaign for one test, begun."""
    opened = []

    def make(**options: Any) -> Campaign:
        context = open_campaign(**options)
        campaign = context.__enter__()
        opened.append(context)
        campaign.begin()
        return campaign

    yield make
    for context in opened:
        context.__exit__(None, None, None)
