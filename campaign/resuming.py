"""What a later process of a campaign may change, what it must find whole, and what is left for it to do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from campaign.archives import split
from campaign.flags import flag, note, shown
from campaign.ledger import ON_SCRATCH, check_ledger, meta_of, read_ledger
from campaign.live_settings import LIVE
from campaign.rundir import PARAMS, SUMMARY, RunDirectory
from campaign.settings import Settings
from campaign.stores import kind_of
from campaign.wire import addresses
from tasks.errors import BadInput
from tasks.files import sha256, staged_files
from tasks.messages import FileRecord, StoreKind

# Of these groups everything may change from one process to the next, of the others what is named here.
_FREE_GROUPS = frozenset({"compute", "network", "ProxyStore", "limits", "hooks", LIVE})
_FREE = frozenset({"platform", "min_segment_seconds"})
_BOUND = frozenset({"control", "ps_file_dir", "scratch"})

# One of these in place of another says how long the campaign is to be.
_LENGTHS = frozenset({"max_segments", "max_ns"})

# So many of the newest files are read whole; of all others only the size is looked at.
_N_READ = 64


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a campaign stands.

    Attributes
    ----------
    settings
        Of the last process.
    last_run_id
        Of the last process, if it had the run on this machine and in the same place; that of a copy is not ours.
    began
        Whether anything was decided.
    store_kinds
        Kinds of store in which the last process left what is needed to go on.
    until
        The ends of the campaign (`Settings.ends`) of which a hook of the user's said that they are reached.
    shared_by
        How many campaigns shared the workers when it began.
    left_in_order
        Whether the last process wrote its summary, which it does last: if not, its leavings are to be mended.
    """

    status: str
    campaign_id: str
    settings: Mapping[str, Any]
    last_run_id: str | None
    segments: int
    simulated_ps: float
    model_version: int
    began: bool
    store_kinds: frozenset[StoreKind]
    until: list[object] | None = None
    shared_by: int = 1
    left_in_order: bool = True

    def is_over(self, settings: Settings, flags: Mapping[str, object]) -> bool:
        """Return whether the campaign has all that these settings ask for; ``flags`` are those given now."""
        if not self.left_in_order:
            return False
        left = settings.segments_left(self.segments, self.simulated_ps)
        if self.until == list(settings.ends):
            return self.status == "complete"
        if left is None:
            reached = not flags.keys() & {"max_minutes", "max_iterations"} and self.until is None
        else:
            reached = left <= 0
        return self.status == "complete" and reached and self.model_version >= settings.min_model_versions


def standing(run_dir: RunDirectory) -> Standing:
    """Return where a campaign stands.

    Raises
    ------
    BadInput
        When its ledger is damaged, or of another version.
    """
    check_ledger(run_dir.ledger)
    with read_ledger(run_dir.ledger) as db:
        meta = meta_of(db)
        kept = db.execute("SELECT value FROM kept WHERE key = 'state'").fetchone()
        needed = db.execute(
            "SELECT value FROM kept UNION ALL SELECT spec FROM task WHERE spec IS NOT NULL"
        ).fetchall()
    told = {} if kept is None else json.loads(kept[0])
    last = meta.get("processes", [{}])[-1]
    return Standing(
        meta.get("status", "running"),
        meta.get("campaign", ""),
        meta.get("settings") or told_settings(run_dir),
        last["run_id"] if _was_here(last, run_dir.path) else None,
        told.get("segments", 0),
        told.get("simulated_ps", 0.0),
        told.get("model_version", 0),
        kept is not None,
        frozenset(kind for (text,) in needed for name, _ in addresses(text) if (kind := kind_of(name)) is not None),
        (told.get("until") or {}).get("ends"),
        meta.get("shared_by", 1),
        _summed_up(run_dir) == (meta.get("status"), told.get("segments", 0)),
    )


def _summed_up(run_dir: RunDirectory) -> tuple[object, object] | None:
    """Return status and segments of the last summary; None where there is none."""
    try:
        told = json.loads((run_dir.path / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    return told.get("status"), told.get("segments")


def told_settings(run_dir: RunDirectory) -> dict[str, Any]:
    """Return the settings of a run whose process was killed before its ledger told them."""
    path = run_dir.path / PARAMS
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read ({error}), and nothing else tells what the run is: start anew"
        ) from None
    return told


def _was_here(process: Mapping[str, Any], run_dir: Path) -> bool:
    return (process.get("host"), process.get("run_dir")) == (socket.gethostname(), str(run_dir))


def resumed_settings(run: Path, before: Mapping[str, Any], flags: Mapping[str, object]) -> Settings:
    """Return the settings of a run with other limits and sites.

    Raises
    ------
    BadInput
        For a flag that would change its science.
    """
    old = Settings.model_validate(dict(before))
    kept = dict(before)
    if flags.keys() & _LENGTHS:
        kept |= dict.fromkeys(_LENGTHS)
    new = Settings.model_validate({**kept, **flags})
    for name in flags:
        was, wanted = getattr(old, name), getattr(new, name)
        if was != wanted and not _may_change(name):
            raise BadInput(
                f"{flag(name)} {shown(wanted)} would make another campaign of {run}, where it is "
                f"{'not set' if was is None else shown(was)}: drop it, or start a new campaign"
            )
    return new


def _may_change(name: str) -> bool:
    free = note(Settings.model_fields[name], "group") in _FREE_GROUPS or name in _FREE
    return free and name not in _BOUND


def refuse_damage(run_dir: RunDirectory) -> None:
    """Refuse a run whose trajectories are not what the ledger tells, and change nothing.

    Raises
    ------
    BadInput
        Naming the first that is missing or damaged.
    """
    for task_id, file in damaged(run_dir):
        path, member = split(file.path)
        if member is not None:
            lost = [segment for segment, other in damaged(run_dir) if split(other.path)[0] == path]
            raise BadInput(
                f"archive {run_dir.path / path} is missing or damaged: restore it from a copy, or give its segments "
                f"up with `python run.py rerun {run_dir.path} {' '.join(f'--segment {each}' for each in lost)}`"
            )
        raise BadInput(
            f"trajectory {run_dir.path / path} {_harm(run_dir.path / path, file)}: restore it from a copy, or give "
            f"the segment up with `python run.py rerun {run_dir.path} --segment {task_id}`"
        )


def _harm(path: Path, file: FileRecord) -> str:
    if not path.exists():
        return "is missing"
    n_bytes = path.stat().st_size
    return "does not match its checksum" if n_bytes == file.n_bytes else f"has {n_bytes} bytes of {file.n_bytes}"


def damaged(run_dir: RunDirectory) -> Iterator[tuple[int, FileRecord]]:
    """Yield the trajectories that are not as they were committed, with their segments, newest first.

    Those in an archive are as that is; those on a node's scratch are nobody's to look at.
    """
    told = "SELECT task_id, path, sha256, bytes FROM artifact WHERE kind = ? ORDER BY id DESC"
    with read_ledger(run_dir.ledger) as db:
        rows = db.execute(told, ("trajectory",)).fetchall()
        archives = {path: FileRecord(path, *about) for _, path, *about in db.execute(told, ("archive",))}
    newest = dict.fromkeys(list(archives)[:_N_READ])

    @cache
    def archive_is_whole(path: str) -> bool:
        return path in archives and _is_whole(run_dir.path / path, archives[path], read=path in newest)

    staged = {(file.path, file.sha256) for file in staged_files(run_dir.path)}
    for age, (task_id, *record) in enumerate(rows):
        file = FileRecord(*record)
        archive, member = split(file.path)
        if file.path.startswith(ON_SCRATCH) or (member is not None and archive_is_whole(archive)):
            continue
        if (file.path, file.sha256) not in staged and not _is_whole(
            run_dir.path / file.path, file, read=age < _N_READ
        ):
            yield task_id, file


def _is_whole(path: Path, file: FileRecord, *, read: bool) -> bool:
    try:
        if path.stat().st_size != file.n_bytes:
            return False
        return not read or sha256(path.read_bytes()) == file.sha256
    except OSError:
        return False
