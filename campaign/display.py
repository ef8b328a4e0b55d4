"""How a campaign looks while it runs: a live panel on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from campaign.settings import Settings
from tasks.platforms import GPU_PLATFORMS
from tasks.prepared import PreparedSystem

_LINE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A campaign at one moment.

    Attributes
    ----------
    target
        Segments it will have at its end; None where time ends it.
    busy, slots
        Segments sent and not back, and workers for them.
    """

    segments: int
    target: int | None
    simulated_ns: float
    elapsed_s: float
    coverage: str
    model_version: int
    busy: int
    slots: int
    failures: int

    @property
    def ns_per_day(self) -> float:
        """Simulated time per day of wall time."""
        return self.simulated_ns / self.elapsed_s * 86_400 if self.elapsed_s > 0 else 0.0

    def line(self) -> str:
        """Return the snapshot in a line."""
        of = "" if self.target is None else f"/{self.target}"
        return (
            f"{self.elapsed_s:6.0f} s  {self.segments}{of} segments  {self.simulated_ns:.3f} ns  "
            f"{self.ns_per_day:.1f} ns/day  coverage {self.coverage}  model {self.model_version}  "
            f"{min(self.busy, self.slots)}/{self.slots} workers busy  {self.failures} failed attempts"
        )


def announcement(settings: Settings, prepared: PreparedSystem, log: Path) -> str:
    """Return what is about to run, and until when, in a line."""
    limits = {
        "segments": settings.max_segments,
        "ns": settings.max_ns,
        "minutes": settings.max_minutes,
        "model versions": settings.min_model_versions or None,
    }
    until = ", ".join(f"{limit:g} {unit}" for unit, limit in limits.items() if limit is not None)
    return (
        f"{prepared.name}: {prepared.n_atoms} atoms on {prepared.platform}, policy {settings.policy}, "
        f"until {until or 'it is told to end'}; watch {log}"
    )


def cautions(settings: Settings, platform: str, slots: int) -> Iterator[str]:
    """Yield what a user may not have meant."""
    if settings.segments_per_device is not None and platform not in GPU_PLATFORMS:
        yield (
            f"--segments-per-device {settings.segments_per_device}: OpenMM's platform {platform} uses no device; "
            "install its plugin for yours (pip install OpenMM[cuda12]), or name a --platform"
        )
    if settings.walkers < slots:
        yield f"--walkers {settings.walkers} keeps only {settings.walkers} of {slots} workers busy: give {2 * slots}"


def tell(text: str) -> None:
    """Print for whoever still listens: a reader that is gone must not end a campaign."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        # Nor may the interpreter complain when it flushes at its end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # open as long as the process


class Display:
    """Shows snapshots until it is closed."""

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take
        self._last = time.monotonic()
        self._live: Live | None = None
        console = Console()
        if console.is_terminal:
            self._live = Live(console=console, refresh_per_second=4, transient=True)
            self._live.start()

    def update(self) -> None:
        """Show the campaign as it is now, if it is time to."""
        if self._live is not None:
            self._draw(self._live)
        elif time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            tell(self._take().line())

    def close(self) -> None:
        """Leave the terminal as it was, with the last snapshot as a line."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
        tell(self._take().line())

    def _draw(self, live: Live) -> None:
        try:
            live.update(_panel(self._take()))
        except OSError:
            self._live = None  # the terminal is gone


def _panel(now: Snapshot) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("segments", f"{now.segments}" + ("" if now.target is None else f" of {now.target}"))
    if now.target is not None:
        table.add_row("", ProgressBar(total=now.target, completed=min(now.segments, now.target), width=40))
    table.add_row("simulated", f"{now.simulated_ns:.3f} ns, {now.ns_per_day:.1f} ns/day")
    table.add_row("coverage", now.coverage)
    table.add_row("model version", str(now.model_version))
    table.add_row("workers busy", f"{min(now.busy, now.slots)} of {now.slots}")
    table.add_row("failed attempts", str(now.failures))
    table.add_row("elapsed", f"{now.elapsed_s:.0f} s")
    return table
