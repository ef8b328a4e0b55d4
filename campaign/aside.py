"""Work in a process of its own, which a signal can end at any moment.

One call of OpenMM may take minutes. And the main process, which forks the task server, stays free of its threads.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

from tasks.errors import BadInput

AnswerT = TypeVar("AnswerT")

_LOOK_EVERY_S = 0.1


def aside(work: Callable[[], AnswerT], what: str, interrupted: Callable[[], bool]) -> AnswerT | None:
    """Return what ``work`` returns in a forked process; None if it was interrupted.

    Parameters
    ----------
    what
        Said of the work where its process dies: ``system villin cannot be prepared``.

    Raises
    ------
    BadInput
        As ``work``, and when its process dies.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, there), daemon=True)
    process.start()
    there.close()
    try:
        while not here.poll(_LOOK_EVERY_S):
            if interrupted():
                return None
        answer: AnswerT | BadInput = here.recv()
    except EOFError:
        process.join(5)
        raise BadInput(
            f"{what}: its process ended (exit {process.exitcode}), as for want of memory; try a smaller one"
        ) from None
    finally:
        process.kill()
        process.join()
        here.close()
    if isinstance(answer, BadInput):
        raise answer
    return answer


def _answer(work: Callable[[], AnswerT], answer: Connection) -> None:
    try:
        answer.send(work())
    except BadInput as error:
        answer.send(BadInput(str(error)))
