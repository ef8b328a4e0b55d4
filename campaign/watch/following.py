"""A campaign followed from its ledger and traces: what came since is read, and added to what is known."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from campaign.filesystem import in_use_by
from campaign.rundir import SUMMARY
from campaign.status import status_word
from campaign.trace_files import FILES
from campaign.watch.bins import Bins
from campaign.watch.books import Account, Books
from campaign.watch.tail import Tail
from campaign.watch.tally import (
    RECENT_S,
    InferenceTally,
    SegmentTally,
    SiteTally,
    TopicTally,
    TrainingTally,
    tally_of,
)
from campaign.watch.view import Learning, Pace, View, Workers
from tasks.errors import BadInput

TallyT = TypeVar("TallyT", bound=TopicTally)

# Read at one look of each trace, so that a long campaign's is caught up with bit by bit.
_READ_AT_ONCE = 4_000_000

# What the Thinker keeps to itself until its end.
_OF_THE_SUMMARY = (
    "wall_s", "startup_s", "decision_ms", "thinker_bytes_per_segment", "proxies", "weighted_ensemble",
)  # fmt: skip


class Following:
    """What is known of a campaign; only what came since the last look is read.

    Parameters
    ----------
    run
        Its run directory.

    Raises
    ------
    BadInput
        When it is none.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._books = Books(run)
        self._tails = {topic: Tail(run / name) for topic, name in FILES.items()}
        self._tallies = {topic: tally_of(topic) for topic in FILES}
        self._account = self._books.read(over=in_use_by(run) is None)

    def look(self) -> View:
        """Return how the campaign stands now; what cannot be read is told in the view."""
        now = time.time()
        # Before all else: what a process that is gone by now wrote last is read below.
        in_use = in_use_by(self._run) is not None
        trouble = []
        try:
            self._account = self._books.read(over=not in_use)
            self._read_traces()
        except BadInput as error:
            trouble.append(str(error))
        except OSError as error:
            trouble.append(f"{self._run} cannot be read: {error.strerror}")
        trouble += [
            f"{FILES[topic]} has {tally.n_unreadable} lines that are no trace lines"
            for topic, tally in self._tallies.items()
            if tally.n_unreadable
        ]
        return self._view(self._account, in_use, now, trouble)

    def _read_traces(self) -> None:
        for topic, tail in self._tails.items():
            anew, lines = tail.read(_READ_AT_ONCE)
            if anew:
                self._tallies[topic] = tally_of(topic)
            self._tallies[topic].take(lines)

    # The view ---------------------------------------------------------------------------------------------------

    def _view(self, account: Account, in_use: bool, now: float, trouble: Sequence[str]) -> View:
        meta, told, settings = account.meta, account.told, account.meta.get("settings", {})
        status, processes = status_word(meta.get("status", "running"), in_use), meta.get("processes", [])
        segments, simulated_ps, elapsed_s = (
            told.get("segments", 0),
            told.get("simulated_ps", 0.0),
            told.get("elapsed_s", 0.0),
        )
        watched, fed, hooks = told.get("watched", {}), told.get("fed", {}), account.tasks.get("hook", {})
        utilisation = self._utilisation(account)
        return View(
            run=self._run.resolve().name,
            status=status,
            over=not in_use,
            reason=meta.get("reason"),
            system=meta.get("system", ""),
            policy=settings.get("policy", ""),
            seed=settings.get("seed", 0),
            processes=len(processes),
            began=processes[-1]["started"] if processes else None,
            elapsed_s=elapsed_s,
            segments=segments,
            target=meta.get("target"),
            simulated_ns=simulated_ps / 1000,
            frames=told.get("frames", 0),
            ns_per_day=simulated_ps / 1000 / elapsed_s * 86_400 if elapsed_s > 0 else None,
            segments_per_hour=account.segments_per_hour,
            failures=told.get("failures", {}),
            quarantined=account.quarantined,
            model_versions=told.get("model_version", 0),
            inferences=told.get("inferences", 0),
            steered_fraction=told["steered"] / segments if segments else 0.0,
            coverage=told.get("coverage"),
            worker_utilisation=utilisation,
            hooks={word: hooks.get(word, 0) for word in ("complete", "fizzled")},
            on_frames={word: watched.get(word, 0) for word in ("batches", "failed", "stopped")},
            stream={word: fed.get(word, 0) for word in ("batches", "dropped", "embedded", "stopped")},
            workers=self._workers(account, utilisation, in_use and status == "running", now),
            pace=self._pace(),
            learning=self._learning(told),
            latencies=[found for tally in self._tallies.values() if (found := tally.latency()) is not None],
            ensemble=account.ensemble,
            tasks=account.tasks,
            errors=account.errors,
            live=account.live if in_use else (),
            newest=list(self._of(SegmentTally).newest)[::-1],
            summary=None if in_use else self._summary(),
            behind=self._behind(),
            trouble=trouble,
        )

    def _slots(self, meta: Mapping[str, Any]) -> dict[tuple[str, str], int]:
        """Return how many workers there are, by site and topic, in the campaign's order.

        Ledgers of earlier versions do not tell: then it is how many were seen.
        """
        if "workers" in meta:
            return {(site, topic): slots for site, topic, slots in meta["workers"]}
        return {
            (site, topic): len(tally.last_ended)
            for topic, each in self._tallies.items()
            for site, tally in each.sites.items()
        }

    def _utilisation(self, account: Account) -> dict[str, dict[str, float]]:
        """Return what ``summary.json`` has under ``worker_utilisation``."""
        told, slots = account.told, self._slots(account.meta)
        first: dict[str, int] = {}
        for (_, topic), count in slots.items():
            first.setdefault(topic, count)
        found: dict[str, dict[str, float]] = {}
        for site, topic, seconds in told.get("compute_s", ()):
            # An earlier process may have had other sites, and topics that this one has not.
            count = slots.get((site, topic), first.get(topic, 0))
            if count and told["span_s"] > 0:
                found.setdefault(site, {})[topic] = seconds / (count * told["span_s"])
        return found

    def _workers(
        self, account: Account, utilisation: Mapping[str, Mapping[str, float]], runs: bool, now: float
    ) -> list[Workers]:
        slots = self._slots(account.meta)
        out = {(each.site, each.kind): each.sent for each in account.out} if runs else {}
        tallies = {
            (site, topic): tally for topic, each in self._tallies.items() for site, tally in each.sites.items()
        }
        began = max([now - RECENT_S, *(process["started"] for process in account.meta.get("processes", ()))])
        found = []
        for site, topic in sorted({*tallies, *out}, key=lambda key: (key[0], list(FILES).index(key[1]))):
            tally, sent = tallies.get((site, topic), SiteTally()), out.get((site, topic), ())
            count = slots.get((site, topic), len(tally.last_ended))
            busy = min(len(sent), count) if count else len(sent)
            begin, totals = tally.busy.dense()
            width = tally.busy.width
            found.append(
                Workers(
                    site=site,
                    topic=topic,
                    slots=count,
                    seen=len(tally.last_ended),
                    out=len(sent),
                    busy=busy,
                    n_results=tally.n_results,
                    n_failed=tally.n_failed,
                    utilisation=utilisation.get(site, {}).get(topic),
                    recent=_recent(tally, sent[:busy], count, began, now) if runs and count else None,
                    begin=begin,
                    width_s=width,
                    strip=[round(min(1.0, total / (width * max(count, 1))), 3) for total in totals],
                )
            )
        return found

    def _pace(self) -> Pace:
        pace = self._of(SegmentTally).pace
        begin, totals = pace.dense()
        return Pace(begin, pace.width, [round(ps / 1000 / pace.width * 86_400, 3) for ps in totals])

    def _learning(self, told: Mapping[str, Any]) -> Learning:
        looked, trained = self._of(InferenceTally), self._of(TrainingTally)
        # Every frame stands for the same time.
        ns = told["simulated_ps"] / told["frames"] / 1000 if told.get("frames") else 0.0
        return Learning(
            coverage=[(x * ns, value) for x, value in _series(looked.coverage)],
            novelty=[(point.x * ns, point.mean) for point in looked.novelty.points()],
            model_version=trained.version,
            n_frames=trained.n_frames,
            n_epochs=trained.n_epochs,
            losses=trained.losses,
            last_losses={name: _series(bins) for name, bins in trained.last_losses.items()},
        )

    def _of(self, kind: type[TallyT]) -> TallyT:
        return next(tally for tally in self._tallies.values() if isinstance(tally, kind))

    def _summary(self) -> dict[str, Any] | None:
        try:
            told = json.loads((self._run / SUMMARY).read_text(), parse_constant=lambda _: None)
            return {name: told.get(name) for name in _OF_THE_SUMMARY}
        except (OSError, ValueError, AttributeError, RecursionError):  # it is not there yet, or was damaged since
            return None

    def _behind(self) -> float:
        left = sum(tail.n_left for tail in self._tails.values())
        return left / (left + sum(tail.n_read for tail in self._tails.values())) if left else 0.0


def _recent(tally: SiteTally, sent: Sequence[float], slots: int, begin: float, now: float) -> float | None:
    """Return the share of the workers that was busy since then, with what is under way.

    Parameters
    ----------
    sent
        When what is under way was, oldest first: the oldest is taken to run where nothing ended for longest.
    """
    if now <= begin:
        return None
    ended = sorted(tally.last_ended.values())[-slots:]
    started = (max(pair) for pair in zip_longest(sent, ended[: len(sent)], fillvalue=begin))
    under_way = sum(max(0.0, now - max(begin, each)) for each in started)
    return min(1.0, (tally.recent.within(begin) + under_way) / (slots * (now - begin)))


def _series(bins: Bins) -> list[tuple[float, float]]:
    return [(point.x, point.last) for point in bins.points()]
