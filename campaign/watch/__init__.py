"""A campaign followed from its ledger and traces alone: it does not notice, and is outlived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from campaign.looking import Watch


def follow(run: Path, how: Watch, is_over: Callable[[], bool]) -> None:
    """Show a campaign, on a page or in the terminal, until told to end.

    Raises
    ------
    BadInput
        When there is none, or the page's port cannot be had.
    """
    if how.terminal:
        from campaign.watch.terminal import show

        show(run, is_over)
        return
    from campaign.watch.server import serve

    serve(run, how.port, is_over)
