"""The control of a campaign: plain dynamics of equal length, and what the two say together."""

from __future__ import annotations

from pathlib import Path

from campaign.live_settings import LiveSettings
from campaign.settings import Settings
from campaign.summary import Summary, describe


def control_settings(settings: Settings, segments: int, equilibrated: Path | None = None) -> Settings:
    """Return the settings of plain dynamics of so many segments.

    Parameters
    ----------
    equilibrated
        Folder of States to begin at as they are; None to begin as the settings say.
    """
    length = {"max_segments": segments, "max_ns": None, "max_minutes": None}
    plain = {"policy": "plain", "control": False, "min_model_versions": 0, "aae_weights": None, "no_retrain": False}
    hooks = dict.fromkeys(("before_segment", "after_segment", "after_campaign", "continue_until"))
    unwatched = {name: field.default for name, field in LiveSettings.model_fields.items()}
    # Its trajectories go to its directory at once: a scratch of its own would outlive that of the campaign.
    direct = {"scratch": None, "gather_every": None, "stage_env": None}
    begun = {} if equilibrated is None else {"start": [equilibrated], "minimise": False, "equilibrate_ps": 0.0}
    return Settings.model_validate(
        {**settings.as_config(), **length, **plain, **hooks, **unwatched, **direct, **begun}
    )


def comparison(steered: Summary, plain: Summary) -> str:
    """Return both coverages in a sentence."""
    if steered.coverage is None or plain.coverage is None or plain.status != "complete":
        return f"control: plain MD ended {plain.status}: {plain.reason}"
    ratio = steered.coverage.value / plain.coverage.value
    return (
        f"plain MD of equal length ({plain.simulated_ns:.3f} ns), coverage: {describe(plain.coverage)}; "
        f"steered / plain = {ratio:.2f} (one run each, one seed; steered frames are unweighted)"
    )
