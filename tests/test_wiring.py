"""How sites and stores fit together, before anything is started."""

from types import SimpleNamespace

import pytest

from campaign.rundir import RunDirectory
from campaign.settings import Settings
from campaign.stores import Stores
from sites import local
from sites.site import Resources
from tasks.errors import BadInput
from wiring import Parts, _destinations, _learning, _places, _pool


def gather(alanine, **given) -> Parts:
    return Parts.gather(Settings(max_segments=4, **given), alanine, 0.0)


@pytest.fixture
def put_together(alanine, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "gpus", list)

    def put(**given):
        parts = gather(alanine, **given)
        stores = Stores(parts.kinds, "0" * 32, tmp_path / "parked", 0, tmp_path / "store", ("127.0.0.1", 1), None)
        resources = Resources(2, 1, tmp_path / "private", 2.0, 10.0)
        crew = SimpleNamespace(pool=_pool(parts.pool, resources), learning=_learning(parts.learning, resources))
        pool = _places(parts, crew, stores, RunDirectory(tmp_path))
        executors = [hands.executor for hands in (*crew.pool, crew.learning)]
        return pool, _destinations(parts, pool[0], crew, stores, RunDirectory(tmp_path)), executors

    return put


def test_a_lone_site_keeps_its_labels(put_together):
    pool, destinations, executors = put_together()
    assert [executor.label for executor in executors] == ["cpu", "gpu"]
    assert pool == (destinations["simulate"],)
    assert pool[0].method == "simulate@local"


def test_the_executors_of_a_pool_are_called_after_their_sites(put_together):
    pool, destinations, executors = put_together(simulate_site="local,local-b:2")
    assert [executor.label for executor in executors] == ["cpu-local", "cpu-local-b", "gpu"]
    assert [(place.site, place.executor, place.method, place.slots, place.weight) for place in pool] == [
        ("local", "cpu-local", "simulate@local", 2, 1.0),
        ("local-b", "cpu-local-b", "simulate@local-b", 2, 2.0),
    ]
    assert destinations["simulate"] == pool[0]
    assert destinations["infer"].executor == "gpu"


def test_a_pool_reaches_what_all_of_it_reach(put_together):
    pool, _, _ = put_together(simulate_site="local,local-no-redis")
    assert [place.reaches for place in pool] == [frozenset({"file", "globus", "endpoint", "inline"})] * 2


@pytest.mark.parametrize("site", ["polaris", "local,polaris", "polaris:2"])
def test_an_unknown_site_of_a_pool_is_refused(alanine, site):
    with pytest.raises(BadInput, match="site polaris is not known: choose one of local"):
        gather(alanine, simulate_site=site)


def test_a_site_that_does_not_reach_the_store_of_segments_is_named(alanine):
    with pytest.raises(BadInput, match=r"--simulate-ps-backend redis: workers of site local-no-redis reach only"):
        gather(alanine, simulate_site="local,local-no-redis", simulate_ps_backend="redis")


def test_a_site_of_a_pool_that_does_not_reach_the_store_of_candidates_is_named(alanine):
    backends = {"simulate_ps_backend": "file", "infer_ps_backend": "redis"}
    with pytest.raises(BadInput) as caught:
        gather(alanine, simulate_site="local,local-no-redis", **backends)
    sentence = str(caught.value)
    assert sentence.startswith("--simulate-site local,local-no-redis: workers of site local-no-redis do not reach")
    assert "these are moved only where segments run at one site" in sentence
    # Alone it gets them by moves.
    assert gather(alanine, simulate_site="local-no-redis", **backends).kinds["infer"] == "redis"
