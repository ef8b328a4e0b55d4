"""Programs that stand for NVIDIA's where there is no GPU."""

from collections.abc import Sequence
from pathlib import Path

# As the real one: the daemon leaves the caller's process group, and answers through its pipe directory.
_MPS = """#!/bin/sh
echo "${1:-$(cat)} serves $CUDA_VISIBLE_DEVICES in $CUDA_MPS_PIPE_DIRECTORY" >> RECORD
pid="$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid"
if [ "$1" = -d ]; then
    setsid sleep 600 > /dev/null 2>&1 &
    echo $! > "$pid"
else
    kill "$(cat "$pid")"
fi
"""


def install(folder: Path, uuids: Sequence[str], *, mps: bool = True) -> tuple[Path, Path]:
    """Put `nvidia-smi`, and `nvidia-cuda-mps-control` if wanted, into a folder for PATH.

    Returns that folder, and the file in which each call of the second leaves a line.
    """
    programs, record = folder / "programs", folder / "calls-of-mps"
    programs.mkdir()
    listing = "\n".join(f"GPU {number}: Fake (UUID: {uuid})" for number, uuid in enumerate(uuids))
    texts = {"nvidia-smi": f"#!/bin/sh\ncat << END\n{listing}\nEND\n"}
    if mps:
        texts["nvidia-cuda-mps-control"] = _MPS.replace("RECORD", str(record))
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return programs, record
