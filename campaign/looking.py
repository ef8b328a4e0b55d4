"""What verbs that look at campaigns are asked for: `report`, `watch` and `export`, their flags and what these say."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.flags import flag, shown
from tasks.errors import BadInput


@dataclass(frozen=True, slots=True)
class Watch:
    """How a campaign is to be followed.

    Attributes
    ----------
    terminal
        In the terminal; else on a page.
    port
        Of the page, on loopback; 0 lets the kernel pick one.
    """

    terminal: bool = False
    port: int = 0


@dataclass(frozen=True, slots=True)
class Export:
    """What is to be written of a campaign, and where; None is not asked for.

    Attributes
    ----------
    out, replica
        Where a west.cfg is written, and of which ensemble.
    select, stride
        Of a joined trajectory: which atoms (a selection of MDAnalysis), and each so many frames.
    """

    west_cfg: bool = False
    out: Path | None = None
    replica: int = 0
    perfetto: Path | None = None
    parquet: Path | None = None
    trajectory: Path | None = None
    select: str = "all"
    stride: int = 1
    tensorboard: Path | None = None
    mlflow: str | None = None


# What each export is, by the setting whose flag asks for it.
_EXPORTS = {
    "west_cfg": "a west.cfg, for WESTPA's tools to read the run's west.h5 (which holds pickles: of a run you trust)",
    "perfetto": "a trace of workers, tasks and what led to what, for ui.perfetto.dev or chrome://tracing (JSON)",
    "parquet": "tables of segments, tasks, inferences, losses, attempts and walkers, for pandas and others",
    "trajectory": "all trajectories joined into one (.dcd, .xtc, ...), with FILE.csv that says which frame is whose, "
    "and the atoms in a .pdb",
    "tensorboard": "losses, figures and embeddings (with the projector), for `tensorboard --logdir DIR`",
    "mlflow": "settings, figures, losses and models as a run of MLflow's, at a server or in a folder",
}
_METAVARS = {"perfetto": "FILE", "parquet": "DIR", "trajectory": "FILE", "tensorboard": "DIR", "mlflow": "URI"}


def add_watch_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of `watch`."""
    group.add_argument("--terminal", action="store_true", help="the essentials in this terminal instead of on a page")
    group.add_argument("--port", metavar="N", help="port of the page on loopback (default: a free one)")


def add_report_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of `report`."""
    group.add_argument(
        "--out", metavar="FILE", help="write there (default: report.html in the run, comparison.html beside several)"
    )


def add_export_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of `export`."""
    for name, purpose in _EXPORTS.items():
        if name in _METAVARS:
            group.add_argument(flag(name), metavar=_METAVARS[name], help=purpose)
        else:
            group.add_argument(flag(name), action="store_true", help=purpose)
    group.add_argument(
        "--select", metavar="SELECTION", help="atoms of --trajectory, as MDAnalysis selects (default: all)"
    )
    group.add_argument("--stride", metavar="N", help="every N-th frame of --trajectory (default: 1)")
    group.add_argument(
        "--replica",
        metavar="N",
        help="--west-cfg for the N-th further ensemble of --replicas (default: 0, the first)",
    )
    group.add_argument(
        "--out",
        metavar="DIR",
        help="--west-cfg goes there (default: into the run directory; of a further ensemble into its west-N/)",
    )


# What of these flags is, for those that take something else than a path.
TAKEN = {
    "--replica": "the number of an ensemble",
    "--port": "a port",
    "--select": "a selection of MDAnalysis",
    "--stride": "how many frames to go on by",
    "--mlflow": "the URI of an MLflow server, or a folder",
}


def watch_of(given: Mapping[str, Any]) -> Watch:
    """Return how a campaign is to be followed.

    Raises
    ------
    BadInput
        Where the flags cannot be used.
    """
    port = _whole(str(given.get("port", 0)), "--port", "port: give a number up to 65535, or none to have one picked")
    if port > 65535:
        raise BadInput(f"--port {port} is no port: give a number up to 65535, or none to have one picked")
    if given.get("terminal") and "port" in given:
        raise BadInput("--port is the page's and --terminal shows none: give one of them")
    return Watch(bool(given.get("terminal")), port)


def export_of(given: Mapping[str, Any]) -> Export:
    """Return what is to be written.

    Raises
    ------
    BadInput
        Where nothing is, or the flags cannot be used.
    """
    for name in _METAVARS:
        if given.get(name) == "":
            raise BadInput(f"{flag(name)} '' names nothing: give {TAKEN.get(flag(name), 'a path')}")
    asked = [name for name in _EXPORTS if given.get(name)]
    if not asked:
        raise BadInput(f"export is not told what to write: give {', '.join(map(flag, _EXPORTS))}")
    for name, of in {
        "out": "west_cfg",
        "replica": "west_cfg",
        "select": "trajectory",
        "stride": "trajectory",
    }.items():
        if name in given and of not in asked:
            raise BadInput(f"{flag(name)} is about {flag(of)}, which is not asked for: add it, or drop {flag(name)}")
    stride = _whole(str(given.get("stride", 1)), "--stride", "stride: give 1 for every frame, 10 for every tenth")
    if stride == 0:
        raise BadInput("--stride 0 goes nowhere: give 1 for every frame, 10 for every tenth")
    return Export(
        west_cfg="west_cfg" in asked,
        out=_path(given, "out"),
        replica=_whole(str(given.get("replica", 0)), "--replica", "ensemble: give its number"),
        perfetto=_path(given, "perfetto"),
        parquet=_path(given, "parquet"),
        trajectory=_path(given, "trajectory"),
        select=str(given.get("select", "all")),
        stride=stride,
        tensorboard=_path(given, "tensorboard"),
        mlflow=given.get("mlflow"),
    )


def _path(given: Mapping[str, Any], name: str) -> Path | None:
    told = given.get(name)
    if told == "":
        raise BadInput(f"{flag(name)} '' names nothing: give a path")
    return None if told is None else Path(told).absolute()


def _whole(text: str, option: str, wanted: str) -> int:
    if not text.isdecimal():
        raise BadInput(f"{option} {shown(text)} is no {wanted}, a whole number from 0")
    return int(text)
