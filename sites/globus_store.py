"""Is a Globus store ready to be used from here? Asked before anything starts, so that no worker waits for a login."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

from proxystore.connectors.globus import GlobusEndpoint, GlobusEndpoints

from tasks.errors import BadInput


def check(path: Path) -> None:
    """Refuse a file of Globus endpoints that cannot work on this machine.

    Raises
    ------
    BadInput
        When it cannot be read, no endpoint is this machine's, there is no second one, or nobody has logged in.
    """
    endpoints = _read(path)
    host = socket.gethostname()
    if not any(re.fullmatch(endpoint.host_regex, host) for endpoint in endpoints):
        regexes = ", ".join(str(endpoint.host_regex) for endpoint in endpoints)
        raise BadInput(f"--ps-globus-config {path}: no host_regex ({regexes}) matches this host, {host}; mend one")
    if len(endpoints) < 2:
        raise BadInput(f"--ps-globus-config {path} names one endpoint: a transfer needs two")
    _check_login(path)


def _read(path: Path) -> list[GlobusEndpoint]:
    try:
        return list(GlobusEndpoints.from_json(str(path)))
    except OSError as error:
        raise BadInput(f"--ps-globus-config {path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        raise BadInput(
            f"--ps-globus-config {path} is not a file of endpoints ({error}): see globus_config.json for an example"
        ) from error


def _check_login(path: Path) -> None:
    import globus_sdk
    from proxystore.globus.app import get_globus_app, is_client_login

    if is_client_login():
        return
    app = get_globus_app()
    globus_sdk.TransferClient(app=app)  # names the scopes that a login must have
    if app.login_required():
        raise BadInput(
            f"--ps-globus-config {path}: nobody has logged in to Globus here; run `proxystore-globus-auth login` "
            "once, or set PROXYSTORE_GLOBUS_CLIENT_ID and PROXYSTORE_GLOBUS_CLIENT_SECRET"
        )
