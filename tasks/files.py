"""Files that a task leaves in the run directory: whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from tasks.messages import FileRecord


def sha256(data: bytes) -> str:
    """Return the SHA-256 digest of some bytes in hexadecimal, as a `FileRecord` holds it."""
    return hashlib.sha256(data).hexdigest()


def write_atomically(run_dir: str | Path, relative_path: str, data: bytes, *, durable: bool = True) -> FileRecord:
    """Write a file that no reader ever sees in part, and return its record.

    Parameters
    ----------
    relative_path
        Below ``run_dir``, with forward slashes; missing folders are made and a file of that name is replaced.
    durable
        Whether the file must be whole even after the machine lost power; costs some milliseconds.

    Raises
    ------
    ValueError
        When the path leads out of the run directory.
    """
    if Path(relative_path).is_absolute() or ".." in Path(relative_path).parts:
        raise ValueError(f"path {relative_path} leads out of the run directory: give one below it")
    path = Path(run_dir) / relative_path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same folder, because a rename is atomic only within a file system; not tempfile, whose files only their owner
    # can read, while a run directory is often shared by a group.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return FileRecord(relative_path, sha256(data), len(data))
