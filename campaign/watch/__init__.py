"""A campaign followed from its ledger and traces alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from campaign.looking import Watch


def follow(run: Path, how: Watch, is_over: Callable[[], bool]) -> None:
    """Show a campaign until it has ended."""
    raise NotImplementedError
