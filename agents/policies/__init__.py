"""How the next start of a walker is chosen: arrays in, selection out; no queue, no clock, no disk."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from agents.policies.restart import Restart
from tasks.errors import BadInput
from tasks.messages import Candidates


class Policy(Protocol):
    """What every policy offers.

    Attributes
    ----------
    candidates
        Which frames inference should offer as starts.
    learns
        Whether the policy needs embeddings, and so a model that is trained.
    """

    @property
    def candidates(self) -> Candidates: ...  # noqa: D102

    @property
    def learns(self) -> bool: ...  # noqa: D102

    def choose(self, scores: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> int | None:
        """Return which candidate a walker starts from; None lets it carry on from its own end.

        Parameters
        ----------
        scores : ndarray of shape (n_candidates,), float64
            Novelty, best first.
        used : ndarray of shape (n_candidates,), int64
            How often each was chosen since it was offered.
        """
        ...


POLICIES: dict[str, Policy] = {
    "novelty": Restart(candidates="novel", learns=True),
    "random": Restart(candidates="uniform", learns=False),
    "plain": Restart(candidates="none", learns=False),
}


def policy(name: str) -> Policy:
    """Return the policy of that name.

    Raises
    ------
    BadInput
        When there is none.
    """
    if name not in POLICIES:
        raise BadInput(f"policy {name} is not known: choose one of {', '.join(POLICIES)}")
    return POLICIES[name]
