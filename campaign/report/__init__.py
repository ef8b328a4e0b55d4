"""A page with all that is to be seen of a campaign, and one that compares several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.errors import BadInput

REPORT, COMPARISON = "report.html", "comparison.html"


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of a run, or a comparison of several, and return its path.

    Parameters
    ----------
    out
        None for ``report.html`` in the run's directory, or ``comparison.html`` beside the first of several.

    Raises
    ------
    BadInput
        When a run is none or damaged, or the page cannot be written.
    """
    from campaign.report.comparison import compare
    from campaign.report.single import report_on
    from campaign.trace import Run

    found = [Run(path) for path in runs]
    if len(found) == 1:
        path = out or found[0].path / REPORT
        report_on(found[0], path)
        return path
    if len({run.path.resolve() for run in found}) < len(found):
        raise BadInput("report compares runs and one is named twice: name each once")
    path = out or found[0].path.resolve().parent / COMPARISON
    compare(found, path)
    return path
