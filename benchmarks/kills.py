"""Whether a campaign survives: real SIGKILLs on every process of it, then `resume`, and what was lost.

Main process, task server, interchange, manager, worker and Redis server are killed at random moments in which a
segment, an inference or a training is out, or trajectories wait on a node's scratch to be gathered, and the main
process at every named commit point (``WAYFINDER_KILL_AT``). What ended the campaign is followed by ``resume``; the
next kill meets the resumed one. After each kill: no process of a killed campaign is left after 10 s; every segment is
committed once, none that was finished is run again, every parent exists, every checksum matches, traces tell what the
ledger tells; what is lost is at most what was in flight. ``--soak N`` instead: N segments with a kill every 30 s on
average, its rate beside that of a campaign that nobody kills.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.harness import ROOT, Figure, Figures, Session, Wanted, interval, run
from campaign.archives import split
from campaign.faults import POINTS
from campaign.ledger import FIRST_OTHER_ID
from campaign.processes import RUN_VARIABLE, processes_of
from campaign.trace_files import FILES
from sites.htex import POOL
from tasks.files import sha256

MOMENTS = ("simulate", "infer", "train")
GATHER = "gather"
VICTIMS = ("main", "server", "interchange", "manager", "worker", "redis")

# A kill that a campaign survives by itself, and one that ends it.
_SURVIVED = frozenset({"manager", "worker"})

_FLAGS = (
    *("--min-segment-seconds", "0.03", "--retrain-every", "16", "--first-epochs", "3", "--epochs", "1"),
    *("--infer-every", "2", "--heartbeat-s", "1", "--heartbeat-threshold-s", "4", "--no-control", "--no-report"),
)

_MOMENT_S = 60.0
_END_S = 90.0
GONE_S = 10.0

Rows = list[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill.

    Attributes
    ----------
    victim
        A process, or a commit point of the main process.
    moment
        What must be out; empty for a commit point.
    """

    victim: str
    moment: str

    @property
    def name(self) -> str:
        """As the log has it."""
        return f"{self.victim} at {self.moment}" if self.moment else self.victim


@dataclass(slots=True)
class Toll:
    """What kills cost, and what was found wrong after them."""

    kills: Counter[str] = field(default_factory=Counter)
    idle_s: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Victim:
    """A campaign in a directory, started or resumed as often as it takes."""

    def __init__(self, path: Path, flags: tuple[str, ...]) -> None:
        self.path = path
        self.flags = flags
        self.process: subprocess.Popen[bytes] | None = None
        self._log = path.with_suffix(".out").open("ab")

    def begin(self, kill_at: str | None = None, *flags: str) -> None:
        """Start the campaign, or resume it with other limits."""
        begun = (self.path / "ledger.sqlite").exists()
        words = ["resume", str(self.path), *flags] if begun else ["--run-dir", str(self.path), *self.flags]
        env = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *words],
            cwd=ROOT,
            env=env | ({} if kill_at is None else {"WAYFINDER_KILL_AT": kill_at}),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def end(self) -> None:
        """End it whatever it does."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()

    def ask(self, query: str) -> Rows:
        """Return rows of the ledger; none while there is no ledger."""
        ledger = self.path / "ledger.sqlite"
        if not ledger.exists():
            return []
        try:
            with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=10)) as db:
                return db.execute(query).fetchall()
        except sqlite3.OperationalError:  # its tables are being made
            return []

    def count(self, query: str) -> int:
        """Return a number that the ledger tells."""
        rows = self.ask(query)
        return int(str(rows[0][0])) if rows else 0

    @property
    def n_done(self) -> int:
        """Segments that are committed, gathered or not."""
        return self.count("SELECT count(*) FROM task WHERE kind = 'simulate' AND state IN ('complete', 'computed')")

    @property
    def run_id(self) -> str:
        """Id in the environment of every process of the present command."""
        assert self.process is not None
        return psutil.Process(self.process.pid).environ().get(RUN_VARIABLE, "")

    def victims(self, kind: str, run_id: str) -> list[psutil.Process]:
        """Return the processes of a kind."""
        assert self.process is not None
        main = psutil.Process(self.process.pid)
        if kind == "main":
            return [main]
        if kind == "server":
            return [child for child in main.children() if "run.py" in command_of(child)]
        found = [process for process in processes_of(run_id) if _TITLES[kind] in command_of(process)]
        managers = [process for process in found if POOL not in command_of(process.parent())]
        if kind == "manager":
            return [process for process in managers if process.children()]
        if kind == "worker":
            return [child for manager in managers for child in _workers_of(manager)]
        return found


def _workers_of(manager: psutil.Process) -> list[psutil.Process]:
    """Return a pool's workers; its first two children are multiprocessing's own."""
    return sorted(manager.children(), key=lambda child: child.pid)[2:]


_TITLES = {
    "interchange": "interchange",
    "manager": POOL,
    "worker": POOL,
    "redis": "redis-server",
}


def measure(session: Session) -> Figures:
    """Return how many kills were survived, and what they cost."""
    if session.options.soak:
        return _soak(session, session.options.soak)
    order = random.Random(session.options.seed)
    toll = Toll()
    for number, (flags, kills) in enumerate(_campaigns(session.quick, order, session.folder / "scratch")):
        _kill_one_after_the_other(session, session.folder / f"run-{number}", flags, kills, order, toll)
    return _figures(toll, wanted=10 if session.quick else 60)


def _campaigns(quick: bool, order: random.Random, scratch: Path) -> Iterator[tuple[tuple[str, ...], list[Kill]]]:
    """Yield campaigns, and the kills that each has to bear."""
    passages = (1, 4) if quick else (1, 3, 20)
    points, gathering = _points(passages)
    gathering += [Kill(victim, GATHER) for victim in VICTIMS if victim != "redis"]
    on_scratch = ("--scratch", str(scratch), "--gather-every", "4")
    random_kills = [Kill(victim, moment) for victim in VICTIMS for moment in MOMENTS]
    if quick:
        yield ("--simulate-ps-backend", "redis"), order.sample(random_kills, 5) + order.sample(points, 3)
        yield on_scratch, order.sample(gathering, 2)
        return
    for flags in ((), ("--simulate-ps-backend", "redis"), ("--lockstep",)):
        kills = [kill for kill in random_kills if kill.victim != "redis" or "redis" in flags]
        order.shuffle(kills)
        yield flags, kills
    order.shuffle(points)
    half = len(points) // 2
    yield (), points[:half]
    yield ("--queue", "redis", "--simulate-ps-backend", "redis"), points[half:]
    order.shuffle(gathering)
    yield on_scratch, gathering


def _points(passages: tuple[int, ...]) -> tuple[list[Kill], list[Kill]]:
    """Return kills at the commit points that every campaign passes, and at those of one that gathers."""
    kills = [Kill(f"{point}:{n}", "") for point in POINTS for n in (passages if point not in _AT_THE_END else (1,))]
    return [kill for kill in kills if GATHER not in kill.victim], [kill for kill in kills if GATHER in kill.victim]


# A command passes these once, when it ends.
_AT_THE_END = frozenset({"before-park", "after-park", "before-summary"})


def _kill_one_after_the_other(
    session: Session, path: Path, flags: tuple[str, ...], kills: list[Kill], order: random.Random, toll: Toll
) -> None:
    campaign = Victim(path, (*_FLAGS, "--max-segments", "100000", *flags))
    try:
        for kill in kills:
            before = len(toll.wrong)
            session.console.print(f"{path.name} {' '.join(flags)}: {kill.name} ...", end="", highlight=False)
            try:
                _bear(campaign, kill, order, toll)
            except TimeoutError as error:
                toll.wrong.append(f"{kill.name}: {error}")
            told = "; ".join(toll.wrong[before:]) or f"work flowed again after {toll.idle_s[-1]:.1f} s"
            session.console.print(f" {told}", highlight=False)
            toll.kills[kill.victim.partition(":")[0]] += 1
        _finish(campaign, toll)
    finally:
        campaign.end()
    session.kept += 1


def _bear(campaign: Victim, kill: Kill, order: random.Random, toll: Toll) -> None:
    """Let a campaign meet a kill, and go on."""
    at_point = not kill.moment
    if at_point:
        _interrupt(campaign)
    if campaign.process is None or campaign.process.poll() is not None:
        campaign.begin(kill.victim if at_point else None)
    run_id = _started(campaign)
    if at_point:
        if kill.victim.partition(":")[0] in _AT_THE_END:
            since = campaign.n_done
            until(lambda: campaign.n_done >= since + 4, _MOMENT_S, "work")
            assert campaign.process is not None
            campaign.process.terminate()
        _await_end(campaign, kill, toll)
        if campaign.process is not None and campaign.process.returncode != -signal.SIGKILL:
            toll.wrong.append(f"{kill.name}: it was never passed (exit code {campaign.process.returncode})")
    else:
        _await_moment(campaign, kill.moment)
        time.sleep(order.uniform(0.0, 0.3))
        found = campaign.victims(kill.victim, run_id)
        order.choice(found).kill()
    killed = time.time()
    done = _finished_segments(campaign)
    # Some may have ended before this is asked.
    in_flight = campaign.count(f"SELECT count(*) FROM attempt WHERE outcome IS NULL OR ended > {killed}")
    if kill.victim not in _SURVIVED:
        _await_end(campaign, kill, toll)
        # A main process that lives goes on deciding until it has noticed.
        in_flight += campaign.count(f"SELECT count(*) FROM attempt WHERE started > {killed}")
        _await_silence(campaign, run_id, kill, toll)
        campaign.begin()
        _started(campaign)
    _await_work(campaign, killed, kill, toll)
    if kill.victim in _SURVIVED:
        # What was sent before anybody had noticed was in flight as well.
        in_flight += campaign.count(f"SELECT count(*) FROM attempt WHERE started > {killed} AND outcome IS NOT NULL")
    _look(campaign, kill, done, in_flight, killed, toll)


def _started(campaign: Victim) -> str:
    """Wait until the command has started over with a run's id, and return that."""
    return str(until(lambda: campaign.run_id, 20, "an id"))


def _interrupt(campaign: Victim) -> None:
    """End a campaign in order, so that it can be started with a kill at a commit point."""
    if campaign.process is not None and campaign.process.poll() is None:
        campaign.process.send_signal(signal.SIGTERM)
        campaign.process.wait(_END_S)


def _await_moment(campaign: Victim, moment: str) -> None:
    out = f"SELECT count(*) FROM attempt JOIN task ON id = task_id WHERE outcome IS NULL AND kind = '{moment}'"
    if moment == GATHER:
        out = "SELECT count(*) FROM task WHERE state = 'computed'"
    since = campaign.n_done
    until(lambda: campaign.n_done >= since + 4 and campaign.count(out) > 0, _MOMENT_S, f"a {moment} task that is out")


def _await_end(campaign: Victim, kill: Kill, toll: Toll) -> None:
    assert campaign.process is not None
    try:
        campaign.process.wait(_END_S)
    except subprocess.TimeoutExpired:
        toll.wrong.append(f"{kill.name}: the command did not end within {_END_S:g} s")
        campaign.process.kill()
        campaign.process.wait()


def _await_silence(campaign: Victim, run_id: str, kill: Kill, toll: Toll) -> None:
    """Note what is still there after 10 s."""
    if n_left := left_of(run_id):
        toll.wrong.append(f"{kill.name}: {n_left} processes left after {GONE_S:g} s")


def left_of(run_id: str) -> int:
    """Return how many processes of a run are still there after 10 s."""
    deadline = time.monotonic() + GONE_S
    while (left := processes_of(run_id)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(left)


def _await_work(campaign: Victim, killed: float, kill: Kill, toll: Toll) -> None:
    """Wait for the first segment that was begun after a kill, or the end of the campaign."""
    query = (
        f"SELECT min(ended) FROM attempt WHERE outcome = 'success' AND started > {killed}"
        f" AND task_id < {FIRST_OTHER_ID}"
    )

    def flows() -> bool:
        assert campaign.process is not None
        rows = campaign.ask(query)
        return bool(rows and rows[0][0] is not None) or campaign.process.poll() is not None

    try:
        until(flows, _MOMENT_S, "work")
    except TimeoutError as error:
        toll.wrong.append(f"{kill.name}: {error}")
    toll.idle_s.append(time.time() - killed)


def _finished_segments(campaign: Victim) -> set[object]:
    told = "SELECT id FROM task WHERE kind = 'simulate' AND state IN ('complete', 'computed')"
    return {row[0] for row in campaign.ask(told)}


def _look(campaign: Victim, kill: Kill, done: set[object], in_flight: int, killed: float, toll: Toll) -> None:
    """Note what a kill lost, and what it should not have."""
    again = {row[0] for row in campaign.ask(f"SELECT task_id FROM attempt WHERE started > {killed}")}
    if again & done:
        toll.wrong.append(f"{kill.name}: segments {sorted(map(str, again & done))} were run again")
    lost = campaign.count(
        "SELECT count(DISTINCT task_id) FROM attempt"
        " WHERE outcome IN ('abandoned', 'worker_lost', 'manager_lost', 'lost')"
        f" AND ended > {killed - 1}"
    )
    if lost > in_flight:
        toll.wrong.append(f"{kill.name}: {lost} tasks were lost, and {in_flight} were in flight")
    toll.lost.append(lost)


def _finish(campaign: Victim, toll: Toll) -> None:
    """Let a campaign reach a target, and look at all of it."""
    assert campaign.process is not None
    _interrupt(campaign)
    campaign.begin(None, "--max-segments", str(campaign.n_done + 20))
    campaign.process.wait(_END_S)
    if campaign.process.returncode != 0:
        toll.wrong.append(f"{campaign.path.name}: ended with exit code {campaign.process.returncode}")
    toll.wrong += [f"{campaign.path.name}: {told}" for told in flaws(campaign)]


def flaws(campaign: Victim) -> Iterator[str]:
    """Yield what a campaign that has ended should not show."""
    twice = (
        "SELECT task_id, count(*) FROM attempt WHERE outcome = 'success' GROUP BY task_id HAVING count(*) > 1",
        "committed twice",
    )
    orphans = (
        "SELECT id FROM task WHERE parent_id IS NOT NULL AND parent_id NOT IN (SELECT id FROM task)",
        "without their parent",
    )
    unfinished = (
        "SELECT id FROM task WHERE kind = 'simulate' AND state NOT IN ('complete', 'fizzled', 'quarantined')",
        "not finished",
    )
    fileless = (
        "SELECT id FROM task WHERE kind = 'simulate' AND state = 'complete'"
        " AND (SELECT count(*) FROM artifact WHERE task_id = task.id AND artifact.kind = 'trajectory') != 1",
        "without one trajectory each",
    )
    for query, told in (twice, orphans, unfinished, fileless):
        if rows := campaign.ask(query):
            yield f"tasks {[row[0] for row in rows]} {told}"
    for name, digest in campaign.ask("SELECT path, sha256 FROM artifact"):
        if sha256(_content(campaign.path, str(name))) != digest:
            yield f"{name} does not match its checksum"
    for topic, name in FILES.items():
        path = campaign.path / name
        lines = path.read_text().splitlines() if path.exists() else []
        told_lines = [str(row[0]) for row in campaign.ask(f"SELECT line FROM record WHERE topic = '{topic}'")]
        if sorted(lines) != sorted(told_lines):
            yield f"{name} does not tell what the ledger does"
    summary = json.loads((campaign.path / "summary.json").read_text())
    if summary["segments"] != campaign.n_done:
        yield f"the summary has {summary['segments']} segments and the ledger {campaign.n_done}"
    if summary["proxies"]["left"]:
        yield f"{summary['proxies']['left']} objects are left in the stores"


def _content(run: Path, name: str) -> bytes:
    """Return a file of a run, which may be in an archive; nothing where it is not there."""
    file, member = split(name)
    try:
        if member is None:
            return (run / file).read_bytes()
        with tarfile.open(run / file) as archive:
            packed = archive.extractfile(member)
            return b"" if packed is None else packed.read()
    except (OSError, KeyError, tarfile.TarError):
        return b""


def _soak(session: Session, n_segments: int) -> Figures:
    """Return how a long campaign fares with kills every 30 s on average, beside one without."""
    order = random.Random(session.options.seed)
    rates, toll = {}, Toll()
    for kills in (True, False):
        campaign = Victim(session.folder / f"soak-{kills}", ("--max-segments", str(n_segments), *_SOAK_FLAGS))
        began = time.monotonic()
        try:
            _soak_one(session, campaign, order if kills else None, toll)
        finally:
            campaign.end()
        rates[kills] = n_segments / (time.monotonic() - began)
        toll.wrong += [f"{campaign.path.name}: {told}" for told in flaws(campaign)]
        if kills:
            begun = campaign.count("SELECT count(*) FROM task WHERE kind = 'simulate'")
            completed = campaign.n_done / begun
    session.kept += 1
    return {
        "soak: kills": Figure(float(toll.kills.total()), None, None, "kills"),
        "soak: completed / submitted": Figure(completed, None, None, "ratio", Wanted(at_least=1.0)),
        "soak: rate kept": Figure(rates[True] / rates[False], None, None, "of undisturbed"),
        "soak: found wrong": Figure(float(len(toll.wrong)), None, None, "findings", Wanted(at_most=0.0)),
    }


_SOAK_FLAGS = ("--heartbeat-s", "1", "--heartbeat-threshold-s", "4", "--no-control", "--no-report")


def _soak_one(session: Session, campaign: Victim, order: random.Random | None, toll: Toll) -> None:
    """Run a campaign to its end; with kills where there is somebody to draw them."""
    campaign.begin()
    assert campaign.process is not None
    for _ in itertools.count():
        wait_s = None if order is None else order.expovariate(1 / 30)
        try:
            if campaign.process.wait(wait_s) == 0:
                return
            campaign.begin()
        except subprocess.TimeoutExpired:
            assert order is not None
            victim = order.choice(VICTIMS[:-1])
            found = campaign.victims(victim, campaign.run_id)
            if found:
                order.choice(found).kill()
                toll.kills[victim] += 1
                session.console.print(f"{campaign.n_done} segments: {victim} killed", highlight=False)
        if toll.kills.total() > 500:
            raise SystemExit("the campaign does not get on: 500 kills were not enough")


def _figures(toll: Toll, wanted: int) -> Figures:
    for told in toll.wrong:
        print(f"WRONG: {told}", file=sys.stderr)
    return {
        "kills": Figure(float(toll.kills.total()), None, None, "kills", Wanted(at_least=wanted)),
        **{f"kills: {victim}": Figure(float(n), None, None, "kills") for victim, n in sorted(toll.kills.items())},
        "found wrong": Figure(float(len(toll.wrong)), None, None, "findings", Wanted(at_most=0.0)),
        "tasks lost by a kill": interval(toll.lost, "tasks"),
        "until work flows again": interval(toll.idle_s, "s"),
        "until work flows again, longest": Figure(max(toll.idle_s, default=None), None, None, "s"),
    }


def until(condition: Callable[[], object], timeout_s: float, what: str) -> object:
    """Return the answer of a condition once it is one; raise `TimeoutError` where it is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {timeout_s:g} s")
        time.sleep(0.02)
    return answer


def command_of(process: psutil.Process | None) -> str:
    """Return a process' command line; empty where there is none any more."""
    try:
        return "" if process is None else " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the moments and the order (default: 1)")
    parser.add_argument("--soak", type=int, metavar="N", help="only a campaign of N segments, killed again and again")


if __name__ == "__main__":
    sys.exit(run("kills", __doc__, measure, _options))
