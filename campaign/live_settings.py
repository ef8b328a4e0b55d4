"""Settings of who looks at segments while they run."""

from __future__ import annotations

from pydantic import BaseModel, field_validator

from campaign.hooks import check_onlooker
from campaign.setting import setting

LIVE = "while segments run"


class LiveSettings(BaseModel):
    """What looks at a segment while it runs, and how often."""

    on_frames: str | None = setting(
        LIVE,
        None,
        "call module:function with each batch of frames, where the segment runs; it returns numbers, or ends the "
        "segment",
        metavar="MODULE:FUNCTION",
    )
    stream_every_ps: float | None = setting(
        LIVE,
        None,
        "simulated time of a batch of frames",
        "ps",
        default_text="a tenth of a segment, in whole frames",
        gt=0,
        le=1e6,
    )

    @field_validator("on_frames")
    @classmethod
    def _can_be_shown_frames(cls, value: str | None) -> str | None:
        """Refuse what is no function of frames, times and boxes."""
        if value is not None:
            check_onlooker("--on-frames", value)
        return value
