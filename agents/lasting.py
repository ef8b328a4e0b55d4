"""What makes a campaign outlast its process: mended when a later one goes on, parked when this one ends."""

from __future__ import annotations

import io
import logging
import os
import platform
import re
import socket
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from agents.state import Destination, Learnt
from campaign.archives import take_in
from campaign.faults import reach
from campaign.ledger import Ledger
from campaign.rundir import write_whole
from campaign.stores import Stores
from campaign.trace_files import mend_traces
from tasks.announce import forget_announcements
from tasks.errors import TaskFailed
from tasks.files import discard, publish, sha256, staged_files
from tasks.gather import gather_all, remove_unfinished, tidy
from tasks.messages import FileRecord, Ref, Scratch, StoreSpec, Topic
from tasks.transport import fetch, ship

logger = logging.getLogger(__name__)


def begin_process(ledger: Ledger, run_id: str, run_dir: Path, about: Mapping[str, object]) -> None:
    """Note who works on the campaign now, and what it is (``about``: more values of the campaign as a whole)."""
    here = {"host": socket.gethostname(), "pid": os.getpid(), "run_dir": str(run_dir)}
    processes = ledger.meta().get("processes", [])
    processes.append({"run_id": run_id, "started": time.time(), **here})
    with ledger.transaction():
        ledger.set_meta("processes", processes)
        for key, value in {"status": "running", "reason": None, **about}.items():
            ledger.set_meta(key, value)


def mend(ledger: Ledger, run_dir: Path, stores: Stores) -> int:
    """Put the run directory where the last commit left it; return how many objects were swept from the stores."""
    ledger.abandon_running()
    settle_staged(ledger, run_dir)
    remove_unfinished(run_dir)
    forget_announcements(run_dir)
    mend_traces(ledger, run_dir)
    swept, _ = stores.sweep(keep=ledger.referenced())
    return swept


def settle_staged(ledger: Ledger, run_dir: Path) -> None:
    """Bring files of committed results to their places, and remove those of results that never were."""
    known = {(file.path, file.sha256) for file in ledger.artifacts("trajectory", "end_state", "reference", "model")}
    for file in staged_files(run_dir):
        if (file.path, file.sha256) in known:
            publish(run_dir, file)
        else:
            discard(run_dir, file)


def gather_here(scratch: Scratch, run_dir: Path) -> frozenset[str]:
    """Bring what is pending on this host's scratch into the run directory; return whose scratch is empty now."""
    try:
        gather_all(scratch, run_dir)
    except (TaskFailed, OSError) as error:
        logger.warning("scratch %s of this host could not be gathered: %s", scratch.folder, error)
        return frozenset()
    return frozenset({platform.node()})


def bring_in(ledger: Ledger, run_dir: Path, scratch: Scratch, site: str) -> str | None:
    """Gather from this host what the campaign's end left there; return a sentence if segments are left elsewhere."""
    gather_here(scratch, run_dir)
    try:
        for sentence in take_in(ledger, run_dir, site):
            logger.info("%s", sentence)
        n_left = ledger.n_computed()
    except (OSError, sqlite3.Error) as error:
        return f"archives could not be recorded: {error}; free some space and resume"
    tidy(scratch)
    if not n_left:
        return None
    return (
        f"{n_left} segments are computed and not gathered: `gather RUN` on their nodes, or resume to run them again"
    )


def finder(destinations: Mapping[Topic, Destination], stores: Stores) -> Callable[[Ref, Topic], Ref | None]:
    """Return what finds data of an earlier process, and brings them where a topic's workers reach them."""
    moved: dict[tuple[Ref, StoreSpec], Ref | None] = {}

    def find(ref: Ref, topic: Topic) -> Ref | None:
        destination = destinations.get(topic)
        if not _is_readable(ref):
            return None
        # Where there is no such destination any more, data need not be brought there.
        if destination is None or ref.data is not None or ref.store.kind in destination.reaches:
            return ref
        key = ref, stores.of[topic if topic in stores.of else "simulate"]
        if key not in moved:
            try:
                moved[key] = ship(fetch(ref), key[1])
            except TaskFailed as error:
                logger.warning("%s", error)
                moved[key] = None
        return moved[key]

    return find


def _is_readable(ref: Ref) -> bool:
    """Return whether data are there, and whole."""
    try:
        fetch(ref)
    except TaskFailed as error:
        logger.warning("%s", error)
        return False
    return True


def recoverer(ledger: Ledger, run_dir: Path, store: StoreSpec) -> Callable[[Learnt], tuple[Ref, int] | None]:
    """Return what takes a model or reference set from the newest file in the run directory that is whole."""

    def recover(what: Learnt) -> tuple[Ref, int] | None:
        for file in reversed(ledger.artifacts(what)):
            data = _whole(run_dir, file)
            if data is None:
                logger.warning("%s is not whole: an older one is taken", file.path)
                continue
            if what == "model":
                (version,) = re.findall(r"(\d+)\.", file.path)
                return ship({"model": np.frombuffer(data, np.uint8)}, store, always=False), int(version)
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return ship(dict(arrays), store, always=False), int(arrays["counts"][1])
        return None

    return recover


def mend_learnt(ledger: Ledger, run_dir: Path, model: Ref | None) -> None:
    """Make files of models and reference sets match what the ledger tells: by what a store has, or by forgetting."""
    packed = None if model is None else fetch(model)["model"].tobytes()
    for file in ledger.artifacts("model", "reference"):
        if _whole(run_dir, file) is not None:
            continue
        if packed is not None and sha256(packed) == file.sha256:
            write_whole(run_dir / file.path, packed)
            continue
        logger.warning("%s is not whole, and forgotten", file.path)
        with ledger.transaction():
            ledger.drop_artifact(file.path)


def _whole(run_dir: Path, file: FileRecord) -> bytes | None:
    try:
        data = (run_dir / file.path).read_bytes()
    except OSError:
        return None
    return data if sha256(data) == file.sha256 else None


def park(ledger: Ledger, stores: Stores) -> None:
    """Bring what a later process needs into the run directory, as far as it can be."""
    refs = [Ref(stores.by_name[name], key) for name, key in ledger.referenced() if name in stores.by_name]
    try:
        moved = stores.park(refs)
        reach("before-park")
        with ledger.transaction():
            ledger.readdress(moved)
        reach("after-park")
    except (TaskFailed, OSError, sqlite3.Error) as error:
        logger.warning("what is needed to go on stays in its stores, for it cannot be parked: %s", error)
