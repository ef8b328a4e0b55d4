"""``summary.json``: a campaign in figures; every key is always there, null where nothing was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tasks.messages import Coverage

Status = Literal["complete", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class Summary:
    """The contract of ``summary.json``; see ARCHITECTURE.md for what each figure means."""

    status: Status
    reason: str | None
    system: str
    policy: str
    seed: int
    segments: int
    simulated_ns: float
    frames: int
    failures: dict[str, int]
    quarantined: int
    model_versions: int
    inferences: int
    steered_fraction: float
    coverage: Coverage | None
    worker_utilisation: dict[str, dict[str, float]]
    decision_ms: dict[str, float | int | None]
    thinker_bytes_per_segment: dict[str, float | None]
    proxies: dict[str, int]
    wall_s: float
    startup_s: float | None
    sites: dict[str, list[str]]
    hooks: dict[str, int] = field(default_factory=lambda: {"complete": 0, "fizzled": 0})
    schema: int = field(default=1)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``summary.json`` holds, the schema first."""
        content = asdict(self)
        return {"schema": content.pop("schema"), **content}

    def line(self) -> str:
        """Return the campaign in one line, for a terminal that shows several."""
        reason = "" if self.reason is None else f" ({self.reason})"
        coverage = "" if self.coverage is None else f", coverage {describe(self.coverage)}"
        return (
            f"{self.status}{reason}: {self.system}, policy {self.policy}, seed {self.seed}, "
            f"{self.segments} segments, {self.simulated_ns:.3f} ns{coverage}"
        )

    def lines(self) -> list[str]:
        """Return the campaign in a few lines for the terminal."""
        told = [
            f"{self.status}{'' if self.reason is None else f': {self.reason}'}",
            f"{self.system}, policy {self.policy}, seed {self.seed}: {self.segments} segments, "
            f"{self.simulated_ns:.3f} ns, {self.frames} frames in {self.wall_s:.1f} s",
            f"model version {self.model_versions}, {self.inferences} inferences, "
            f"{100 * self.steered_fraction:.0f} % of the segments steered",
        ]
        if self.failures or self.quarantined:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.failures.items()))
            told.append(f"failed attempts: {kinds or 'none'}; quarantined starts: {self.quarantined}")
        if any(self.hooks.values()):
            told.append(f"hooks: {self.hooks['complete']} complete, {self.hooks['fizzled']} given up")
        if self.coverage is not None:
            told.append(f"coverage: {describe(self.coverage)}")
        return told


def describe(coverage: Coverage) -> str:
    """Return coverage in words."""
    if coverage.cells_deg is None:
        return f"{coverage.value:.0f} cells of the first two principal components"
    return f"{coverage.value:.0f} phi/psi cells of {coverage.cells_deg} degrees"
