"""``summary.json``: a campaign in figures; every key is always there, null where nothing was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tasks.messages import Coverage

Status = Literal["complete", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class EnsembleSummary:
    """What weighted ensembles have come to.

    Attributes
    ----------
    iterations, walkers
        That ended, and that the next has, of each ensemble.
    flux_per_ps, rate_per_s
        Mean weight that reaches the target in a time; None without target, or before any has.
    rate_low_per_s, rate_high_per_s
        Its 95 % interval, which respects correlation; None where there is too little flux to tell.
    averaged_iterations
        Over all ensembles, what comes first left out.
    """

    iterations: list[int]
    walkers: list[int]
    pcoord: str
    target: str | None
    flux_per_ps: float | None
    rate_per_s: float | None
    rate_low_per_s: float | None
    rate_high_per_s: float | None
    mfpt_ps: float | None
    averaged_iterations: int

    def lines(self) -> list[str]:
        """Return it in a few lines for the terminal."""
        ended = ", ".join(f"{n} iterations" for n in self.iterations)
        told = [f"weighted ensemble in {self.pcoord}: {ended}; {sum(self.walkers)} walkers"]
        if self.target is None:
            return told
        if self.rate_per_s is None:
            return [*told, f"nothing reached the target {self.target}"]
        interval = "too little flux for an interval"
        if self.rate_low_per_s is not None and self.rate_high_per_s is not None:
            interval = f"95 % interval {self.rate_low_per_s:.3g} to {self.rate_high_per_s:.3g}"
        told.append(
            f"rate to {self.target}: {self.rate_per_s:.3g} /s ({interval}), "
            f"mean first passage time {self.mfpt_ps:.4g} ps"
        )
        return told


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
    weighted_ensemble: EnsembleSummary | None = None
    hooks: dict[str, int] = field(default_factory=lambda: {"complete": 0, "fizzled": 0})
    on_frames: dict[str, int] = field(default_factory=lambda: {"batches": 0, "failed": 0, "stopped": 0})
    stream: dict[str, int] = field(default_factory=lambda: {"batches": 0, "dropped": 0, "embedded": 0, "stopped": 0})
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
        if any(self.on_frames.values()):
            told.append(
                f"frames looked at in {self.on_frames['batches']} batches: {self.on_frames['failed']} failed, "
                f"{self.on_frames['stopped']} segments ended early"
            )
        if any(self.stream.values()):
            told.append(
                f"batches of running segments: {self.stream['batches']} sent, {self.stream['embedded']} embedded, "
                f"{self.stream['dropped']} dropped; {self.stream['stopped']} segments ended early"
            )
        if self.weighted_ensemble is not None:
            told += self.weighted_ensemble.lines()
        if self.coverage is not None:
            told.append(f"coverage: {describe(self.coverage)}")
        return told


def describe(coverage: Coverage) -> str:
    """Return coverage in words."""
    if coverage.cells_deg is None:
        return f"{coverage.value:.0f} cells of the first two principal components"
    return f"{coverage.value:.0f} phi/psi cells of {coverage.cells_deg} degrees"
