"""What a report says in words: the headline, failures, and how the simulations were made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from campaign import activity
from campaign.trace import Run
from tasks.errors import BadInput

# Failures are told one by one up to so many, the newest first.
_MOST_FAILURES = 50

_HYDROGEN_MASS = "hydrogens of 3 amu"


@dataclass(frozen=True, slots=True)
class Failures:
    """Attempts that failed.

    Attributes
    ----------
    counts
        How many of each kind of task, site and outcome: ``kind``, ``site``, ``outcome``, ``attempts``.
    newest
        Of these the last ones: ``kind``, ``task_id``, ``attempt``, ``site``, ``outcome``, ``first`` line, ``error``.
    """

    counts: list[dict[str, Any]]
    newest: list[dict[str, Any]]
    n_attempts: int


def headline(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what a campaign came to so far, as names and figures."""
    now, told = activity.headline(run), run.summary
    yield "system", str(now.system)
    yield "policy", str(now.policy)
    yield "seed", str(now.seed)
    yield "status", now.status if now.reason is None else f"{now.status}: {now.reason}"
    yield "segments", f"{now.segments:,}"
    yield "simulated", f"{now.simulated_ns:.4g} ns"
    yield "frames", f"{now.frames:,}"
    if told.get("wall_s"):
        yield "wall time", f"{told['wall_s']:.0f} s"
        yield "simulated a day", f"{told['simulated_ns'] / told['wall_s'] * 86_400:.3g} ns"
    yield "failed attempts", f"{now.failures}, {now.quarantined} starts in quarantine"
    yield "model versions", f"{now.model_versions} in {now.inferences} inferences"
    yield "steered", f"{now.steered_fraction:.0%} of segments"
    if now.coverage is not None:
        metric = (told.get("coverage") or {}).get("cells_deg")
        cells = "cells" if not told else f"phi/psi cells of {metric} degrees" if metric else "cells of two components"
        yield "coverage", f"{now.coverage:.0f} {cells}"
    ensemble = told.get("weighted_ensemble")
    if ensemble and ensemble.get("rate_per_s") is not None:
        yield "rate", f"{ensemble['rate_per_s']:.3g} /s to {ensemble['target']}"


def failures(run: Run) -> Failures:
    """Return the attempts that failed."""
    failed = activity.failures(run)
    counts = failed.groupby(["kind", "site", "outcome"]).size().rename("attempts").reset_index()
    newest = failed.sort_values("ended", ascending=False).head(_MOST_FAILURES)
    rows: list[dict[str, Any]] = newest[["kind", "task_id", "attempt", "site", "outcome", "error"]].to_dict("records")
    for row in rows:
        row["error"] = "" if pd.isna(row["error"]) else str(row["error"])
        row["first"] = row["error"].partition("\n")[0]
    return Failures(counts.to_dict("records"), rows, len(run.attempts))


@dataclass(frozen=True, slots=True)
class Method:
    """What was used, and where it is described."""

    what: str
    citation: str
    doi: str


_CITED = {
    "openmm": Method("OpenMM", "Eastman et al., J. Phys. Chem. B 2024", "10.1021/acs.jpcb.3c06662"),
    "langevin": Method("Langevin integrator", "Zhang et al., J. Phys. Chem. A 2019", "10.1021/acs.jpca.9b02771"),
    "ff14SB": Method("ff14SB", "Maier et al., J. Chem. Theory Comput. 2015", "10.1021/acs.jctc.5b00255"),
    "obc2": Method("OBC2 implicit solvent", "Onufriev et al., Proteins 2004", "10.1002/prot.20033"),
    "tip3pfb": Method("TIP3P-FB", "Wang et al., J. Phys. Chem. Lett. 2014", "10.1021/jz500737m"),
    "pme": Method("particle-mesh Ewald", "Essmann et al., J. Chem. Phys. 1995", "10.1063/1.470117"),
    "hmr": Method("heavy hydrogens", "Hopkins et al., J. Chem. Theory Comput. 2015", "10.1021/ct5010406"),
    "aae": Method("adversarial autoencoder", "Makhzani et al., 2015", "10.48550/arXiv.1511.05644"),
    "lof": Method("local outlier factor", "Breunig et al., SIGMOD 2000", "10.1145/335191.335388"),
    "we": Method("weighted ensemble", "Huber and Kim, Biophys. J. 1996", "10.1016/S0006-3495(96)79552-8"),
    "westpa": Method("WESTPA 2", "Russo et al., J. Chem. Theory Comput. 2022", "10.1021/acs.jctc.1c01154"),
    "mab": Method("adaptive bins", "Torrillo et al., J. Phys. Chem. A 2021", "10.1021/acs.jpca.0c10724"),
    "mda": Method("MDAnalysis", "Michaud-Agrawal et al., J. Comput. Chem. 2011", "10.1002/jcc.21787"),
    "colmena": Method("Colmena", "Ward et al., MLHPC 2021", "10.1109/MLHPC54614.2021.00007"),
    "parsl": Method("Parsl", "Babuji et al., HPDC 2019", "10.1145/3307681.3325400"),
    "proxystore": Method("ProxyStore", "Pauloski et al., SC 2023", "10.1145/3581784.3607047"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Methods:
    """A paragraph for a paper, and what it rests on."""

    paragraph: str
    cited: tuple[Method, ...]
    versions: str


def methods(run: Run) -> Methods:
    """Return how the simulations were made, from the settings and from the system that was run."""
    settings = run.settings
    try:
        system = run.system
    except BadInput:
        return Methods("The system's file cannot be read, so it is not told how it was made.", (), _versions(run))
    told = [_molecule(settings, system.n_atoms)]
    cited = ["openmm", "langevin"]
    for words, names in (_forces(settings, system.system_xml), _dynamics(settings), _steering(settings)):
        told.append(words)
        cited += names
    cited += ["mda", "colmena", "parsl", "proxystore"]
    return Methods(" ".join(told), tuple(_CITED[name] for name in dict.fromkeys(cited)), _versions(run))


def _molecule(settings: Mapping[str, Any], n_atoms: int) -> str:
    named = {name: settings.get(name) for name in ("system", "sequence", "pdb", "amber", "gromacs", "openmm_system")}
    source = next(
        (f"{name.replace('_', ' ')} {value}" for name, value in named.items() if value), "an unknown system"
    )
    return f"Molecular dynamics of {source} ({n_atoms} atoms) was run with OpenMM."


def _forces(settings: Mapping[str, Any], system_xml: str) -> tuple[str, list[str]]:
    """Return the force field, told by the settings and by the forces that the system really has."""
    cited: list[str] = []
    forces = set(re.findall(r'<Force [^>]*?type="(\w+)"', system_xml))
    if settings.get("system") == "double-well":
        return "One particle moved in a double well.", []
    if settings.get("forcefield"):
        told = [f"Force field: {', '.join(settings['forcefield'])}"]
    elif any(settings.get(name) for name in ("amber", "gromacs", "openmm_system")):
        told = ["Force field: as in the files given"]
    else:
        told = ["Force field: ff14SB"]
        cited.append("ff14SB")
    if "GBSAOBCForce" in forces:
        told.append("implicit solvent (OBC2 with surface term)")
        cited.append("obc2")
    elif "CustomGBForce" in forces:
        told.append("implicit solvent as the force field brings it")
    if settings.get("solvent") == "explicit":
        told.append("explicit water with particle-mesh Ewald")
        cited += ["pme"] if settings.get("forcefield") else ["tip3pfb", "pme"]
    if "MonteCarloBarostat" in forces:
        told.append("constant pressure by a Monte Carlo barostat")
    return "; ".join(told) + ".", cited


def _dynamics(settings: Mapping[str, Any]) -> tuple[str, list[str]]:
    words = (
        f"Segments of {settings.get('segment_ps')} ps were integrated in steps of {settings.get('timestep_fs')} fs "
        f"at {settings.get('temperature')} K by a Langevin middle integrator with a friction of "
        f"{settings.get('friction')} /ps; frames were kept every {settings.get('frame_ps')} ps."
    )
    if settings.get("policy") not in ("plain", "weighted-ensemble"):
        words += " Steered segments began with velocities drawn anew."
    heavy = settings.get("system") != "double-well" and not settings.get("openmm_system")
    if heavy:
        words += f" Bonds to hydrogen were constrained, {_HYDROGEN_MASS}."
    return words, ["hmr"] if heavy else []


def _steering(settings: Mapping[str, Any]) -> tuple[str, list[str]]:
    policy = str(settings.get("policy"))
    cited: list[str] = []
    if policy == "plain":
        return "Walkers carried on from their own ends; nothing was steered.", []
    words = f"Starts were chosen by the policy {policy}"
    if policy == "weighted-ensemble":
        bins = str(settings.get("bins") or "mab")
        words = f"Walkers carried weights and were resampled after each iteration in bins {bins}"
        cited += ["we", "westpa", *(["mab"] if bins.startswith("mab") else [])]
    if settings.get("embedding") == "aae" and (settings.get("pcoord") or "aae").startswith("aae"):
        words += f", with an adversarial autoencoder of {settings.get('latent')} dimensions"
        cited.append("aae")
    elif settings.get("embedding") == "pca":
        words += ", with principal components"
    if settings.get("novelty") == "lof" and policy in ("novelty", "lof"):
        cited.append("lof")
    unweighted = "" if policy == "weighted-ensemble" else " What was sampled is unweighted: it gives no populations."
    return f"{words} (seed {settings.get('seed')}).{unweighted}", cited


def _versions(run: Run) -> str:
    versions = run.host.get("versions") or {}
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version != "missing")
    return f"Python {run.host.get('python', '?')}; {told}."
