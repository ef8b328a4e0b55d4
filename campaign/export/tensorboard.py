"""A campaign for TensorBoard: losses of each model version, figures by inference, and what the model makes of frames.

Beside the event file of the campaign there is a folder for each model version (``model-000001``, ...), which
TensorBoard shows as a run of its own, so that versions lie over each other.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from campaign.export import SERIES
from campaign.export.places import folder
from campaign.trace import Run
from tasks.errors import BadInput
from tasks.reference import ReferenceSet

_OPTION = "--tensorboard"

# Ends the names of our event files, so that those of an earlier export can be told from others.
_OURS = ".wayfinder"

_EMBEDDING = "reference_set"


def write_tensorboard(run: Run, place: Path) -> str:
    """Write event files, in place of those of an earlier export, and return what is to be said of them.

    Raises
    ------
    BadInput
        When the library is missing, the place cannot be written, or what the run left is damaged.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BadInput(
            f"{_OPTION} needs torch and tensorboard, which are not installed: "
            "`pip install -c constraints.txt -e '.[ml,exports]'` brings them"
        ) from error
    # Before anything is written.
    inferences, iterations, losses, received = run.inferences, run.iterations, run.losses, _received(run)
    reference = run.reference
    if reference is not None and not reference.sample.latent.size:
        reference = None
    with folder(place, _OPTION), tempfile.TemporaryDirectory(prefix=".wayfinder-", dir=place) as made:
        with SummaryWriter(made, filename_suffix=_OURS) as writer:
            for row in inferences.reset_index().itertuples():
                for name in SERIES:
                    _add(writer, f"campaign/{name}", getattr(row, name), row.reference_number, row.received)
            for row in iterations.itertuples():
                name = f"ensemble-{row.replica}/flux_per_ps"
                _add(writer, name, row.flux_per_ps, row.iteration, row.ended)
            if reference is not None:
                _embed(writer, run, reference)
        for version, part in losses.groupby("model_version"):
            with SummaryWriter(f"{made}/model-{version:06d}", filename_suffix=_OURS) as writer:
                for name in part.columns.drop(["model_version", "epoch", "n_frames"]):
                    for epoch, value in zip(part["epoch"], part[name], strict=True):
                        _add(writer, f"loss/{name}", value, epoch, received[version])
        _replace(Path(made), place)
    embedded = "no embeddings" if reference is None else f"embeddings of {len(reference.sample)} frames"
    n_models = losses["model_version"].nunique()
    counted = f"{len(inferences)} inferences and {len(iterations)} iterations"
    return (
        f"{place} has figures of {counted}, losses of {n_models} model versions and {embedded}: "
        f"`tensorboard --logdir {place}`"
    )


def _received(run: Run) -> dict[int, float]:
    """Return when the Thinker had each model version (UNIX s); nobody noted when epochs ended."""
    lines = run.counted("train")
    return {line["task_info"]["model_version"]: line["timestamp"]["result_received"] for line in lines}


def _add(writer: Any, name: str, value: float, step: int, wall_time: float) -> None:
    if value == value:  # no figure where it was not known
        writer.add_scalar(name, value, step, walltime=wall_time)


def _embed(writer: Any, run: Run, reference: ReferenceSet) -> None:
    """Add embeddings for TensorBoard's projector, each with what is known of its frame."""
    novelty = run.looks.novelty.dropna().to_dict()
    writer.add_embedding(
        reference.sample.latent,
        metadata=[
            [segment, frame, novelty.get(segment, ""), reference.model_version]
            for segment, frame in reference.sample.ids.tolist()
        ],
        metadata_header=["segment_id", "frame", "segment_novelty", "model_version"],
        tag=_EMBEDDING,
        global_step=reference.number,
    )


def _replace(made: Path, place: Path) -> None:
    """Move what was made to its place, and remove what an earlier export left there."""
    for old in (*place.glob(f"events.*{_OURS}"), *place.glob(f"model-*/events.*{_OURS}")):
        old.unlink()
    for old in place.glob(f"[0-9]*/{_EMBEDDING}"):
        shutil.rmtree(old)
        with suppress(OSError):  # others' embeddings are there
            old.parent.rmdir()
        (place / "projector_config.pbtxt").unlink(missing_ok=True)
    for path in sorted(made.rglob("*")):
        target = place / path.relative_to(made)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            shutil.move(path, target)
