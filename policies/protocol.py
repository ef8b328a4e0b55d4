"""What a policy is."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tasks.messages import Candidates


class PolicyFailed(Exception):
    """A policy could not choose; the message names it and says why."""


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
            Novelty, larger is newer; zeros from a policy that does not learn. Candidates come as they were asked for:
            newest first, nearest first, or in random order. Empty until an inference has offered some.
        used : ndarray of shape (n_candidates,), int64
            How often each was chosen since it was offered.
        """
        ...
