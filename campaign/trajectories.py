"""Coordinates of segments, from wherever their trajectories are, for whoever looks at a campaign."""

from __future__ import annotations

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


def each_trajectory(files: dict[int, tuple[Path, str | None]]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield segments and their frames, those of one archive together; what cannot be read is left out.

    Yields
    ------
    int
        Id of the segment.
    ndarray of shape (n_frames, n_stored, 3), float32
        In nm.
    """
    for number in sorted(files, key=lambda number: (str(files[number][0]), number)):
        file, name = files[number]
        try:
            yield number, read_positions(file if name is None else unpacked(file) / name)
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
