"""What kind of disk a run lies on, and who works on it."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tasks.errors import BadInput

# File systems that several hosts mount: no memory can be shared through them, as SQLite's write-ahead log needs.
_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs",
    "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "wekafs",
}  # fmt: skip


_LOCK = ".lock"

# Of Parsl, Colmena's pipes, libraries.
_OTHER_FILES = 200


def network_file_system(path: Path) -> str | None:
    """Return the kind of network file system that a path lies on; None for a disk of this machine."""
    resolved = path.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    kind = next((mounts[parent] for parent in [resolved, *resolved.parents] if parent in mounts), "")
    return kind if kind in _NETWORK else None


def in_use_by(run_dir: Path) -> str | None:
    """Return who has a run (as they wrote it down), without touching it; None if nobody does."""
    try:
        handle = os.open(run_dir / _LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(handle)
    return None


def allow_open_files(count: int) -> None:
    """Let this process open so many files, beside those that it needs anyway.

    Raises
    ------
    BadInput
        When the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and wanted > soft:
        if hard != resource.RLIM_INFINITY and wanted > hard:
            raise BadInput(
                f"so many campaigns need {wanted} open files, and this system allows {hard}: raise `ulimit -n`, or "
                "run fewer at once"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def only_process(run_dir: Path) -> Iterator[None]:
    """Be the only process that writes to a run; the kernel forgets the lock when this process ends, however it does.

    A POSIX lock, which network file systems know too and forked processes do not inherit.

    Raises
    ------
    BadInput
        When another process has the run, or the file system cannot lock.
    """
    path = run_dir / _LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BadInput(f"run {run_dir} cannot be written: {error.strerror}; mend its permissions") from error
    try:
        try:
            _lock(handle)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise BadInput(
                    f"run {run_dir} cannot be locked ({error.strerror}): its file system must offer POSIX locks"
                ) from error
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise BadInput(
                f"run {run_dir} is in use by {holder or 'another process'}: wait for its end, or end it"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Take a lock, at a later try if somebody was only looking whether it is taken."""
    for tries_left in reversed(range(20)):
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if not tries_left or error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        time.sleep(0.05)
