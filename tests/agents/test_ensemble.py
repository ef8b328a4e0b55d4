"""Whatever fails, dies or comes late: an ensemble's weights are those of one that nothing happened to."""

import random
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign.iterations import fluxes, past
from campaign.method import Method
from policies.bins import parse_bins
from policies.iteration import BrokenEnsemble
from policies.target import parse_target
from tasks.coordinate import pack_pcoord
from tasks.messages import Coordinate, CoordinateResult, CoordinateSpec, SegmentSpec
from tests.agents.conftest import Campaign

FEW = settings(max_examples=8, deadline=None)

SHAPES = {
    "slots": st.integers(1, 3),
    "replicas": st.integers(1, 2),
    "bundle": st.sampled_from([None, 1, 3]),
    "max_iterations": st.integers(1, 4),
    "n_starts": st.integers(1, 3),
    "crossing": st.booleans(),
}

FAULTS = st.fixed_dictionaries(
    {
        "fail": st.sampled_from([0.0, 0.05]),
        "abandon": st.sampled_from([0.0, 0.05]),
        "late": st.sampled_from([0.0, 0.3]),
        "repeat": st.sampled_from([0.0, 0.1]),
        "kill": st.sampled_from([0.0, 0.02, 0.1]),
    }
)


def method(n_starts: int, learned: bool = False, target: str | None = None) -> Method:
    """Return how ensembles in one dimension are run, in bins of 0.5."""
    coordinate = Coordinate("aae", ("z0",), (0,)) if learned else Coordinate("position", ("x",))
    names = tuple(f"basis-{i}" for i in range(n_starts))
    bins = parse_bins("rectilinear:" + ",".join(str(edge / 2) for edge in range(-3, 4)), coordinate.names)
    goal = None if target is None else parse_target(target, coordinate.names)
    return Method(coordinate, names, np.full(n_starts, 1 / n_starts), bins, goal, walkers_per_bin=2)


class Ensembles(Campaign):
    """A campaign whose workers walk at random in one dimension, equal specs the same way."""

    def __init__(self, path, *, learned=False, target=None, **shape):
        self._where: dict[object, float] = {}
        self.walked: dict[int, np.ndarray] = {}
        if learned:
            shape = {"pcoord": "aae:0", "latent": 1, "retrain_every": 4, "infer_every": 2, **shape}
        else:
            shape = {"pcoord": "position", **shape}
        super().__init__(
            path, method=method(shape.get("n_starts", 1), learned, target), policy="weighted-ensemble",
            max_segments=None, walkers=3, segment_ps=0.5, max_attempts=shape.pop("max_attempts", 30), **shape,
        )  # fmt: skip

    def _at(self, ref):
        return self._where.get((ref.store.name, ref.key, ref.data), 0.0)

    def _segment(self, spec: SegmentSpec):
        result = super()._segment(spec)
        rng = np.random.default_rng(spec.seed)
        walk = self._at(spec.start) + np.concatenate([[0.0], np.cumsum(rng.normal(0, 0.25, spec.dynamics.n_frames))])
        self.walked[spec.segment_id] = walk
        for ref, value in ((result.end, walk[-1]), (result.frames, walk)):
            self._where[ref.store.name, ref.key, ref.data] = value
        if spec.coordinate.learned:
            return result
        object.__setattr__(result, "pcoord", pack_pcoord(walk[:, None].astype(np.float32)))
        return result

    def _result(self, spec):
        if not isinstance(spec, CoordinateSpec):
            result = super()._result(spec)
            if hasattr(spec, "source"):
                moved = result.moved
                self._where[moved.store.name, moved.key, moved.data] = self._at(spec.source)
            return result
        # Each model version stretches the coordinate, so that versions cannot be mixed unnoticed.
        stretch = 1 + spec.model_version / 4
        rows = [(segment, self._packed(stretch * self._at(ref))) for segment, ref in spec.batches]
        basis = self._packed(np.zeros(len(spec.basis_rows)))
        return CoordinateResult(spec.task_id, spec.attempt, spec.model_version, tuple(rows), basis, 0, {})

    @staticmethod
    def _packed(values):
        return pack_pcoord(np.asarray(values, np.float32)[:, None])

    def _of_walkers(self):
        members = [member for replica in self.steering.walkers.replicas for member in replica.members]
        ends = {member.end.ref for member in members if member.end is not None}
        there = set(self.steering.questions.there.values())
        return {member.start.ref for member in members} | ends | there | {member.frames for member in members}

    def starts_left(self):
        return True

    def _check_slots(self):
        simulate = self.steering.simulate
        if self.state.ending is None and not self.settings.lockstep:
            slots = sum(place.slots for place in self.pool)
            assert not simulate.walkers.n_idle or simulate.n_bundles >= slots, "a slot was lost"

    def _check_another_is_wanted(self):
        limit = self.settings.max_iterations
        assert all(replica.iteration.number <= limit for replica in self.steering.walkers.replicas if replica.is_open)

    def iterations(self, replica=0):
        """Return what the ledger has of an ensemble."""
        return list(past(self.ledger, replica))


@pytest.fixture(scope="session")
def open_ensembles(tmp_path_factory):
    @contextmanager
    def opened(**shape):
        campaign = Ensembles(tmp_path_factory.mktemp("ensemble") / "ledger.sqlite", **shape)
        try:
            yield campaign
        finally:
            campaign.close()

    return opened


def history(campaign: Ensembles) -> list[list[tuple]]:
    """Return weights, lineage and coordinates of each ensemble."""
    return [
        [
            (told.iteration.weights.tolist(), told.iteration.lineage, told.endpoints.tolist(), told.pcoord.tolist())
            for told in campaign.iterations(replica)
        ]
        for replica in range(campaign.settings.replicas)
    ]


def check(campaign: Ensembles) -> None:
    """Hold what the ledger has to what an ensemble is."""
    walked = 0
    for replica in range(campaign.settings.replicas):
        told = campaign.iterations(replica)
        assert [each.iteration.number for each in told] == list(range(1, campaign.settings.max_iterations + 1))
        for before, after in zip(told, told[1:], strict=False):
            before.resampled(after.iteration)
            for row, parent in enumerate(after.iteration.parents.tolist()):
                if parent >= 0 and before.model_version == after.model_version:
                    assert after.pcoord[row, 0] == before.pcoord[parent, -1]
                query = "SELECT parent_id, iteration, walker_id, state FROM task WHERE id = ?"
                (task,) = campaign.query(query, after.segment_ids[row])
                assert task == (
                    before.segment_ids[parent] if parent >= 0 else None,
                    after.iteration.number,
                    row,
                    "complete",
                )
        walked += sum(len(each.segment_ids) for each in told)
    done = "SELECT count(*) FROM task WHERE kind = 'simulate' AND state = 'complete'"
    # No walker runs twice, and none that ended is run again.
    assert campaign.query(done) == [(walked,)]


@FEW
@given(shape=st.fixed_dictionaries(SHAPES), faults=FAULTS, seed=st.integers(0, 2**32), lockstep=st.booleans())
def test_weights_are_those_of_an_ensemble_that_nothing_happened_to(open_ensembles, shape, faults, seed, lockstep):
    with open_ensembles(**shape, lockstep=lockstep) as calm, open_ensembles(**shape) as disturbed:
        for campaign, chances in ((calm, {}), (disturbed, faults)):
            campaign.begin()
            campaign.play(random.Random(seed), chances)
            assert campaign.state.failure is None
            check(campaign)
        assert history(disturbed) == history(calm)
        disturbed.end()
        calm.end()


@FEW
@given(shape=st.fixed_dictionaries(SHAPES), faults=FAULTS, seed=st.integers(0, 2**32), lockstep=st.booleans())
def test_coordinates_of_an_iteration_are_of_one_model_version(open_ensembles, shape, faults, seed, lockstep):
    with open_ensembles(**shape, learned=True, lockstep=lockstep) as campaign:
        campaign.begin()
        campaign.play(random.Random(seed), faults)
        assert campaign.state.failure is None
        check(campaign)
        for replica in range(campaign.settings.replicas):
            for told in campaign.iterations(replica):
                if told.model_version:
                    walked = told.pcoord[:, 0] / (1 + told.model_version / 4)
                    where = [campaign.walked[segment][0] for segment in told.segment_ids]
                    # Whatever version is stored, every walker of the iteration was seen by it.
                    np.testing.assert_allclose(walked[:, 0], where, atol=1e-5)
        campaign.end()


def test_weight_that_reaches_the_target_is_recycled(open_ensembles):
    with open_ensembles(target="x > 0.6", max_iterations=20) as campaign:
        campaign.begin()
        campaign.play(random.Random(1))
        told = campaign.iterations()
        recycled = [each for one in told for each in one.recycled]
        assert len(recycled) > 1
        assert fluxes(campaign.ledger, 0).sum() == pytest.approx(sum(each.weight for each in recycled))
        for before, after in zip(told, told[1:], strict=False):
            assert {each.initial for each in before.recycled} == {state.number for state in after.iteration.initial}
        check(campaign)


def test_stores_hold_no_more_ends_than_two_for_each_walker_that_there_may_be(open_ensembles):
    """Which is what a dry run counts."""
    with open_ensembles(replicas=2, max_iterations=12) as campaign:
        campaign.begin()
        n_ends, most_walkers = [], campaign.settings.replicas * campaign.method.most_walkers
        while campaign.outstanding:
            campaign.answer(next(iter(campaign.outstanding.values())))
            n_ends.append(sum(ref.key[0].startswith("end ") for ref in campaign.stored if ref.key))
        # As many as --walkers would not be enough.
        assert 2 * campaign.settings.walkers < max(n_ends) <= 2 * most_walkers
        n_walkers = [len(told.segment_ids) for replica in range(2) for told in campaign.iterations(replica)]
        assert max(n_walkers) <= campaign.method.most_walkers


def test_a_walker_that_fails_with_one_seed_runs_with_another(open_ensembles):
    with open_ensembles(max_iterations=2, max_attempts=2) as campaign:
        campaign.begin()
        campaign.answer(*campaign.out("coordinate"))
        first = campaign.out("simulate")[0]
        for _ in range(2):
            sent = next(send for send in campaign.out("simulate") if send.spec.segment_id == first.spec.segment_id)
            campaign.answer(sent, "nan")
        campaign.play(random.Random(1))
        assert campaign.state.failure is None
        again = [
            s.spec for s in campaign.sent if s.topic == "simulate" and s.spec.iteration == 1 and s.spec.walker_id == 0
        ]
        assert again[0].seed != again[-1].seed
        assert again[0].start == again[-1].start
        assert len(campaign.iterations()) == 2


def test_one_that_fails_with_both_seeds_stops_the_campaign_which_goes_on_when_resumed(open_ensembles):
    with open_ensembles(max_iterations=3, max_attempts=1) as campaign:
        campaign.begin()
        while campaign.state.failure is None:
            sends = [
                send for send in campaign.out("simulate") if send.spec.iteration == 2 and send.spec.walker_id == 1
            ]
            if sends:
                campaign.answer(sends[0], "nan")
            else:
                campaign.answer(next(iter(campaign.outstanding.values())))
        assert "walker 1 of iteration 2 failed with 2 seeds" in campaign.state.failure
        campaign.kill()
        campaign.play(random.Random(1))
        assert campaign.state.failure is None
        assert len(campaign.iterations()) == 3
        weights = [told.iteration.weights.sum() for told in campaign.iterations()]
        np.testing.assert_allclose(weights, 1, atol=1e-12)


def test_an_iteration_that_a_process_left_is_taken_up_only_if_its_weights_sum_to_one(open_ensembles):
    with open_ensembles(max_iterations=3) as campaign:
        campaign.begin()
        while not campaign.iterations():
            campaign.answer(next(iter(campaign.outstanding.values())))
        told = campaign.ledger.kept("ensemble/0")[""]
        with campaign.ledger.transaction():
            campaign.ledger.keep("ensemble/0", {**told, "weights": [1.01 * weight for weight in told["weights"]]})
        with pytest.raises(BrokenEnsemble, match=r"^iteration 2: weights sum to one \+1\.0e-02$"):
            campaign.kill()


def test_a_straggler_gets_a_second_attempt_and_the_first_result_wins(open_ensembles):
    with open_ensembles(max_iterations=6, slots=2, bundle=1) as campaign:
        campaign.begin()
        straggler = None
        while straggler is None:
            sends = list(campaign.outstanding.values())
            waiting = [send for send in sends if send.topic == "simulate" and send.spec.iteration == 5]
            if len(sends) == 1 and waiting:
                straggler = waiting[0]
                break
            campaign.answer(next(send for send in sends if send not in waiting[:1]))
        agent = campaign.steering.simulate
        key = straggler.spec.segment_id
        assert campaign.take(campaign.steering.keep_time()).sends == []
        agent.in_flight[key] = replace(agent.in_flight[key], sent=-1e6)
        del campaign.outstanding["simulate", key]
        campaign.abandoned.append(straggler)
        (rival,) = agent_sends(campaign)
        assert (rival.spec.attempt, rival.spec.seed) == (2, straggler.spec.seed)
        # There is never a third.
        assert campaign.steering.keep_time().sends == []
        late = campaign.outcome(straggler)
        campaign.steering.handle("simulate", campaign.outcome(rival))
        campaign.steering.handle("simulate", late)
        outcomes = campaign.query("SELECT number, outcome FROM attempt WHERE task_id = ? ORDER BY number", key)
        assert outcomes == [(1, "outpaced"), (2, "success")]
        assert campaign.query("SELECT count(*) FROM task WHERE iteration = 6 AND kind = 'simulate'")[0][0] > 0


def test_of_a_straggler_and_its_rival_one_may_fail(open_ensembles):
    with open_ensembles(max_iterations=2, slots=4, bundle=1) as campaign:
        campaign.begin()
        campaign.answer(*campaign.out("coordinate"))
        agent, send = campaign.steering.simulate, campaign.out("simulate")[0]
        with campaign.state.lock, campaign.ledger.transaction():
            agent.send_rival(agent.in_flight[send.spec.segment_id])
        (rival,) = campaign.state.take_outbox().sends
        campaign.steering.handle("simulate", campaign.outcome(send, "worker_lost"))
        assert agent.in_flight[send.spec.segment_id].attempts == (rival.spec,)
        campaign.steering.handle("simulate", campaign.outcome(rival))
        assert send.spec.segment_id not in agent.in_flight
        outcomes = campaign.query("SELECT outcome FROM attempt WHERE task_id = ?", send.spec.segment_id)
        assert outcomes == [("worker_lost",), ("success",)]


def test_attempts_after_a_rival_have_numbers_of_their_own(open_ensembles):
    with open_ensembles(max_iterations=2, slots=4, bundle=1) as campaign:
        campaign.begin()
        campaign.answer(*campaign.out("coordinate"))
        agent, first = campaign.steering.simulate, campaign.out("simulate")[0]
        key = first.spec.segment_id

        def rival():
            with campaign.state.lock, campaign.ledger.transaction():
                agent.send_rival(agent.in_flight[key])
            return campaign.state.take_outbox().sends[0]

        # A rival fails, another is sent, and then all that are left fail.
        campaign.steering.handle("simulate", campaign.outcome(rival(), "worker_lost"))
        campaign.steering.handle("simulate", campaign.outcome(rival(), "worker_lost"))
        campaign.steering.handle("simulate", campaign.outcome(first, "worker_lost"))
        assert [spec.attempt for spec in agent.in_flight[key].attempts] == [4]
        numbers = campaign.query("SELECT number FROM attempt WHERE task_id = ? ORDER BY number", key)
        assert numbers == [(1,), (2,), (3,), (4,)]


def test_a_walker_whose_frames_are_lost_on_the_way_runs_anew_and_not_for_ever(open_ensembles):
    with open_ensembles(learned=True, crossing=True, max_iterations=2, max_attempts=1) as campaign:
        campaign.state.model = campaign.put(campaign.destinations["infer"].store, "pretrained")
        campaign.state.hold(campaign.state.model, "model")
        campaign.begin()
        while campaign.state.failure is None:
            send = next(iter(campaign.outstanding.values()))
            frames = send.topic == "move" and send.spec.cargo[0] == "frames"
            campaign.answer(send, "unreachable" if frames else None)
        assert "failed with 2 seeds" in campaign.state.failure


def agent_sends(campaign: Ensembles) -> list:
    """Return what a tick sends."""
    return campaign.steering.keep_time().sends
