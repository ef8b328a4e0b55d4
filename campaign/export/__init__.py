"""What other programs read of a campaign: each module writes one kind, and changes nothing in the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from campaign.looking import Export
from campaign.trace import Run

# Of what an inference says, what is shown as a curve.
SERIES = ("coverage", "novelty", "simulated_ns", "segments", "n_reference", "smallest_rmsd_nm")


def write_exports(run: Path, asked: Export) -> Iterator[str]:
    """Write what is asked for; yield a line for each.

    Raises
    ------
    BadInput
        Where the run lacks what is asked for, or a place cannot be written.
    """
    if asked.west_cfg:
        from campaign.west.config import export_config

        told = export_config(run, asked.out, asked.replica)
        yield f"{told} is written: run WESTPA's tools in {told.parent}"
    left = Run(run)
    if asked.perfetto is not None:
        from campaign.export.perfetto import write_perfetto

        yield write_perfetto(left, asked.perfetto)
    if asked.parquet is not None:
        from campaign.export.parquet import write_parquet

        yield write_parquet(left, asked.parquet)
    if asked.trajectory is not None:
        from campaign.export.trajectory import write_trajectory

        yield write_trajectory(left, asked.trajectory, asked.select, asked.stride)
    if asked.tensorboard is not None:
        from campaign.export.tensorboard import write_tensorboard

        yield write_tensorboard(left, asked.tensorboard)
    if asked.mlflow is not None:
        from campaign.export.mlflow import log_run

        yield log_run(left, asked.mlflow)
