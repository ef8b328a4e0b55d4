"""What ``--simulate-site`` names: one site, or a pool of them with a weight each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.errors import BadInput


@dataclass(frozen=True, slots=True)
class Share:
    """A site of a pool by its name; one of twice the weight gets twice the segments per worker when they are few."""

    site: str
    weight: float = 1.0


def shares(text: str) -> tuple[Share, ...]:
    """Return the sites that ``A,B:2,C`` names, in that order.

    Raises
    ------
    BadInput
        For a site that is named twice or not at all, and for a weight that is none.
    """
    named = tuple(_share(part.strip(), text) for part in text.split(","))
    for number, share in enumerate(named):
        if share.site in {before.site for before in named[:number]}:
            raise BadInput(f"--simulate-site {text} names site {share.site} twice: name each site once")
    return named


def _share(part: str, text: str) -> Share:
    name, colon, told = part.partition(":")
    if not name:
        raise BadInput(f"--simulate-site {text} lacks the name of a site: give names with commas between them")
    if not colon:
        return Share(name)
    try:
        weight = float(told)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise BadInput(
            f"--simulate-site {text}: the weight {told or repr(told)} of site {name} is no positive number: "
            f"give one, as in {name}:2"
        )
    return Share(name, weight)
