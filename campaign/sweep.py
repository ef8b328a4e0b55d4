"""A sweep: a table of flag values, each of whose rows is a campaign."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from campaign.flags import core_type, flag, is_whole, n_values, note, opposite, repeats, shown, unknown
from campaign.rundir import LEDGER
from campaign.settings import Settings
from tasks.errors import BadInput

# The copy that is kept beside the campaigns.
TABLE = "sweep.csv"

# What these flags say holds for the workers, which all campaigns share.
_SHARED_GROUPS = frozenset({"compute", "network", "ProxyStore"})
_SHARED = frozenset({"walltime", "hook_workers"})

_NAME = "name"
_YES, _NO = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


# What a sweep's folder holds besides, or would be taken for.
_TAKEN = frozenset({TABLE, LEDGER, "logs"})


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it was read, and its rows."""

    text: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A row: the name of its campaign, and its cells as words of a command line."""

    name: str
    words: tuple[str, ...]


def is_shared(setting: str) -> bool:
    """Return whether a setting is about the workers, which all campaigns of a sweep share."""
    return note(Settings.model_fields[setting], "group") in _SHARED_GROUPS or setting in _SHARED


def refuse_differing(several: Mapping[str, Settings]) -> None:
    """Refuse campaigns, by their names, that say different things about the workers that they share.

    Raises
    ------
    BadInput
        Naming the flag.
    """
    (first, its), *others = several.items()
    for name, settings in others:
        for setting in filter(is_shared, Settings.model_fields):
            here, there = getattr(its, setting), getattr(settings, setting)
            if here != there:
                raise BadInput(
                    f"{flag(setting)} is {shown(here)} in campaign {first} and {shown(there)} in {name}, and they "
                    f"share their workers: give {flag(setting)} for all, or resume them one at a time"
                )


def read_table(file: Path) -> Table:
    """Return a table (CSV; columns are flags without their dashes, and ``name``).

    A cell that is empty leaves its flag out. Without a name a campaign is called by the number of its row, from 001.

    Raises
    ------
    BadInput
        For a file that cannot be read, a column that is no flag or is about the workers, and for names that cannot
        be those of directories.
    """
    try:
        text = file.read_text()
        table = csv.reader(io.StringIO(text), skipinitialspace=True)
        header = [name.strip().removeprefix("--") for name in next(table, [])]
        cells = [[cell.strip() for cell in row] for row in table if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"--sweep {shown(file)} cannot be read ({error}): give a CSV file") from error
    _check_header(file, header)
    if not cells:
        raise BadInput(f"--sweep {shown(file)} has no rows: give one for each campaign, below the names of the flags")
    rows = [_row(file, header, row, number) for number, row in enumerate(cells, 1)]
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"--sweep {shown(file)} has two campaigns called {shown(name)}: give each its own name")
    return Table(text, tuple(rows))


def _check_header(file: Path, header: list[str]) -> None:
    for column in header:
        if header.count(column) > 1:
            raise BadInput(f"--sweep {shown(file)} has column {shown(column)} twice: drop one")
        setting = column.replace("-", "_")
        field = Settings.model_fields.get(setting)
        if field is None and column != _NAME:
            known = [_NAME, *(flag(name).removeprefix("--") for name in Settings.model_fields)]
            raise BadInput(unknown(column, known, f"as a column of --sweep {shown(file)}"))
        if field is not None and is_shared(setting):
            raise BadInput(
                f"column {column} of --sweep {shown(file)} is about workers, which all campaigns share: give "
                f"{flag(setting)} once, on the command line"
            )


def _row(file: Path, header: list[str], cells: list[str], number: int) -> Row:
    if len(cells) != len(header):
        raise BadInput(
            f"row {number} of --sweep {shown(file)} has {len(cells)} cells and there are {len(header)} columns: "
            "give one for each, empty where a flag is left out"
        )
    told = dict(zip(header, cells, strict=True))
    name = told.pop(_NAME, "") or f"{number:03d}"
    if not re.fullmatch(r"[\w][\w.+-]*", name) or name in _TAKEN:
        raise BadInput(
            f"name {shown(name)} in --sweep {shown(file)} cannot be that of a directory: use letters, digits, "
            "and -, _, + or ."
        )
    words = [word for column, cell in told.items() if cell for word in _words(file, column, cell)]
    return Row(name, tuple(words))


def _words(file: Path, column: str, cell: str) -> Iterator[str]:
    """Yield a cell as words of a command line."""
    setting = column.replace("-", "_")
    field = Settings.model_fields[setting]
    if core_type(field) is bool:
        if cell.lower() not in _YES | _NO:
            raise BadInput(f"column {column} of --sweep {shown(file)} is a switch, not {shown(cell)}: give yes or no")
        yield flag(setting) if cell.lower() in _YES else opposite(setting)
    elif n_values(field) > 1:
        yield flag(setting)
        yield from _parted(file, column, cell)
    elif repeats(field) and not is_whole(field):
        for value in _parted(file, column, cell):
            yield f"{flag(setting)}={value}"
    else:
        yield f"{flag(setting)}={cell}"


def _parted(file: Path, column: str, cell: str) -> list[str]:
    try:
        return shlex.split(cell)
    except ValueError as error:
        raise BadInput(
            f"column {column} of --sweep {shown(file)}: {shown(cell)} has a quote without its end: close it"
        ) from error
