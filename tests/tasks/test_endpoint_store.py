"""A store in a real endpoint of ProxyStore's; what takes two of them is in tests/integration."""

import json
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tasks import endpoint_store
from tasks.endpoint_store import NEEDS, BoundedEndpointConnector, running
from tasks.errors import TooLarge, Unreachable
from tasks.messages import Ref, StoreSpec
from tasks.transport import copy, evict, fetch, keys, ship
from tests.endpointlab import LARGEST, PeerEndpoint, configure
from tests.integration.sites.conftest import free_ports

SOME = {"positions": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}
NOBODY = "7c4f1a52-0d8e-4b6e-9a55-3f2f6f0f8a11"


def test_arrays_come_back_until_they_are_evicted(endpoint_here: PeerEndpoint) -> None:
    before = endpoint_here.n_objects()
    ref = ship(SOME, endpoint_here.store())
    assert ref.key[1] == endpoint_here.uuid
    assert endpoint_here.n_objects() == before + 1
    np.testing.assert_array_equal(fetch(ref)["positions"], SOME["positions"])
    evict(ref)
    evict(ref)
    assert endpoint_here.n_objects() == before
    with pytest.raises(Unreachable, match=r"store test \(endpoint\) no longer holds"):
        fetch(ref)


def test_what_is_known_can_be_asked_for(endpoint_here: PeerEndpoint) -> None:
    store = endpoint_here.store()
    there, gone = ship(SOME, store), ship(SOME, store)
    evict(gone)
    assert keys(store) == []
    assert keys(store, {there.key, gone.key}) == [there.key]
    evict(there)


def test_data_move_to_files(endpoint_here: PeerEndpoint, file_store: StoreSpec) -> None:
    ref = ship(SOME, endpoint_here.store())
    np.testing.assert_array_equal(fetch(copy(ref, file_store))["positions"], SOME["positions"])
    evict(ref)


def test_the_endpoint_that_runs_is_found_among_those_that_do_not(endpoint_here: PeerEndpoint) -> None:
    dead = configure(endpoint_here.home, f"dead-{uuid.uuid4().hex[:6]}", free_ports(1)[0])
    # Somebody else has its port by now.
    taken = configure(endpoint_here.home, f"taken-{uuid.uuid4().hex[:6]}", endpoint_here.port)
    assert running([NOBODY, dead, taken, endpoint_here.uuid]).uuid == endpoint_here.uuid
    with pytest.raises(ConnectionError, match=f"none of the ProxyStore endpoints {dead}, {taken} runs on "):
        running([dead, taken])


def test_no_endpoint_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYSTORE_HOME", str(tmp_path / "none"))
    with pytest.raises(Unreachable) as caught:
        ship(SOME, StoreSpec("test", "endpoint", (("endpoints", NOBODY),)))
    sentence = str(caught.value)
    assert sentence.startswith("store test (endpoint) does not answer: none of the ProxyStore endpoints ")
    assert NOBODY in sentence
    assert str(tmp_path / "none") in sentence
    assert "`proxystore-endpoint start NAME`, or set PROXYSTORE_HOME" in sentence
    assert not (tmp_path / "none").exists()


def test_an_object_that_it_does_not_take_is_told(endpoint_here: PeerEndpoint) -> None:
    with pytest.raises(TooLarge, match=f"exceed the {LARGEST} that ProxyStore endpoint lone takes"):
        ship({"frames": np.zeros(LARGEST, np.uint8)}, endpoint_here.store())


def test_web_proxies_are_no_way_to_it(endpoint_here: PeerEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    evict(ship(SOME, endpoint_here.store()))


def test_an_endpoint_that_went_silent_is_not_waited_for(
    endpoint_here: PeerEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_store, "_ANSWERS_S", 0.3)
    monkeypatch.setattr(endpoint_store, "_CARRIES_S", 0.3)
    ref = ship(SOME, endpoint_here.store())
    os.kill(endpoint_here.process.pid, signal.SIGSTOP)
    try:
        for attempt in (lambda: fetch(ref), lambda: ship(SOME, ref.store), lambda: evict(ref)):
            with pytest.raises(Unreachable, match=f"does not answer: .*timed out.*; {NEEDS}"):
                attempt()
    finally:
        os.kill(endpoint_here.process.pid, signal.SIGCONT)
    evict(ref)


class _Restarting(BaseHTTPRequestHandler):
    """An endpoint whose first answers break off, and of whose peers none can be asked."""

    broken = 2

    def do_GET(self) -> None:
        if self.path.startswith("/endpoint"):
            self._answer(200, json.dumps({"uuid": self.server.uuid}))
        elif "page" in self.path:
            self._answer(500, "<!doctype html>\n<title>500</title>\n")
        elif NOBODY in self.path:
            self._answer(500, "Request to peer failed: no such peer")
        elif type(self).broken:
            type(self).broken -= 1
            self.close_connection = True
        else:
            self._answer(200, json.dumps({"exists": True}))

    do_POST = do_GET

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *told: object) -> None:
        """Say nothing."""


@pytest.fixture
def restarting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreSpec]:
    monkeypatch.setattr(_Restarting, "broken", 2)
    monkeypatch.setattr(endpoint_store, "_AGAIN_AFTER_S", (0.01, 0.01))
    monkeypatch.setenv("PROXYSTORE_HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Restarting) as server:
        server.uuid = configure(tmp_path, "restarting", server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield StoreSpec(f"test-{server.uuid}", "endpoint", (("endpoints", server.uuid),))
        server.shutdown()
        thread.join()


def test_a_stranger_at_the_port_is_no_endpoint(restarting: StoreSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dict(restarting.options)["endpoints"]
    assert endpoint_store.running([mine]).uuid == mine
    monkeypatch.setattr(
        _Restarting, "do_GET", lambda request: request._answer(200, json.dumps({"uuid": "somebody else"}))
    )
    with pytest.raises(ConnectionError, match="none of the ProxyStore endpoints"):
        endpoint_store.running([mine])


def test_a_connection_that_broke_is_made_again(restarting: StoreSpec) -> None:
    mine = ("object", dict(restarting.options)["endpoints"])
    assert keys(restarting, [mine]) == [mine]
    _Restarting.broken = 3
    with pytest.raises(Unreachable, match=f"does not answer: .*; {NEEDS}"):
        keys(restarting, [mine])


def test_an_endpoint_that_raised_is_told_on_one_line(restarting: StoreSpec) -> None:
    with pytest.raises(Unreachable, match=f"returned HTTP error code 500. Its log.txt tells why; {NEEDS}$"):
        fetch(Ref(restarting, ("page", dict(restarting.options)["endpoints"])))


def test_a_peer_that_cannot_be_asked_keeps_nobody_from_the_others(
    restarting: StoreSpec, caplog: pytest.LogCaptureFixture
) -> None:
    mine, lost = ("object", dict(restarting.options)["endpoints"]), ("object", NOBODY)
    assert keys(restarting, [lost, mine, ("another", NOBODY)]) == [mine]
    assert caplog.messages[0].startswith(f"ProxyStore endpoint {NOBODY} cannot be asked: ")
    assert len(caplog.messages) == 1
    evict(Ref(restarting, lost))
    assert caplog.messages[1].startswith(f"object object stays in ProxyStore endpoint {NOBODY}: ")
    with pytest.raises(Unreachable, match=f"no such peer; {NEEDS}"):
        fetch(replace(Ref(restarting), key=lost))


def test_a_connector_is_rebuilt_from_its_configuration(endpoint_here: PeerEndpoint) -> None:
    with BoundedEndpointConnector([endpoint_here.uuid]) as connector:
        again = BoundedEndpointConnector.from_config(connector.config())
        assert again.get(connector.put(b"bytes")) == b"bytes"
        assert again.get_batch(connector.put_batch([b"a", b"b"])) == [b"a", b"b"]
        again.close()
