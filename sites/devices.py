"""Devices: which a machine has, which worker gets which, and how several workers share one."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tasks.probe import SHARING_VARIABLE

_LISTED = re.compile(r"GPU (\d+): .*?(?:\(UUID: (GPU-[^)]+)\))?$")


def gpus() -> list[str]:
    """Return the NVIDIA devices that are ours to use, by UUID (no CUDA context is made in this process).

    A number would not do: where there is `nvidia-smi`, Parsl's workers take it for that of a share of a device and
    divide it; and an MPS daemon counts from the first device that it may serve, so NVIDIA's manual advises UUIDs.
    Numbers in ``CUDA_VISIBLE_DEVICES`` are taken for those of `nvidia-smi`.
    """
    allotted = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = _listed()
    if allotted is None:
        return list(listed.values())
    named = [device.strip() for device in allotted.split(",")]
    return [listed.get(device, device) for device in named if device not in ("", "-1")]


def _listed() -> dict[str, str]:
    """Return the UUID of each device that `nvidia-smi` lists, by its number."""
    if shutil.which("nvidia-smi") is None:
        return {}
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return {}
    found = filter(None, map(_LISTED.match, said.splitlines()))
    return {number: uuid or number for number, uuid in (match.groups() for match in found)}


def deal(devices: Sequence[str], n_workers: int) -> list[str]:
    """Return a device for each worker, in turn; none where there are no devices."""
    return [devices[worker % len(devices)] for worker in range(n_workers)] if devices else []


def sharing(per_device: int, parent: Path | None = None, devices: Sequence[str] = ()) -> list[str]:
    """Return the shell lines of a node on which several workers share each device; none where they do not.

    Where NVIDIA's Multi-Process Service (MPS) is installed, the block starts a control daemon of its own, in a
    directory that no other user reads, and ends it when it ends; elsewhere workers take turns on the device. Each may
    use 200 / `per_device` percent of a device's multiprocessors, as NVIDIA advises for OpenMM ("Maximizing OpenMM
    Molecular Dynamics Throughput with NVIDIA Multi-Process Service", developer.nvidia.com/blog, 2025).

    The lines belong where a node's block begins. With several nodes a block that is the first of them, and on the
    others workers take turns.

    Parameters
    ----------
    per_device
        Workers that share a device.
    parent
        Directory in which the daemon's is made; None for the node's own temporary files.
    devices
        UUIDs of those to serve; none for those that the block has.
    """
    if per_device < 2:
        return []
    folder = '"${TMPDIR:-/tmp}"' if parent is None else shlex.quote(str(parent))
    served = f"CUDA_VISIBLE_DEVICES={','.join(devices)} " if devices else ""
    return [
        f"export {SHARING_VARIABLE}={per_device}",
        "if command -v nvidia-cuda-mps-control > /dev/null; then",
        f"  export CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d {folder}/mps-XXXXXX)",
        "  export CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY",
        f"  if {served}nvidia-cuda-mps-control -d; then",
        f"    export CUDA_MPS_ACTIVE_THREAD_PERCENTAGE={min(100, 200 // per_device)}",
        """    trap 'echo quit | nvidia-cuda-mps-control; rm -rf "$CUDA_MPS_PIPE_DIRECTORY"' EXIT""",
        "    trap 'exit 143' TERM",
        "  else",
        '    rm -rf "$CUDA_MPS_PIPE_DIRECTORY"',
        "    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY",
        "  fi",
        "fi",
    ]
