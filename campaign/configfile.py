"""The file behind ``--config``: YAML, of which the `params.json` of a run is a special case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import yaml

from tasks.errors import BadInput


class _Loader(yaml.SafeLoader):
    """Loader of plain data in which a key may appear once."""


def read_config(path: Path) -> dict[str, object]:
    """Return the settings that a file holds, by their names with underscores; the values are not checked.

    Raises
    ------
    BadInput
        For a file that cannot be read, is no YAML, or holds anything but settings with their values.
    """
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"--config {path} cannot be read ({error.strerror}): give a readable YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = _reason(error)
        raise BadInput(
            f"--config {path} cannot be understood ({reason}): write one `setting: value` a line"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadInput(f"--config {path} holds no settings: write one `setting: value` a line")
    return content


def _parse(text: str) -> object:
    # JSON first: YAML 1.1 reads 1e-05 as text and splits characters that JSON escapes in two halves.
    try:
        return json.loads(text, object_pairs_hook=_mapping)
    except json.JSONDecodeError:
        return yaml.load(text, Loader=_Loader)


def _reason(error: Exception) -> str:
    """Return on one line what is wrong with a file, and where if YAML knows."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _mapping(pairs: Iterable[tuple[object, object]]) -> dict[str, object]:
    """Return pairs as a dictionary in which ``no-retrain`` and ``no_retrain`` are the same key."""
    mapping: dict[str, object] = {}
    for key, value in pairs:
        name = str(key).replace("-", "_")
        if name in mapping:
            raise ValueError(f"{key} is given twice")
        mapping[name] = value
    return mapping


def _construct(loader: _Loader, node: yaml.MappingNode) -> dict[str, object]:
    return _mapping(loader.construct_pairs(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _construct)
