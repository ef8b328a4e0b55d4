"""Whether segments feel it when the machine that learns is cut off: a blip, a killed ssh, and a link that is dead.

A whole campaign (alanine dipeptide, one slot for segments, each padded to 0.15 s) learns behind ssh, with a heartbeat
threshold of 8 s. Its simulation has a core of its own and everything else of it another. While a training runs, the
cable is pulled for 3 s; then the ssh of the far block is killed; then the cable is pulled for 20 s. Before the first,
and after each once learning works again, it is left alone for a while. Told are the segments committed a second from
a fault until learning works again over those of the calm windows before and after, the attempts that each fault cost,
and the longest time that the slot for segments had nothing to do in the whole campaign. Wanted: 0.95 of the calm
rate, 0.5 s, and a campaign that ends with exit code 0 and leaves nothing.

Needs a host and a cable: ``--ssh-host HOST`` with ``--ssh-config`` and ``--ssh-init`` as of ``run.py``, and commands
``--cable-down`` and ``--cable-up``. With a lab of the tests, as root (its far processes count among the others that
use the machine, so ``--keep-busy``)::

    python -m tests.integration.sites.lab two-hosts -- {near} python -m benchmarks.faults --ssh-host gpubox \
        --ssh-config {ssh_config} --ssh-init {ssh_init} --cable-down {cable_down} --cable-up {cable_up} --keep-busy
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.campaigns import Campaign, pin
from benchmarks.harness import Figure, Figures, Session, Wanted, interval, run, two_cores
from benchmarks.kills import Victim, flaws
from campaign.processes import processes_of
from campaign.trace_files import FILES

BLIP, KILLED_SSH, DEAD_LINK = "blip of 3 s", "killed ssh", "dead link of 20 s"

_FLAGS = (
    *("--system", "alanine-dipeptide", "--ml-site", "ssh", "--simulate-workers", "1", "--no-control", "--no-report"),
    *("--min-segment-seconds", "0.15", "--retrain-every", "8", "--heartbeat-threshold-s", "8"),
)
_MOST_PER_S = 1 / 0.15

# A campaign is as long as its windows, with so much for its start and for faults that take longer.
_BESIDE_WINDOWS_S = 110.0

_LEARNS_WITHIN_S = 150.0
_ENDS_WITHIN_S = 300.0
_GONE_S = 10.0
_PIN_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Window:
    """A span of a campaign, in UNIX seconds."""

    start: float
    end: float

    def rate(self, times: np.ndarray) -> float:
        """Return how many of the times fall into it, per second."""
        return float(np.count_nonzero((times >= self.start) & (times < self.end)) / (self.end - self.start))


@dataclass(slots=True)
class Told:
    """What a campaign that bore all faults told.

    Attributes
    ----------
    calm
        Windows before the first fault and after each.
    faults
        Windows from each fault until learning worked again.
    until_learnt_s, lost
        Seconds from each fault to the end of a training that began after it was over; attempts that it cost.
    committed
        When each segment was.
    idle_s
        Of the slot for segments, between one and the next.
    wrong
        What was found at the end that should not be.
    """

    calm: list[Window] = field(default_factory=list)
    faults: dict[str, Window] = field(default_factory=dict)
    until_learnt_s: dict[str, float] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    committed: np.ndarray = field(default_factory=lambda: np.zeros(0))
    idle_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    wrong: list[str] = field(default_factory=list)

    def kept(self, fault: str) -> float:
        """Return the rate from a fault until learning works again, over that of the calm windows beside it."""
        number = list(self.faults).index(fault)
        beside = [window.rate(self.committed) for window in self.calm[number : number + 2]]
        return self.faults[fault].rate(self.committed) / float(np.mean(beside))


def measure(session: Session) -> Figures:
    """Return rates, gaps and losses of campaigns that bore all faults."""
    worker_core, other_core = two_cores()
    # This process, and with it all that the campaign starts, leaves the simulation alone.
    os.sched_setaffinity(0, {other_core})
    repeats = session.options.repeats or (1 if session.quick else 3)
    rounds = session.rounds("campaign", {"told": lambda: _campaign(session, worker_core, other_core)}, repeats)
    return figures_of([each["told"] for each in rounds])


def figures_of(campaigns: Sequence[Told]) -> dict[str, Figure]:
    """Return the figures of campaigns."""
    figures: dict[str, Figure] = {}
    for fault in (BLIP, KILLED_SSH, DEAD_LINK):
        figures[f"{fault}: rate kept"] = interval(
            (told.kept(fault) for told in campaigns), "of calm", Wanted(at_least=0.95)
        )
        figures[f"{fault}: until it learns again"] = interval((told.until_learnt_s[fault] for told in campaigns), "s")
        figures[f"{fault}: attempts lost"] = interval((told.lost[fault] for told in campaigns), "attempts")
    calm = [[window.rate(told.committed) for window in told.calm] for told in campaigns]
    longest = max((float(told.idle_s.max(initial=0.0)) for told in campaigns), default=None)
    found = [what for told in campaigns for what in told.wrong]
    return figures | {
        "calm": interval((float(np.mean(rates)) for rates in calm), "segments/s"),
        # How far two windows without a fault differ, beside which the others are to be seen.
        "calm: lowest / highest": interval((min(rates) / max(rates) for rates in calm), "ratio"),
        "slot idle, median": interval((float(np.median(told.idle_s)) for told in campaigns), "s"),
        "slot idle, longest": Figure(longest, None, None, "s", Wanted(at_most=0.5)),
        "found wrong": Figure(float(len(found)) if campaigns else None, None, None, "findings", Wanted(at_most=0.0)),
    }


def idle_between(segments: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the seconds between each segment's end and the start of the next, of a slot's trace."""
    times = sorted((each["timestamp"]["compute_started"], each["timestamp"]["compute_ended"]) for each in segments)
    return np.array([start - end for (_, end), (start, _) in zip(times[:-1], times[1:], strict=True)])


def _campaign(session: Session, worker_core: int, other_core: int) -> Told:
    options = session.options
    window_s = options.window or (10.0 if session.quick else 20.0)
    n_segments = options.segments or round(_MOST_PER_S * (7 * window_s + _BESIDE_WINDOWS_S))
    where = ["--ssh-host", options.ssh_host]
    for flag, value in (("--ssh-config", options.ssh_config), ("--ssh-init", options.ssh_init)):
        where += [] if value is None else [flag, str(value)]
    # So short a name that sockets find place under it.
    path = session.folder / f"run-{uuid.uuid4().hex[:8]}"
    campaign, told = Victim(path, (*_FLAGS, *where, "--max-segments", str(n_segments))), Told()
    try:
        campaign.begin()
        run_id = str(_until(campaign, lambda: campaign.run_id, 20, "id"))
        with _kept_on_cores(campaign, run_id, worker_core, other_core):
            _until(campaign, lambda: _trainings(campaign, 0.0) > 0, _LEARNS_WITHIN_S, "training")
            told.calm.append(_left_alone(campaign, window_s))
            for name, fault in _faults(run_id, options).items():
                _bear(session, campaign, name, fault, window_s, told)
                told.calm.append(_left_alone(campaign, window_s))
            _conclude(campaign, run_id, told)
    finally:
        try:
            _sh(options.cable_up)
        finally:
            campaign.end()
    for what in told.wrong:
        print(f"WRONG: {what}", file=sys.stderr)
    return told


def _faults(run_id: str, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    def pull(seconds: float) -> None:
        _sh(options.cable_down)
        try:
            time.sleep(seconds)
        finally:
            _sh(options.cable_up)

    def kill() -> None:
        for process in _lines(run_id):
            process.send_signal(signal.SIGKILL)

    return {BLIP: lambda: pull(3.0), KILLED_SSH: kill, DEAD_LINK: lambda: pull(20.0)}


def _bear(
    session: Session, campaign: Victim, name: str, fault: Callable[[], None], window_s: float, told: Told
) -> None:
    """Let a campaign meet a fault while a training runs, and learn again."""
    out = "SELECT count(*) FROM attempt JOIN task ON id = task_id WHERE kind = 'train' AND outcome IS NULL"
    _until(campaign, lambda: campaign.count(out) > 0, _LEARNS_WITHIN_S, "running training")
    time.sleep(0.1)
    lost, began = _lost(campaign), time.time()
    fault()
    over = time.time()
    _until(campaign, lambda: _trainings(campaign, over) > 0, _LEARNS_WITHIN_S, f"training after a {name}")
    told.until_learnt_s[name] = time.time() - began
    time.sleep(max(0.0, began + window_s - time.time()))
    told.faults[name] = Window(began, time.time())
    told.lost[name] = _lost(campaign) - lost
    session.console.print(
        f"{name}: learnt again after {told.until_learnt_s[name]:.1f} s, {told.lost[name]} attempts lost",
        highlight=False,
    )


def _left_alone(campaign: Victim, seconds: float) -> Window:
    start = time.time()
    time.sleep(seconds)
    _refuse_end(campaign)
    return Window(start, time.time())


def _conclude(campaign: Victim, run_id: str, told: Told) -> None:
    """Let a campaign reach its target, and look at all of it."""
    assert campaign.process is not None
    code = campaign.process.wait(_ENDS_WITHIN_S)
    if code != 0:
        told.wrong.append(f"{campaign.path.name}: ended with exit code {code}")
    psutil.wait_procs(processes_of(run_id), _GONE_S)
    told.wrong += [f"{campaign.path.name}: {what}" for what in flaws(campaign)]
    if left := processes_of(run_id):
        told.wrong.append(f"{campaign.path.name}: {len(left)} processes are left")
    query = "SELECT ended FROM attempt JOIN task ON id = task_id WHERE kind = 'simulate' AND outcome = 'success'"
    told.committed = np.array([float(str(row[0])) for row in campaign.ask(query)])
    lines = (campaign.path / FILES["simulate"]).read_text().splitlines()
    told.idle_s = idle_between([json.loads(line) for line in lines])


def _trainings(campaign: Victim, since: float) -> int:
    """Return how many that began after a moment are complete."""
    return campaign.count(
        "SELECT count(*) FROM attempt JOIN task ON id = task_id"
        f" WHERE kind = 'train' AND outcome = 'success' AND started > {since}"
    )


def _lost(campaign: Victim) -> int:
    return campaign.count("SELECT count(*) FROM attempt WHERE outcome IN ('manager_lost', 'worker_lost', 'lost')")


def _lines(run_id: str) -> list[psutil.Process]:
    """Return the ssh of each far block."""
    return [each for each in processes_of(run_id) if each.name() == "ssh" and "-R" in each.cmdline()]


def _until(campaign: Victim, condition: Callable[[], object], timeout_s: float, what: str) -> object:
    assert campaign.process is not None
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        _refuse_end(campaign)
        if time.monotonic() > deadline:
            raise SystemExit(f"no {what} within {timeout_s:g} s: {_last_words(campaign)}")
        time.sleep(0.1)
    _refuse_end(campaign)
    return answer


def _refuse_end(campaign: Victim) -> None:
    assert campaign.process is not None
    if (code := campaign.process.poll()) is not None:
        raise SystemExit(
            f"the campaign ended before it had borne all faults (exit code {code}; was it complete? then give more "
            f"--segments): {_last_words(campaign)}"
        )


def _last_words(campaign: Victim) -> str:
    log = campaign.path / "runtime.log"
    output = campaign.path.with_suffix(".out")
    return "\n".join(file.read_text(errors="replace")[-2000:] for file in (output, log) if file.exists())


@contextmanager
def _kept_on_cores(campaign: Victim, run_id: str, worker_core: int, other_core: int) -> Iterator[None]:
    """Keep the simulation's worker on a core of its own, and what else of the campaign runs here on another.

    Its own processes inherit the other one; those of a far host that is this computer do not.
    """
    assert campaign.process is not None
    running, over = Campaign(campaign.path, campaign.process.pid), threading.Event()
    put: dict[int, int] = {}

    troubles: list[Exception] = []

    def keep() -> None:
        try:
            keep_until_over()
        except Exception as error:  # noqa: BLE001  # it is raised where figures would be wrong without it
            troubles.append(error)

    def keep_until_over() -> None:
        while not over.wait(_PIN_EVERY_S):
            simulating = set(running.workers("cpu"))
            for pid in {process.pid for process in processes_of(run_id)} | simulating:
                core = worker_core if pid in simulating else other_core
                if put.get(pid) != core:
                    pin(pid, core)
                    put[pid] = core

    keeper = threading.Thread(target=keep, name="cores", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
    for trouble in troubles:
        raise RuntimeError("processes were not kept on their cores") from trouble


def _sh(command: str) -> None:
    subprocess.run(["sh", "-c", command], check=True, timeout=30)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ssh-host", required=True, metavar="HOST", help="where it learns")
    parser.add_argument("--ssh-config", type=Path, metavar="FILE", help="ssh configuration to use")
    parser.add_argument("--ssh-init", metavar="LINE", help="shell line that brings Python and `tasks` there")
    parser.add_argument("--cable-down", required=True, metavar="COMMAND", help="cuts the way there")
    parser.add_argument("--cable-up", required=True, metavar="COMMAND", help="mends it")
    parser.add_argument("--repeats", type=int, metavar="N", help="campaigns (default: 3, quick 1)")
    parser.add_argument("--window", type=float, metavar="S", help="of calm, and at least of a fault (default: 20)")
    parser.add_argument("--segments", type=int, metavar="N", help="of a campaign, instead of what windows take")


if __name__ == "__main__":
    sys.exit(run("faults", __doc__, measure, _options))
