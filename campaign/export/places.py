"""Where exports go: whole or not at all, and over nothing of the run's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from campaign.rundir import (
    LEDGER,
    PARAMS,
    SUMMARY,
    SYSTEM,
    TOPOLOGY,
    missing_directories,
    remove_made,
)
from campaign.trace_files import FILES
from tasks.errors import BadInput

# Files and folders that a campaign goes on with, or that tell of it.
_OWN = frozenset(
    {
        *(LEDGER, PARAMS, SUMMARY, SYSTEM, TOPOLOGY, "host_info.json", "runtime.log", ".lock", *FILES.values()),
        *("trajectories", "models", "logs", "archives", "parked", "redis", "equilibrated", "proxystore"),
    }
)


@contextmanager
def written_whole(place: Path, option: str) -> Iterator[Path]:
    """Lend a path beside a file's place, from where the file gets there if all goes well; else nothing is left.

    Parameters
    ----------
    option
        What named the place.

    Raises
    ------
    BadInput
        Where it cannot be written.
    """
    part = place.with_name(f".{place.stem}.part{place.suffix}")
    try:
        if place.is_dir():
            raise BadInput(f"{option} {place} is a directory: name a file")
        yield part
        os.replace(part, place)
    except OSError as error:
        raise BadInput(f"{option} {place} cannot be written ({error}): name another place") from error
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def folder(place: Path, option: str) -> Iterator[None]:
    """Make a directory to write into, unless it is there; what was made for it goes if something goes wrong.

    Raises
    ------
    BadInput
        Where it cannot be made, or written into.
    """
    refuse_own(option, place)
    try:
        missing = missing_directories(place)
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{option} {place} cannot be made ({error}): name another directory") from error
    try:
        yield
    except OSError as error:
        remove_made(missing)
        raise BadInput(f"{option} {place} cannot be written into ({error}): name another directory") from error
    except BaseException:
        remove_made(missing)
        raise


def refuse_own(option: str, *places: Path) -> None:
    """Refuse places of files by which a campaign lives: this one, or another.

    Raises
    ------
    BadInput
        Naming the first.
    """
    for place in places:
        at = place.resolve()
        for run in (each for each in (at, *at.parents) if (each / LEDGER).is_file()):
            first = at.relative_to(run).parts[:1]
            if not first or first[0] in _OWN or fnmatch(first[0], "west*.h5"):
                raise BadInput(f"{option} {place} is a campaign's own: name another place")
