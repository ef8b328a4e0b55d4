"""Run directories as large as wanted, in seconds: a real campaign's results told again under other ids and times."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from campaign.ledger import FIRST_OTHER_ID, Ledger
from campaign.rundir import LEDGER, SUMMARY
from campaign.trace_files import FILES

_KEPT = ("params.json", "host_info.json", "topology.pdb", "system.safetensors", SUMMARY)

# Of many attempts one fails, with a traceback.
_ONE_FAILS_IN = 97
_ERROR = "ValueError: positions are not finite\nTraceback (most recent call last):\n  ...\nValueError: not finite"


def grow(real: Path, path: Path, n_segments: int, rng: np.random.Generator) -> None:
    """Write a run directory of so many segments, made from a real one that learnt; each began at an earlier frame.

    Trajectories are links to the real ones, so that each can be read.
    """
    (path / "trajectories").mkdir(parents=True)
    for name in _KEPT:
        shutil.copy(real / name, path)
    shutil.copytree(real / "models", path / "models")
    told = {topic: _lines(real, topic) for topic in ("simulate", "infer", "train")}
    segments = list(_segments(told["simulate"], n_segments, rng))
    inferences = list(_inferences(told["infer"], n_segments, rng))
    _write(path, "simulate", (line for line, _ in segments))
    _write(path, "infer", iter(inferences))
    _write(path, "train", _retold(told["train"], max(1, n_segments // 100)))
    _link(real, path, [source for _, source in segments])
    _record(path, [line["task_info"] for line, _ in segments])
    _refer(path, n_segments, rng)
    summary = json.loads((path / SUMMARY).read_text())
    (path / SUMMARY).write_text(json.dumps({**summary, "segments": n_segments}))


def _lines(real: Path, topic: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (real / FILES[topic]).read_text().splitlines()]


def _write(path: Path, topic: str, lines: Iterator[dict[str, Any]]) -> None:
    with (path / FILES[topic]).open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _later(line: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {**line, "timestamp": {name: at and at + seconds for name, at in line["timestamp"].items()}}


def _segments(real: list[dict[str, Any]], n: int, rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield trace lines of segments, and which real segment each repeats."""
    span = real[-1]["timestamp"]["result_received"] - real[0]["timestamp"]["created"]
    for segment in range(n):
        line = real[segment % len(real)]
        parent = None if segment < 4 else int(rng.integers(max(0, segment - 500), segment))
        frame = None if parent is None else int(rng.integers(line["task_info"]["n_frames"]))
        attempt = 1 + (segment % _ONE_FAILS_IN == 0)
        origin = {"segment_id": segment, "parent_id": parent, "parent_frame": frame, "attempt": attempt}
        info = {**line["task_info"], **origin}
        source = line["task_info"]["segment_id"]
        yield {**_later(line, segment // len(real) * span), "task_info": info}, source


def _inferences(real: list[dict[str, Any]], n: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield trace lines of inferences that look at all segments, as many at a time as in the real campaign."""
    looked, number = 0, 0
    while looked < n:
        line = real[number % len(real)]
        batch = range(looked, min(n, looked + max(1, len(line["task_info"]["segment_ids"]))))
        looked, number = batch.stop, number + 1
        info = {
            **line["task_info"],
            "task_id": FIRST_OTHER_ID + number,
            "reference_number": number,
            "segment_ids": list(batch),
            "novelty": rng.random(len(batch)).tolist(),
            "coverage": float(200 * (1 - np.exp(-looked / 2000))),
        }
        yield {**_later(line, number // len(real) * 60.0), "task_info": info}


def _retold(real: list[dict[str, Any]], n: int) -> Iterator[dict[str, Any]]:
    for version in range(1, n + 1):
        line = real[version % len(real)]
        info = {**line["task_info"], "task_id": 2 * FIRST_OTHER_ID + version, "model_version": version}
        yield {**_later(line, 60.0 * version), "task_info": info}


def _link(real: Path, path: Path, sources: list[int]) -> None:
    for segment, source in enumerate(sources):
        os.link(real / f"trajectories/{source:08d}.dcd", path / f"trajectories/{segment:08d}.dcd")


def _record(path: Path, infos: list[dict[str, Any]]) -> None:
    """Write the ledger: a task, an attempt and a trajectory for each segment; now and then an attempt failed."""
    Ledger(path / LEDGER).close()
    tasks: list[tuple[object, ...]] = []
    attempts: list[tuple[object, ...]] = []
    files: list[tuple[object, ...]] = []
    for info in infos:
        segment = info["segment_id"]
        origin = (info["parent_id"], info["parent_frame"], 0, float(segment), info["walker_id"], 1, None, None, None)
        tasks.append((segment, "simulate", "complete", "local", *origin))
        if info["attempt"] == 2:
            attempts.append((segment, 1, "local", "host", "0", float(segment), segment + 0.5, "error", _ERROR))
        attempts.append(
            (segment, info["attempt"], "local", "host", "0", segment + 0.5, segment + 1.0, "success", None)
        )
        files.append((segment, "trajectory", f"trajectories/{segment:08d}.dcd", "0" * 64, 2600))
    with sqlite3.connect(path / LEDGER) as db:
        db.executemany("INSERT INTO task VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", tasks)
        db.executemany("INSERT INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", attempts)
        db.executemany("INSERT INTO artifact (task_id, kind, path, sha256, bytes) VALUES (?, ?, ?, ?, ?)", files)


def _refer(path: Path, n_segments: int, rng: np.random.Generator) -> None:
    """Let the newest reference set hold as many frames as one may, of all segments."""
    newest = max((path / "models").glob("reference-*.npz"))
    with np.load(newest, allow_pickle=False) as held:
        arrays = dict(held)
    rows = rng.integers(0, len(arrays["ids"]), min(2000, 8 * n_segments))
    for name in ("ids", "points", "latent"):
        arrays[name] = arrays[name][rows]
    arrays["ids"] = arrays["ids"] % 8
    arrays["ids"][:, 0] = rng.integers(0, n_segments, len(rows))
    np.savez(newest, **arrays)
