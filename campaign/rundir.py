"""The run directory: what a campaign leaves for people and notebooks."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from tasks.errors import BadInput, TaskFailed
from tasks.prepared import PreparedSystem
from tasks.transport import pack, unpack

# What others read, too; without the ledger and the system a campaign cannot go on.
LEDGER, PARAMS, SYSTEM, TOPOLOGY = "ledger.sqlite", "params.json", "system.safetensors", "topology.pdb"
SUMMARY = "summary.json"

_VERSIONS_OF = (
    "colmena", "globus-compute-sdk", "MDAnalysis", "numpy", "OpenMM", "parsl", "proxystore", "redis", "scikit-learn",
    "torch",
)  # fmt: skip


# The run that a thread is about, where a process has several.
_IN_FOCUS: ContextVar[Path | None] = ContextVar("_IN_FOCUS", default=None)


class RunDirectory:
    """Paths in a campaign's directory, and the files written once."""

    def __init__(self, path: Path, made: Sequence[Path] = ()) -> None:
        self.path = path
        self._made = made

    @classmethod
    def create(cls, named: Path | None, runs: Path, system: str, free_bytes: int) -> RunDirectory:
        """Make the directory of a new campaign.

        Parameters
        ----------
        named
            Exactly this directory, which must not exist; None makes one in ``runs``, named by system and time.
        free_bytes
            What the disk must have free.

        Raises
        ------
        BadInput
            When it exists, cannot be written, or the disk is too full; nothing is left behind.
        """
        path, missing = make_folder(named, runs, system)
        try:
            for name in ("trajectories", "models", "logs"):
                (path / name).mkdir()
            free = shutil.disk_usage(path).free
            if free < free_bytes:
                raise BadInput(
                    f"the disk of {path} has {free / 1e6:.0f} MB free, and --min-free-mb asks for "
                    f"{free_bytes / 1e6:.0f}: free some space, or name another place with --run-dir"
                )
        except OSError as error:
            remove_made(missing)
            raise BadInput(
                f"run directory {path} cannot be made: {error.strerror}; name another with --run-dir"
            ) from error
        except BadInput:
            remove_made(missing)
            raise
        return cls(path.resolve(), missing)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Return the directory of a campaign that was begun.

        Raises
        ------
        BadInput
            When it is none, or lacks what is needed to go on.
        """
        if not path.is_dir():
            raise BadInput(f"{path} is no run directory: name the directory of a campaign")
        lacking = [name for name in (LEDGER, SYSTEM) if not (path / name).is_file()]
        if lacking:
            raise BadInput(f"{path} is no run that can go on: it has no {', '.join(lacking)}; name another directory")
        return cls(path.resolve())

    @property
    def ledger(self) -> Path:
        """The ledger."""
        return self.path / LEDGER

    @property
    def system(self) -> Path:
        """The prepared system, as it is shipped."""
        return self.path / SYSTEM

    @property
    def parked(self) -> Path:
        """What a later process of the campaign goes on with; not there while one runs."""
        return self.path / "parked"

    @property
    def redis(self) -> Path:
        """Where a private Redis server keeps its data while it runs."""
        return self.path / "redis"

    @property
    def equilibrated(self) -> Path:
        """Basis states once they were equilibrated; not there where none were."""
        return self.path / "equilibrated"

    @property
    def log(self) -> Path:
        """The log a person reads."""
        return self.path / "runtime.log"

    @property
    def proxystore(self) -> Path:
        """Where file stores lie unless the user names another place; empty after the run."""
        return self.path / "proxystore"

    def write_inputs(self, params: dict[str, Any], prepared: PreparedSystem) -> None:
        """Write settings (a file for ``--config``), what this host is, the topology, and the prepared system."""
        self.write_json(PARAMS, params)
        self.write_json("host_info.json", host_info())
        self._write(TOPOLOGY, prepared.topology_pdb.encode())
        self._write(SYSTEM, pack(prepared.to_arrays()))

    def read_system(self) -> PreparedSystem:
        """Return the prepared system.

        Raises
        ------
        BadInput
            When its file is damaged.
        """
        try:
            return PreparedSystem.from_arrays(unpack(self.system.read_bytes()))
        except (OSError, TaskFailed, KeyError, UnicodeDecodeError) as error:
            raise BadInput(f"{self.system} is damaged ({error}): restore it from a copy") from error

    def write_json(self, name: str, content: Any) -> None:
        """Write a file whole or not at all."""
        self._write(name, json.dumps(content, indent=2).encode() + b"\n")

    def _write(self, name: str, content: bytes) -> None:
        write_whole(self.path / name, content)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Log to the run's file: our story at INFO, the libraries' warnings; nothing that is about another run."""
        handler = logging.FileHandler(self.log)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handler.addFilter(lambda record: _IN_FOCUS.get() in (None, self.path))
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(logging.WARNING)
        for ours in ("wayfinder", "agents", "campaign", "sites", "tasks"):
            logging.getLogger(ours).setLevel(logging.INFO)
        try:
            yield
        finally:
            root.removeHandler(handler)
            handler.close()

    @contextmanager
    def in_focus(self) -> Iterator[None]:
        """Let what this thread logs be about this run; what is about none goes to the logs of all."""
        before = _IN_FOCUS.set(self.path)
        try:
            yield
        finally:
            _IN_FOCUS.reset(before)

    def remove(self) -> None:
        """Remove the directory of a campaign that never began."""
        remove_made(self._made)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whatever happens to the machine."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def make_private_dir(run_id: str) -> Path:
    """Return a new directory for keys, in the home that nodes of a cluster share and other users cannot read.

    Raises
    ------
    BadInput
        When it cannot be made.
    """
    path = Path.home() / ".wayfinder" / run_id
    try:
        path.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise BadInput(f"directory {path} for connection keys cannot be made: {error.strerror}; set HOME") from error
    return path


def refuse_unquotable(path: Path) -> None:
    """Refuse a path that Parsl's start scripts, which quote nothing, would tear apart.

    Raises
    ------
    BadInput
        Naming what in it they cannot take.
    """
    found = re.search(r"[^\w@%+=:,./-]", str(path))
    if found is not None:
        raise BadInput(
            f"path {path} holds {found[0]!r}, which Parsl's start scripts cannot take: choose --run-dir (and HOME) "
            "without blanks, quotes and the like"
        )


def host_info() -> dict[str, Any]:
    """Return what this machine and its packages are; never its environment, which holds secrets."""
    versions = {}
    for name in _VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "versions": versions,
    }


def make_folder(named: Path | None, runs: Path, what: str) -> tuple[Path, list[Path]]:
    """Make a directory that was not there, and return it with all that were made for it, outermost last.

    Parameters
    ----------
    named
        Exactly this one; None makes one in ``runs``, named by what it is for and by the time.

    Raises
    ------
    BadInput
        When it exists or cannot be made; nothing is left behind.
    """
    path = named or runs / f"{what}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    missing: list[Path] = []
    try:
        if path.exists() or path.is_symlink():
            raise BadInput(f"run directory {path} exists already: name another with --run-dir, or remove it")
        missing = missing_directories(path)
        path.mkdir(parents=True)
    except OSError as error:
        remove_made(missing)
        raise BadInput(
            f"run directory {path} cannot be made: {error.strerror}; name another with --run-dir"
        ) from error
    return path.resolve(), missing


def missing_directories(path: Path) -> list[Path]:
    """Return which directories making ``path`` would make, outermost last."""
    return [parent for parent in [path, *path.parents] if not parent.exists()]


def remove_made(made: Sequence[Path]) -> None:
    """Remove a directory made for a run with all it holds, and the parents made for it unless others use them."""
    if made:
        shutil.rmtree(made[0], ignore_errors=True)
    for parent in made[1:]:
        try:
            parent.rmdir()
        except OSError:
            return
