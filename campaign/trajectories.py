"""Coordinates of segments, from wherever their trajectories are, for whoever looks at a campaign."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Collection, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from campaign.archives import split, unpack_archive
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
    """Yield segments and their trajectories as files that can be read until the next is asked for.

    Archives are unpacked one at a time, each once; what is in a damaged one is left out.
    """
    places = sorted((str(file), name or "", number) for number, (file, name) in files.items())
    for file, members in groupby(places, key=itemgetter(0)):
        each = [(number, name) for _, name, number in members]
        if not each[0][1]:
            yield from ((number, Path(file)) for number, _ in each)
            continue
        with tempfile.TemporaryDirectory(prefix="wayfinder-trajectories-") as scrap:
            try:
                unpack_archive(Path(file), Path(scrap) / "all")
            except BadInput:
                continue
            yield from ((number, Path(scrap) / "all" / name) for number, name in each)


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
    """Return the box vectors of each frame (n_frames, 3, 3), in nm.

    Raises
    ------
    BadInput
        When it cannot be read, or has none.
    """
    try:
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
    except (OSError, ValueError, RuntimeError, EOFError, TypeError) as error:
        raise BadInput(f"boxes of trajectory {path} cannot be read ({error}): restore it from a copy") from error
