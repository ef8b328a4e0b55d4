"""What notebooks share: which runs they are about, how their figures look, and where these are kept."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from campaign.trace import Run
from campaign.trace_files import FILES
from tasks.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_VARIABLE = "WAYFINDER_NOTEBOOK_RUN"
FIGURES_VARIABLE = "WAYFINDER_NOTEBOOK_FIGURES"

_ROOT = Path(__file__).parents[1]

# Told apart with any colour vision (Okabe and Ito, https://jfly.uni-koeln.de/color/).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#999999")

_TOPICS = tuple(FILES)


def runs_of(named: str = "") -> list[Run]:
    """Return the runs that a notebook is about.

    Parameters
    ----------
    named
        Run directories, separated as in PATH; where it is empty those in ``WAYFINDER_NOTEBOOK_RUN``, and else the
        newest in ``runs/``.

    Raises
    ------
    BadInput
        When there is none.
    """
    told = named or os.environ.get(RUN_VARIABLE, "")
    if told:
        return [Run(_found(path)) for path in told.split(os.pathsep) if path]
    ledgers = sorted(_ROOT.glob("runs/*/ledger.sqlite"), key=lambda path: path.stat().st_mtime)
    if not ledgers:
        raise BadInput(f"{_ROOT / 'runs'} holds no run: start one, or name its directory in {RUN_VARIABLE}")
    return [Run(ledgers[-1].parent)]


def _found(path: str) -> Path:
    """Return a path from here, or from the checkout where it is not here."""
    return Path(path) if Path(path).exists() else _ROOT / path


def set_style() -> None:
    """Let figures be vector graphics, in colours and sizes that print, and notebooks silent on progress bars."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
            "figure.figsize": (7.0, 3.2),
            "font.size": 9.0,
            "image.cmap": "viridis",
            "legend.frameon": False,
            "lines.linewidth": 1.4,
            # Text stays text: it can be searched, and edited.
            "svg.fonttype": "none",
            "pdf.fonttype": 42,
            # Equal data make equal files.
            "svg.hashsalt": "wayfinder",
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")
    except ImportError:
        return  # No notebook: there is nothing to show figures in.
    # MDAnalysis imports bars that would like to be widgets; none is shown here.
    warnings.filterwarnings("ignore", message="IProgress not found")


def colour_of(topic: str) -> str:
    """Return the colour of a topic, the same in every figure."""
    return COLOURS[_TOPICS.index(topic)]


def save(figure: Figure, name: str) -> None:
    """Keep a figure as PDF and SVG in the folder that ``WAYFINDER_NOTEBOOK_FIGURES`` names; nowhere without it."""
    folder = os.environ.get(FIGURES_VARIABLE)
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for suffix in ("pdf", "svg"):
        # Without the date equal data make equal files.
        dated = {"CreationDate": None} if suffix == "pdf" else {"Date": None}
        figure.savefig(Path(folder) / f"{name}.{suffix}", metadata=dated)
