"""Endpoints of ProxyStore that cannot be used are refused before anything starts."""

from pathlib import Path

import pytest

from sites import endpoint_store
from tasks.errors import BadInput
from tests.endpointlab import PeerEndpoint

NOBODY = "7c4f1a52-0d8e-4b6e-9a55-3f2f6f0f8a11"
NEEDS = "endpoints of different sites need UDP between them, and a relay server that all reach by websockets"


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYSTORE_HOME", str(tmp_path))


def refusal(endpoints: list[str]) -> str:
    with pytest.raises(BadInput) as caught:
        endpoint_store.check(endpoints)
    return str(caught.value)


@pytest.mark.usefixtures("nobody")
def test_no_endpoint_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_store, "find_spec", lambda name: object())
    sentence = refusal([NOBODY])
    assert sentence.startswith(f"--ps-endpoints: none of the ProxyStore endpoints {NOBODY} runs on ")
    assert sentence.endswith(f"start one with `proxystore-endpoint start NAME`, or set PROXYSTORE_HOME; {NEEDS}")


@pytest.mark.usefixtures("nobody")
def test_what_is_missing_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_store, "find_spec", lambda name: None if name in ("aiortc", "quart") else object())
    assert "(first `pip install 'proxystore[endpoints]'`, for aiortc, quart)" in refusal([NOBODY])


def test_one_that_runs_is_enough(endpoint_here: PeerEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever environment runs it.
    monkeypatch.setattr(endpoint_store, "find_spec", lambda name: None)
    endpoint_store.check([NOBODY, endpoint_here.uuid])
