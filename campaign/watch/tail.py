"""Files that others append lines to, read as far as they have come."""

from __future__ import annotations

import os
from pathlib import Path


class Tail:
    """What was appended to a file since it was last read, in whole lines.

    Parameters
    ----------
    path
        Need not be there yet, and may be replaced by another file: then reading begins anew.

    Attributes
    ----------
    n_read
        Bytes that were read.
    n_left
        That are there and were too many to read at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._most = 0
        self.n_read = 0
        self.n_left = 0

    def read(self, most: int) -> tuple[bool, list[bytes]]:
        """Return whether the file is another than before, and lines that came; about ``most`` bytes of them.

        A line that is longer is read whole at a later call.
        """
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            anew = self._inode is not None
            self._begin(None)
            return anew, []
        try:
            found = os.fstat(handle)
            anew = self._inode is not None and (found.st_ino != self._inode or found.st_size < self.n_read)
            if anew or self._inode is None:
                self._begin(found.st_ino)
            there = found.st_size - self.n_read
            self._most = max(self._most, most)
            data = os.pread(handle, min(there, self._most), self.n_read) if there else b""
        finally:
            os.close(handle)
        whole = data.rfind(b"\n") + 1
        self._most = 0 if whole or len(data) < self._most else 2 * self._most
        self.n_read += whole
        self.n_left = max(0, there - len(data))
        return anew, data[:whole].splitlines()

    def _begin(self, inode: int | None) -> None:
        self._inode, self.n_read, self.n_left, self._most = inode, 0, 0, 0
