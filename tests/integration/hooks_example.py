"""What a campaign's segments look like, one by one: run with ``--after-segment hooks_example:shape``.

Any function of the run directory and a segment will do; the numbers that it returns lie in the ledger, in the table
``hook_value``.
"""

from pathlib import Path

import MDAnalysis
from MDAnalysis.analysis.rms import rmsd

from tasks.messages import SegmentSummary


def shape(run: Path, segment: SegmentSummary) -> dict[str, float]:
    """Return the RMSD of a segment's last frame to its first, and its mean radius of gyration, both in nm."""
    universe = MDAnalysis.Universe(run / segment.topology, run / segment.trajectory)
    heavy = universe.select_atoms("not element H")
    coordinates = [heavy.positions.copy() for _ in universe.trajectory]
    radii = [heavy.radius_of_gyration() for _ in universe.trajectory]
    return {
        "rmsd_nm": rmsd(coordinates[-1], coordinates[0], superposition=True) / 10,
        "rg_nm": sum(radii) / len(radii) / 10,
    }
