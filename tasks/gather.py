"""Trajectories kept on a node until there are enough of them, then brought into the run directory as one archive.

On a node's scratch each lies under ``pending``, by the number of its segment and attempt. An archive is known by its
manifest, which is written last: before that its trajectories are still on the node, and are gathered again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import TaskFailed
from tasks.files import sha256
from tasks.messages import Archive, FileRecord, GatherResult, GatherSpec, Member, Scratch, SegmentSpec

ARCHIVES = "archives"

_SUFFIX, _MANIFEST, _PART = ".tar.gz", ".json", ".part"

# Coordinates in single precision hardly shrink further with more of zlib's effort, and a core is busy meanwhile.
_EFFORT = 1

# Nobody takes longer over an archive, unless the run directory hangs.
_PATIENCE_S = 120.0

logger = logging.getLogger(__name__)


def keep_pending(spec: SegmentSpec, scratch: Scratch, data: bytes) -> FileRecord:
    """Keep a trajectory on this node, whole or not at all."""
    name = f"{spec.segment_id:08d}.{spec.attempt}.{spec.trajectory_format}"
    path = _pending(scratch) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(name + _PART)
    try:
        part.write_bytes(data)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    os.replace(part, path)
    return FileRecord(name, sha256(data), len(data), node=platform.node())


def gather_when_due(scratch: Scratch, run_dir: str) -> Archive | None:
    """Gather what is pending on this node if it is enough for an archive, and nobody else is at it.

    What cannot be gathered now stays pending, for the next segment or the end of the campaign to try again.
    """
    if len(_whole_files(scratch)) < scratch.gather_every:
        return None
    try:
        with _only_gatherer(scratch, patience_s=0.0) as alone:
            # Another worker may have gathered them meanwhile.
            if not alone or len(files := _whole_files(scratch)) < scratch.gather_every:
                return None
            return _gather(files, scratch, Path(run_dir))
    except OSError as error:
        logger.warning("trajectories stay on the scratch of this node, for they cannot be gathered: %s", error)
        return None


def gather(spec: GatherSpec) -> GatherResult:
    """Gather all that is pending on this node.

    Raises
    ------
    TaskFailed
        When another worker does not come to an end with it.
    """
    began = time.perf_counter()
    archive = gather_all(spec.scratch, spec.run_dir)
    seconds = {"gather": time.perf_counter() - began}
    return GatherResult(spec.task_id, spec.attempt, platform.node(), archive, seconds)


def gather_all(scratch: Scratch, run_dir: str | Path) -> Archive | None:
    """Gather all that is pending on this node; return the archive, if anything was.

    Raises
    ------
    TaskFailed
        When another process does not come to an end with it.
    """
    if not _node(scratch).is_dir():
        return None
    with _only_gatherer(scratch, _PATIENCE_S) as alone:
        if not alone:
            raise TaskFailed(
                f"scratch {_node(scratch)} is being gathered for more than {_PATIENCE_S:g} s by another process: "
                "end it, or try again"
            )
        files = _whole_files(scratch)
        return _gather(files, scratch, Path(run_dir)) if files else None


def tidy(scratch: Scratch) -> None:
    """Remove a campaign's scratch on this node where nothing is pending; no worker may run there any more."""
    if _node(scratch).is_dir() and not _whole_files(scratch):
        shutil.rmtree(_node(scratch), ignore_errors=True)
    try:
        Path(scratch.folder).rmdir()
    except OSError:
        return  # other nodes have theirs there, or there is none


def manifests(run_dir: Path) -> list[Path]:
    """Return the manifests of a run's archives, oldest first for each node."""
    return sorted((run_dir / ARCHIVES).glob(f"[!.]*{_MANIFEST}"))


def archive_of(manifest: Path) -> str:
    """Return the path of a manifest's archive, relative to the run directory."""
    return f"{ARCHIVES}/{manifest.name.removesuffix(_MANIFEST)}{_SUFFIX}"


def read_manifest(manifest: Path) -> Archive:
    """Return what a manifest tells of its archive.

    Raises
    ------
    TaskFailed
        When it is torn.
    """
    try:
        told = json.loads(manifest.read_bytes())
        members = tuple(Member(**member) for member in told["members"])
        return Archive(FileRecord(archive_of(manifest), told["sha256"], told["bytes"]), told["node"], members)
    except (ValueError, KeyError, TypeError) as error:
        raise TaskFailed(f"manifest {manifest} is torn ({error}): restore it from a copy, or remove it") from error


def is_whole(run_dir: Path, archive: FileRecord) -> bool:
    """Return whether an archive is what its manifest tells."""
    try:
        return digest_of(run_dir / archive.path) == archive.sha256
    except OSError:
        return False


def remove_unfinished(run_dir: Path) -> None:
    """Remove archives without a manifest, whose trajectories are still on their node; nobody may gather meanwhile."""
    folder = run_dir / ARCHIVES
    known = {run_dir / archive_of(manifest) for manifest in manifests(run_dir)}
    for path in (*folder.glob(f"*{_SUFFIX}"), *folder.glob(f".*{_PART}")):
        if path not in known:
            path.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """Return the SHA-256 digest of a file, which may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _node(scratch: Scratch) -> Path:
    return Path(scratch.folder) / platform.node()


def _pending(scratch: Scratch) -> Path:
    return _node(scratch) / "pending"


def _whole_files(scratch: Scratch) -> list[Path]:
    """Return what is pending, in the order of segments."""
    return sorted(path for path in _pending(scratch).glob("*") if path.suffix != _PART)


@contextmanager
def _only_gatherer(scratch: Scratch, patience_s: float) -> Iterator[bool]:
    """Tell whether this is the only process of the node that gathers; the kernel forgets it when the process ends."""
    handle = os.open(_node(scratch) / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _lock(handle, time.monotonic() + patience_s)
    finally:
        os.close(handle)


def _lock(handle: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.05)


def _gather(files: Sequence[Path], scratch: Scratch, run_dir: Path) -> Archive:
    """Bring files into the run directory as one archive, then remove them here."""
    folder = run_dir / ARCHIVES
    folder.mkdir(exist_ok=True)
    name = _free_name(folder)
    # Packed beside the node, so that the shared file system sees one file, written once from end to end.
    packed = _node(scratch) / "archive"
    try:
        members = _pack(files, packed)
        size = packed.stat().st_size
        file = FileRecord(f"{ARCHIVES}/{name}{_SUFFIX}", _bring(packed, folder / f"{name}{_SUFFIX}"), size)
    finally:
        packed.unlink(missing_ok=True)
    archive = Archive(file, platform.node(), members)
    _write_synced(folder / f"{name}{_MANIFEST}", _manifest(archive))
    for path in files:
        path.unlink()
    return archive


def _free_name(folder: Path) -> str:
    """Return the next name of this node's; nobody else uses names of this node."""
    node = platform.node()
    taken = [path.name.removeprefix(f"{node}-")[:6] for path in folder.glob(f"{node}-*")]
    return f"{node}-{1 + max((int(number) for number in taken if number.isdecimal()), default=0):06d}"


def _pack(files: Sequence[Path], packed: Path) -> tuple[Member, ...]:
    members = []
    with tarfile.open(packed, "w:gz", compresslevel=_EFFORT) as archive:
        for path in files:
            archive.add(path, path.name)
            members.append(Member(int(path.name.split(".")[0]), path.name, digest_of(path), path.stat().st_size))
    return tuple(members)


def _bring(packed: Path, target: Path) -> str:
    """Copy a file to its place in one step that no reader sees in part, and synced; return its digest."""
    part = target.with_name(f".{target.name}{_PART}")
    try:
        shutil.copyfile(packed, part)
        _sync(part)
        digest = digest_of(packed)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return digest


def _manifest(archive: Archive) -> bytes:
    told = {
        "schema": 1,
        "archive": archive.file.path,
        "sha256": archive.file.sha256,
        "bytes": archive.file.n_bytes,
        "node": archive.node,
        "members": [
            {"segment_id": each.segment_id, "name": each.name, "sha256": each.sha256, "n_bytes": each.n_bytes}
            for each in archive.members
        ],
    }
    return json.dumps(told, indent=1).encode() + b"\n"


def _write_synced(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}{_PART}")
    part.write_bytes(content)
    _sync(part)
    os.replace(part, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
