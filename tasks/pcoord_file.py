"""What ``python -m tasks.infer`` does: embed a trajectory's frames, and write them as WESTPA reads a coordinate.

For a stock ``runseg.sh`` or ``get_pcoord.sh``: needs the wheel of `tasks` with torch, neither OpenMM nor a
campaign.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.coordinate import checked, coordinate_kind, latent_dimensions
from tasks.embed_coordinate import project
from tasks.errors import BadInput, CoordinateFailed
from tasks.messages import Coordinate
from tasks.models import Model, load_model
from tasks.periodic import make_whole, nearest_tree
from tasks.reading import box_around, reading, require_file, said_of
from tasks.selection import select_atoms


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file that the command line asks for; return the exit code, 2 for what cannot be used."""
    arguments = _parser().parse_args(argv)
    try:
        rows = embed_trajectories(
            arguments.trajectories, arguments.topology, arguments.weights, arguments.pcoord, arguments.features
        )
        _write(arguments.out, rows)
    except (BadInput, CoordinateFailed) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def embed_trajectories(
    trajectories: Sequence[Path], topology: Path, weights: Path, pcoord: str = "aae:0,1", features: str | None = None
) -> np.ndarray:
    """Return dimensions of the embedding of each frame, (n_frames, n_dimensions) float32.

    Parameters
    ----------
    trajectories
        One after the other; a structure is a trajectory of one frame.
    topology
        PDB file of their atoms, as a run keeps it.
    weights
        A file of a run's folder ``models/``.
    features
        MDAnalysis selection of what the model was trained on; None for what a campaign takes.

    Raises
    ------
    BadInput
        When a file cannot be read, they do not fit each other, or the model sees other atoms.
    CoordinateFailed
        When a value is not finite.
    """
    if coordinate_kind(pcoord) != "aae":
        raise BadInput(
            f"--pcoord {pcoord} is no part of an embedding, and only those are computed here: give aae:0,1"
        )
    dimensions = latent_dimensions(pcoord)
    model = _model(weights)
    points = np.concatenate(_points(trajectories, topology, features))
    coordinate = Coordinate("aae", tuple(f"z{number}" for number in dimensions), dimensions)
    return checked(coordinate, project(model, points, dimensions))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.infer",
        description="Embed the frames of trajectories, and write a row of latent dimensions for each, as WESTPA "
        "reads a progress coordinate. For its first row to be the parent's last frame, give that structure first.",
    )
    parser.add_argument("trajectories", nargs="+", type=Path, metavar="TRAJECTORY", help="anything MDAnalysis reads")
    parser.add_argument(
        "--topology", required=True, type=Path, metavar="PDB", help="their atoms: a run's topology.pdb"
    )
    parser.add_argument(
        "--weights", required=True, type=Path, metavar="FILE", help="a file of a run's folder models/"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="text, one row a frame")
    parser.add_argument("--pcoord", default="aae:0,1", help="dimensions of the embedding (default: aae:0,1)")
    parser.add_argument(
        "--features",
        metavar="SELECTION",
        help="atoms that the model sees, as a selection of MDAnalysis (default: as in a campaign, heavy atoms, or "
        "alpha carbons from 40 residues on)",
    )
    return parser


def _model(weights: Path) -> Model:
    with said_of(f"--weights {weights}", "give a file of a run's folder models/"):
        data = weights.read_bytes()
    try:
        return load_model(data)
    except BadInput as error:
        raise BadInput(f"--weights {weights}: {error}") from error


def _points(trajectories: Sequence[Path], topology: Path, features: str | None) -> list[np.ndarray]:
    """Return what the model sees of each trajectory, (n_frames, n_points, 3) float32 in nm, whole."""
    with said_of(f"--topology {topology}", "give a PDB file"):
        text = topology.read_text(encoding="utf-8")
        seen, _, _ = select_atoms(text, features)
    return [_points_of(trajectory, topology, seen) for trajectory in trajectories]


def _points_of(trajectory: Path, topology: Path, seen: np.ndarray) -> np.ndarray:
    import MDAnalysis

    said = f"trajectory {trajectory}"
    with reading(said, f"give one of the atoms of {topology}, in a format that MDAnalysis reads"):
        require_file(trajectory)
        universe = MDAnalysis.Universe(str(topology), str(trajectory), topology_format="PDB")
        frames, boxes = _frames(universe, seen)
    if not len(frames):
        raise BadInput(f"{said} has no frames: give one that was written to its end")
    if not np.isfinite(frames).all():
        raise BadInput(f"{said} holds coordinates that are no numbers: look at the dynamics that wrote it")
    if boxes is None:
        return frames
    # In a run the tree is that of its start; a molecule whole in any frame gives one as good.
    return make_whole(frames, boxes, nearest_tree(frames[0], boxes[0]))


def _frames(universe: Any, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return positions of some atoms, and boxes unless a frame has none, float32 in nm."""
    frames, boxes = [], []
    for step in universe.trajectory:
        frames.append(step.positions[seen] / np.float32(10))
        boxes.append(box_around(step))
    positions = np.array(frames, dtype=np.float32).reshape(len(frames), len(seen), 3)
    whole = [box for box in boxes if box is not None]
    return positions, np.array(whole, dtype=np.float32) if whole and len(whole) == len(boxes) else None


def _write(path: Path, rows: np.ndarray) -> None:
    """Write rows as `numpy.loadtxt` reads them, in one step that no reader sees in part."""
    text = io.StringIO()
    np.savetxt(text, rows, fmt="%.9g")  # as many digits as a float32 has
    with said_of(f"--out {path}", "give a file in a folder that can be written to"):
        # Such as /dev/stdout, which is not to be replaced by a file.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_text(text.getvalue())
            return
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            staged.write_text(text.getvalue())
            os.replace(staged, path)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
