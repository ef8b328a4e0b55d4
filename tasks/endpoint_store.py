"""A store that is peer to peer: ProxyStore's endpoints, one running at each site, pass data on to each other.

What is put lies in the memory of the endpoint next to who put it. Endpoints find each other through a relay server,
and then talk by UDP (https://docs.proxystore.dev/latest/guides/endpoints/).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import requests
from proxystore.connectors.endpoint import EndpointConnector, EndpointKey
from proxystore.endpoint import client
from proxystore.endpoint.config import EndpointConfig, get_configs
from proxystore.utils.environment import home_dir, hostname

from tasks.errors import TooLarge

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

NEEDS = "endpoints of different sites need UDP between them, and a relay server that all reach by websockets"

_CONNECTS_S = 5.0
# An endpoint waits 30 s for another before it says that there is none.
_ANSWERS_S = 45.0
# It passes on what another holds when it has all of it: 100 MB, at the 1.6 MB/s between two on one computer.
_CARRIES_S = 300.0

_AGAIN_AFTER_S = (0.1, 1.0, 3.0)


def running(endpoints: Collection[str]) -> EndpointConfig:
    """Return that of some endpoints which runs here: it is configured in this user's ProxyStore home, and answers.

    Raises
    ------
    ConnectionError
        When there is none.
    """
    with _session(_ANSWERS_S) as session:
        for config in get_configs(home_dir()):
            if config.host is not None and str(UUID(config.uuid)) in endpoints and _answers(config, session):
                return config
    raise ConnectionError(
        f"none of the ProxyStore endpoints {', '.join(endpoints)} runs on {hostname()} (in {home_dir()}): start one "
        "with `proxystore-endpoint start NAME`, or set PROXYSTORE_HOME"
    )


def _answers(config: EndpointConfig, session: requests.Session) -> bool:
    try:
        told = session.get(f"{_address(config)}/endpoint").json()["uuid"]
    # Nobody listens there any more, or it is somebody else.
    except (OSError, LookupError, TypeError):
        return False
    return bool(str(told).lower() == str(UUID(config.uuid)))


def _address(config: EndpointConfig) -> str:
    return f"http://{config.host}:{config.port}"


def _session(answers_s: float) -> requests.Session:
    """Return a session that gives up in time, and asks endpoints themselves, whatever web proxy there is."""
    session = requests.Session()
    session.trust_env = False
    session.request = partial(session.request, timeout=(_CONNECTS_S, answers_s))
    return session


class BoundedEndpointConnector(EndpointConnector):
    """ProxyStore's connector, with bounded waits, and errors that tell what an endpoint said of them.

    ProxyStore's own waits for ever where an endpoint, or one that this passes a request on to, went silent; looks no
    further than the first configuration whose endpoint is down; and asserts that whatever went wrong has an answer.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:  # ProxyStore's looks for the endpoint in a way of its own
        home = running(endpoints)
        self.endpoints = [UUID(endpoint) for endpoint in endpoints]
        self.endpoint_uuid = UUID(home.uuid)
        self.address = _address(home)
        self._name, self._largest = home.name, home.storage.max_object_size
        self._session, self._patient = _session(_ANSWERS_S), _session(_CARRIES_S)

    def config(self) -> dict[str, Any]:
        """Return what rebuilds the connector."""
        return {"endpoints": [str(endpoint) for endpoint in self.endpoints]}

    def close(self) -> None:
        """Close connections; what was put stays."""
        self._session.close()
        self._patient.close()

    def set(self, key: EndpointKey, obj: Any) -> None:
        """Store an object under a key.

        Raises
        ------
        TooLarge
            When the endpoint does not take it.
        """
        if len(obj) > self._largest:
            raise TooLarge(
                f"{len(obj)} bytes exceed the {self._largest} that ProxyStore endpoint {self._name} takes: raise "
                "max_object_size in its config.toml, or choose another ProxyStore backend"
            )
        _again(lambda: client.put(self.address, key.object_id, bytes(obj), key.endpoint_id, self._session))

    def get(self, key: EndpointKey) -> bytes | None:
        """Return an object, from whichever endpoint it lies in; None where it is gone."""
        return _again(lambda: client.get(self.address, key.object_id, key.endpoint_id, self._patient))

    def exists(self, key: EndpointKey) -> bool:
        """Return whether an object is there."""
        return _again(lambda: client.exists(self.address, key.object_id, key.endpoint_id, self._session))

    def evict(self, key: EndpointKey) -> None:
        """Remove an object; one whose endpoint cannot be asked stays there, for its memory alone."""
        try:
            _again(lambda: client.evict(self.address, key.object_id, key.endpoint_id, self._session))
        except ConnectionError as error:
            if key.endpoint_id == str(self.endpoint_uuid):
                raise
            logger.warning("object %s stays in ProxyStore endpoint %s: %s", *key, error)

    def present(self, keys: Collection[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return which of some keys' objects are there; those of an endpoint that cannot be asked are not."""
        found: list[tuple[str, ...]] = []
        silent: set[str | None] = set()
        for key in map(EndpointKey._make, keys):
            try:
                if key.endpoint_id not in silent and self.exists(key):
                    found.append(tuple(map(str, key)))
            except ConnectionError as error:
                if key.endpoint_id == str(self.endpoint_uuid):
                    raise
                logger.warning("ProxyStore endpoint %s cannot be asked: %s", key.endpoint_id, error)
                silent.add(key.endpoint_id)
        return found


def _again(ask: Callable[[], Answer]) -> Answer:
    """Ask again where a connection broke: endpoints close those that are idle, and are restarted.

    Raises
    ------
    ConnectionError
        When there is no answer to work with.
    """
    pauses_s = iter(_AGAIN_AFTER_S)
    while True:
        try:
            return ask()
        except requests.RequestException as error:
            pause_s = next(pauses_s, None) if isinstance(error, requests.ConnectionError) else None
            if pause_s is None:
                raise ConnectionError(f"{_sentence(error)}; {NEEDS}") from error
        time.sleep(pause_s)


def _sentence(error: Exception) -> str:
    """Return an error on one line; an endpoint that raised itself answers with a page for browsers."""
    said, page, _ = str(error).partition("<!doctype")
    return " ".join(said.split()) + (" Its log.txt tells why" if page else "")
