"""A campaign as events that ui.perfetto.dev and chrome://tracing show: who did what, when, and what led to what.

Sites are processes and workers their threads; an attempt at a task is a slice on the worker that ran it, and a mark
where none did. Arrows go from a segment to its children and to the inference that looked at it, from an inference to
the training that learnt from its reference set, and from a training to the first that used its model. The format is
Chrome's Trace Event Format (JSON), which has whole microseconds; they count from the first event.

Times on a worker are of its clock, all others of the submit host's.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from campaign.export.places import refuse_own, written_whole
from campaign.export.spans import Spans, utilisation
from campaign.ledger import FIRST_OTHER_ID
from campaign.trace import Run
from campaign.trace_files import FILES

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

# What a slice tells of its task, in the words of the traces.
_TOLD = (
    "segment_id", "task_id", "attempt", "parent_id", "parent_frame", "walker_id", "replica", "iteration", "steered",
    "model_version", "novelty", "simulated_ps", "n_frames", "segment_ids", "n_reference", "coverage",
    "smallest_rmsd_nm", "payload_bytes", "store", "device", "worker_rss_bytes", "executor",
)  # fmt: skip

# Parts of a segment that are done one after the other before the worker turns to the next.
_FIRST_PARTS = ("prepare", "integrate")

# Shorter parts cannot be seen.
_SHORTEST_US = 10

# What may be missing between the parts of a task and the whole, for them to be laid end to end.
_GAP, _GAP_US = 0.1, 2000

_LONGEST_ERROR = 300

# Perfetto tells threads apart by their numbers alone, so these are of all processes.
_CAMPAIGN, _FIRST_THREAD = 1, 100

_OPTION = "--perfetto"


def write_perfetto(run: Run, place: Path) -> str:
    """Write the trace, and return what is to be said of it.

    Raises
    ------
    BadInput
        When the place cannot be written, or what the run left is damaged.
    """
    refuse_own(_OPTION, place)
    zero = _first(run)
    with written_whole(place, _OPTION) as part, part.open("w", buffering=1 << 20) as file:
        about = {"run": run.name, "system": str(run.settings.get("system")), "zero_unix_s": f"{zero:.6f}"}
        file.write('{"displayTimeUnit":"ms","otherData":' + _encode(about) + ',"traceEvents":[\n')
        events = _Events(file)
        _Writer(run, events, zero).write()
        file.write("\n]}\n")
    return f"{place} is written: open it in ui.perfetto.dev or chrome://tracing ({events.n_written} events)"


def _first(run: Run) -> float:
    """Return when the first event was (UNIX s), by whatever clock."""
    began = [float(each["started"]) for each in run.meta.get("processes", ())]
    told = (
        "SELECT min(started) AS first FROM attempt UNION ALL"
        " SELECT min(json_extract(line, '$.timestamp.compute_started')) FROM record"
    )
    return min([*began, *run.query(told)["first"].dropna()], default=0.0)


class _Events:
    """The list of events in a file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.n_written = 0

    def write(self, event: Mapping[str, Any]) -> None:
        """Add one."""
        self._file.write((",\n" if self.n_written else "") + _encode(event))
        self.n_written += 1


class _Lane(NamedTuple):
    """Who ran something: a worker of a pool; without one, nobody.

    A pool that died is followed by another, whose workers have the same names.
    """

    site: str
    executor: str = ""
    host: str = ""
    rank: str = ""
    pool: str = ""

    def name(self, namesakes: int) -> str:
        """Return what it is called, so that it differs from others of one name."""
        if not self.host:
            return "ran nowhere"
        pool = f" ({self.pool})" if namesakes > 1 else ""
        return f"{self.executor} {self.host}/{self.rank}{pool}"


class _Slice(NamedTuple):
    """Where and when something ran; microseconds."""

    pid: int
    tid: int
    start: int
    end: int


class _Writer:
    """Goes once through what a run left, writes what can be written at once, and then the rest.

    Parameters
    ----------
    zero
        When the first event was (UNIX s).
    """

    def __init__(self, run: Run, events: _Events, zero: float) -> None:
        self._run = run
        self._events = events
        self._zero = zero
        self._lanes: dict[_Lane, int] = {}
        self._sites: dict[str, int] = {}
        self._left = _attempts(run)
        self._queued: defaultdict[str, Spans] = defaultdict(Spans)
        self._running: defaultdict[str, Spans] = defaultdict(Spans)
        self._busy: defaultdict[_Lane, Spans] = defaultdict(Spans)
        self._segments: dict[int, _Slice] = {}
        self._inferences: list[tuple[float, _Slice]] = []
        self._trainings: dict[int, tuple[float, _Slice]] = {}
        self._users: dict[tuple[int, str], _Slice] = {}
        self._memory: dict[_Lane, int] = {}
        self._n_arrows = 0
        self._last = 0

    def write(self) -> None:
        """Write all."""
        self._campaign()
        # Segments come before those that looked at them.
        for topic in FILES:
            for line in self._run.lines(topic):
                self._attempt(topic, line)
        self._ran_nowhere()
        self._models()
        self._counters()
        self._names()

    # Attempts ---------------------------------------------------------------------------------------------------

    def _attempt(self, topic: str, line: Mapping[str, Any]) -> None:
        info, times = line["task_info"], line["timestamp"]
        known = self._left.pop((info.get("task_id", info.get("segment_id")), info.get("attempt")), None)
        args = _args(line, known)
        started, ended = times.get("compute_started"), times.get("compute_ended")
        lane = _lane(line)
        created, received = (self._at(times.get(name)) for name in ("created", "result_received"))
        self._last = max(self._last, received)
        if started is None or ended is None or not lane.host:
            self._mark(lane.site, topic, f"{_name(topic, info)} failed", received, args)
            self._queued[topic].add(created, received)
            return
        start, end = self._at(started), self._at(ended)
        found = _Slice(self._site(lane.site), self._thread(lane), start, max(start, end))
        self._slice(found, topic, _name(topic, info) + ("" if line["success"] else " failed"), args)
        for name, part in _parts(topic, found, info.get("seconds") or {}):
            self._slice(part, "part", name, {})
        self._queued[topic].add(created, start)
        self._running[topic].add(start, end)
        self._busy[lane].add(start, end)
        self._remember(lane, end, info.get("worker_rss_bytes"))
        if line["success"] and (known is None or known[4] in (None, "success")):
            self._lead(topic, info, times, found)

    def _remember(self, lane: _Lane, end: int, n_bytes: int | None) -> None:
        """Tell the most memory that a worker had, where that is more than before."""
        if n_bytes is not None and n_bytes > self._memory.get(lane, 0):
            self._memory[lane] = n_bytes
            name = f"memory: {lane.executor} {lane.host}/{lane.rank}"
            self._count(self._site(lane.site), name, end, "MB", round(n_bytes / 1e6, 1))

    def _ran_nowhere(self) -> None:
        """Mark the attempts without a line: they never came back, or are out."""
        for (task_id, number), (topic, site, started, ended, outcome, error) in self._left.items():
            told = {"task_id": task_id, "attempt": number, "outcome": outcome or "out", "error": error}
            sent = self._at(started)
            at = sent if ended is None or ended != ended else self._at(ended)
            args = {name: value for name, value in told.items() if value is not None}
            name = _name(topic, {"segment_id" if task_id < FIRST_OTHER_ID else "task_id": task_id})
            self._mark(site, topic, f"{name} {outcome or 'out'}", at, {**args, "sent_us": sent})
            self._queued[topic].add(sent, at if outcome else max(at, self._last))

    # What led to what -------------------------------------------------------------------------------------------

    def _lead(self, topic: str, info: Mapping[str, Any], times: Mapping[str, Any], found: _Slice) -> None:
        """Draw the arrows that end at a task, and keep what others begin at."""
        if topic == "simulate":
            self._arrow("start", self._segments.get(info.get("parent_id", -1)), found)
            self._segments[info["segment_id"]] = found
        elif topic == "train":
            self._trainings[info["model_version"]] = times["created"], found
            self._point(self._at(times["result_received"]), "model version", info["model_version"])
            return
        elif topic == "infer":
            for segment_id in info.get("segment_ids", ()):
                self._arrow("frames", self._segments.get(segment_id), found)
            self._inferences.append((times["result_received"], found))
            if info.get("coverage") is not None:
                self._point(self._at(times["result_received"]), "coverage", info["coverage"])
        if topic != "simulate" and info.get("model_version"):
            key = info["model_version"], topic
            self._users[key] = min(self._users.get(key, found), found, key=lambda each: each.start)

    def _models(self) -> None:
        """Draw how models came to be, and where each was used first."""
        received = np.array([at for at, _ in self._inferences])
        for version, (created, training) in self._trainings.items():
            before = np.flatnonzero(received <= created)
            if len(before):
                self._arrow("reference set", self._inferences[before[received[before].argmax()]][1], training)
            if version - 1 in self._trainings:
                self._arrow("model", self._trainings[version - 1][1], training)
        for (version, _), user in self._users.items():
            if version in self._trainings:
                self._arrow("model", self._trainings[version][1], user)

    def _arrow(self, name: str, source: _Slice | None, target: _Slice) -> None:
        # By another clock it may lead back in time, which cannot be drawn.
        if source is None or target.start < source.start:
            return
        self._n_arrows += 1
        leaves = max(source.start, min(source.end - 1, target.start))
        common = {"cat": "lineage", "name": name, "id": self._n_arrows}
        self._events.write({"ph": "s", **common, "pid": source.pid, "tid": source.tid, "ts": leaves})
        self._events.write({"ph": "f", "bp": "e", **common, "pid": target.pid, "tid": target.tid, "ts": target.start})

    # Figures over time ------------------------------------------------------------------------------------------

    def _counters(self) -> None:
        for what, by_topic in (("queued", self._queued), ("running", self._running)):
            for topic, spans in by_topic.items():
                self._curve(_CAMPAIGN, f"{what}: {topic}", "tasks", *spans.levels())
        workers: defaultdict[tuple[str, str], list[Spans]] = defaultdict(list)
        for lane, spans in self._busy.items():
            workers[lane.site, lane.executor].append(spans)
        for (site, executor), spans_of in workers.items():
            self._curve(self._site(site), f"utilisation: {executor}", "of workers", *utilisation(spans_of))

    def _curve(self, pid: int, name: str, of: str, times: np.ndarray, values: np.ndarray) -> None:
        for at, value in zip(times.tolist(), values.tolist(), strict=True):
            self._count(pid, name, at, of, value)

    def _point(self, at: int, name: str, value: float) -> None:
        self._count(_CAMPAIGN, name, at, "value", value)

    def _count(self, pid: int, name: str, at: int, of: str, value: float) -> None:
        self._events.write({"ph": "C", "name": name, "pid": pid, "ts": at, "args": {of: value}})

    # Slices, marks, and where they are --------------------------------------------------------------------------

    def _campaign(self) -> None:
        """Mark what the campaign as a whole did."""
        for number, process in enumerate(self._run.meta.get("processes", ()), 1):
            args = {"host": process.get("host"), "pid": process.get("pid")}
            self._instant(_CAMPAIGN, _CAMPAIGN, "campaign", f"process {number}", self._at(process["started"]), args)
        for row in self._run.iterations.itertuples():
            args = {"replica": row.replica, "walkers": row.n_walkers, "flux_per_ps": row.flux_per_ps}
            name = f"iteration {row.iteration} ended"
            self._instant(_CAMPAIGN, _CAMPAIGN, "iteration", name, self._at(row.ended), args)

    def _slice(self, found: _Slice, category: str, name: str, args: Mapping[str, Any]) -> None:
        event = {"ph": "X", "cat": category, "name": name, "pid": found.pid, "tid": found.tid}
        self._events.write({**event, "ts": found.start, "dur": found.end - found.start, "args": args})

    def _mark(self, site: str, topic: str, name: str, at: int, args: Mapping[str, Any]) -> None:
        self._instant(self._site(site), self._thread(_Lane(site)), topic, name, at, args)

    def _instant(self, pid: int, tid: int, category: str, name: str, at: int, args: Mapping[str, Any]) -> None:
        place = {"pid": pid, "tid": tid, "ts": at}
        self._events.write({"ph": "i", "s": "t", "cat": category, "name": name, **place, "args": args})

    def _site(self, site: str) -> int:
        return self._sites.setdefault(site, _CAMPAIGN + 1 + len(self._sites))

    def _thread(self, lane: _Lane) -> int:
        return self._lanes.setdefault(lane, _FIRST_THREAD + len(self._lanes))

    def _at(self, seconds: float | None) -> int:
        return self._last if seconds is None else round((seconds - self._zero) * 1e6)

    def _names(self) -> None:
        """Name processes and threads, in the order in which they are to be shown."""
        self._name(_CAMPAIGN, _CAMPAIGN, "process", f"campaign {self._run.name}", 0)
        self._name(_CAMPAIGN, _CAMPAIGN, "thread", "Thinker", 0)
        for order, (site, pid) in enumerate(sorted(self._sites.items()), 1):
            self._name(pid, pid, "process", f"site {site}", order)
        namesakes = Counter(lane[:4] for lane in self._lanes)
        for order, (lane, tid) in enumerate(sorted(self._lanes.items()), 1):
            self._name(self._sites[lane.site], tid, "thread", lane.name(namesakes[lane[:4]]), order)

    def _name(self, pid: int, tid: int, what: str, name: str, order: int) -> None:
        for kind, args in ((f"{what}_name", {"name": name}), (f"{what}_sort_index", {"sort_index": order})):
            self._events.write({"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": args})


def _attempts(run: Run) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Return what the ledger tells of each attempt, by task and number: topic, site, times, outcome and error."""
    first_line = "substr(error, 1, coalesce(nullif(instr(error, char(10)), 0) - 1, length(error)))"
    told = run.query(
        f"SELECT task_id, number, kind, site, started, ended, outcome, {first_line} AS error"
        " FROM attempt JOIN task ON id = task_id ORDER BY attempt.rowid"
    ).astype(object)
    rows = told.where(told.notna(), None).itertuples(index=False, name=None)
    return {(task_id, number): tuple(rest) for task_id, number, *rest in rows}


def _lane(line: Mapping[str, Any]) -> _Lane:
    info, worker = line["task_info"], line.get("worker_info") or {}
    names = ("hostname", "PARSL_WORKER_RANK", "PARSL_WORKER_POOL_ID")
    return _Lane(
        info.get("site") or "?", info.get("executor") or "?", *(str(worker.get(each) or "") for each in names)
    )


def _name(topic: str, info: Mapping[str, Any]) -> str:
    """Return what a task is called."""
    if topic == "simulate":
        return f"segment {info['segment_id']}"
    if topic == "infer" and "reference_number" in info:
        return f"inference {info['reference_number']}"
    if topic == "train" and "model_version" in info:
        return f"training {info['model_version']}"
    return f"{topic} {max(0, info.get('task_id', 0) - FIRST_OTHER_ID)}"


def _args(line: Mapping[str, Any], known: tuple[Any, ...] | None) -> dict[str, Any]:
    """Return what a slice tells of its task."""
    info, failure = line["task_info"], line.get("failure_info") or {}
    told = {name: info.get(name) for name in _TOLD}
    if isinstance(info.get("novelty"), list):
        known_novelty = [value for value in info["novelty"] if value is not None]
        told["novelty"] = float(np.mean(known_novelty)) if known_novelty else None
    told["outcome"] = (known[4] if known else None) or ("success" if line["success"] else "failed")
    told["error"] = str(failure.get("exception") or "").partition("\n")[0][:_LONGEST_ERROR] or None
    return {name: value for name, value in told.items() if value is not None}


def _parts(topic: str, whole: _Slice, seconds: Mapping[str, float]) -> Iterator[tuple[str, _Slice]]:
    """Yield the parts of a task, laid end to end, as far as it is known that they were.

    Traces have how long they took, not when. In a bundle the last parts of a segment are done beside the next one.
    """
    lengths = {name: round(1e6 * each) for name, each in seconds.items()}
    left = whole.end - whole.start - sum(lengths.values())
    if not 0 <= left <= max(_GAP * (whole.end - whole.start), _GAP_US):
        lengths = {name: lengths[name] for name in _FIRST_PARTS if topic == "simulate" and name in lengths}
    at = whole.start
    for name, length in lengths.items():
        if length >= _SHORTEST_US and at + length <= whole.end:
            yield name, whole._replace(start=at, end=at + length)
        at += length
