"""Data between hosts by ProxyStore's endpoints: real ones, a real relay server, and UDP between them.

Each host is a home of ProxyStore's on this machine: a process knows only the endpoint in its own.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import Unreachable
from tasks.transport import evict, fetch, keys, open_store, ship
from tests.endpointlab import PeerEndpoint, endpoint, need_extra, need_interface, relay
from tests.integration.conftest import ROOT, Campaign, edited_checkout

Start = Callable[..., Campaign]

ALL = [word for topic in ("simulate", "infer", "train") for word in (f"--{topic}-ps-backend", "endpoint")]
SOME = {"positions": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[tuple[PeerEndpoint, PeerEndpoint]]:
    """An endpoint near, and one far."""
    need_extra()
    need_interface()
    lab = tmp_path / "lab"
    lab.mkdir()
    with ExitStack() as stack:
        port = stack.enter_context(relay(lab))
        yield stack.enter_context(endpoint(lab, "near", port)), stack.enter_context(endpoint(lab, "far", port))


# What a worker over there does with the address it is given: here, its text.
_WORKER = """
import sys
from tasks.messages import Ref, StoreSpec
from tasks.transport import evict, fetch, ship
ref = eval(sys.argv[1])
found = fetch(ref)
evict(ref)
print(repr(ship({"twice": found["positions"] * 2}, ref.store)))
"""


def test_what_is_put_near_is_fetched_far(
    peers: tuple[PeerEndpoint, PeerEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.messages import Ref, StoreSpec

    near, far = peers
    monkeypatch.setenv("PROXYSTORE_HOME", str(near.home))
    open_store.cache_clear()
    there = ship(SOME, near.store(far))
    assert there.key[1] == near.uuid
    worker = subprocess.run(
        [sys.executable, "-c", _WORKER, repr(there)],
        env=os.environ | {"PROXYSTORE_HOME": str(far.home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert worker.returncode == 0, worker.stderr
    back = eval(worker.stdout, {"Ref": Ref, "StoreSpec": StoreSpec})
    assert back.key[1] == far.uuid
    np.testing.assert_array_equal(fetch(back)["twice"], SOME["positions"] * 2)
    assert keys(back.store, {there.key, back.key}) == [back.key]  # over there it was evicted from here
    far.process.terminate()
    far.process.wait(10)
    with pytest.raises(Unreachable, match=r"does not answer: .*Request to peer .* failed: .*need UDP between them"):
        fetch(back)
    assert keys(back.store, {back.key}) == []
    evict(back)
    open_store.cache_clear()


FAR_SITE = """
from dataclasses import replace

def far() -> Site:
    here = local("far")

    def learn(resources):
        executor = here.learn(resources)
        executor.provider.worker_init += "\\nexport PROXYSTORE_HOME={home}"
        return executor

    return replace(here, learn=learn)

SITES["far"] = far
"""


@pytest.mark.slow
def test_a_campaign_whose_learning_has_an_endpoint_of_its_own(
    campaign: Start, peers: tuple[PeerEndpoint, PeerEndpoint], tmp_path: Path
) -> None:
    near, far = peers
    checkout = edited_checkout(tmp_path / "checkout", FAR_SITE.format(home=far.home))
    run = campaign(
        *ALL, "--ps-endpoints", f"{near.uuid},{far.uuid}", "--ml-site", "far", "--ps-threshold", "0",
        "--max-segments", "24", "--retrain-every", "12", "--min-model-versions", "1", "--no-control",
        env={"PROXYSTORE_HOME": str(near.home), "CANARY_TOKEN": "canary-77d1"}, checkout=checkout,
    )  # fmt: skip
    assert run.wait(200) == 0, run.err
    summary = run.summary()
    assert summary["failures"] == {}
    assert summary["model_versions"] >= 1
    assert summary["steered_fraction"] > 0
    assert summary["proxies"]["left"] == 0
    assert summary["proxies"]["created"] == summary["proxies"]["evicted"] > 0
    assert (near.n_objects(), far.n_objects()) == (0, 0)
    assert not [path for path in run.run_dir.rglob("*") if path.is_file() and b"canary-77d1" in path.read_bytes()]


@pytest.mark.slow
def test_a_site_without_an_endpoint_is_told_and_nothing_is_left(
    campaign: Start, peers: tuple[PeerEndpoint, PeerEndpoint], tmp_path: Path
) -> None:
    near, _ = peers
    checkout = edited_checkout(tmp_path / "checkout", FAR_SITE.format(home=tmp_path / "none"))
    run = campaign(
        *ALL, "--ps-endpoints", near.uuid, "--ml-site", "far", "--max-segments", "4", "--no-control",
        env={"PROXYSTORE_HOME": str(near.home)}, checkout=checkout,
    )  # fmt: skip
    assert run.wait(200) == 2
    assert f"none of the ProxyStore endpoints {near.uuid} runs on " in run.err
    assert f"(in {tmp_path / 'none'}): start one with `proxystore-endpoint start NAME`" in run.err
    assert not run.run_dir.exists()
    assert near.n_objects() == 0
