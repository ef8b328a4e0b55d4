"""Coordinates of segments, from wherever their trajectories are, for whoever looks at a campaign."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from campaign.archives import split, unpacked
from campaign.ledger import ON_SCRATCH, read_ledger
from campaign.rundir import LEDGER
from tasks.errors import BadInput


def trajectory_files(run: Path, segments: Collection[int]) -> dict[int, tuple[Path, str | None]]:
    """Return where the trajectories of segments are: a file, or an archive and a name in it.

    Those without one, or whose trajectory is on a node's scratch, are left out.
    """
    wanted = set(segments)
    with read_ledger(run / LEDGER) as db:
        rows = db.execute("SELECT task_id, path FROM artifact WHERE kind = 'trajectory'")
        found = {number: path for number, path in rows if number in wanted and not path.startswith(ON_SCRATCH)}
    places = {number: split(path) for number, path in found.items()}
    return {number: (run / file, name) for number, (file, name) in places.items()}


def each_trajectory(files: dict[int, tuple[Path, str | None]]) -> Iterator[tuple[int, Path]]:
    """Yield segments and their trajectories as files that can be read, those of one archive together.

    What is in a damaged archive is left out.
    """
    for number in sorted(files, key=lambda number: (str(files[number][0]), number)):
        file, name = files[number]
        try:
            yield number, file if name is None else unpacked(file) / name
        except BadInput:
            continue


def read_positions(path: Path) -> np.ndarray:
    """Return the frames of a trajectory.

    MDAnalysis' file classes are used without its Universe, which takes ten times as long for a few frames, and which
    leaves a file of offsets beside an XTC.

    Returns
    -------
    ndarray of shape (n_frames, n_stored, 3), float32
        In nm.

    Raises
    ------
    BadInput
        When it cannot be read.
    """
    try:
        if path.suffix == ".xtc":
            from MDAnalysis.lib.formats.libmdaxdr import XTCFile

            with XTCFile(str(path)) as file:
                return np.stack([frame.x.copy() for frame in file])
        from MDAnalysis.lib.formats.libdcd import DCDFile

        with DCDFile(str(path)) as file:
            return np.asarray(file.readframes().xyz / 10.0, dtype=np.float32)
    except (OSError, ValueError, RuntimeError, EOFError) as error:
        raise BadInput(f"trajectory {path} cannot be read ({error}): restore it from a copy") from error


def read_boxes(path: Path) -> np.ndarray:
    """Return the box vectors of each frame (n_frames, 3, 3), in nm."""
    if path.suffix == ".xtc":
        from MDAnalysis.lib.formats.libmdaxdr import XTCFile

        # Not its reader, which leaves a file of offsets beside it.
        with XTCFile(str(path)) as file:
            return np.stack([frame.box.copy() for frame in file])
    from MDAnalysis.coordinates.DCD import DCDReader

    with warnings.catch_warnings():
        # Of steps that it copies, which is no matter here.
        warnings.simplefilter("ignore", DeprecationWarning)
        with DCDReader(str(path)) as frames:
            return np.stack([frame.triclinic_dimensions / 10.0 for frame in frames])
