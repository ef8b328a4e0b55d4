"""Trajectories in archives: found, recorded, checked and read."""

from __future__ import annotations

import gzip
import logging
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from campaign.ledger import ON_SCRATCH, Ledger, read_ledger
from campaign.rundir import RunDirectory
from campaign.settings import Settings
from tasks.errors import BadInput, TaskFailed
from tasks.gather import archive_of, gather_all, is_whole, manifests, read_manifest, remove_unfinished, tidy
from tasks.messages import Archive, Scratch

_ARCHIVE = ".tar.gz"

logger = logging.getLogger(__name__)


def unknown_archives(ledger: Ledger, run_dir: Path) -> Iterator[Archive]:
    """Yield the archives that are there, whole, and of which the ledger does not tell yet."""
    for manifest in manifests(run_dir):
        if ledger.knows_archive(archive_of(manifest)):
            continue
        try:
            archive = read_manifest(manifest)
        except TaskFailed as error:
            logger.warning("%s", error)
            continue
        if is_whole(run_dir, archive.file):
            yield archive
        else:
            logger.warning("%s does not match its manifest, and is left alone", archive.file.path)


def take_in(ledger: Ledger, run_dir: Path, site: str) -> list[str]:
    """Record archives that nobody reported; return what that completes, in sentences."""
    told = []
    for archive in list(unknown_archives(ledger, run_dir)):
        with ledger.transaction():
            complete = ledger.add_found(ledger.next_task_id(), site, site, archive)
        told.append(f"{archive.file.path}: {len(complete)} segments are complete, from {archive.node}")
    return told


def scratch_of(settings: Settings, campaign_id: str) -> Scratch | None:
    """Return where a campaign keeps trajectories on its nodes; None where it keeps none there."""
    if settings.scratch is None:
        return None
    return Scratch(f"{settings.scratch}/wayfinder-{campaign_id[:12]}", settings.gather_every)


def mend_archives(ledger: Ledger, run_dir: RunDirectory, campaign_id: str, settings: Settings) -> list[str]:
    """Gather what is on this host, record what nobody reported, check all archives; return all that in sentences.

    Raises
    ------
    BadInput
        When the campaign keeps nothing on scratch, or the archive cannot be written.
    """
    scratch = scratch_of(settings, campaign_id)
    if scratch is None:
        raise BadInput(
            f"{run_dir.path} was begun without --scratch: its trajectories are in it, nothing is to gather"
        )
    remove_unfinished(run_dir.path)
    try:
        gather_all(scratch, run_dir.path)
    except (OSError, TaskFailed) as error:
        raise BadInput(f"scratch {scratch.folder} cannot be gathered: {error}; mend that and try again") from error
    told = take_in(ledger, run_dir.path, settings.simulate_site)
    tidy(scratch)
    for archive in ledger.artifacts("archive"):
        if not is_whole(run_dir.path, archive):
            told.append(f"{archive.path} is missing or damaged: restore it from a copy")
    waiting = Counter(ledger.computed_on().values())
    told += [f"{count} segments are still on the scratch of {node}, or lost" for node, count in waiting.items()]
    return told or ["nothing was to gather, and all archives are whole"]


def split(path: str) -> tuple[str, str | None]:
    """Return the file of an artifact's path, and the name in it where that is an archive."""
    archive, found, name = path.partition(f"{_ARCHIVE}/")
    return (f"{archive}{_ARCHIVE}", name) if found else (path, None)


def trajectory_path(run: Path, segment_id: int) -> Path:
    """Return a segment's trajectory as a file that any reader opens.

    From an archive it is unpacked, with the others there, into a folder that is kept until this process ends.

    Raises
    ------
    BadInput
        When there is none, it is on a node's scratch, or its archive is damaged.
    """
    with read_ledger(run / "ledger.sqlite") as db:
        row = db.execute(
            "SELECT path FROM artifact WHERE task_id = ? AND kind = 'trajectory'", (segment_id,)
        ).fetchone()
    if row is None:
        raise BadInput(f"segment {segment_id} of {run} has no trajectory: name one that is complete")
    if row[0].startswith(ON_SCRATCH):
        node = row[0].removeprefix(ON_SCRATCH).partition("/")[0]
        raise BadInput(
            f"the trajectory of segment {segment_id} is on the scratch of {node}: `python run.py gather {run}` there "
            "brings it into the run directory"
        )
    file, name = split(row[0])
    return run / file if name is None else unpacked(run / file) / name


@cache
def unpacked(archive: Path) -> Path:
    """Return a folder with what is in an archive, kept until this process ends.

    Raises
    ------
    BadInput
        When it is damaged.
    """
    folder = Path(_scrap().name) / f"{len(list(Path(_scrap().name).iterdir())):06d}"
    unpack_archive(archive, folder)
    return folder


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack an archive into a new folder.

    Raises
    ------
    BadInput
        When it is damaged; the folder is gone then.
    """
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadInput(f"archive {archive} is damaged ({error}): restore it from a copy") from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadInput(
            f"archive {archive} cannot be unpacked to {folder} ({error}): restore it, or set TMPDIR to a place with "
            "room"
        ) from error


@cache
def _scrap() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="wayfinder-trajectories-")
