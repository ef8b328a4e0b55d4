"""One west.h5: appended to, checked, and made again from what the ledger has.

HDF5 writes in many places of a file, so one that a process was killed over may open and be wrong. A mark beside the
file says that somebody began to write; who finds it makes the file again, aside, and puts it in place whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from campaign.faults import reach
from campaign.west.manager import make_manager, write_beginning, write_ended
from campaign.west.record import Binning, Ended, Layout
from policies.iteration import Iteration

WEST = "west.h5"

_FURTHER = re.compile(r"west-([1-9][0-9]*)\.h5")

# On file systems without locks HDF5 then goes on without one; HDF5_USE_FILE_LOCKING in the environment still wins.
_LOCKING = "best-effort"


def west_name(replica: int) -> str:
    """Return how the file of an ensemble is called: ``west.h5``, ``west-1.h5``, ..."""
    return WEST if replica == 0 else f"west-{replica}.h5"


def replicas_in(run: Path) -> list[int]:
    """Return the numbers of the ensembles whose files lie in a run's directory, in order."""
    further = (_FURTHER.fullmatch(path.name) for path in run.glob("west-*.h5"))
    return [0] * (run / WEST).is_file() + sorted(int(found[1]) for found in further if found)


class WestBusy(Exception):
    """Another program has west.h5 open: it can be brought up to date later."""


class WestFile:
    """Owns one west.h5, in the process that writes it.

    Between calls the file is closed, so that WESTPA's tools can be used while the campaign runs.

    Parameters
    ----------
    path
        Of the file, which need not be there.
    layout
        What is the same in all its iterations.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self._mark = path.with_name(f".{path.name}.writing")

    @property
    def last(self) -> int:
        """Number of the last iteration that it holds to its end; 0 where there is none.

        A file that is missing, torn or none of WESTPA's holds none.

        Raises
        ------
        WestBusy
            When another program writes to it.
        """
        if self._mark.exists():
            return 0
        try:
            with h5py.File(self.path, "r", locking=_LOCKING) as file:
                return max(0, int(file.attrs["west_current_iteration"]) - 1)
        except BlockingIOError as error:
            raise WestBusy(f"{self.path} is open in another program") from error
        except (OSError, KeyError, RuntimeError):
            return 0

    def begin(self, first: Iteration, binning: Binning) -> None:
        """Make the file, in place of any that is there, with the walkers of the first iteration."""
        self.rebuild(first, binning, ())

    def append(self, ended: Ended) -> None:
        """Add an iteration that ended, and the walkers of the one that follows.

        Raises
        ------
        WestBusy
            When another program has the file open; nothing is written.
        BrokenEnsemble
            When the arrays do not belong together; nothing is written.
        ValueError
            When the iteration is not the next.
        """
        ended.check(self.layout)
        with self._open() as manager:
            if manager.current_iteration != ended.iteration.number:
                raise ValueError(
                    f"{self.path} awaits iteration {manager.current_iteration}, not {ended.iteration.number}"
                )
            with self._marked():
                write_ended(manager, self.layout, ended)
                reach("west-append")
                manager.close_backing()

    def holds(self, ended: Ended) -> bool:
        """Return whether its last complete iteration is this one, weight by weight, and so is what follows it."""
        iteration, following = ended.iteration, ended.resampled.following
        if self.last != iteration.number:
            return False
        try:
            with h5py.File(self.path, "r", locking=_LOCKING) as file:
                told = [_index(file, each.number) for each in (iteration, following)]
                pcoord = file[f"iterations/iter_{iteration.number:08d}/pcoord"][...]
        except (OSError, KeyError, RuntimeError):
            return False
        same = all(
            np.array_equal(index["weight"], each.weights) and np.array_equal(index["parent_id"], each.parents)
            for index, each in zip(told, (iteration, following), strict=True)
        )
        return (
            same
            and np.array_equal(told[0]["endpoint_type"], ended.resampled.endpoints)
            and np.array_equal(pcoord, np.asarray(ended.pcoord, np.float32), equal_nan=True)
        )

    def rebuild(self, first: Iteration, binning: Binning, series: Iterable[Ended]) -> None:
        """Make the file again from the beginning; until it is whole the one that is there stays."""
        part = self.path.with_name(f".{self.path.name}.part")
        part.unlink(missing_ok=True)
        try:
            self._write_whole(part, first, binning, series)
            _sync(part)
            os.replace(part, self.path)
        except BaseException:
            part.unlink(missing_ok=True)  # on a full disk it is in the way
            raise
        self._mark.unlink(missing_ok=True)

    def _write_whole(self, path: Path, first: Iteration, binning: Binning, series: Iterable[Ended]) -> None:
        manager = make_manager(path, self.layout)
        try:
            write_beginning(manager, self.layout, first, binning)
            for ended in series:
                ended.check(self.layout)
                write_ended(manager, self.layout, ended)
                reach("west-rebuild")
        finally:
            manager.close_backing()

    def follow(
        self, first: Iteration, binning: Binning, last: Ended | None, series: Callable[[int], Iterable[Ended]]
    ) -> None:
        """Make the file hold what the ledger holds, by adding what it lacks where that is possible.

        Parameters
        ----------
        first, binning
            The first iteration as it began.
        last
            The last iteration that ended; None where none has.
        series
            Called with a number, the iterations that ended from that one on.

        Raises
        ------
        WestBusy
            When another program has the file open.
        """
        n_ended = last.iteration.number if last is not None else 0
        n_held = self.last
        if 0 < n_held < n_ended and self.holds(next(iter(series(n_held)))):
            for ended in series(n_held + 1):
                self.append(ended)
        elif last is None or not self.holds(last):
            self.rebuild(first, binning, series(1))

    @contextmanager
    def _open(self) -> Iterator[Any]:
        manager = make_manager(self.path, self.layout)
        try:
            manager.we_h5file = h5py.File(self.path, "r+", locking=_LOCKING)
        except BlockingIOError as error:
            raise WestBusy(f"{self.path} is open in another program") from error
        try:
            yield manager
        finally:
            manager.close_backing()

    @contextmanager
    def _marked(self) -> Iterator[None]:
        """Mark the file as torn until what happens inside has come to its end."""
        self._mark.touch()
        yield
        _sync(self.path)
        self._mark.unlink()


def _index(file: Any, number: int) -> np.ndarray:
    index: np.ndarray = file[f"iterations/iter_{number:08d}/seg_index"][...]
    return index


def _sync(path: Path) -> None:
    """See that a file is on the disk before anything says so."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
