"""Iterations in the ledger: what was recorded is read, and what cannot be right is not."""

import sqlite3
import time
from dataclasses import replace

import numpy as np
import pytest

from campaign.iterations import Boundary, fluxes, n_ended, past, record
from campaign.ledger import Ledger
from campaign.west.file import WestFile
from campaign.west.replay import replay
from policies.iteration import BrokenEnsemble
from tests.ensembles import beginning, double_well, rectilinear, run

N = 15
LAYOUT = double_well()


@pytest.fixture(scope="module")
def series():
    return list(run(LAYOUT, rectilinear(), N, seed=1))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    opened = Ledger(path)
    yield opened
    opened.close()


def boundary(ended, replica=0, version=3):
    first = 1000 * ended.iteration.number
    return Boundary(replica, ended, tuple(range(first, first + len(ended.pcoord))), version)


@pytest.fixture
def recorded(ledger, series):
    for each in series:
        with ledger.transaction():
            record(ledger, boundary(each))
    return ledger


def test_what_is_recorded_is_read(recorded, series):
    told = list(past(recorded, 0))
    assert n_ended(recorded, 0) == len(told) == N
    assert n_ended(recorded, 1) == 0
    assert fluxes(recorded, 0).tolist() == [each.resampled.flux for each in series]
    for each, ours in zip(told, series, strict=True):
        iteration = ours.iteration
        assert (each.iteration.number, each.iteration.lineage) == (iteration.number, iteration.lineage)
        assert each.iteration.initial == iteration.initial
        assert np.array_equal(each.iteration.weights, iteration.weights)
        assert np.array_equal(each.iteration.parents, iteration.parents)
        assert np.array_equal(each.pcoord, ours.pcoord)
        assert np.array_equal(each.seconds, ours.seconds)
        assert np.array_equal(each.bins, ours.resampled.bins)
        assert np.array_equal(each.endpoints, ours.resampled.endpoints)
        assert set(each.recycled) == set(ours.resampled.recycled)
        assert (each.segment_ids, each.model_version) == (boundary(ours).segment_ids, 3)
    assert [each.iteration.number for each in past(recorded, 0, 9)] == list(range(9, N + 1))


def test_replicas_are_apart(ledger, series):
    with ledger.transaction():
        for replica in range(3):
            record(ledger, boundary(series[0], replica))
    assert [n_ended(ledger, replica) for replica in range(4)] == [1, 1, 1, 0]


def test_an_iteration_is_there_whole_or_not_at_all(ledger, series):
    def record_and_fail():
        with ledger.transaction():
            record(ledger, boundary(series[0]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_and_fail()
    assert n_ended(ledger, 0) == 0
    assert ledger.select("SELECT * FROM walker") == []


def test_an_iteration_is_recorded_once(recorded, series):
    with pytest.raises(sqlite3.IntegrityError), recorded.transaction():
        record(recorded, boundary(series[4]))
    assert n_ended(recorded, 0) == N


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE walker SET weight = weight * 1.0000001 WHERE iteration = 4 AND walker = 0",
        "DELETE FROM walker WHERE iteration = 4 AND walker = 0",
        "DELETE FROM walker WHERE iteration = 4",
        "UPDATE walker SET weight = -weight WHERE iteration = 4",
        "UPDATE walker SET parent = 999, lineage = '[999]' WHERE iteration = 4 AND walker = 1",
        "UPDATE walker SET parent = 999 WHERE iteration = 4 AND walker = 1",
        "UPDATE walker SET endpoint = 3 WHERE iteration = 4 AND walker = 1",
        "DELETE FROM initial_state WHERE iteration = 1",
    ],
)
def test_what_cannot_be_right_is_not_taken(recorded, path, series, damage):
    with sqlite3.connect(path) as db:
        db.execute(damage)
    with pytest.raises(BrokenEnsemble):
        list(replay(recorded, 0, series[-1].resampled.following, lambda _: rectilinear()))


def test_an_iteration_without_all_of_its_segments_is_not_recorded(ledger, series):
    with pytest.raises(BrokenEnsemble), ledger.transaction():
        record(ledger, replace(boundary(series[0]), segment_ids=(1,)))
    assert n_ended(ledger, 0) == 0


def test_west_h5_is_made_again_from_the_ledger(recorded, series, tmp_path):
    binning, current = rectilinear(), series[-1].resampled.following
    west = WestFile(tmp_path / "west.h5", LAYOUT)
    *_, last = replay(recorded, 0, current, lambda _: binning, first=N)
    west.follow(beginning(8), binning, last, lambda first: replay(recorded, 0, current, lambda _: binning, first))
    assert west.holds(series[-1])


def test_a_later_models_coordinates_are_where_walkers_start(ledger, series, tmp_path):
    """An iteration of another model version starts where that puts its parents' ends."""
    shifted = replace(series[1], pcoord=series[1].pcoord + np.float32(0.5))
    with ledger.transaction():
        record(ledger, boundary(series[0], version=0))
        record(ledger, boundary(shifted, version=1))
    first, _ = replay(ledger, 0, series[1].resampled.following, lambda _: rectilinear())
    assert np.array_equal(first.starts, shifted.pcoord[:, 0])


def test_recording_is_cheap(ledger):
    """With 2 000 walkers it takes well below the quarter of a second that bookkeeping may: CPU time."""
    *_, last = run(LAYOUT, rectilinear(190), 12, seed=2)
    assert len(last.pcoord) > 1800
    began = time.process_time()
    with ledger.transaction():
        record(ledger, boundary(last))
    assert time.process_time() - began < 0.12
