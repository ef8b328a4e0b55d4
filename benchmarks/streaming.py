"""What it is worth, and costs, to look at segments while they run.

**Delay.** From when a frame is made until it is embedded at the learning site, with batches of 1 s of segments of
20 s, two at once, while the campaign trains its autoencoder at the same worker; beside it, what it takes where the
segment's end is waited for. Every frame of a batch counts from its own making. Wanted: a median of at most 1 s. With
``--ssh-host`` learning is behind ssh; ``python -m tests.integration.sites.lab two-hosts`` lends a far host.

**Cost.** CPU seconds that it adds per simulated ps to show each frame of alanine dipeptide, one each 0.25 ps: to a
function of the user's, to IMD clients where there is none and where there is one that reads all, and to the learning
site in batches of a tenth of a segment and of one frame. All threads of the worker's process count, those who read
not. Wanted: at most 5 % with a listener, 1 % without.

**Stops.** Coverage of alanine dipeptide's phi/psi plane (cells of 15 degrees) for equal simulated time, what was
simulated of stopped segments counted, with and without ``--stop-below``, in segments of 2, 20 and 100 ps in batches
of a tenth; 0.3, 1 and 2 ns in all. Segments are padded to 0.05, 0.02 and 0.01 s per ps, standing for a slower
engine, so that a verdict can come in time. Seeds 7001 to 7016, which nothing was tuned on. No figure is wanted: it
may not pay.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import stream_cost, stream_delay, stream_stops
from benchmarks.harness import Figure, Figures, Session, run

PARTS = {"delay": stream_delay.figures, "cost": stream_cost.figures, "stops": stream_stops.figures}


def measure(session: Session) -> Figures:
    """Return the figures of the parts that were asked for."""
    found: dict[str, Figure] = {}
    for part in session.options.parts or PARTS:
        found |= PARTS[part](session)
    return found


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="only these")
    parser.add_argument("--ssh-host", metavar="HOST", help="learn there, in the part delay")
    parser.add_argument("--ssh-config", metavar="FILE", help="that knows the host (default: the user's own)")
    parser.add_argument("--ssh-init", metavar="LINE", help="shell line that brings Python and `tasks` there")
    parser.add_argument("--repeats", type=int, metavar="N", help="of delay (default 3, quick 1) and cost (10, 3)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="of stops (quick: 2)")
    parser.add_argument(
        "--lengths",
        type=float,
        nargs="+",
        choices=list(stream_stops.LENGTHS),
        metavar="PS",
        help="of stops: 2, 20, 100",
    )
    parser.add_argument("--below", type=float, nargs="+", metavar="SHARE", help="of stops (default: 0.5)")


if __name__ == "__main__":
    sys.exit(run("streaming", __doc__, measure, _options))
