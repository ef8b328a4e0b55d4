"""How a campaign looks while it runs: a live panel on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
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

    def rows(self) -> Iterator[tuple[str, RenderableType]]:
        """Yield the rows of a panel."""
        yield "segments", f"{self.segments}" + ("" if self.target is None else f" of {self.target}")
        if self.target is not None:
            yield "", ProgressBar(total=self.target, completed=min(self.segments, self.target), width=40)
        yield "simulated", f"{self.simulated_ns:.3f} ns, {self.ns_per_day:.1f} ns/day"
        yield "coverage", self.coverage
        yield "model version", str(self.model_version)
        yield "workers busy", f"{min(self.busy, self.slots)} of {self.slots}"
        yield "failed attempts", str(self.failures)
        yield "elapsed", f"{self.elapsed_s:.0f} s"


@dataclass(frozen=True, slots=True)
class Overview:
    """Campaigns that share their workers, at one moment.

    Attributes
    ----------
    over
        How many of them have ended.
    slots
        Workers for segments.
    """

    campaigns: tuple[Snapshot, ...]
    over: int
    slots: int

    @property
    def _segments(self) -> str:
        targets = [each.target for each in self.campaigns if each.target is not None]
        of = f" of {sum(targets)}" if len(targets) == len(self.campaigns) else ""
        return f"{sum(each.segments for each in self.campaigns)}{of} segments"

    @property
    def _simulated(self) -> str:
        ns, elapsed_s = sum(each.simulated_ns for each in self.campaigns), self._elapsed_s
        return f"{ns:.3f} ns, {ns / elapsed_s * 86_400 if elapsed_s > 0 else 0.0:.1f} ns/day"

    @property
    def _busy(self) -> str:
        return f"{min(sum(each.busy for each in self.campaigns), self.slots)} of {self.slots}"

    @property
    def _failures(self) -> int:
        return sum(each.failures for each in self.campaigns)

    @property
    def _elapsed_s(self) -> float:
        return max(each.elapsed_s for each in self.campaigns)

    def line(self) -> str:
        """Return the overview in a line."""
        return (
            f"{self._elapsed_s:6.0f} s  {self.over} of {len(self.campaigns)} campaigns over  {self._segments}  "
            f"{self._simulated}  {self._busy} workers busy  {self._failures} failed attempts"
        )

    def rows(self) -> Iterator[tuple[str, RenderableType]]:
        """Yield the rows of a panel."""
        yield "campaigns over", f"{self.over} of {len(self.campaigns)}"
        yield "", ProgressBar(total=len(self.campaigns), completed=self.over, width=40)
        yield "segments", self._segments
        yield "simulated", self._simulated
        yield "workers busy", self._busy
        yield "failed attempts", str(self._failures)
        yield "elapsed", f"{self._elapsed_s:.0f} s"


def announcement(settings: Settings, prepared: PreparedSystem, log: Path) -> str:
    """Return what is about to run, and until when, in a line."""
    limits = {
        "segments": settings.max_segments,
        "ns": settings.max_ns,
        "minutes": settings.max_minutes,
        "iterations": settings.max_iterations,
        "model versions": settings.min_model_versions or None,
    }
    until = ", ".join(f"{limit:g} {unit}" for unit, limit in limits.items() if limit is not None)
    return (
        f"{prepared.name}: {prepared.n_atoms} atoms on {prepared.platform}, policy {settings.policy}, "
        f"until {until or 'it is told to end'}; watch {log}"
    )


def cautions(settings: Settings, platform: str, slots: int, walkers: int) -> Iterator[str]:
    """Yield what a user may not have meant.

    Parameters
    ----------
    walkers
        At most.
    """
    if settings.segments_per_device is not None and platform not in GPU_PLATFORMS:
        yield (
            f"--segments-per-device {settings.segments_per_device}: OpenMM's platform {platform} uses no device; "
            "install its plugin for yours (pip install OpenMM[cuda12]), or name a --platform"
        )
    if settings.is_ensemble and walkers < slots:
        yield (
            f"{walkers} walkers, were every bin reached, keep only {walkers} of {slots} workers busy: give more "
            "--bins, --walkers-per-bin or --replicas"
        )
    elif walkers < slots:
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

    def __init__(self, take: Callable[[], Snapshot | Overview]) -> None:
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


def _panel(now: Snapshot | Overview) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in now.rows():
        table.add_row(name, value)
    return table
