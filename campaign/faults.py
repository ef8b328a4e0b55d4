"""Named commit points at which a test can kill the process, to show that nothing is lost there."""

from __future__ import annotations

import os
import signal
from collections import Counter

POINTS = (
    "before-commit", "after-commit", "after-send", "before-evict", "before-publish", "after-trace", "before-gather",
    "after-gather", "before-park", "after-park", "before-summary", "west-append", "west-rebuild",
)  # fmt: skip

_passages: Counter[str] = Counter()


def reach(point: str) -> None:
    """Pass a commit point; SIGKILL this process if ``WAYFINDER_KILL_AT=<point>[:<n>]`` names this passage."""
    wanted = os.environ.get("WAYFINDER_KILL_AT")
    if wanted is None:
        return
    name, _, count = wanted.partition(":")
    _passages[point] += 1
    if name == point and _passages[point] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
