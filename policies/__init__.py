"""How the next start of a walker is chosen: arrays in, selection out; no queue, no clock, no disk."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from policies.imported import import_policy
from policies.protocol import Policy, PolicyFailed
from policies.restart import Restart
from tasks.errors import BadInput
from tasks.messages import Novelty

__all__ = ["CHOICES", "POLICIES", "TARGET", "Policy", "PolicyFailed", "measure", "policy", "target_file"]

_NOVEL = Restart(candidates="novel", learns=True)

POLICIES: dict[str, Policy] = {
    "novelty": _NOVEL,
    "random": Restart(candidates="uniform", learns=False),
    "plain": Restart(candidates="none", learns=False),
    "least-counts": _NOVEL,
    "lof": _NOVEL,
    # Weights, not scores, say where its walkers go on (`policies.weighted_ensemble`).
    "weighted-ensemble": Restart(candidates="none", learns=True),
}

# What comes before the file that a policy steers to.
TARGET = "rmsd:"

# What the command line may name.
CHOICES = (*POLICIES, f"{TARGET}FILE", "MODULE:POLICY")


def policy(name: str) -> Policy:
    """Return the policy of that name; one of the user's is imported and made anew.

    Raises
    ------
    BadInput
        When there is none, or the user's is no policy.
    """
    if name in POLICIES:
        return POLICIES[name]
    if target_file(name) is not None:
        return Restart(candidates="nearest", learns=True)
    if all(name.partition(":")):
        return import_policy(name)
    raise BadInput(f"policy {name} is not known: choose one of {', '.join(CHOICES)}")


def measure(name: str) -> Novelty | None:
    """Return the measure of novelty that a policy is named after; None where ``--novelty`` is free."""
    return next((known for known in get_args(Novelty) if known == name), None)


def target_file(name: str) -> Path | None:
    """Return the structure that a policy steers to; None where it steers to none."""
    file = name.removeprefix(TARGET)
    return Path(file) if file not in (name, "") else None
