"""A west.cfg with which WESTPA's own tools run beside a west.h5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from campaign.rundir import write_whole
from campaign.west.file import WEST, replicas_in, west_name
from tasks.errors import BadInput

CONFIG = "west.cfg"

_CHECKOUT = Path(__file__).parents[2]

_HEAD = """\
# For WESTPA's tools in this directory: w_pdist --serial; w_ipa -ao --serial, or w_assign --serial --subsample
# --config-from-file --scheme-name {scheme} and w_direct --serial all -a ANALYSIS/{scheme}/assign.h5;
# w_trace ITERATION:WALKER; w_succ; plothist average pdist.h5. Wayfinder wrote it, and does not read it.
"""

_SUBSAMPLE = """\
# subsample: only ends of iterations count as visits, as in the campaign, which recycles there.
"""

_NO_TARGET = """\
# The campaign has no target: "far" is the bin of the walker that ended farthest from the basis states. Give your own.
"""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a west.h5 says about itself.

    Attributes
    ----------
    basis, targets, ends : ndarray of shape (n, n_dimensions), float32
        Progress coordinates of the states, and of the walkers at the end of the last iteration.
    target_counts : ndarray of shape (n_bins,), int
        Of the last iteration.
    """

    pcoord_length: int
    basis: np.ndarray
    targets: np.ndarray
    ends: np.ndarray
    target_counts: np.ndarray

    @property
    def scheme(self) -> str:
        return "STEADY" if len(self.targets) else "EQUILIBRIUM"


def export_config(run: Path, out: Path | None = None, replica: int = 0) -> Path:
    """Write a west.cfg with which WESTPA's tools read an ensemble of a run, and return it.

    WESTPA's tools take the west.h5 where they are run, whatever west.cfg says: they ask for it before they read that.
    So every ensemble but the first has a directory of its own in the run's (``west-1``, ...), with a link west.h5.

    Parameters
    ----------
    out
        Directory to write to in place of that one; a link to the ensemble's file is left beside.
    replica
        The ensemble's number.

    Raises
    ------
    BadInput
        When the run has no such ensemble, or one without a complete iteration, or the directory has another west.h5
        or cannot be written to.
    """
    west = _west_of(run, replica)
    if out is not None and not out.is_dir():
        raise BadInput(f"--out {out} is no directory: make it first")
    # Before anything is made.
    text = _config(west)
    folder = out or (run if replica == 0 else run / west.stem)
    try:
        folder.mkdir(exist_ok=True)
        _link(folder, west)
        write_whole(folder / CONFIG, text.encode())
    except OSError as error:
        raise BadInput(f"{CONFIG} cannot be written to {folder} ({error.strerror}): give another --out") from error
    return folder / CONFIG


def _west_of(run: Path, replica: int) -> Path:
    known = replicas_in(run)
    if not known:
        raise BadInput(f"{run} has no {WEST}: only a campaign with --policy weighted-ensemble has one")
    if replica not in known:
        numbers = " or ".join(map(str, known))
        raise BadInput(f"--replica {replica} is no ensemble with an iteration that ended in {run}: give {numbers}")
    return run / west_name(replica)


def _link(folder: Path, west: Path) -> None:
    """Let a directory have an ensemble's file as its west.h5."""
    link, is_of_run = folder / WEST, folder.samefile(west.parent)
    # In the run's directory that name is the first ensemble's, even before it has a file.
    if not is_of_run and not link.exists():
        link.unlink(missing_ok=True)  # a link to a run that was moved
        beside = folder.resolve().parent == west.parent.resolve()
        link.symlink_to(Path("..", west.name) if beside else west.resolve())
    if not link.exists() or not link.samefile(west):
        raise BadInput(f"{folder} has another {WEST}: give --out a directory without")


def _config(west: Path) -> str:
    """Return the text of a west.cfg for a file.

    Raises
    ------
    BadInput
        When the file has no complete iteration, or its bins cannot tell the source from the target.
    """
    told = _read(west)
    from campaign.west.bins import as_yaml, stored_bins

    mapper = stored_bins(str(west))
    bins, states = as_yaml(mapper, WEST), _states(mapper, told)
    content = {
        "west": {
            # Bins other than grids are read by Wayfinder.
            **({} if "west_data_file" not in bins else {"drivers": {"module_path": str(_CHECKOUT)}}),
            "system": {
                "system_options": {
                    "pcoord_ndim": told.basis.shape[1],
                    "pcoord_len": told.pcoord_length,
                    "pcoord_dtype": "PCOORD_DTYPE",
                    "bins": bins,
                    "bin_target_counts": told.target_counts.tolist(),
                }
            },
            "data": {"west_data_file": WEST},
            "analysis": {
                "directory": "ANALYSIS",
                # As a flag: w_assign 2022.16 reads a key of that name and forgets it.
                "w_assign": {"extra": ["subsample"]},
                "kinetics": {"evolution": "cumulative", "step_iter": 1},
                "analysis_schemes": {told.scheme: {"enabled": True, "states": states, "bins": [bins]}},
            },
        }
    }
    head = _HEAD.format(scheme=told.scheme) + _SUBSAMPLE + ("" if len(told.targets) else _NO_TARGET)
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)
    # WESTPA wants the type itself.
    return head + text.replace("PCOORD_DTYPE", "!!python/name:numpy.float32")


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, which people would take for typing errors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _read(west: Path) -> _Told:
    try:
        with h5py.File(west, "r") as file:
            number = int(file.attrs["west_current_iteration"])
            if number < 2:
                raise BadInput(f"{west} has no complete iteration yet: run the campaign on, then export")
            ended, current = (file[f"iterations/iter_{each:08d}"] for each in (number - 1, number))
            return _Told(
                ended["pcoord"].shape[1],
                ended["ibstates/bstate_pcoord"][...],
                ended["tstates/pcoord"][...] if "tstates" in ended else np.empty((0, ended["pcoord"].shape[2])),
                ended["pcoord"][:, -1],
                current["bin_target_counts"][...],
            )
    except (OSError, KeyError) as error:
        raise BadInput(f"{west} cannot be read ({error}): resume the campaign, which makes it again") from error


def _states(mapper: Any, told: _Told) -> list[dict[str, Any]]:
    """Return two states by points in their bins: where walkers start, and where they are recycled."""
    if len(told.targets):
        name, points = "target", told.targets
    else:
        distances = np.linalg.norm(told.ends[:, None] - told.basis[None], axis=2).min(axis=1)
        name, points = "far", told.ends[[np.argmax(distances)]]
    states = {"source": told.basis, name: points}
    bins = [set(mapper.assign(np.asarray(each, np.float32)).tolist()) for each in states.values()]
    if shared := bins[0] & bins[1]:
        raise BadInput(
            f"bin {min(shared)} holds a basis state and the {name}, so WESTPA's tools cannot tell them apart: "
            "give the campaign finer --bins"
        )
    return [{"label": label, "coords": _per_bin(mapper, points)} for label, points in states.items()]


def _per_bin(mapper: Any, points: np.ndarray) -> list[list[float]]:
    """Return a point for each bin that there are points in."""
    _, rows = np.unique(mapper.assign(np.asarray(points, np.float32)), return_index=True)
    return [[float(x) for x in points[row]] for row in sorted(rows)]
