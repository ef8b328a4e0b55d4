"""``summary.json`` has the keys of the contract, always."""

import json
from dataclasses import replace

from campaign.summary import Summary, describe
from tasks.messages import Coverage

KEYS = [
    "schema", "status", "reason", "system", "policy", "seed", "segments", "simulated_ns", "frames", "failures",
    "quarantined", "model_versions", "inferences", "steered_fraction", "coverage", "worker_utilisation",
    "decision_ms", "thinker_bytes_per_segment", "proxies", "wall_s", "startup_s", "sites",
    "weighted_ensemble",
    "hooks",
    "on_frames",
    "stream",
]  # fmt: skip

EMPTY = Summary(
    status="failed",
    reason="no task server",
    system="alanine-dipeptide",
    policy="novelty",
    seed=1,
    segments=0,
    simulated_ns=0.0,
    frames=0,
    failures={},
    quarantined=0,
    model_versions=0,
    inferences=0,
    steered_fraction=0.0,
    coverage=None,
    worker_utilisation={},
    decision_ms={"p50": None, "p95": None, "n": 0},
    thinker_bytes_per_segment={"sent": None, "received": None},
    proxies={"created": 0, "evicted": 0, "left": 0},
    wall_s=1.0,
    startup_s=None,
    sites={"simulate": ["local"]},
)

FULL = replace(
    EMPTY,
    status="complete",
    reason=None,
    segments=504,
    simulated_ns=1.0,
    frames=4032,
    failures={"nan": 2, "lost": 1},
    quarantined=1,
    model_versions=3,
    inferences=120,
    steered_fraction=0.875,
    coverage=Coverage("phi/psi cells", 61.0, 15),
    wall_s=90.0,
)


def test_hooks_are_told_where_there_are_any():
    told = replace(FULL, hooks={"complete": 5, "fizzled": 1})
    assert "hooks: 5 complete, 1 given up" in told.lines()
    assert not any("hooks" in line for line in FULL.lines())


def test_keys_are_exactly_those_of_the_contract():
    for summary in (EMPTY, FULL):
        assert list(summary.as_dict()) == KEYS
    assert EMPTY.as_dict()["schema"] == 1


def test_what_was_not_measured_is_null():
    read = json.loads(json.dumps(EMPTY.as_dict(), allow_nan=False))
    assert (read["coverage"], read["startup_s"], read["decision_ms"]["p50"]) == (None, None, None)


def test_nested_keys_are_those_of_the_contract():
    read = json.loads(json.dumps(FULL.as_dict(), allow_nan=False))
    assert read["coverage"] == {"metric": "phi/psi cells", "value": 61.0, "cells_deg": 15}
    assert read["failures"] == {"nan": 2, "lost": 1}
    assert list(read["decision_ms"]) == ["p50", "p95", "n"]
    assert list(read["thinker_bytes_per_segment"]) == ["sent", "received"]
    assert list(read["proxies"]) == ["created", "evicted", "left"]


def test_lines_tell_the_story():
    assert FULL.lines() == [
        "complete",
        "alanine-dipeptide, policy novelty, seed 1: 504 segments, 1.000 ns, 4032 frames in 90.0 s",
        "model version 3, 120 inferences, 88 % of the segments steered",
        "failed attempts: 1 lost, 2 nan; quarantined starts: 1",
        "coverage: 61 phi/psi cells of 15 degrees",
    ]


def test_lines_leave_out_what_did_not_happen():
    lines = EMPTY.lines()
    assert lines[0] == "failed: no task server"
    assert len(lines) == 3


def test_coverage_without_dihedrals_is_of_principal_components():
    assert describe(Coverage("pc", 12.0, None)) == "12 cells of the first two principal components"
