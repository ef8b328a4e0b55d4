"""What clients of an IMD server may cost a segment, and what they did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImdBounds:
    """What clients may cost a segment.

    Attributes
    ----------
    n_clients
        At once; others are turned away.
    buffer_bytes, buffer_frames
        Of frames that one client has yet to be sent. Clients share the bytes of a frame, and one frame is always
        taken, however large.
    kernel_bytes
        What the kernel keeps for one client besides; left alone, it takes megabytes for each.
    patience_s
        For a client's GO, and for the rest of a header that it began. The protocol has 1 s for GO, which a client
        that shares its cores with a simulation may miss.
    wait_s
        How long a frame waits for clients that have no room, where frames wait.
    pause_s
        How long all pauses of the segment together may take.
    flush_s
        How long the end waits for clients to take what they have yet to be sent.
    n_commands, n_commands_per_frame
        What a client may say, and how much more for each frame since it came: enough to pause and resume with each.
    """

    n_clients: int = 256
    buffer_bytes: int = 2**22
    buffer_frames: int = 1024
    kernel_bytes: int = 2**18
    patience_s: float = 5.0
    wait_s: float = 10.0
    pause_s: float = 60.0
    flush_s: float = 1.0
    n_commands: int = 1000
    n_commands_per_frame: int = 8


@dataclass(frozen=True, slots=True)
class ImdCounts:
    """What clients did, and what became of the frames.

    Attributes
    ----------
    n_clients
        Let in, ever.
    n_refused
        Turned away, for there were too many.
    n_garbage
        Disconnected for what they said, or did not say in time.
    n_too_slow
        Disconnected, for a frame had waited for them as long as it may.
    n_published
        Frames of the segment, whether anybody listened or not.
    n_sent, bytes_sent
        Whole frames that the kernel took, over all clients; bytes of frames.
    n_dropped
        Frames due to a client that did not fit, or were not yet sent whole when it left or the segment ended.
    paused_s, waited_s
        How long the segment was held by pauses, and by clients without room.
    n_pauses, n_pauses_cut
        How often pauses held the segment, and how often until `ImdBounds.pause_s` ended them.
    killed
        Whether a client asked for the segment's end.
    """

    n_clients: int = 0
    n_refused: int = 0
    n_garbage: int = 0
    n_too_slow: int = 0
    n_published: int = 0
    n_sent: int = 0
    bytes_sent: int = 0
    n_dropped: int = 0
    paused_s: float = 0.0
    waited_s: float = 0.0
    n_pauses: int = 0
    n_pauses_cut: int = 0
    killed: bool = False
