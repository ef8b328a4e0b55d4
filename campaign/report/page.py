"""A report as one file that opens without a network: its libraries, figures and coordinates are in it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import plotly.offline
from markupsafe import Markup

from campaign.report.panels import Panel
from campaign.rundir import write_whole
from tasks.errors import BadInput

# Shared with the live page.
_COMMON_STYLE = Path(__file__).parents[1] / "page.css"

# `make setup` has npm bring it there, by campaign/report/package-lock.json.
_VIEWER = Path(sys.prefix) / "share/wayfinder/node_modules/3dmol/build/3Dmol-min.js"


def write_page(path: Path, template: str, panels: Sequence[Panel], data: Mapping[str, Any], **words: Any) -> None:
    """Write a page whole or not at all.

    Parameters
    ----------
    template
        Its name in this package.
    data
        Besides the figures, what the page's script reads.
    words
        What the template shows, escaped.

    Raises
    ------
    BadInput
        When it cannot be written.
    """
    figures = {panel.name: _plain(panel) for panel in panels if panel.figure is not None}
    page = _environment().get_template(template)
    html = page.render(
        panels=panels,
        data=_embedded({**data, "figures": figures}),
        libraries=[_script(plotly.offline.get_plotlyjs()), *map(_script, viewer())],
        has_viewer=bool(viewer()),
        style=Markup(_COMMON_STYLE.read_text() + _text("report.css")),
        script=_script(_text("report.js")),
        **words,
    )
    try:
        write_whole(path, html.encode())
    except OSError as error:
        raise BadInput(f"report {path} cannot be written: {error.strerror}; name another place with --out") from error


@lru_cache(maxsize=1)
def viewer() -> tuple[str, ...]:
    """Return the script that shows molecules; none where it was not installed."""
    try:
        return (_VIEWER.read_text(),)
    except OSError:
        return ()


def relative(file: Path, page: Path) -> str:
    """Return the address, in a page, of a file near it, whatever the file is called."""
    # Without the dot a name with a colon in it could be taken for a scheme.
    return "./" + quote(Path(os.path.relpath(file, page.parent)).as_posix())


def _plain(panel: Panel) -> dict[str, Any]:
    assert panel.figure is not None
    figure = json.loads(panel.figure.to_json())
    # Colours and fonts are the page's own, light or dark.
    figure["layout"].pop("template", None)
    return {**figure, "colours": list(panel.colours), "showsStructures": panel.shows_structures}


def _embedded(data: Mapping[str, Any]) -> Markup:
    """Return data for a script element, in which nothing ends that element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _script(text: str) -> Markup:
    # A library may hold this in a string, where a backslash changes nothing.
    return Markup(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text()


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_text), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
