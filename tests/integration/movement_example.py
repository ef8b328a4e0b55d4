"""What the tests of ``python -m tasks.stream`` have producers and consumers call."""

import os
import signal
import time
from pathlib import Path

import numpy as np

KILLED_AT = 3


def frame(number: int, n_atoms: int, stream: int) -> np.ndarray:
    """Return a frame that tells where it is from."""
    return np.full((n_atoms, 3), 100 * stream + number, dtype=np.float32)


def slowly(number: int, n_atoms: int, stream: int) -> np.ndarray:
    """Return the same after a while."""
    time.sleep(0.2)
    return frame(number, n_atoms, stream)


def killed_while_writing(number: int, n_atoms: int, stream: int) -> np.ndarray:
    """Have the process killed when half of a frame is written."""
    if number == KILLED_AT:

        def tear(part: Path, path: Path) -> None:
            os.truncate(part, part.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        os.replace = tear
    return slowly(number, n_atoms, stream)


def killed_while_analysing(positions: np.ndarray) -> float:
    """Have the process killed in the midst of an analysis."""
    time.sleep(0.2)
    if positions[0, 0] % 100 == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return mean(positions)


def mean(positions: np.ndarray) -> float:
    """Return the number that a frame is of."""
    return float(positions.mean())


def raises(number: int, n_atoms: int, stream: int) -> np.ndarray:
    """Fail."""
    raise RuntimeError(f"no frame {number}")
