"""Restart walkers from the candidates that inference offers, spread evenly over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.messages import Candidates


@dataclass(frozen=True, slots=True)
class Restart:
    """Choose with equal chance among the candidates used least; without candidates, carry on.

    What is offered makes the policy: the most novel frames, of these the nearest to a target, a uniform sample of all
    frames (the control), or none (plain MD). Spreading keeps walkers apart when a batch of candidates has to last for
    several segments.
    """

    candidates: Candidates
    learns: bool

    def choose(self, scores: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> int | None:
        """Return the row of a candidate, or None where there is none."""
        if not len(scores):
            return None
        least = np.flatnonzero(used == used.min())
        return int(rng.choice(least))
