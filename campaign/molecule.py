"""The molecule that the settings name, and pretrained weights for it, as `tasks` takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from campaign.settings import Settings
from policies import target_file
from tasks import models, systems
from tasks.basis import read_basis_states
from tasks.coordinate import rmsd_file
from tasks.errors import BadInput


def system_spec(settings: Settings) -> systems.SystemSpec:
    """Return what is to be prepared."""
    if settings.system is not None:
        molecule = systems.named_system(settings.system)
    else:
        files = settings.amber or settings.gromacs or settings.openmm_system or (settings.pdb,)
        molecule = systems.SystemSpec(
            name=settings.sequence or (files[0].stem if files[0] else ""),
            sequence=settings.sequence,
            cap=settings.cap,
            pdb=None if settings.pdb is None else str(settings.pdb),
            amber=_as_text(settings.amber),
            gromacs=_as_text(settings.gromacs),
            openmm_system=_as_text(settings.openmm_system),
        )
    target = target_file(settings.policy)
    of_pcoord = None if settings.pcoord is None else rmsd_file(settings.pcoord)
    starts = settings.start or ()
    if settings.basis_states is not None:
        starts = tuple(read_basis_states(settings.basis_states)[0])
    return replace(
        molecule,
        solvent=settings.solvent,
        padding_nm=_or_default(settings.padding_nm, molecule.padding_nm),
        ionic_strength_M=_or_default(settings.ionic_strength, molecule.ionic_strength_M),
        pressure_bar=_or_default(settings.pressure_bar, molecule.pressure_bar),
        force_field=settings.forcefield or (),
        features=settings.features,
        store=settings.store,
        starts=tuple(map(str, starts)),
        target=None if (target or of_pcoord) is None else str(target or of_pcoord),
        target_flag="--pcoord" if target is None else "--policy",
        minimise=settings.minimise,
        temperature_K=settings.temperature,
        platform=settings.platform,
        seed=settings.seed,
    )


def read_weights(settings: Settings, n_features: int) -> bytes | None:
    """Return the pretrained weights; None where the settings name none.

    Raises
    ------
    BadInput
        When they cannot be read, or were made for other points or another latent.
    """
    if settings.aae_weights is None:
        return None
    try:
        weights = settings.aae_weights.read_bytes()
    except OSError as error:
        raise BadInput(f"--aae-weights {settings.aae_weights} cannot be read: {error.strerror}") from error
    models.check_model(weights, n_features, settings.latent)
    return weights


def _or_default(given: float | None, default: float) -> float:
    return default if given is None else given


def _as_text(files: tuple[Path, Path] | None) -> systems.Files | None:
    return None if files is None else (str(files[0]), str(files[1]))
