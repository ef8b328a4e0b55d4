"""Where exports go: whole or not at all, and over nothing of the run's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from campaign.rundir import (
    LEDGER,
    PARAMS,
    SUMMARY,
    SYSTEM,
    TOPOLOGY,
    RunDirectory,
    missing_directories,
    remove_made,
)
from campaign.trace_files import FILES
from tasks.errors import BadInput


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


def refuse_own(run: Path, option: str, *places: Path) -> None:
    """Refuse places of files by which the campaign lives.

    Raises
    ------
    BadInput
        Naming the first.
    """
    at = RunDirectory(run.resolve())
    own = {LEDGER, PARAMS, SUMMARY, SYSTEM, TOPOLOGY, "host_info.json", at.log.name, *FILES.values()}
    folders = {"trajectories", "models", "logs", "archives", at.parked.name, at.redis.name, at.equilibrated.name}
    for place in places:
        if not place.resolve().is_relative_to(at.path):
            continue
        first = place.resolve().relative_to(at.path).parts[:1]
        if not first or first[0] in own | folders:
            raise BadInput(f"{option} {place} is the campaign's own: name another place")
