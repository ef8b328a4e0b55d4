"""OpenMM platforms: which are here, which to take, and how we run them."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from typing import Any

import openmm

from tasks.errors import BadInput
from tasks.messages import Precision

# Below about this many atoms OpenMM's Reference platform outruns the CPU platform.
REFERENCE_MAX_ATOMS = 60
GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")
_PLATFORMS = (*GPU_PLATFORMS, "CPU", "Reference")

_TRIAL = """
import sys, openmm
system = openmm.System()
system.addParticle(1.0)
openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(sys.argv[1]))
"""


def new_context(system: Any, integrator: Any, platform: str, precision: Precision = "mixed") -> Any:
    """Return a Context on a platform, with the properties that we run it with."""
    return openmm.Context(
        system, integrator, openmm.Platform.getPlatformByName(platform), platform_properties(platform, precision)
    )


def resolve_platform(requested: str, n_atoms: int) -> str:
    """Return the name of an OpenMM platform that works here.

    Parameters
    ----------
    requested
        Such a name, or ``auto``: a GPU if there is one, else what is fastest on one CPU thread.

    Raises
    ------
    BadInput
        When it is not there; it lists those that are.
    """
    if requested == "auto":
        return next(filter(works, GPU_PLATFORMS), host_platform(n_atoms))
    if not works(requested):
        there = [name for name in reversed(_PLATFORMS) if works(name)]
        raise BadInput(f"OpenMM platform {requested!r} is not usable here: choose auto or one of {', '.join(there)}")
    return requested


def platform_properties(platform: str, precision: Precision = "mixed") -> dict[str, str]:
    """Return how we run a platform: one CPU thread that sums in the same order each time, a GPU in this precision."""
    if platform == "CPU":
        return {"Threads": "1", "DeterministicForces": "true"}
    return {"Precision": precision} if platform in GPU_PLATFORMS else {}


def host_platform(n_atoms: int) -> str:
    """Return what is fastest on one CPU thread."""
    return "Reference" if n_atoms <= REFERENCE_MAX_ATOMS else "CPU"


@lru_cache(maxsize=16)
def works(platform: str) -> bool:
    """Return whether a platform can make a Context: OpenCL, for one, may be listed without any device.

    A GPU is tried in a process of its own: the campaign's main process forks later, and must own no device by then.
    """
    listed = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if platform not in listed:
        return False
    if platform not in GPU_PLATFORMS:
        return True
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRIAL, platform], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0
