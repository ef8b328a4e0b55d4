"""The campaign's stores are its own, and emptied without touching anybody else's data."""

import numpy as np
import pytest
from redis import Redis

from campaign.stores import Stores
from tasks.errors import BadInput, Unreachable
from tasks.transport import evict, fetch, open_store, ship

KINDS = {"simulate": "redis", "infer": "file", "train": "file"}
ARRAYS = {"positions": np.arange(6.0).reshape(1, 2, 3)}


@pytest.fixture
def make(tmp_path, redis_server):
    def stores(run_id="a" * 32, kinds=KINDS, name="store"):
        return Stores(
            kinds, run_id, tmp_path / "parked", 1000, tmp_path / name, (redis_server.host, redis_server.port), None
        )

    return stores


def test_topics_of_one_kind_share_a_store(make, tmp_path, redis_server):
    stores = make()
    assert stores.of["infer"] is stores.of["train"]
    assert {spec.kind for spec in stores.specs} == {"file", "redis"}
    assert len(stores.specs) == 2
    assert dict(stores.of["infer"].options) == {"store_dir": str(tmp_path / "store")}
    assert dict(stores.of["simulate"].options) == {"hostname": redis_server.host, "port": str(redis_server.port)}
    assert {spec.threshold for spec in stores.specs} == {1000}


def test_names_tell_runs_apart(make):
    assert make("a" * 32).of["infer"].name != make("b" * 32, name="other").of["infer"].name


def test_inline_is_no_store_and_makes_no_directory(tmp_path):
    stores = Stores(dict.fromkeys(KINDS, "inline"), "a" * 32, tmp_path / "parked", 0, tmp_path / "store", None, None)
    assert [spec.kind for spec in stores.specs] == ["inline"]
    assert list(tmp_path.iterdir()) == []
    assert stores.sweep() == (0, 0)


def test_a_sweep_empties_the_runs_stores_and_counts(make, tmp_path):
    stores = make()
    refs = [ship(ARRAYS, stores.of[topic]) for topic in ("simulate", "simulate", "infer", "train")]
    np.testing.assert_array_equal(fetch(refs[0])["positions"], ARRAYS["positions"])
    assert stores.sweep() == (4, 0)
    assert not (tmp_path / "store").exists()
    for ref in refs:
        with pytest.raises(Unreachable):
            fetch(ref)


def test_a_second_sweep_finds_nothing(make):
    stores = make()
    ship(ARRAYS, stores.of["simulate"])
    stores.sweep()
    assert stores.sweep() == (0, 0)


def test_the_control_of_a_run_uses_the_same_stores_again(make):
    first = make()
    ship(ARRAYS, first.of["infer"])
    first.sweep()
    again = make()
    assert again.specs == first.specs
    np.testing.assert_array_equal(fetch(ship(ARRAYS, again.of["infer"]))["positions"], ARRAYS["positions"])
    assert again.sweep() == (1, 0)


def test_other_runs_and_other_peoples_data_are_left_alone(make, tmp_path, redis_server):
    ours, theirs = make("a" * 32, name="ours"), make("b" * 32, name="theirs")
    kept = [ship(ARRAYS, theirs.of[topic]) for topic in ("simulate", "infer")]
    for topic in ("simulate", "infer"):
        ship(ARRAYS, ours.of[topic])
    (tmp_path / "notes.txt").write_text("mine")
    with Redis(redis_server.host, redis_server.port) as client:
        client.set("somebody's", "key")
        client.set("wayfinder-aaaaaaaaaaaaX:key", "a name that only begins alike")
        assert ours.sweep()[1] == 0
        assert client.get("somebody's") == b"key"
        assert client.get("wayfinder-aaaaaaaaaaaaX:key") == b"a name that only begins alike"
        for ref in kept:
            np.testing.assert_array_equal(fetch(ref)["positions"], ARRAYS["positions"])
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert theirs.sweep() == (2, 0)
        client.delete("somebody's", "wayfinder-aaaaaaaaaaaaX:key")


@pytest.mark.parametrize("below", ["store", "a/b"])
def test_a_file_store_that_cannot_be_made_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("data")
    path = tmp_path / "file" / below
    with pytest.raises(BadInput, match="--ps-file-dir") as caught:
        Stores(dict.fromkeys(KINDS, "file"), "a" * 32, path / "parked", 0, path, None, None)
    assert str(path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def by_endpoint(tmp_path, endpoint_here):
    kinds = {"simulate": "endpoint", "infer": "file", "train": "endpoint"}
    return Stores(
        kinds, "a" * 32, tmp_path / "parked", 0, tmp_path / "store", None, None, endpoints=[endpoint_here.uuid]
    )


def test_an_endpoint_is_emptied_of_what_is_known_to_lie_there(by_endpoint, endpoint_here):
    theirs = ship(ARRAYS, endpoint_here.store())
    refs = [ship(ARRAYS, by_endpoint.of[topic]) for topic in ("simulate", "train", "infer", "train")]
    assert by_endpoint.count() == 1
    by_endpoint.know(refs)
    assert by_endpoint.count() == 4
    kept = refs[1]
    assert by_endpoint.sweep(keep={(kept.store.name, kept.key)}) == (3, 0)
    np.testing.assert_array_equal(fetch(kept)["positions"], ARRAYS["positions"])
    assert by_endpoint.sweep() == (1, 0)
    assert by_endpoint.count() == 0
    np.testing.assert_array_equal(fetch(theirs)["positions"], ARRAYS["positions"])
    evict(theirs)


def test_what_lies_in_an_endpoint_is_parked(by_endpoint):
    there, gone = (ship(ARRAYS, by_endpoint.of["simulate"]) for _ in range(2))
    evict(gone)
    moved = by_endpoint.park([there, gone])
    assert list(moved) == [(there.store.name, there.key)]
    by_endpoint.sweep(keep={(ref.store.name, ref.key) for ref in moved.values()})
    assert by_endpoint.count() == 0
    np.testing.assert_array_equal(fetch(*moved.values())["positions"], ARRAYS["positions"])


def test_an_endpoint_that_is_gone_is_no_reason_to_stay(by_endpoint, tmp_path, monkeypatch):
    ref = ship(ARRAYS, by_endpoint.of["simulate"])
    by_endpoint.know([ref])
    with monkeypatch.context() as context:
        context.setenv("PROXYSTORE_HOME", str(tmp_path / "none"))
        open_store.cache_clear()
        assert by_endpoint.count() == 0
        assert by_endpoint.sweep() == (0, 0)
    open_store.cache_clear()
    evict(ref)
