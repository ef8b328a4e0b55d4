"""Does one of ProxyStore's endpoints run here? Asked before anything starts, as every process will ask."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from tasks.errors import BadInput

# What a daemon of an endpoint imports, and what talks to one does not.
_OF_THE_EXTRA = ("aiortc", "quart", "uvicorn", "uvloop", "websockets")


def check(endpoints: Sequence[str]) -> None:
    """Refuse endpoints none of which runs on this machine.

    Raises
    ------
    BadInput
        With how to start one; and how to install it, where that is what is missing.
    """
    from tasks.endpoint_store import NEEDS, running

    try:
        running(endpoints)
    except ConnectionError as error:
        missing = [name for name in _OF_THE_EXTRA if find_spec(name) is None]
        install = f" (first `pip install 'proxystore[endpoints]'`, for {', '.join(missing)})" if missing else ""
        raise BadInput(f"--ps-endpoints: {error}{install}; {NEEDS}") from error
