"""What a site is to the campaign: executors, the stores it reaches, and whether it shares the run directory."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parsl.executors.base import ParslExecutor

from tasks.transport import REACHES_VARIABLE


@dataclass(frozen=True, slots=True)
class Resources:
    """What the command line says about executors.

    Attributes
    ----------
    private_dir
        A directory that only this user reads, for the keys of encrypted connections; removed after the run.
    heartbeat_s, heartbeat_threshold_s
        Period of the signs of life, and the silence after which a worker pool counts as lost.
    """

    simulate_workers: int
    ml_workers: int
    private_dir: Path
    heartbeat_s: float
    heartbeat_threshold_s: float


@dataclass(frozen=True, slots=True)
class Site:
    """A machine or cluster.

    Attributes
    ----------
    simulate, learn
        Make the executor for segments, and the one for training and inference; None where the site has none.
    simulate_slots, learn_slots
        How many tasks they run at once.
    reaches
        Kinds of store that its workers can open.
    shares_run_dir
        Whether its workers see the run directory under the same path.
    """

    name: str
    simulate: Callable[[Resources], ParslExecutor] | None
    learn: Callable[[Resources], ParslExecutor] | None
    simulate_slots: Callable[[Resources], int]
    learn_slots: Callable[[Resources], int]
    reaches: frozenset[str]
    shares_run_dir: bool


SiteMaker = Callable[[], Site]

REACHES_ALL: frozenset[str] = frozenset({"file", "redis", "globus", "inline"})


def worker_environment(reaches: frozenset[str], checkout: Path | None = None) -> str:
    """Return shell lines that every worker starts with.

    Libraries stay on one thread, for two lose per CPU-second; and a store that the site does not reach is refused in
    a sentence instead of dialled in vain.

    Parameters
    ----------
    checkout
        Where workers take `tasks` from, if not from what is installed there.
    """
    threads = [f"export {name}=1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")]
    path = [] if checkout is None else [f"export PYTHONPATH={shlex.quote(str(checkout))}"]
    return "\n".join([*threads, *path, f"export {REACHES_VARIABLE}={','.join(sorted(reaches))}"])
