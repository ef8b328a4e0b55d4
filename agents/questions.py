"""What weighted ensembles ask of the learning site, kept until it can be sent there."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agents.state import CampaignState, Start
from tasks.messages import Cargo, Ref


@dataclass(frozen=True, slots=True)
class Question:
    """Coordinates to be computed, all by one model version.

    Attributes
    ----------
    model
        Of that version; None where none is needed.
    basis
        Numbers of basis states.
    batches
        Segments, and their frames.
    """

    version: int
    model: Ref | None
    basis: tuple[int, ...] = ()
    batches: tuple[tuple[int, Ref], ...] = ()


class Questions:
    """Sends questions when slots are filled; basis states are brought to the learning site once, and stay there.

    Parameters
    ----------
    starts
        The basis states.
    bring
        Brings data to where the learning site reaches them, and hands that to `arrived`.
    compute
        Sends a part of a question: which one, basis states by number, batches.
    """

    def __init__(
        self,
        state: CampaignState,
        starts: list[Start],
        bring: Callable[[Cargo, Ref], None],
        compute: Callable[[Question, Mapping[int, Start], tuple[tuple[int, Ref], ...]], None],
    ) -> None:
        self._state = state
        self._starts = starts
        self._bring = bring
        self._compute = compute
        self._queue: deque[tuple[int, Question]] = deque()
        self._waiting: dict[int, list[tuple[int, Question]]] = {}
        self._left: Counter[int] = Counter()
        self._n_asked = 0
        self.there: dict[int, Ref] = {}

    def ask(self, question: Question) -> None:
        """Keep a question, and its model, until it is sent."""
        self._n_asked += 1
        self._left[self._n_asked] = len(question.basis) + bool(question.batches)
        if question.model is not None:
            self._state.hold(question.model, ("question", self._n_asked))
        self._queue.append((self._n_asked, question))

    def send(self) -> None:
        """Send what was asked, as far as its data are there."""
        while self._queue:
            number, question = self._queue.popleft()
            for basis in question.basis:
                self._about_basis(basis, number, question)
            if question.batches:
                self._compute(question, {}, question.batches)
                self._sent(number, question)

    def _about_basis(self, basis: int, number: int, question: Question) -> None:
        if basis in self.there:
            self._compute(question, {basis: replace(self._starts[basis], ref=self.there[basis])}, ())
            self._sent(number, question)
            return
        waiting = self._waiting.setdefault(basis, [])
        waiting.append((number, question))
        if len(waiting) == 1:
            self._bring(("basis", basis), self._starts[basis].ref)

    def arrived(self, basis: int, ref: Ref | None) -> None:
        """Note where the learning site reaches a basis state; None: it could not be brought there."""
        if ref is None:
            self._state.fail(f"basis state {basis} could not be brought to the learning site")
            return
        if basis not in self.there:
            self.there[basis] = ref
            self._state.hold(ref, ("there", basis))
        for number, question in self._waiting.pop(basis, []):
            self._about_basis(basis, number, question)

    def _sent(self, number: int, question: Question) -> None:
        self._left[number] -= 1
        if not self._left[number]:
            del self._left[number]
            if question.model is not None:
                self._state.release([question.model], ("question", number))
