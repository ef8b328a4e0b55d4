"""Errors raised on purpose, named so that a ledger can count them by kind."""


class BadInput(Exception):
    """A value that the user gave cannot work; the message names the thing, the value and the remedy."""


class TaskFailed(Exception):
    """A task could not do its work. ``kind`` is what the summary and the ledger count."""

    kind = "error"


class NotFinite(TaskFailed):
    """Coordinates or energies became NaN or infinite."""

    kind = "nan"


class Unreachable(TaskFailed):
    """Data lie in a store that this site cannot reach, or that no longer holds them."""

    kind = "unreachable"


class TooLarge(TaskFailed):
    """Data exceed what the chosen way of transport carries."""

    kind = "too_large"


class Damaged(TaskFailed):
    """Bytes are not what was written: a store's or a file's writer was stopped, or the disk lost them."""

    kind = "damaged"


class HookFailed(TaskFailed):
    """A hook that the user wrote raised, returned what cannot be kept, or took too long."""

    kind = "hook"


class CoordinateFailed(TaskFailed):
    """A progress coordinate is not finite, or the user's function of it raised or returned what is none."""

    kind = "coordinate"


class StreamBroken(TaskFailed):
    """The other end of a stream is gone, refused, or said nothing in time."""

    kind = "stream"
