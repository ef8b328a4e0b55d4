"""Write a segment's frames as a trajectory that MDAnalysis, and any other reader, opens."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tasks.files import stage
from tasks.gather import keep_pending
from tasks.messages import FileRecord, SegmentSpec


def write_trajectory(spec: SegmentSpec, frames: np.ndarray, boxes: np.ndarray | None) -> FileRecord | None:
    """Write frames beside the node, then bring them to its scratch or into the run directory; nothing without one.

    Parameters
    ----------
    frames : ndarray of shape (n_frames, n_stored, 3), float32
        In nm.
    boxes : ndarray of shape (n_frames, 3, 3), float32
        Box vectors in nm; None where the system is not periodic.
    """
    if spec.run_dir is None:
        return None
    suffix = spec.trajectory_format
    handle, path = tempfile.mkstemp(prefix="wayfinder-", suffix=f".{suffix}")
    os.close(handle)
    try:
        _write(path, frames, boxes, spec.dynamics.frame_ps)
        data = Path(path).read_bytes()
    finally:
        os.unlink(path)
    if spec.scratch is not None:
        return keep_pending(spec, spec.scratch, data)
    # Not synced: a segment whose file a power cut tore is told by its checksum, and run again.
    name = f"trajectories/{spec.segment_id:08d}.{suffix}"
    return stage(spec.run_dir, name, data, spec.attempt, durable=False)


def _write(path: str, frames: np.ndarray, boxes: np.ndarray | None, frame_ps: float) -> None:
    import MDAnalysis as mda
    from MDAnalysis.lib.mdamath import triclinic_box

    universe = _universe(frames.shape[1], boxes is not None)
    # DCD keeps no times, but the number of its first frame: 1, since the start frame is left out.
    with mda.Writer(path, n_atoms=frames.shape[1], dt=frame_ps, istart=1) as writer:
        for number, frame in enumerate(frames, start=1):
            universe.atoms.positions = frame * 10.0  # MDAnalysis speaks Angstrom
            if boxes is not None:
                universe.dimensions = triclinic_box(*boxes[number - 1] * 10.0)
            universe.trajectory.ts.frame = number
            universe.trajectory.ts.time = number * frame_ps
            writer.write(universe)


@lru_cache(maxsize=4)
def _universe(n_atoms: int, periodic: bool) -> Any:
    """Return a Universe to write from, kept between segments; periodic ones apart, for they keep their last box."""
    import MDAnalysis as mda

    return mda.Universe.empty(n_atoms, trajectory=True)
