"""Settings of a weighted ensemble."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from campaign.setting import setting

ENSEMBLE = "weighted-ensemble"

_GROUP = "weighted ensemble"

_REPLICA_BOUND = 100


class EnsembleSettings(BaseModel):
    """What ``--policy weighted-ensemble`` is told besides what every campaign is."""

    pcoord: str | None = setting(
        _GROUP,
        None,
        "progress coordinate that is binned: dimensions of the embedding (aae:0,1), phi-psi, distance to a structure "
        "(rmsd:FILE), position of a particle, or module:function",
        metavar="COORDINATE",
        default_text="aae:0,1",
        min_length=1,
    )
    bins: str | None = setting(
        _GROUP,
        None,
        "bins: rectilinear:E0,E1,...[;E0,E1,...] (edges of each dimension), mab:N[,N] (between the first walker and "
        "the last), or voronoi:N",
        metavar="BINS",
        default_text="mab:5 in each dimension",
        min_length=1,
    )
    walkers_per_bin: int = setting(_GROUP, 4, "walkers in every bin that is reached", "walkers", ge=1, le=10_000)
    basis_states: Path | None = setting(
        _GROUP,
        None,
        "folder of structures (PDB, or State of OpenMM) where walkers begin, with the probabilities of bstates.txt",
        metavar="DIR",
        default_text="the structures of --start, equally probable",
    )
    target: str | None = setting(
        _GROUP,
        None,
        "where walkers are recycled to the basis states, as in 'phi > 40 and -60 < psi < 60'; gives a rate",
        metavar="EXPR",
        default_text="none: equilibrium",
        min_length=1,
    )
    replicas: int = setting(
        _GROUP, 1, "ensembles side by side, which fill each other's waiting", "ensembles", ge=1, le=_REPLICA_BOUND
    )
    max_iterations: int | None = setting(
        "limits", None, "stop each weighted ensemble after this many iterations", "iterations", ge=1
    )
