"""All trajectories of a run joined into one, with an index that says which frame is whose, and a topology."""

from __future__ import annotations

import csv
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from campaign.archives import split, unpack_archive
from campaign.export.places import refuse_own, written_whole
from campaign.flags import shown
from campaign.ledger import ON_SCRATCH
from campaign.rundir import TOPOLOGY
from campaign.settings import Settings
from campaign.trace import Run
from tasks.errors import BadInput
from tasks.gather import digest_of

_OPTION = "--trajectory"

# What MDAnalysis writes frame by frame, for any atoms.
_FORMATS = (".dcd", ".xtc", ".trr", ".nc", ".ncdf", ".h5md", ".xyz")

# Readers of these keep where frames begin in a file beside them.
_LEAVE_OFFSETS = (".xtc", ".trr")


@dataclass(frozen=True, slots=True)
class _Segment:
    """A complete segment of the ledger, and where its trajectory is."""

    id: int
    walker_id: int | None
    iteration: int
    path: str
    sha256: str


def write_trajectory(run: Run, place: Path, select: str = "all", stride: int = 1) -> str:
    """Write the joined trajectory, ``FILE.csv`` and the topology, and return what is to be said of them.

    Segments follow each other in the order of their ids. The first frame of a segment is one step of ``--frame-ps``
    after its start, which is the frame of another segment, or a basis state.

    Parameters
    ----------
    place
        Its suffix says the format.
    select
        Atoms, as MDAnalysis selects them.
    stride
        Every so many frames of all that are joined, from the first on.

    Raises
    ------
    BadInput
        When the format or the selection cannot be used, no segment is complete, a trajectory is missing, damaged or
        on a node's scratch, or the place cannot be written; nothing is left then.
    """
    index, topology = place.with_name(f"{place.name}.csv"), place.with_suffix(".pdb")
    refuse_own(_OPTION, place, index, topology)
    segments, n_on_scratch = _segments(run)
    atoms = _selected(run, select)
    _refuse_format(place)
    with ExitStack() as stack:
        parts = [stack.enter_context(written_whole(each, _OPTION)) for each in (place, index, topology)]
        stack.enter_context(_quiet())
        _write_topology(run, atoms, parts[2])
        with parts[1].open("w", newline="") as rows:
            n_frames = _join(run, segments, atoms, stride, str(parts[0]), rows)
    return (
        f"{place} has {n_frames} frames of {len(segments)} segments; {index.name} says which is whose, and "
        f"{topology.name} what the atoms are"
        + (f"; {n_on_scratch} segments on nodes' scratch are left out" if n_on_scratch else "")
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what MDAnalysis misses in what it writes: boxes of systems without one, charges, ...."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="MDAnalysis")
        yield


def _write_topology(run: Run, atoms: Any, part: Path) -> None:
    if len(atoms) == len(atoms.universe.atoms):
        shutil.copyfile(run.path / TOPOLOGY, part)
    else:
        atoms.write(str(part))


def _segments(run: Run) -> tuple[list[_Segment], int]:
    """Return the complete segments in the order of their ids, and how many more are on scratch."""
    rows = run.query(
        "SELECT task.id, walker_id, iteration, state, path, sha256 FROM task LEFT JOIN artifact"
        " ON task_id = task.id AND artifact.kind = 'trajectory'"
        " WHERE task.kind = 'simulate' AND state IN ('complete', 'computed') ORDER BY task.id"
    ).astype(object)
    found, n_on_scratch = [], 0
    for row in rows.where(rows.notna(), None).itertuples():
        if row.path is None:
            raise BadInput(
                f"segment {row.id} of {run.path} left no trajectory, as its site does not share the run directory: "
                f"drop {_OPTION}"
            )
        if row.path.startswith(ON_SCRATCH):
            n_on_scratch += 1
        else:
            found.append(_Segment(row.id, row.walker_id, row.iteration, row.path, row.sha256))
    if not found:
        elsewhere = f", and {n_on_scratch} are on nodes' scratch: `python run.py gather {run.path}` there first"
        raise BadInput(
            f"{run.path} has no complete segment to join{elsewhere if n_on_scratch else ': let it run first'}"
        )
    return found, n_on_scratch


def _selected(run: Run, select: str) -> Any:
    """Return the atoms, of a Universe that segments' trajectories can be loaded into."""
    import MDAnalysis as mda

    path = run.path / TOPOLOGY
    try:
        universe = mda.Universe(str(path))
    except (OSError, ValueError, IndexError) as error:
        raise BadInput(f"topology {path} cannot be read ({error}): restore it from a copy") from error
    try:
        atoms = universe.select_atoms(select)
    except (mda.SelectionError, AttributeError, ValueError, TypeError) as error:
        raise BadInput(f"--select {shown(select)} is no selection of MDAnalysis ({error}): mend it") from error
    if not len(atoms):
        raise BadInput(f"--select {shown(select)} selects none of the {len(universe.atoms)} atoms: give another")
    return atoms


def _refuse_format(place: Path) -> None:
    if place.suffix.lower() not in _FORMATS:
        raise BadInput(f"{_OPTION} {place} has a suffix of no format for many frames: name it {', '.join(_FORMATS)}")


def _join(run: Run, segments: list[_Segment], atoms: Any, stride: int, part: str, rows: IO[str]) -> int:
    """Write frames and their index; return how many there are."""
    import MDAnalysis as mda

    frame_ps = _frame_ps(run)
    weights = {} if run.walkers.empty else run.walkers.set_index("segment_id").weight.to_dict()
    index = csv.writer(rows, lineterminator="\n")
    columns = ("frame", "segment_id", "segment_frame", "time_ps_in_segment", "walker_id", "iteration")
    index.writerow([*columns, "weight"] if weights else columns)
    n_seen = n_written = 0
    with mda.Writer(part, n_atoms=len(atoms), multiframe=True, dt=frame_ps * stride) as writer:
        for segment, path in _trajectories(run, segments):
            for number, timestep in enumerate(_frames(atoms.universe, segment, path)):
                n_seen += 1
                if (n_seen - 1) % stride:
                    continue
                timestep.frame, timestep.time = n_written, n_written * frame_ps * stride
                timestep.data["step"] = n_written  # as H5MD has it
                writer.write(atoms)
                told = (n_written, segment.id, number, f"{(number + 1) * frame_ps:.10g}", segment.walker_id)
                weight = (repr(weights[segment.id]),) if segment.id in weights else ("",) if weights else ()
                index.writerow((*told, segment.iteration, *weight))
                n_written += 1
    return n_written


def _frame_ps(run: Run) -> float:
    """Return the simulated time between two frames, which is in whole time steps."""
    # Not validated: what the campaign was run with may name code that is not here, and need not run here.
    settings = Settings.model_construct(**(run.meta.get("settings") or run.settings))
    return settings.dynamics("").frame_ps


@contextmanager
def _aside() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wayfinder-join-") as folder:
        yield Path(folder)


@contextmanager
def _read_aside(path: Path) -> Iterator[Path]:
    """Lend a path of a trajectory where its reader may leave a file beside it."""
    if path.suffix not in _LEAVE_OFFSETS:
        yield path
        return
    with _aside() as scrap:
        (scrap / path.name).symlink_to(path.resolve())
        yield scrap / path.name


def _trajectories(run: Run, segments: list[_Segment]) -> Iterator[tuple[_Segment, Path]]:
    """Yield segments with their files, whole; archives are unpacked from the first that needs one to the last."""
    needed = Counter(split(each.path)[0] for each in segments)
    with _aside() as scrap:
        for segment in segments:
            file, name = split(segment.path)
            path = run.path / file
            unpacked = scrap / Path(file).name
            if name is not None:
                if not unpacked.exists():
                    unpack_archive(path, unpacked)
                path = unpacked / name
            _refuse_damage(run, segment, path)
            yield segment, path
            needed[file] -= 1
            if name is not None and not needed[file]:
                shutil.rmtree(unpacked)


def _refuse_damage(run: Run, segment: _Segment, path: Path) -> None:
    try:
        whole = digest_of(path) == segment.sha256
    except OSError as error:
        raise BadInput(
            f"trajectory {segment.path} of segment {segment.id} cannot be read ({error.strerror}): restore it in "
            f"{run.path} from a copy"
        ) from error
    if not whole:
        raise BadInput(
            f"trajectory {segment.path} of segment {segment.id} is damaged: restore it in {run.path} from a copy"
        )


def _frames(universe: Any, segment: _Segment, path: Path) -> Iterator[Any]:
    """Yield a segment's frames as MDAnalysis' time steps, which the Universe has each in its turn."""
    with _read_aside(path) as readable:
        try:
            universe.load_new(str(readable))
        except (OSError, ValueError) as error:
            raise BadInput(
                f"trajectory {segment.path} of segment {segment.id} does not go with {TOPOLOGY} ({error}): restore "
                "them from a copy"
            ) from error
        for _ in universe.trajectory:
            yield universe.trajectory.ts
