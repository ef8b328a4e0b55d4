"""How long a decision takes, what a task costs on its way, and whether that grows with the campaign.

- Decision time (simulation result in the Thinker's hands until the next segment is sent) of the default steered
  campaign on alanine dipeptide, where everything shares the machine, and of the same with segments padded to 0.1 s,
  which leaves some of it idle. Wanted: p50 2 ms, p95 6 ms at most in the first.
- Turnaround of a task that does nothing on a warm worker, through Colmena's queues and the campaign's task server,
  over bare Parsl's with an equal executor; both take turns. Wanted: 2.5 times at most.
- CPU seconds of the main process per segment, and its memory, around 500 segments and around 5 000 of one campaign.
  Wanted: no more than 1.1 times. Bytes through the Thinker per segment, both ways. Wanted: 8 kB at most.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import parsl
import psutil

from benchmarks import remote
from benchmarks.campaigns import Campaign, campaign
from benchmarks.harness import Figure, Figures, Session, Wanted, interval, median, run
from benchmarks.service import call, colmena_worker, parsl_worker
from campaign.trace_files import FILES


@dataclass(frozen=True, slots=True)
class Sample:
    """The main process at one moment."""

    segments: int
    cpu_s: float
    memory_bytes: int


@dataclass(slots=True)
class MainProcess:
    """Watches the main process of a campaign, and counts its segments in the trace."""

    samples: list[Sample] = field(default_factory=list)
    _segments: int = 0
    _read: int = 0

    def look(self, running: Campaign) -> None:
        """Take a sample."""
        self._count(running)
        try:
            process = psutil.Process(running.pid)
            times, memory = process.cpu_times(), process.memory_info().rss
        except psutil.NoSuchProcess:
            return
        self.samples.append(Sample(self._segments, times.user + times.system, memory))

    def _count(self, running: Campaign) -> None:
        path = running.path / FILES["simulate"]
        if path.exists():
            with path.open("rb") as trace:
                trace.seek(self._read)
                new = trace.read()
            self._read += len(new)
            self._segments += new.count(b"\n")


def measure(session: Session) -> Figures:
    """Return all of it; the comparison with Parsl first, for it has to fork before anything has threads."""
    return {**_overhead(session), **_decisions(session), **_growth(session)}


def cost_between(samples: list[Sample], first: int, last: int) -> tuple[float, int]:
    """Return CPU seconds per segment between two counts of segments, and the memory in bytes at the second."""
    start = next(sample for sample in samples if sample.segments >= first)
    end = next(sample for sample in samples if sample.segments >= last)
    return (end.cpu_s - start.cpu_s) / (end.segments - start.segments), end.memory_bytes


def _overhead(session: Session) -> dict[str, Figure]:
    n_tasks = 200
    with (
        colmena_worker(session.folder, [remote.nothing]) as queues,
        parsl_worker(session.folder) as kernel,
    ):
        app = parsl.python_app(remote.nothing, data_flow_kernel=kernel)

        def colmena() -> float:
            return median([call(queues, "nothing")[0] for _ in range(n_tasks)])

        def bare() -> float:
            return median([_bare_call(app) for _ in range(n_tasks)])

        colmena(), bare()  # warms both
        rounds = session.rounds("no-op tasks", {"colmena": colmena, "parsl": bare}, 3 if session.quick else 20)
    ratios = (r["colmena"] / r["parsl"] for r in rounds)
    return {
        "no-op task, Colmena / Parsl": interval(ratios, "ratio", Wanted(at_most=2.5)),
        "no-op task, Colmena": interval((1000 * r["colmena"] for r in rounds), "ms"),
        "no-op task, bare Parsl": interval((1000 * r["parsl"] for r in rounds), "ms"),
    }


def _bare_call(app: Callable[[], Future[int]]) -> float:
    began = time.perf_counter()
    app().result()
    return time.perf_counter() - began


def _decisions(session: Session) -> dict[str, Figure]:
    n_segments = str(200 if session.quick else 1000)

    def decision_ms(*flags: str) -> dict[str, float]:
        with campaign(session, "--max-segments", n_segments, *flags) as ran:
            return dict(ran.summary["decision_ms"])

    arms = {"steered": decision_ms, "steered, padded": lambda: decision_ms("--min-segment-seconds", "0.1")}
    rounds = session.rounds("decisions", arms, 1 if session.quick else 5)
    wanted = {"p50": Wanted(at_most=2.0), "p95": Wanted(at_most=6.0)}
    return {
        f"decision, {arm}: {part}": interval((r[arm][part] for r in rounds), "ms", mark if arm == "steered" else None)
        for arm in arms
        for part, mark in wanted.items()
    }


def _growth(session: Session) -> dict[str, Figure]:
    early, late = (300, 1500) if session.quick else (500, 5000)
    window = early * 4 // 5

    def whole_campaign() -> dict[str, float]:
        main = MainProcess()
        with campaign(session, "--max-segments", str(late + 50), watch=main.look) as ran:
            through = ran.summary["thinker_bytes_per_segment"]
        early_cpu, early_bytes = cost_between(main.samples, early - window, early)
        late_cpu, late_bytes = cost_between(main.samples, late - window, late)
        return {
            "early_cpu": early_cpu,
            "late_cpu": late_cpu,
            "early_bytes": early_bytes,
            "late_bytes": late_bytes,
            "through": through["sent"] + through["received"],
        }

    rounds = session.rounds(f"{late} segments", {"campaign": whole_campaign}, 1 if session.quick else 3)
    runs = [r["campaign"] for r in rounds]
    most = Wanted(at_most=1.1)
    return {
        f"main process, CPU per segment at {early}": interval((1000 * r["early_cpu"] for r in runs), "ms"),
        f"main process, CPU per segment at {late}": interval((1000 * r["late_cpu"] for r in runs), "ms"),
        "growth of the CPU per segment": interval((r["late_cpu"] / r["early_cpu"] for r in runs), "ratio", most),
        f"main process, memory at {early}": interval((r["early_bytes"] / 1e6 for r in runs), "MB"),
        f"main process, memory at {late}": interval((r["late_bytes"] / 1e6 for r in runs), "MB"),
        "growth of the memory": interval((r["late_bytes"] / r["early_bytes"] for r in runs), "ratio", most),
        "memory kept per segment": interval(
            ((r["late_bytes"] - r["early_bytes"]) / (late - early) for r in runs), "bytes"
        ),
        "through the Thinker per segment": interval((r["through"] for r in runs), "bytes", Wanted(at_most=8000)),
    }


if __name__ == "__main__":
    sys.exit(run("latency", __doc__, measure))
