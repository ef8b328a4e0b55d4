"""Hooks that the user wrote, refused in a sentence before anything starts."""

from __future__ import annotations

import inspect
import shlex
import shutil
from pathlib import Path

from campaign.flags import shown
from tasks.errors import BadInput
from tasks.named import NotFound, import_named, is_name


def check_hook(flag: str, hook: str) -> None:
    """Refuse what is neither a function of the run directory and a segment, nor a command that is there.

    Raises
    ------
    BadInput
        With the reason and a remedy.
    """
    if is_name(hook):
        _check_function(flag, hook, "run", "segment")
    else:
        check_command(flag, hook, "module:function, or ")


def check_predicate(flag: str, hook: str) -> None:
    """Refuse what is no function of a segment.

    Raises
    ------
    BadInput
        With the reason and a remedy.
    """
    if not is_name(hook):
        raise _refusal(flag, hook, "it names no function", "give module:function, which takes a segment")
    _check_function(flag, hook, "segment")


def check_onlooker(flag: str, hook: str) -> None:
    """Refuse what is no function of frames, their times and boxes.

    Raises
    ------
    BadInput
        With the reason and a remedy.
    """
    if not is_name(hook):
        raise _refusal(
            flag, hook, "it names no function", "give module:function, which takes frames, times and boxes"
        )
    _check_function(flag, hook, "frames", "times_ps", "box")


def _check_function(flag: str, hook: str, *arguments: str) -> None:
    wanted = f"give a function f({', '.join(arguments)})"
    try:
        function = import_named(hook, str(Path.cwd()))
    except NotFound as error:
        raise _refusal(flag, hook, error.reason, error.remedy) from error
    if not callable(function):
        raise _refusal(flag, hook, f"it is {type(function).__name__} and no function", wanted)
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError) as error:
        raise _refusal(flag, hook, f"it cannot be called so ({error})", wanted) from error


def check_command(flag: str, hook: str, otherwise: str = "") -> None:
    """Refuse what is no command of a program that is here; ``otherwise`` is what else it might have been.

    Raises
    ------
    BadInput
        With the reason and a remedy.
    """
    remedy = f"give {otherwise}a command whose first word is a program on PATH or the path of one"
    try:
        words = shlex.split(hook)
    except ValueError as error:
        raise _refusal(flag, hook, f"it cannot be parted into words ({error})", remedy) from error
    if not words:
        raise _refusal(flag, hook, "it is empty", remedy)
    if shutil.which(words[0]) is None:
        raise _refusal(flag, hook, f"there is no program {shown(words[0])}", remedy)


def _refusal(flag: str, hook: str, reason: str, remedy: str) -> BadInput:
    return BadInput(f"{flag} {shown(hook)} cannot be used, for {reason}: {remedy}")
