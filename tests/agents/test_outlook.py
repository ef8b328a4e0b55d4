"""Whether a campaign fits: sentences with figures and remedies, and what the estimate assumes."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agents import outlook
from agents.launch import Plan
from agents.outlook import Machine, in_words, look_ahead, refuse_what_cannot_fit, segments_at_once
from agents.state import Destination
from campaign.method import Method
from campaign.rundir import RunDirectory
from campaign.settings import Settings
from campaign.stores import Stores
from campaign.timing import Timing
from policies.bins import parse_bins
from tasks.errors import BadInput
from tasks.messages import Coordinate, StoreKind, Topic
from tasks.prepared import PreparedSystem
from tasks.transport import pack

HERE = Machine(cores=2, gpus=0, simulates=True, learns=True)
Usage = namedtuple("Usage", "total used free")


class Redis:
    """A server with so much memory left."""

    host, port = "127.0.0.1", 6379

    def __init__(self, free: int | None) -> None:
        self.free = free

    def trouble(self) -> None:
        return None

    def free_bytes(self) -> int | None:
        return self.free


def method_of(settings: Settings) -> Method:
    """Return how an ensemble in three bins of one dimension is run."""
    coordinate = Coordinate("aae", ("z0",), (0,)) if settings.learns else Coordinate("position", ("x",))
    bins = parse_bins("rectilinear:-inf,0,1,inf", coordinate.names)
    return Method(coordinate, ("left",), np.ones(1), bins, None, settings.walkers_per_bin)


# Two ensembles of ten iterations: in three bins of four walkers 24 walkers and 240 segments, in one 8 and 80.
ENSEMBLES = {"policy": "weighted-ensemble", "pcoord": "position", "replicas": 2, "max_iterations": 10}


@pytest.fixture
def plan_of(alanine: PreparedSystem, tmp_path: Path):
    def make(*, slots: int = 2, kind: StoreKind = "file", redis: Redis | None = None, **given) -> Plan:
        settings = Settings(**given)
        topics: tuple[Topic, ...] = ("simulate", "infer", "train")
        if settings.equilibrate_ps:
            topics += ("equilibrate",)
        address = None if redis is None else (redis.host, redis.port)
        stores = Stores(
            dict.fromkeys(topics, kind), "0" * 32, tmp_path / "parked", 0, tmp_path / "store", address, None
        )
        reaches = frozenset({"file", "redis", "inline"})
        return Plan(
            crew=SimpleNamespace(redis=redis),
            settings=settings,
            run_dir=RunDirectory(tmp_path),
            campaign_id="0" * 32,
            resumed=False,
            prepared=alanine,
            dynamics=settings.dynamics("Reference"),
            weights=None,
            destinations={
                topic: Destination("polaris", "cpu", topic, slots, reaches, stores.of[topic], str(tmp_path))
                for topic in topics
            },
            stores=stores,
            began=0.0,
            method=method_of(settings) if settings.is_ensemble else None,
        )

    return make


def look(plan: Plan, machine: Machine = HERE, seconds: float = 1.0) -> outlook.Outlook:
    return look_ahead(plan, Timing("here", "Reference", plan.dynamics.segment_ps / seconds, 0.0), machine, 10.0)


def full_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))


def test_wall_time_is_segments_over_what_runs_at_once(plan_of) -> None:
    ahead = look(plan_of(max_segments=100, policy="plain", infer_every=0))
    assert ahead.at_once == 2
    assert ahead.wall_s == pytest.approx(10 + 5 + 100 / 2, rel=0.02)
    twice = look(plan_of(max_segments=100, control=True, infer_every=1))
    assert twice.wall_s > 2 * 100 / 2
    assert "plain MD of equal length is counted in" in twice.notes
    assert twice.as_dict()["disk_bytes"]["control"] > 0


@pytest.mark.parametrize(
    ("slots", "walkers", "machine", "at_once"),
    [
        (2, 8, HERE, 2 * 2 / 4),  # as many learning workers as segments' in these plans
        (2, 8, Machine(64, 0, True, True), 2),
        (2, 8, Machine(2, 0, True, False), 2),
        (8, 3, Machine(64, 0, True, False), 3),
        (8, 8, Machine(2, 0, False, False), 8),
    ],
)
def test_segments_share_cores_with_learning(plan_of, slots: int, walkers: int, machine: Machine, at_once) -> None:
    assert segments_at_once(plan_of(max_segments=1, slots=slots, walkers=walkers), machine) == at_once


def test_a_pool_counts_with_all_its_sites(plan_of) -> None:
    plan = plan_of(max_segments=1, walkers=12, policy="plain", infer_every=0)
    here = plan.destinations["simulate"]
    far = replace(here, site="far", executor="far", slots=4)
    pool = replace(plan, pool=(here, far))
    assert segments_at_once(pool, HERE) == 2
    assert segments_at_once(pool, replace(HERE, elsewhere=("far",))) == 6
    assert segments_at_once(pool, replace(HERE, cores=1, elsewhere=("far",))) == 5
    notes = look(pool, replace(HERE, elsewhere=("far",))).notes
    assert [note for note in notes if "speed" in note] == [
        "the speed was measured on this machine: that of site far may differ, and its queue is not counted"
    ]
    # One of them writes trajectories to the run directory.
    apart = replace(plan, destinations={**plan.destinations, "simulate": replace(here, run_dir=None)})
    assert look(apart).disk_bytes["trajectories"] == 0
    assert look(replace(apart, pool=(apart.destinations["simulate"], far))).disk_bytes["trajectories"] > 0


def test_time_alone_gives_as_many_segments_as_fit(plan_of) -> None:
    ahead = look(plan_of(max_minutes=10, policy="plain", infer_every=0))
    assert ahead.ahead.segments == pytest.approx(10 * 60 * 2, rel=0.02)
    assert any("only time ends" in note for note in ahead.notes)
    assert look(plan_of(max_minutes=10, max_segments=7)).ahead.segments == 7


def test_equilibration_comes_before_the_first_segment(plan_of) -> None:
    plan = plan_of(max_segments=100, equilibrate_ps=100.0)
    at_once = look(plan_of(max_segments=100))
    seconds = 1.25 * 100.0 / plan.dynamics.segment_ps
    assert look(plan).wall_s == pytest.approx(at_once.wall_s + seconds)
    with pytest.raises(BadInput, match=r"which takes 1 s after 63 s of equilibration here"):
        look(plan_of(max_minutes=1.0, equilibrate_ps=100.0))


def test_time_for_less_than_one_segment_is_refused_where_it_was_measured(plan_of) -> None:
    with pytest.raises(BadInput, match=r"--max-minutes 0.5 ends before one segment, which takes 60 s here: give"):
        look(plan_of(max_minutes=0.5), seconds=60)
    elsewhere = look(plan_of(max_minutes=0.5), Machine(2, 0, False, False), seconds=60)
    assert elsewhere.ahead.segments == 1
    assert any("that of site polaris may differ" in note for note in elsewhere.notes)


def test_a_disk_too_small_is_refused_alike_by_a_start_and_a_dry_run(plan_of, monkeypatch) -> None:
    plan = plan_of(max_segments=1_000_000)
    full_disk(monkeypatch, 3_000_000_000)
    with pytest.raises(BadInput, match=r"needs \d+\.\d GB on the disk of .* --min-free-mb 200 .* 3\.0 GB are free"):
        look(plan)
    with pytest.raises(BadInput, match="GB of it ledger|GB of it trajectories"):
        refuse_what_cannot_fit(plan)
    refuse_what_cannot_fit(plan_of(max_segments=1_000))


def test_the_peak_of_a_file_store_counts_on_its_disk(plan_of, monkeypatch) -> None:
    plan = plan_of(max_segments=100, min_free_mb=0)
    needed = sum(look(plan).disk_bytes.values())
    full_disk(monkeypatch, needed)
    refuse_what_cannot_fit(plan)
    full_disk(monkeypatch, needed - 1)
    with pytest.raises(BadInput, match="the campaign needs"):
        refuse_what_cannot_fit(plan)


def test_a_file_store_on_another_disk_is_held_to_that_one(plan_of, monkeypatch, tmp_path: Path) -> None:
    plan = plan_of(max_segments=100, min_free_mb=0)
    store = tmp_path / "store"
    monkeypatch.setattr(outlook, "_store_apart", lambda plan: store)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1000 if path == store else 10**12))
    with pytest.raises(BadInput, match=f"on the disk of {store} .* --ps-file-dir"):
        refuse_what_cannot_fit(plan)


def test_a_campaign_that_only_time_ends_is_not_refused_by_a_start(plan_of, monkeypatch) -> None:
    full_disk(monkeypatch, 1000)
    refuse_what_cannot_fit(plan_of(max_minutes=10))
    refuse_what_cannot_fit(plan_of(max_minutes=10, max_ns=1e6))


def test_a_redis_server_too_small_is_refused(plan_of) -> None:
    with pytest.raises(
        BadInput, match=r"of the Redis server at 127.0.0.1:6379 at once, and 1.0 kB of memory are free"
    ):
        look(plan_of(max_segments=100, kind="redis", redis=Redis(1000)))
    for free in (None, 10**9):
        assert look(plan_of(max_segments=100, kind="redis", redis=Redis(free))).as_dict()["fits"] is True


def test_the_table_is_short_and_the_keys_are_those_documented(plan_of) -> None:
    ahead = look(plan_of(max_segments=100))
    assert len(list(ahead.lines())) < 12
    told = ahead.as_dict()
    assert set(told) == {
        "segments", "simulated_ns", "frames", "inferences", "trainings", "is_bound", "walkers", "disk_bytes",
        "store_bytes", "thinker_bytes", "wall_s", "timing", "fits", "notes",
    }  # fmt: skip
    assert set(told["store_bytes"]) == {"simulate", "infer", "train"}
    assert set(told["timing"]) == {"host", "platform", "ps_per_s", "seconds_per_segment", "at_once"}
    assert told["disk_bytes"]["total"] == sum(ahead.disk_bytes.values())


@pytest.mark.parametrize(
    ("given", "fewest", "most"),
    [
        ({"max_segments": 1, "walkers": 5}, 5, 5),
        (ENSEMBLES, 8, 24),
        ({**ENSEMBLES, "walkers_per_bin": 5, "walkers": 100}, 10, 30),
        # Until a model is learned --walkers are in each ensemble.
        ({**ENSEMBLES, "pcoord": "aae:0", "walkers": 30}, 8, 60),
        ({**ENSEMBLES, "pcoord": "aae:0", "walkers": 3}, 6, 24),
        ({**ENSEMBLES, "pcoord": "aae:0", "walkers": 30, "aae_weights": "aae.pt"}, 8, 24),
    ],
)
def test_the_walkers_that_there_are(plan_of, given, fewest: int, most: int) -> None:
    plan = plan_of(**given)
    assert plan.n_walkers == (fewest, most)
    assert look(plan).as_dict()["walkers"] == most
    # No more workers are busy than there are walkers.
    assert segments_at_once(plan_of(slots=100, **given), Machine(200, 0, True, False)) == most


def test_ensembles_take_at_most_what_every_bin_takes(plan_of, alanine: PreparedSystem) -> None:
    ahead = look(plan_of(**ENSEMBLES))
    lines = list(ahead.lines())
    assert lines[0].startswith("segments   at most 240: ")
    assert lines[2].startswith("disk       at most ")
    assert lines[3].startswith("simulate   at most ")
    assert (
        "all of it at most: as if every bin were reached from the first iteration on, by 24 walkers in all" in lines
    )
    # A state of 22 atoms takes 1216 bytes, 8 frames 2192: each walker keeps its start and its end.
    always = len(pack(alanine.to_arrays())) + len(pack(alanine.basis()))
    assert ahead.ahead.store_bytes["simulate"].peak == always + 48 * 1216 + 24 * 2192
    assert ahead.as_dict()["is_bound"] is ahead.as_dict()["fits"] is True


def test_ensembles_that_another_limit_ends_say_what_is_at_most(plan_of) -> None:
    ahead = look(plan_of(**ENSEMBLES, max_segments=100))
    lines = list(ahead.lines())
    assert lines[0].startswith("segments   100: ")
    assert " through file, at most " in lines[3]
    assert "stores and busy workers are those of 24 walkers, the most: as if every bin were reached" in lines
    assert not ahead.is_bound
    free = look(plan_of(max_segments=100))
    assert not any("at most" in line for line in list(free.lines())[2:5])
    assert not any("every bin" in note for note in free.notes)


def test_ensembles_are_refused_for_what_one_bin_takes_and_doubted_for_every(plan_of, monkeypatch) -> None:
    plan = plan_of(**ENSEMBLES, max_segments=10**6, min_free_mb=0)
    most = sum(look(plan).disk_bytes.values())
    full_disk(monkeypatch, most)
    assert look(plan).fits
    full_disk(monkeypatch, most - 1)
    doubted = look(plan)
    assert doubted.as_dict()["fits"] is False
    assert doubted.notes[-1].startswith("it may not fit: the campaign needs ")
    full_disk(monkeypatch, 1000)
    with pytest.raises(BadInput, match="^the campaign needs"):
        look(plan)


def test_a_start_refuses_no_ensemble_for_bins_that_it_may_not_reach(plan_of, monkeypatch) -> None:
    given = {**ENSEMBLES, "max_iterations": None, "max_segments": 1000, "min_free_mb": 0}
    few, plan = plan_of(max_segments=1000, walkers=8, policy="plain", infer_every=0, min_free_mb=0), plan_of(**given)
    # Eight walkers that know nothing of each other take as much as those of one bin each.
    full_disk(monkeypatch, sum(look(few).disk_bytes.values()))
    refuse_what_cannot_fit(plan)
    assert not look(plan).fits
    full_disk(monkeypatch, sum(look(few).disk_bytes.values()) - 1)
    with pytest.raises(BadInput, match="the campaign needs"):
        refuse_what_cannot_fit(plan)


@pytest.mark.parametrize(("n", "words"), [(0, "0.0 kB"), (1500, "1.5 kB"), (2e9, "2.0 GB"), (3.5e12, "3.5 TB")])
def test_bytes_in_words(n: float, words: str) -> None:
    assert in_words(int(n)) == words
