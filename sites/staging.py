"""An environment on each node's own disk: many workers that import from a shared file system stall it, and them."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import BadInput

# Who waits for another to unpack waits so long; a few GB take a minute or two.
_PATIENCE_S = 600


def unpacking(archive: Path, scratch: Path) -> Iterator[str]:
    """Yield shell lines that unpack an environment once on a node, and begin to use it.

    Where a block has several nodes, they must run on each of these.

    Parameters
    ----------
    archive
        A tar, compressed or not, whose root has ``bin`` (as conda-pack makes it).

    Raises
    ------
    BadInput
        When it cannot be read.
    """
    try:
        about = archive.stat()
    except OSError as error:
        raise BadInput(
            f"--stage-env {archive} cannot be read: {error.strerror}; name a packed environment"
        ) from error
    # Another archive of that name is unpacked anew.
    digest = hashlib.sha256(f"{archive} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()
    folder = scratch / f"wayfinder-env-{digest[:12]}"
    place, source, lock = (shlex.quote(str(path)) for path in (folder, archive, f"{folder}.lock"))
    yield f"mkdir -p {shlex.quote(str(scratch))}"
    # Closed before workers start, or they would hold it. Whole or not at all: the mark comes last.
    yield f"exec 9>{lock}"
    yield f"flock -w {_PATIENCE_S} 9 || {{ echo 'the environment was not unpacked in {_PATIENCE_S} s' >&2; exit 1; }}"
    yield f"if [ ! -e {place}/.whole ]; then"
    yield f"  rm -rf {place} && mkdir {place} && tar -xf {source} -C {place} || exit 1"
    # Of conda-pack: mends the paths that are written in the environment's files.
    yield f"  if [ -x {place}/bin/conda-unpack ]; then {place}/bin/conda-unpack || exit 1; fi"
    yield f"  touch {place}/.whole"
    yield "fi"
    yield "exec 9>&-"
    yield f"if [ -f {place}/bin/activate ]; then . {place}/bin/activate; fi"
    yield f"export PATH={place}/bin:$PATH"
