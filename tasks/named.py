"""What a user names as ``module:attribute``: imported where the campaign is started, and where its tasks run."""

from __future__ import annotations

import importlib
import re
import sys
from operator import attrgetter
from typing import Any

_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_NAME = re.compile(f"{_DOTTED}:{_DOTTED}")


class NotFound(Exception):
    """There is nothing of that name; the reason is the middle of a sentence, the remedy its end."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason
        self.remedy = remedy


def is_name(text: str) -> bool:
    """Return whether a text names an attribute of a module."""
    return _NAME.fullmatch(text) is not None


def import_named(name: str, here: str) -> Any:
    """Return what ``module:attribute`` names.

    Parameters
    ----------
    here
        A directory that is importable, after everything else.

    Raises
    ------
    NotFound
        When it cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        remedy = "install it, or start from the directory that it lies in"
        raise NotFound(f"module {module_name} cannot be imported ({told(error)})", remedy) from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError as error:
        file = getattr(module, "__file__", None) or "built into Python"
        raise NotFound(f"module {module_name} ({file}) has no {attribute}", "look for a slip") from error


def told(error: BaseException) -> str:
    """Return an error on one line, for use within a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
