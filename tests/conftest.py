"""Real things that many tests share: a prepared system, a segment of it, a Redis server, stores.

Nothing heavy is imported before a test asks for it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tasks.messages import Dynamics, SegmentSpec, StoreSpec

if TYPE_CHECKING:
    from sites.redis_server import RedisServer
    from tasks.prepared import PreparedSystem
    from tests.endpointlab import PeerEndpoint

# Before anything imports NumPy: more threads lose on shared cores.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# How long an example takes is the machine's: others' tests run beside it, and the first one imports.
settings.register_profile("wayfinder", deadline=None)
settings.load_profile("wayfinder")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    from sites.devices import gpus

    if item.get_closest_marker("gpu") and not gpus():
        pytest.skip("no NVIDIA device: `nvidia-smi -L` lists none")


@pytest.fixture(scope="session")
def alanine() -> PreparedSystem:
    """ACE-ALA-NME, 22 atoms, for the Reference platform, where dynamics repeat bit for bit."""
    from tasks.systems import named_system, prepare

    return prepare(named_system("alanine-dipeptide", platform="Reference"))


@pytest.fixture(scope="session")
def water() -> PreparedSystem:
    """The same in a box of 806 atoms of water and salt, for the CPU platform."""
    from tasks.systems import named_system, prepare

    spec = named_system("alanine-dipeptide", platform="CPU")
    return prepare(replace(spec, solvent="explicit", padding_nm=0.6))


@pytest.fixture(scope="session")
def segment(alanine: PreparedSystem) -> SegmentSpec:
    """A segment of 0.4 ps and 5 frames from the minimum, all of whose data travel inline."""
    from tasks.transport import ship

    inline = StoreSpec("inline", "inline")
    return SegmentSpec(
        segment_id=3,
        attempt=1,
        walker_id=0,
        iteration=0,
        parent_id=1,
        parent_frame=4,
        system=ship(alanine.to_arrays(), inline),
        system_id=alanine.digest,
        start=ship({"positions": alanine.positions[None]}, inline),
        start_row=0,
        seed=11,
        dynamics=Dynamics(
            n_steps=100,
            frame_steps=20,
            timestep_ps=0.004,
            temperature_K=300.0,
            friction_per_ps=1.0,
            platform="Reference",
        ),
        store=inline,
        run_dir=None,
    )


@pytest.fixture
def file_store(tmp_path: Path) -> StoreSpec:
    """A file store in a directory of the test's own."""
    return StoreSpec("test", "file", (("store_dir", str(tmp_path / "store")),))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A private Redis server that lives as long as the tests."""
    from sites import redis_server

    server = redis_server.start(None, tmp_path_factory.mktemp("redis") / "redis.log")
    yield server
    server.stop()


@pytest.fixture
def redis_store(redis_server: RedisServer) -> StoreSpec:
    """A store of the test's own on the shared server."""
    options = (("hostname", redis_server.host), ("port", str(redis_server.port)))
    return StoreSpec(f"test-{uuid.uuid4().hex[:8]}", "redis", options)


@pytest.fixture(scope="session")
def lone_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerEndpoint]:
    """An endpoint of ProxyStore without peers that lives as long as the tests."""
    from tests.endpointlab import endpoint, need_extra

    need_extra()
    with endpoint(tmp_path_factory.mktemp("endpoints"), "lone") as found:
        yield found


@pytest.fixture
def endpoint_here(lone_endpoint: PeerEndpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[PeerEndpoint]:
    """The same as the endpoint of this process, whose handle on it is the test's own."""
    from tasks.transport import open_store

    monkeypatch.setenv("PROXYSTORE_HOME", str(lone_endpoint.home))
    open_store.cache_clear()
    yield lone_endpoint
    open_store.cache_clear()
