"""Whether a weighted ensemble survives SIGKILL in the middle of an iteration: its weights are those of its seed.

Ensembles in the double well (as campaigns: real queues, Parsl, workers), each of another seed. An undisturbed
campaign of every seed is what the killed one is held against, bit by bit: weights, parents and coordinates.
Main process, a worker and the task server are killed, each while some walkers of an iteration have ended and others
have not; what ended the campaign is followed by ``resume``, and the next kill meets the resumed one. Found wrong is:
weights that differ or do not sum to one to 1e-12, a walker that ran twice, a finished segment that was begun again, a
process left 10 s after a campaign died, one that does not go on, and whatever `benchmarks.kills` finds in a ledger.
One that is killed is resumed at once: a host that dies, and a disk that loses what was written, are not shown here.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import psutil

from benchmarks.harness import Figure, Session, Wanted
from benchmarks.kills import GONE_S, Toll, Victim, command_of, flaws, left_of, until
from campaign.iterations import Past, past
from campaign.ledger import Ledger
from policies.iteration import WEIGHT_TOLERANCE

VICTIMS = ("main", "worker", "server")
SEEDS = (11, 12, 13, 14)
FEWEST = 12
N_ITERATIONS = 12

_FLAGS = (
    *(
        "--system",
        "double-well",
        "--policy",
        "weighted-ensemble",
        "--target",
        "x > 0.25",
        "--no-control",
        "--no-report",
    ),
    *("--bins", "rectilinear:-0.27,-0.2,-0.1,0,0.1,0.2", "--segment-ps", "1", "--frame-ps", "0.25"),
    *("--walkers-per-bin", "8", "--simulate-workers", "2", "--min-segment-seconds", "0.1"),
    *("--max-iterations", str(N_ITERATIONS)),
)

_MOMENT_S = 90.0
_END_S = 240.0

_ENDED = "SELECT count(*) FROM iteration"
_DONE = "SELECT id FROM task WHERE kind = 'simulate' AND state IN ('complete', 'computed')"


def figures(session: Session) -> dict[str, Figure]:
    """Return how many kills there were, and what was found wrong after them."""
    toll, seeds = Toll(), SEEDS[:1] if session.quick else SEEDS
    for seed in seeds:
        expected = _undisturbed(session, seed)
        _disturbed(session, seed, expected, toll)
        session.kept += 1
    for told in toll.wrong:
        print(f"WRONG: {told}", file=sys.stderr)
    n = len(VICTIMS) * (1 if session.quick else 4)
    return {
        "kills in mid-iteration": Figure(float(toll.kills.total()), None, None, "kills", Wanted(at_least=n)),
        **{f"kills in mid-iteration: {victim}": _count(toll.kills[victim]) for victim in VICTIMS},
        "kills: found wrong": Figure(float(len(toll.wrong)), None, None, "findings", Wanted(at_most=0)),
    }


def differences(found: Sequence[Past], expected: Sequence[Past]) -> Iterator[str]:
    """Yield where an ensemble is not the one that it should be."""
    if len(found) != len(expected):
        yield f"{len(found)} iterations, not {len(expected)}"
    for each, other in zip(found, expected, strict=False):
        pairs = (
            ("weights", each.iteration.weights, other.iteration.weights),
            ("parents", each.iteration.parents, other.iteration.parents),
            ("coordinates", each.pcoord, other.pcoord),
        )
        for name, ours, theirs in pairs:
            if not np.array_equal(ours, theirs):
                yield f"iteration {each.iteration.number}: {name} are not those of the seed"


def oddities(found: Sequence[Past]) -> Iterator[str]:
    """Yield what no ensemble may show: weights that do not sum to one, a walker's segment there twice."""
    for each in found:
        if not abs(off := float(each.iteration.weights.sum()) - 1) <= WEIGHT_TOLERANCE:
            yield f"iteration {each.iteration.number}: weights sum to one {off:+.1e}"
    ids = [segment for each in found for segment in each.segment_ids]
    if twice := sorted({segment for segment in ids if ids.count(segment) > 1}):
        yield f"segments {twice} are of two walkers"


def _count(n: int) -> Figure:
    return Figure(float(n), None, None, "kills")


def _undisturbed(session: Session, seed: int) -> list[Past]:
    campaign = _victim(session, seed, "undisturbed")
    try:
        campaign.begin()
        assert campaign.process is not None
        if campaign.process.wait(_END_S) != 0:
            raise SystemExit(f"seed {seed}: an undisturbed campaign ended with {campaign.process.returncode}")
    finally:
        campaign.end()
    return _told(campaign)


def _victim(session: Session, seed: int, name: str) -> Victim:
    return Victim(session.folder / f"{name}-{seed}", (*_FLAGS, "--seed", str(seed)))


def _told(campaign: Victim) -> list[Past]:
    ledger = Ledger(campaign.path / "ledger.sqlite")
    try:
        return list(past(ledger, 0))
    finally:
        ledger.close()


def _disturbed(session: Session, seed: int, expected: Sequence[Past], toll: Toll) -> None:
    order, campaign = random.Random(seed), _victim(session, seed, "killed")
    run_ids: set[str] = set()
    try:
        for victim in order.sample(VICTIMS, len(VICTIMS)):
            before, name = len(toll.wrong), f"seed {seed}: {victim}"
            session.console.print(f"{name} ...", end="", highlight=False)
            try:
                _bear(campaign, victim, name, order, run_ids, toll)
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                toll.wrong.append(f"{name}: {error}")
            session.console.print(f" {'; '.join(toll.wrong[before:]) or 'killed'}", highlight=False)
        found = _finished(campaign, run_ids)
        toll.wrong += [f"seed {seed}: {told}" for told in found]
        if (campaign.path / "summary.json").exists():
            told = _told(campaign)
            toll.wrong += [f"seed {seed}: {each}" for each in (*differences(told, expected), *oddities(told))]
    finally:
        campaign.end()


def _bear(campaign: Victim, victim: str, name: str, order: random.Random, run_ids: set[str], toll: Toll) -> None:
    """Kill a process of a campaign in mid-iteration, and let the campaign go on."""
    if campaign.process is None or campaign.process.poll() is not None:
        campaign.begin()
    run_id = str(until(lambda: campaign.run_id, 20, "an id"))
    run_ids.add(run_id)
    # Nothing of this command has ended an iteration before.
    since = campaign.count(_ENDED)
    until(lambda: campaign.count(_ENDED) > since and _in_the_middle(campaign), _MOMENT_S, "middle of an iteration")
    time.sleep(order.uniform(0.0, 0.2))
    done = {row[0] for row in campaign.ask(_DONE)}
    killed = time.time()
    if not (found := _processes(campaign, victim, run_id)):
        raise TimeoutError(f"no {victim} to kill")
    order.choice(found).kill()
    toll.kills[victim] += 1
    assert campaign.process is not None
    if victim != "worker":
        campaign.process.wait(_MOMENT_S)
        if left := left_of(run_id):
            toll.wrong.append(f"{name}: {left} processes left after {GONE_S:g} s")
        campaign.begin()
        # Of this one, too, nothing may be left when the campaign ends.
        run_ids.add(str(until(lambda: campaign.run_id, 20, "an id")))
    ended = campaign.count(_ENDED)

    def goes_on() -> bool:
        assert campaign.process is not None
        return campaign.count(_ENDED) > ended or campaign.process.poll() is not None

    until(goes_on, _MOMENT_S, "iteration that ended after it")
    again = {row[0] for row in campaign.ask(f"SELECT task_id FROM attempt WHERE started > {killed}")} & done
    if again:
        toll.wrong.append(f"{name}: finished segments {sorted(map(str, again))} were begun again")


def _in_the_middle(campaign: Victim) -> bool:
    """Return whether some walkers of the iteration that has not ended are at its end, and others run."""
    now = "iteration = (SELECT count(*) + 1 FROM iteration) AND kind = 'simulate'"
    done = campaign.count(f"SELECT count(*) FROM task WHERE {now} AND state = 'complete'")
    return done > 0 and campaign.count(f"SELECT count(*) FROM task WHERE {now} AND state = 'running'") > 0


def _processes(campaign: Victim, victim: str, run_id: str) -> list[psutil.Process]:
    found = campaign.victims(victim, run_id)
    return [each for each in found if "/cpu/" in command_of(each.parent())] if victim == "worker" else found


def _finished(campaign: Victim, run_ids: set[str]) -> Iterator[str]:
    """Yield what is wrong with a campaign once it has come to its end."""
    assert campaign.process is not None
    try:
        code = campaign.process.wait(_END_S)
    except subprocess.TimeoutExpired:
        yield f"it did not end within {_END_S:g} s"
        return
    if code != 0:
        yield f"it ended with exit code {code}"
        return
    if left := sum(left_of(run_id) for run_id in run_ids):
        yield f"{left} processes left at its end"
    twice = (
        "SELECT iteration, walker_id FROM task WHERE kind = 'simulate' AND state = 'complete'"
        " GROUP BY iteration, walker_id HAVING count(*) > 1"
    )
    if rows := campaign.ask(twice):
        yield f"walkers {rows} (of iterations) ran twice"
    n_walkers = campaign.count("SELECT count(*) FROM walker")
    if campaign.n_done != n_walkers:
        yield f"{campaign.n_done} segments for {n_walkers} walkers"
    yield from flaws(campaign)
