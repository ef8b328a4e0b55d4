"""The essentials of a campaign in a terminal, or a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from campaign.display import tell
from campaign.summary import describe
from campaign.watch.following import Following
from campaign.watch.view import View
from tasks.messages import Coverage

_DRAW_EVERY_S = 2.0
_LINE_EVERY_S = 10.0
_LOOK_EVERY_S = 0.25


def show(run: Path, is_over: Callable[[], bool]) -> None:
    """Show a campaign: in a terminal until told to end, elsewhere until it has ended.

    Raises
    ------
    BadInput
        When there is none.
    """
    following, console = Following(run), Console()
    if console.is_terminal:
        with suppress(OSError), Live(console=console, auto_refresh=False) as live:  # the terminal may go
            while not is_over():
                live.update(_panel(following.look()), refresh=True)
                _wait(_DRAW_EVERY_S, is_over)
        return
    while not is_over():
        view = following.look()
        tell(line(view))
        if view.over:
            return
        _wait(_LINE_EVERY_S, is_over)


def line(view: View) -> str:
    """Return a campaign in a line."""
    of = "" if view.target is None else f"/{view.target}"
    busy = ", ".join(f"{each.topic}@{each.site} {each.busy}/{each.slots}" for each in view.workers if each.out)
    told = (
        f"{view.elapsed_s:6.0f} s  {_status(view)}  {view.segments}{of} segments  {view.simulated_ns:.3f} ns  "
        f"{_pace(view)}  coverage {_coverage(view)}  model {view.model_versions}  "
        f"{sum(view.failures.values())} failed attempts  busy: {busy or 'none'}"
    )
    trouble = "".join(f"  trouble: {each}" for each in view.trouble)
    return _printable(told + trouble)


def _panel(view: View) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(view):
        # Names and errors are whoever's: they are no markup, and move no cursor.
        told = Text(_printable(value)) if isinstance(value, str) else value
        table.add_row(Text(_printable(name)), told)
    return table


def _rows(view: View) -> Iterator[tuple[str, RenderableType]]:
    yield view.system, f"{_status(view)}{'' if view.reason is None else f': {view.reason}'}"
    yield "segments", f"{view.segments}" + ("" if view.target is None else f" of {view.target}")
    if view.target:
        yield "", ProgressBar(total=view.target, completed=min(view.segments, view.target), width=40)
    yield "simulated", f"{view.simulated_ns:.3f} ns, {_pace(view)}"
    yield "coverage", _coverage(view)
    yield "model version", str(view.model_versions)
    yield "steered", f"{100 * view.steered_fraction:.0f} %"
    if view.ensemble is not None:
        yield "iterations", ", ".join(map(str, view.ensemble.iterations)) or "none"
    for each in view.workers:
        late = "" if each.recent is None else f", {100 * each.recent:.0f} % over the last minutes"
        so_far = "" if each.utilisation is None else f", {100 * each.utilisation:.0f} % so far"
        yield f"{each.topic} at {each.site}", f"{each.busy} of {each.slots} busy{late}{so_far}"
    yield "failed attempts", ", ".join(f"{n} {kind}" for kind, n in view.failures.items()) or "none"
    for error in view.errors[:3]:
        told = error["error"].partition("\n")[0]
        yield "", f"{error['kind']} {error['task_id']} at {error['site']}: {told}"
    for served in view.live:
        yield "live", f"segment {served['segment_id']} at {served['url']}"
    for sentence in view.trouble:
        yield "trouble", sentence
    if view.behind:
        yield "", f"{100 * view.behind:.0f} % of what is there is still to be read"


def _status(view: View) -> str:
    return view.status if view.over or view.status == "running" else f"{view.status}, and a process has it"


def _pace(view: View) -> str:
    return "no pace yet" if view.ns_per_day is None else f"{view.ns_per_day:.1f} ns/day"


def _coverage(view: View) -> str:
    return "not yet known" if view.coverage is None else describe(Coverage(**view.coverage))


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


def _wait(seconds: float, is_over: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not is_over() and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
