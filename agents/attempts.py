"""Whether a task that failed is tried again: what a failure says of the task, of its start, and of the site."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from campaign.ledger import OF_THE_SITE

Verdict = Literal["again", "systematic", "random"]

# So many times `--max-attempts` a task is tried in all, whatever went wrong each time.
_PATIENCE = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed: a kind to count, a sentence, and the traceback for the ledger."""

    kind: str
    message: str
    traceback: str | None = None

    @property
    def told(self) -> str:
        """What the ledger keeps."""
        return f"{self.message}\n{self.traceback or ''}".strip()

    @property
    def signature(self) -> tuple[str, str]:
        """What two failures for the same reason have in common."""
        return signature(self.kind, self.message)


def signature(kind: str, error: str | None) -> tuple[str, str]:
    """Return kind and first line of an error without its numbers (ids, addresses, times)."""
    first = (error or "").strip().partition("\n")[0]
    return kind, re.sub(r"0x[0-9a-f]+|\d+", "#", first)


def verdict(failures: Sequence[tuple[str, str]], max_attempts: int) -> Verdict:
    """Return what becomes of a task after these failures (their signatures, oldest first).

    Systematic is a task that failed in the same way ``max_attempts`` times in a row: it would fail again. What
    differs from time to time, or is of the site, is random and tried again, three times as often at most.
    """
    last = failures[-max_attempts:]
    if len(last) == max_attempts and len(set(last)) == 1 and last[0][0] not in OF_THE_SITE:
        return "systematic"
    return "random" if len(failures) >= _PATIENCE * max_attempts else "again"
