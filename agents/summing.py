"""A campaign's figures: at one moment for the display, and at its end for ``summary.json``."""

from __future__ import annotations

import signal
import time
from collections import defaultdict

import numpy as np

from agents.queues import Traffic
from agents.state import POOLED, CampaignState, Destination
from agents.steering import Steering
from campaign.display import Snapshot
from campaign.settings import Settings
from campaign.summary import EnsembleSummary, Status, Summary, describe
from tasks.messages import Topic


def snapshot(steering: Steering) -> Snapshot:
    """Return how the campaign stands now."""
    state = steering.state
    with state.lock:
        return Snapshot(
            segments=state.counts.segments,
            target=state.target_segments,
            simulated_ns=state.counts.simulated_ps / 1000,
            elapsed_s=state.elapsed_s,
            coverage="not yet known" if state.coverage is None else describe(state.coverage),
            model_version=state.model_version,
            busy=len(steering.simulate.in_flight),
            slots=state.pool.slots,
            failures=state.counts.failures.total(),
        )


def summarise(
    settings: Settings,
    state: CampaignState,
    traffic: Traffic,
    stopped_by: signal.Signals | None,
    began: float,
    seconds: float,
    ensembles: EnsembleSummary | None = None,
) -> Summary:
    """Return the campaign's summary.

    Parameters
    ----------
    stopped_by
        Signal that ended it, if one did.
    began
        When the command began, monotonic.
    seconds
        Wall time of the command so far.
    ensembles
        What weighted ensembles have come to.
    """
    counts = state.counts
    status: Status = "complete"
    if state.failure is not None:
        status = "failed"
    if stopped_by is not None or (state.out_of_time and state.failure is None):
        status = "interrupted"
    return Summary(
        status=status,
        reason=state.until if status == "complete" else state.failure or state.ending,
        system=state.molecule.name,
        policy=settings.policy,
        seed=settings.seed,
        segments=counts.segments,
        simulated_ns=counts.simulated_ps / 1000,
        frames=counts.frames,
        failures=dict(counts.failures),
        quarantined=counts.quarantined,
        model_versions=state.model_version,
        inferences=counts.inferences,
        steered_fraction=counts.steered / counts.segments if counts.segments else 0.0,
        coverage=state.coverage,
        worker_utilisation=_utilisation(state),
        decision_ms=_decisions(state),
        thinker_bytes_per_segment=_bytes_per_segment(state, traffic),
        proxies={"created": state.holds.created, "evicted": state.holds.evicted, "left": state.proxies_left},
        wall_s=state.elapsed_before_s + seconds,
        startup_s=_startup(state, began),
        sites={
            topic: [place.site for place in _places(state, topic)]
            for topic in state.destinations
            if topic not in ("glance", "move", "gather", "hook")
        },
        weighted_ensemble=ensembles,
        hooks={word: state.ledger.n_tasks("hook", word) for word in ("complete", "fizzled")},
        on_frames={word: counts.watched[word] for word in ("batches", "failed", "stopped")},
        stream={word: counts.fed[word] for word in ("batches", "dropped", "embedded", "stopped")},
    )


def _utilisation(state: CampaignState) -> dict[str, dict[str, float]]:
    counts = state.counts
    if counts.span_s <= 0:
        return {}
    by_site: dict[str, dict[str, float]] = defaultdict(dict)
    for (site, topic), seconds in counts.compute_s.items():
        # An earlier process may have had other sites, and moves or hooks where this one has none.
        if topic not in state.destinations:
            continue
        slots = {place.site: place.slots for place in _places(state, topic)}
        by_site[site][topic] = seconds / (slots.get(site, state.destinations[topic].slots) * counts.span_s)
    return dict(by_site)


def _places(state: CampaignState, topic: Topic) -> tuple[Destination, ...]:
    return state.pool.places if topic in POOLED else (state.destinations[topic],)


def _decisions(state: CampaignState) -> dict[str, float | int | None]:
    times = np.array(state.counts.decisions_ms)
    p50, p95 = (float(q) for q in np.quantile(times, [0.5, 0.95])) if len(times) else (None, None)
    return {"p50": p50, "p95": p95, "n": state.counts.n_decisions}


def _bytes_per_segment(state: CampaignState, traffic: Traffic) -> dict[str, float | None]:
    # Bytes are those of this process, so counts must be.
    sent = state.counts.n_sent["simulate"] - state.counts.sent_before
    done = state.counts.segments - state.counts.segments_before
    return {
        "sent": traffic.sent["simulate"] / sent if sent else None,
        "received": traffic.received["simulate"] / done if done else None,
    }


def _startup(state: CampaignState, began: float) -> float | None:
    """Return seconds from the command to the first segment's start."""
    if state.counts.first_started is None:
        return None
    return state.counts.first_started - (time.time() - (time.monotonic() - began))
