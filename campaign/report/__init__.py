"""A page with all that is to be seen of a campaign."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(runs: Sequence[Path], out: Path | None) -> Path:
    """Write the report of a run, or a comparison of several, and return its path."""
    raise NotImplementedError
