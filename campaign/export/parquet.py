"""A run's frames as Parquet: a file for each, with the units of its columns beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.export.places import folder, written_whole
from campaign.trace import Run
from tasks.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

_FRAMES = ("segments", "tasks", "inferences", "losses", "attempts", "walkers", "iterations")

_OPTION = "--parquet"

# Units of columns whose names do not end in one.
_UNITS = {
    **dict.fromkeys(("sent", "created", "started", "ended", "received"), "s since 1970-01-01 UTC"),
    "seconds": "s",
}

# And of those whose names do, the longest first.
_SUFFIXES = {"_kj_mol": "kJ/mol", "_per_ps": "1/ps", "_bytes": "B", "_ps": "ps", "_ns": "ns", "_nm": "nm", "_K": "K",
             "_s": "s"}  # fmt: skip

# Types that do not show where a frame has no rows, or no value in a column: every run's files have the same.
_TYPES = {
    "Int64": (
        "segment_id", "task_id", "reference_number", "parent_id", "parent_frame", "walker_id", "replica", "iteration",
        "attempt", "model_version", "epoch", "n_frames", "n_atoms", "n_reference", "n_walkers", "segments", "walker",
        "parent", "bin", "recycled_to", "payload_bytes", "message_bytes", "rss_bytes",
    ),
    "float64": (
        "started", "ended", "received", "created", "sent", "seconds", "weight", "flux_per_ps", "simulated_ps",
        "simulated_ns",
    ),
    "boolean": ("steered", "success"),
    "string": ("topic", "kind", "executor", "site", "host", "worker", "store", "outcome", "error"),
}  # fmt: skip


def write_parquet(run: Run, place: Path) -> str:
    """Write a file for each of the run's frames, and return what is to be said of them.

    Raises
    ------
    BadInput
        When pyarrow is missing, the place cannot be written, or what the run left is damaged.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadInput(
            f"{_OPTION} needs pyarrow, which is not installed: `pip install -c constraints.txt -e '.[exports]'` "
            "brings it"
        ) from error
    # All of them before anything is written.
    frames = {name: _plain(getattr(run, name)) for name in _FRAMES}
    with folder(place, _OPTION):
        for name, frame in frames.items():
            table = _with_units(arrow, arrow.Table.from_pandas(frame, preserve_index=False))
            with written_whole(place / f"{name}.parquet", _OPTION) as part:
                parquet.write_table(table, part)
    rows = ", ".join(f"{len(frame)} {name}" for name, frame in frames.items())
    return f"{place} has {rows}, a Parquet file for each"


def unit(column: str) -> str | None:
    """Return the unit of a column; None where it has none."""
    found = (name for suffix, name in _SUFFIXES.items() if column.endswith(suffix))
    return _UNITS.get(column) or next(found, None)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with its index among the columns, and with types that do not hang on what is missing."""
    frame = frame.reset_index() if frame.index.name else frame
    kinds = {name: kind for kind, names in _TYPES.items() for name in names if name in frame}
    return frame.astype(kinds)


def _with_units(arrow: Any, table: Any) -> Any:
    """Return a table whose fields tell their units."""
    units = ((field, unit(field.name)) for field in table.schema)
    fields = [field if of is None else field.with_metadata({"unit": of}) for field, of in units]
    return table.cast(arrow.schema(fields, table.schema.metadata))
