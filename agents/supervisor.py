"""Watches over running campaigns: the task server, the Redis server, and the person at the keyboard."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol

from agents.actor import Actor
from agents.server import SafeTaskServer, why_it_ended
from agents.simulate import LEAVING_S
from agents.thinker import CampaignThinker
from campaign.limits import too_full

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_LOOK_AT_REDIS_EVERY_S = 2.0
_LOOK_AT_DISKS_EVERY_S = 1.0


class Server(Protocol):
    """Anything that can say that it is gone."""

    def trouble(self) -> str | None:
        """Return a sentence once it is gone."""
        ...


class Signals:
    """Signals while a campaign runs: the first asks for an end in order, the second for one at once.

    SIGINT, SIGTERM, and SIGHUP (a terminal or ssh session that closes) unless it is ignored, as nohup has it.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned

    @property
    def first(self) -> signal.Signals | None:
        """The signal that began the end."""
        return self.received[0] if self.received else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))


@dataclass(slots=True)
class Room:
    """Whether a campaign's disks have room.

    Attributes
    ----------
    max_wait_s
        How long a campaign waits for it.
    """

    folders: tuple[Path, ...]
    min_free_bytes: int
    max_wait_s: float
    _told: str | None = None
    _since: float = 0.0
    _due: float = 0.0

    def look(self) -> str | None:
        """Return a sentence while a disk is too full; looks now and then."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _LOOK_AT_DISKS_EVERY_S
            # A little more than asked for before it goes on, or it would stop at every file.
            wanted = self.min_free_bytes if self._told is None else round(1.1 * self.min_free_bytes)
            told = too_full(self.folders, wanted)
            self._since = now if self._told is None else self._since
            self._told = told
        return self._told

    @property
    def waited_s(self) -> float:
        """How long it has been too full."""
        return 0.0 if self._told is None else time.monotonic() - self._since


class Charge:
    """A campaign in the supervisor's care.

    Parameters
    ----------
    grace_s
        How long results may still arrive after a signal, or after the time was up.
    room
        Whether the campaign's disks have room.
    """

    def __init__(self, actor: Actor, grace_s: float, room: Room) -> None:
        self._actor = actor
        self._grace_s = grace_s
        self._room = room
        self._deadline = float("inf")
        self._told = False

    @property
    def over(self) -> bool:
        """Whether the campaign has ended, well or not."""
        return self._actor.over

    def mind(self, signal_received: signal.Signals | None) -> None:
        """See to it that the campaign ends when it is to: finished, failed, or told to end and out of grace."""
        state = self._actor.state
        if signal_received is not None and not self._told:
            self._told = True
            self._actor.stop(f"{signal_received.name} was received")
        self._mind_room()
        if self._deadline == float("inf") and state.ending is not None:
            self._deadline = self._patience()
        if time.monotonic() >= self._deadline and not self._actor.steering.waits_for_hooks:
            self._actor.dismissed = True

    def fail(self, reason: str) -> None:
        """Let the campaign end because it cannot go on, unless it has ended."""
        if not self.over:
            self._actor.state.fail(reason)

    def _patience(self) -> float:
        """Return until when results may still arrive (monotonic): where time runs out, as long as there is some."""
        state = self._actor.state
        end = time.monotonic() + self._grace_s
        return end if state.end_of_time is None or not state.out_of_time else max(end, state.end_of_time - LEAVING_S)

    def _mind_room(self) -> None:
        """Hold the campaign while a disk is too full, for some time."""
        state = self._actor.state
        told = self._room.look()
        if (told is None) == (state.paused is None):
            if told is not None and self._room.waited_s > self._room.max_wait_s:
                state.fail(f"{told}, for {self._room.max_wait_s / 60:g} min: free some space and resume")
            return
        self._actor.pause(told)
        sentence = "the disk has room again: going on" if told is None else f"waiting: {told}; free some space"
        logger.warning("%s", sentence)
        self._actor.tell(sentence)


class Supervisor:
    """Waits for all campaigns of the process to be over, and sees to it that they will be.

    Parameters
    ----------
    show
        Called now and then, to show progress.
    """

    def __init__(
        self,
        thinker: CampaignThinker,
        charges: Sequence[Charge],
        server: SafeTaskServer,
        redis: Server | None,
        signals: Signals,
        show: Callable[[], None],
    ) -> None:
        self._thinker = thinker
        self._charges = tuple(charges)
        self._server = server
        self._redis = redis
        self._signals = signals
        self._show = show
        self._redis_due = 0.0

    def watch(self) -> None:
        """Return when every campaign is over, or nothing can come of those that are not."""
        while self._thinker.is_alive() and len(self._signals.received) < 2:
            self._show()
            reason = self.trouble()
            if reason is not None:
                for charge in self._charges:
                    charge.fail(reason)
                return
            for charge in self._charges:
                if not charge.over:
                    charge.mind(self._signals.first)
            if all(charge.over for charge in self._charges):
                return
            time.sleep(_LOOK_EVERY_S)

    def trouble(self) -> str | None:
        """Return why no campaign can go on, if a server is gone."""
        if not self._server.is_alive():
            return why_it_ended(self._server.exitcode)
        if self._redis is not None and time.monotonic() >= self._redis_due:
            self._redis_due = time.monotonic() + _LOOK_AT_REDIS_EVERY_S
            return self._redis.trouble()
        return None

    def end(self, timeout_s: float = 5.0) -> None:
        """Let the Thinker's agents go, whatever they still wait for or are about to send."""
        self._thinker.queues.close()
        self._thinker.done.set()
        deadline = time.monotonic() + timeout_s
        while self._thinker.is_alive() and time.monotonic() < deadline:
            self._thinker.queues.forget_active()
            self._thinker.join(0.1)
