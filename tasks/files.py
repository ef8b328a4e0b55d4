"""Files that a task leaves in the run directory: staged by the task, in their place once its result is committed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from tasks.messages import FileRecord

_STAGED = ".attempt-"


def sha256(data: bytes) -> str:
    """Return the SHA-256 digest of some bytes in hexadecimal, as a `FileRecord` holds it."""
    return hashlib.sha256(data).hexdigest()


def stage(run_dir: str | Path, relative_path: str, data: bytes, attempt: int, *, durable: bool = True) -> FileRecord:
    """Write a file beside its place in the run directory, and return its record.

    It gets there (`publish`) when the result of this attempt is committed, so that attempts never write over each
    other, whichever comes back first.

    Parameters
    ----------
    relative_path
        Of its place, below ``run_dir``, with forward slashes; missing folders are made.
    durable
        Whether the file must be whole even after the machine lost power; costs some milliseconds.

    Raises
    ------
    ValueError
        When the path leads out of the run directory.
    """
    if Path(relative_path).is_absolute() or ".." in Path(relative_path).parts:
        raise ValueError(f"path {relative_path} leads out of the run directory: give one below it")
    place = Path(relative_path)
    staged = str(place.with_name(f".{place.name}{_STAGED}{attempt}"))
    path = Path(run_dir) / staged
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same folder, because a rename is atomic only within a file system; not tempfile, whose files only their owner
    # can read, while a run directory is often shared by a group.
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return FileRecord(relative_path, sha256(data), len(data), staged)


def publish(run_dir: str | Path, file: FileRecord) -> None:
    """Move a staged file to its place, in one step that no reader sees in part; nothing happens the second time."""
    if file.staged is not None:
        try:
            os.replace(Path(run_dir) / file.staged, Path(run_dir) / file.path)
        except FileNotFoundError:
            if not (Path(run_dir) / file.path).exists():
                raise


def discard(run_dir: str | Path, file: FileRecord) -> None:
    """Remove a staged file whose result is not wanted."""
    if file.staged is not None:
        (Path(run_dir) / file.staged).unlink(missing_ok=True)


def staged_files(run_dir: str | Path) -> Iterator[FileRecord]:
    """Yield the staged files that somebody left, read anew."""
    for path in Path(run_dir).glob(f"*/.*{_STAGED}*"):
        data = path.read_bytes()
        place = path.with_name(path.name[1:].rpartition(_STAGED)[0])
        names = (str(each.relative_to(run_dir)) for each in (place, path))
        yield FileRecord(next(names), sha256(data), len(data), next(names))
