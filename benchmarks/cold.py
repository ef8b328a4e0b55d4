"""A training or an inference in a fresh process, as a workflow without warm workers starts it.

``python -m benchmarks.cold SPEC``: the file holds a pickled spec (our own, made by the benchmark a moment before).
What it returns is only left in the store.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from tasks.messages import EmbedSpec, TrainSpec


def main(path: str) -> None:
    """Run the task."""
    spec: EmbedSpec | TrainSpec = pickle.loads(Path(path).read_bytes())  # noqa: S301  # our own file
    if isinstance(spec, TrainSpec):
        from tasks.train import train

        train(spec)
    else:
        from tasks.infer import embed

        embed(spec)


if __name__ == "__main__":
    main(*sys.argv[1:])
