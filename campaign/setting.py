"""A setting: a field of a model, with what the command line shows of it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, JsonValue


def setting(
    group: str,
    default: object,
    description: str,
    unit: str = "",
    *,
    metavar: str = "",
    default_text: str = "",
    choices: tuple[str, ...] = (),
    whole: bool = False,
    **bounds: Any,
) -> Any:
    """Return a field with what the command line shows of it (Any, as `pydantic.Field` itself).

    Parameters
    ----------
    default_text
        What the help calls the default where it depends on other settings.
    choices
        What a text may be, where that is more than a `Literal` tells.
    whole
        Whether a text that may be repeated keeps its commas.
    """
    extra: dict[str, JsonValue] = {
        "group": group,
        "unit": unit,
        "metavar": metavar,
        "default": default_text,
        "choices": list(choices),
        "whole": whole,
    }
    return Field(default, description=description, json_schema_extra=extra, **bounds)
