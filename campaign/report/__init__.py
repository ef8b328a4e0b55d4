"""A page with all that is to be seen of a campaign, and one that compares several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.errors import BadInput

REPORT, COMPARISON = "report.html", "comparison.html"

# Coordinates take at most so many bytes of a report (a third more, written as text), whatever the molecule; and of
# segments, and of frames of each, no more than a person looks at.
_BUDGET = 9_000_000
MOST_SEGMENTS = 1_200
_MOST_FRAMES_EACH = 10

# Of libraries, styles and figures, and of each segment in the maps and the tree: seen in reports of 120 to 10 000
# segments, 26 November 2026.
_PAGE_BYTES, _SHOWN_BYTES = 5_500_000, 300


def room(n_atoms: int) -> tuple[int, int]:
    """Return of how many segments a report shows coordinates, and of how many frames of each."""
    per_frame = 6 * n_atoms
    n_segments = min(max(_BUDGET // per_frame, 1), MOST_SEGMENTS)
    n_frames = min(max(_BUDGET // (per_frame * n_segments), 1), _MOST_FRAMES_EACH)
    return n_segments, n_frames


def report_bytes(n_segments: int, n_frames: int, n_atoms: int) -> int:
    """Return about how large the report of so many segments is, whose trajectories have so many frames and atoms."""
    most_segments, most_frames = room(n_atoms)
    shown = min(n_segments, most_segments)
    coordinates = min(shown * min(n_frames, most_frames) * 6 * n_atoms, _BUDGET)
    return _PAGE_BYTES + _SHOWN_BYTES * shown + coordinates * 4 // 3


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
