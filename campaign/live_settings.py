"""Settings of who looks at segments while they run."""

from __future__ import annotations

import ipaddress

from pydantic import BaseModel, field_validator

from campaign.flags import shown
from campaign.hooks import check_command, check_onlooker
from campaign.setting import setting
from tasks.errors import BadInput
from tasks.messages import WhenSlow

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
    stream: bool = setting(
        LIVE,
        False,
        "send batches of frames to the learning site while segments run, and embed them there",
    )
    stop_below: float | None = setting(
        LIVE,
        None,
        "end a running segment (--stream) of which two batches in a row have no frame that is rarer than this share "
        "of the frames known",
        metavar="SHARE",
        default_text="never",
        gt=0,
        le=1,
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

    imd: bool = setting(
        LIVE,
        False,
        "serve each running segment by IMDv3, on a port of the kernel's choice that `status` tells",
    )
    imd_host: str | None = setting(
        LIVE,
        None,
        "address of the worker's host that IMD clients connect to; IMD has no authentication",
        metavar="ADDRESS",
        default_text="127.0.0.1",
        min_length=1,
    )
    stream_when_slow: WhenSlow = setting(
        LIVE,
        "drop",
        "what becomes of a frame that an IMD client, or of a batch that the learning site, has no room for: it is "
        "dropped, or the segment waits",
    )

    stream_command: str | None = setting(
        LIVE,
        None,
        "command that runs beside each segment and reads it by IMD: host and port are in its environment",
        metavar="COMMAND",
        min_length=1,
    )

    @property
    def serves(self) -> bool:
        """Whether segments are served to IMD clients."""
        return self.imd or self.stream_command is not None

    @field_validator("imd_host")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        """Refuse a name, which may mean another address on a worker's host."""
        if value is not None:
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise BadInput(
                    f"--imd-host {shown(value)} is no address: give one in numbers, such as 127.0.0.1, or 0.0.0.0 "
                    "for all that a worker's host has"
                ) from None
        return value

    @field_validator("stream_command")
    @classmethod
    def _can_be_run_beside(cls, value: str | None) -> str | None:
        """Refuse what is no command."""
        if value is not None:
            check_command("--stream-command", value)
        return value

    @field_validator("on_frames")
    @classmethod
    def _can_be_shown_frames(cls, value: str | None) -> str | None:
        """Refuse what is no function of frames, times and boxes."""
        if value is not None:
            check_onlooker("--on-frames", value)
        return value
