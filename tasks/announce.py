"""Segments that are served live: told in the run directory, where others find them, as long as they run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "live"


@dataclass(frozen=True, slots=True)
class Announcement:
    """An attempt of a segment, and where an IMD server shows it."""

    segment_id: int
    attempt: int
    host: str
    port: int

    @property
    def url(self) -> str:
        """As MDAnalysis takes it."""
        return f"imd://{self.host}:{self.port}"


def announce(run_dir: str | Path, served: Announcement) -> Path:
    """Tell of a server that listens already, and return the file, which is to be removed when it does no more."""
    path = Path(run_dir) / FOLDER / f"{served.segment_id:08d}-{served.attempt}.json"
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(asdict(served)) + "\n")
    os.replace(part, path)
    return path


def announced(run_dir: str | Path) -> Iterator[Announcement]:
    """Yield what is told, oldest segment first; of a worker that was killed it may be there no more."""
    for path in sorted((Path(run_dir) / FOLDER).glob("*.json")):
        try:
            told = json.loads(path.read_text())
            yield Announcement(int(told["segment_id"]), int(told["attempt"]), str(told["host"]), int(told["port"]))
        except (OSError, ValueError, KeyError, TypeError):  # it ended while we looked
            continue


def forget_announcements(run_dir: str | Path) -> None:
    """Remove what is told, once nothing runs any more."""
    shutil.rmtree(Path(run_dir) / FOLDER, ignore_errors=True)
