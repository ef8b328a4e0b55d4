"""How one setting is named, explained and read from text: what the command line and the errors have in common."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

_LONGEST_SHOWN = 60

_KINDS: dict[object, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    tuple[Path, Path]: "two paths",
    tuple[str, ...]: "words with commas between them",
    tuple[Path, ...]: "paths",
}


def flag(name: str) -> str:
    """Return the flag of a setting: ``frame_ps`` is ``--frame-ps``."""
    return "--" + name.replace("_", "-")


def opposite(name: str) -> str:
    """Return the flag that switches a boolean off: ``--no-lockstep``, and ``--retrain`` for ``no_retrain``."""
    return flag(name.removeprefix("no_") if name.startswith("no_") else f"no_{name}")


def core_type(field: FieldInfo) -> object:
    """Return a setting's type without the None that stands for "not given"."""
    if get_origin(field.annotation) not in (Union, UnionType):
        return field.annotation
    (core,) = (part for part in get_args(field.annotation) if part is not NoneType)
    return core


def n_values(field: FieldInfo) -> int:
    """Return how many values the flag of a setting takes: 2 for a pair of files, else 1."""
    parts = get_args(core_type(field)) if get_origin(core_type(field)) is tuple else ()
    return len(parts) if parts and parts[-1] is not Ellipsis else 1


def repeats(field: FieldInfo) -> bool:
    """Return whether a setting is any number of values, given by repeating the flag (words also with commas)."""
    return core_type(field) in (tuple[str, ...], tuple[Path, ...])


def is_whole(field: FieldInfo) -> bool:
    """Return whether a text that may be repeated is taken as it is, with its commas."""
    return bool(isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("whole"))


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the words a setting may take; empty where it is free."""
    core = core_type(field)
    if get_origin(core) is Literal:
        return get_args(core)
    words = field.json_schema_extra.get("choices") if isinstance(field.json_schema_extra, dict) else None
    return tuple(map(str, words)) if isinstance(words, list) else ()


def note(field: FieldInfo, key: str) -> str:
    """Return what the model says about a setting beside its type: ``group``, ``unit``, ``metavar`` or ``default``."""
    extra = field.json_schema_extra
    return str(extra[key]) if isinstance(extra, dict) else ""


def from_text(field: FieldInfo, text: str) -> int | float | str | tuple[str, ...]:
    """Return text as the setting's number or words, and text that is no number as it came (the model refuses it)."""
    core = core_type(field)
    if repeats(field):
        return several(field, [text])
    try:
        if core is int:
            return int(text)
        return float(text) if core is float else text
    except ValueError:
        return text


def several(field: FieldInfo, texts: Iterable[str]) -> tuple[str, ...]:
    """Return the values of a setting that takes any number: words are parted at commas, paths and hooks are not."""
    if core_type(field) == tuple[Path, ...] or is_whole(field):
        return tuple(texts)
    return tuple(word.strip() for text in texts for word in text.split(","))


def wanted(field: FieldInfo) -> str:
    """Return what a setting takes, as the end of "give ...": ``a finite number above 0 (K)``."""
    if words := choices(field):
        return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    meaning = note(field, "unit") or note(field, "metavar")
    kind = "texts" if is_whole(field) else _KINDS[core_type(field)]
    return " ".join((kind, *_bounds(field), *([f"({meaning})"] if meaning else [])))


def _bounds(field: FieldInfo) -> list[str]:
    phrases = []
    for bound in field.metadata:
        match bound:
            case Gt(gt=limit):
                phrases.append(f"above {shown(limit)}")
            case Ge(ge=limit):
                phrases.append(f"of at least {shown(limit)}")
            case Le(le=limit):
                phrases.append(f"and at most {shown(limit)}")
    return phrases


def unknown(word: str, known: Iterable[str], where: str) -> str:
    """Return the sentence that refuses a word which is none of the known ones, and names the closest."""
    close = get_close_matches(word, known, n=1, cutoff=0.75)
    hint = f"{close[0]} comes closest, and " if close else ""
    return f"{shown(word)} is unknown {where}: {hint}`python run.py --help` lists what there is"


def shown(value: object) -> str:
    """Return a value for use within a sentence: short, on one line, quoted where it would not stand alone."""
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, tuple):
        return " ".join(map(shown, value))
    text = str(value)
    if isinstance(value, str | Path) and (not text or " " in text or not text.isprintable()):
        text = repr(text)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
