"""A bare OpenMM loop, what a campaign is held against: ``python -m benchmarks.bare SYSTEM DYNAMICS SECONDS OUT``.

Runs a prepared system (packed) for so many seconds with the campaign's own integrator, writes the same frames to the
same format with OpenMM's own writer, and prints as JSON when each stretch of a segment's length ended (UNIX seconds).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from openmm import app

from tasks.engine import make_context
from tasks.messages import Dynamics
from tasks.prepared import PreparedSystem
from tasks.transport import unpack


def main(system: str, dynamics: str, seconds: str, out: str) -> None:
    """Run the loop."""
    prepared = PreparedSystem.from_arrays(unpack(Path(system).read_bytes()))
    settings = Dynamics(**json.loads(dynamics))
    print(json.dumps(segment_ends(prepared, settings, float(seconds), Path(out))))


def segment_ends(prepared: PreparedSystem, dynamics: Dynamics, seconds: float, out: Path) -> list[float]:
    """Return when each segment ended (UNIX seconds); there are three at least."""
    context = make_context(prepared, dynamics)
    context.setVelocitiesToTemperature(dynamics.temperature_K, 1)
    integrator = context.getIntegrator()
    topology = app.PDBFile(_topology(prepared, out)).topology
    ends: list[float] = []
    deadline = time.monotonic() + seconds
    with out.open("wb") as file:
        trajectory = app.DCDFile(file, topology, dynamics.timestep_ps, interval=dynamics.frame_steps)
        while time.monotonic() < deadline or len(ends) < 3:
            for _ in range(dynamics.n_frames):
                integrator.step(dynamics.frame_steps)
                trajectory.writeModel(context.getState(positions=True).getPositions(asNumpy=True))
            ends.append(time.time())
    return ends


def _topology(prepared: PreparedSystem, out: Path) -> str:
    path = out.with_suffix(".pdb")
    path.write_text(prepared.topology_pdb)
    return str(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
