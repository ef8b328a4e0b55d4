"""What Globus Compute says of an endpoint, asked in a process of its own: its client must not cross a fork."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from uuid import UUID

from tasks.errors import BadInput

_ANSWERS_WITHIN_S = 90


def check(endpoint_id: str) -> None:
    """Refuse an endpoint that cannot take work.

    Raises
    ------
    BadInput
        With what the service said, and what to do about it.
    """
    try:
        UUID(endpoint_id)
    except ValueError:
        raise BadInput(
            f"endpoint {endpoint_id!r} is not a UUID: take the one that `globus-compute-endpoint list` shows there"
        ) from None
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "sites.globus_service", endpoint_id],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWERS_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        raise BadInput(
            f"endpoint {endpoint_id}: Globus Compute does not answer within {_ANSWERS_WITHIN_S} s; check the network"
        ) from None
    lines = asked.stdout.splitlines()
    if asked.returncode != 0 or not lines:
        words = (asked.stderr.strip().splitlines() or ["nothing"])[-1]
        raise BadInput(f"endpoint {endpoint_id}: the SDK ended with {words!r}; try `globus-compute-endpoint whoami`")
    problem = json.loads(lines[-1])
    if problem is not None:
        raise BadInput(f"endpoint {endpoint_id}: {problem}")


def problem_of(endpoint_id: str) -> str | None:
    """Return why an endpoint cannot take work; None where it can."""
    from globus_compute_sdk import Client
    from globus_compute_sdk.sdk.auth.globus_app import get_globus_app
    from globus_sdk import GlobusAPIError, NetworkError, UserApp

    app = get_globus_app()
    try:
        client = Client(app=app, do_version_check=False)
        if isinstance(app, UserApp) and app.login_required():
            return (
                "nobody has logged in to Globus Compute here; run `globus-compute-endpoint login` once, or set "
                "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET"
            )
        status = client.get_endpoint_status(endpoint_id)["status"]
    except GlobusAPIError as error:
        if error.http_status == 404:
            return "Globus Compute does not know it: check the UUID, and that your identity may use it"
        return f"Globus Compute answered {error.http_status}: {error.message}"
    except NetworkError as error:
        return f"Globus Compute cannot be reached ({error}): check the network"
    if status != "online":
        return f"it is {status}: run `globus-compute-endpoint start NAME` on its machine"
    return None


if __name__ == "__main__":
    print(json.dumps(problem_of(sys.argv[1])))
