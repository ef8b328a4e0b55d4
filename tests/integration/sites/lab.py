"""A lab of these tests for a command of yours: ``python -m tests.integration.sites.lab LAB -- COMMAND...``.

It is brought up, COMMAND runs with it, and it is taken down whatever happens; the exit code is COMMAND's. In
COMMAND's words stand for what it needs to know:

two-hosts   two network namespaces, the far one with a real sshd (needs root): ``{near}`` begins a command on the near
            host, ``{ssh_config}`` knows the far one as ``gpubox``, ``{ssh_init}`` brings Python and `tasks` there,
            ``{cable_down}`` and ``{cable_up}`` are commands that pull the cable between them, and plug it in
slurm       a real Slurm of one node, the site ``lab`` of the config.py in ``{checkout}``, where COMMAND runs
globus      real SDK and endpoint of Globus Compute against a stand-in service; ``{endpoint}`` is the endpoint's UUID

``{here}`` is the folder that the lab was called from.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.conftest import edited_checkout
from tests.integration.sites import globuslab, slurmlab
from tests.integration.sites.conftest import HOST_PACKAGES, HOST_PROGRAMS, far_host, listens, near_host
from tests.needs import lacking

USAGE = 2

# A benchmark that is told to end takes its campaign down first.
_ORDERLY_END_S = 60.0


class Unusable(Exception):
    """A lab that cannot be had here, or a command line that asks for none; with one sentence."""


@dataclass(frozen=True)
class Lab:
    """What a command finds in a lab.

    Attributes
    ----------
    words
        What is filled in, by name.
    environment
        Variables.
    folder
        Where the command runs.
    """

    words: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=Path.cwd)


@dataclass(frozen=True)
class Kind:
    """How a lab is made, with which programs, and the words that it fills in."""

    make: Callable[[], AbstractContextManager[Lab]]
    words: frozenset[str]
    programs: tuple[str, ...] = ()
    package: str = ""


@contextmanager
def two_hosts() -> Iterator[Lab]:
    """Bring up a near and a far host."""
    if os.getuid() != 0:
        raise Unusable("the lab two-hosts makes network namespaces: run it as root")
    with (
        tempfile.TemporaryDirectory(prefix="wf-") as folder,
        near_host() as near,
        far_host(Path(folder), near) as far,
    ):
        yield Lab(
            {
                "near": shlex.join(far.near),
                "ssh_config": str(far.host.config),
                "ssh_init": far.host.init,
                "cable_down": shlex.join(far.cable_command("down")),
                "cable_up": shlex.join(far.cable_command("up")),
            }
        )


@contextmanager
def slurm() -> Iterator[Lab]:
    """Bring up a Slurm, and a checkout that has it for a site."""
    with tempfile.TemporaryDirectory(prefix="wf-") as folder, slurmlab.own_slurm() as cluster:
        checkout = edited_checkout(Path(folder) / "checkout", slurmlab.OWN_SITE)
        yield Lab({"checkout": str(checkout)}, cluster.environment, checkout)


@contextmanager
def globus() -> Iterator[Lab]:
    """Bring up a service with an endpoint."""
    if listens(globuslab.SERVICE_PORT):
        raise Unusable(f"port {globuslab.SERVICE_PORT}, where the SDK looks for a local service, is taken: free it")
    with globuslab.own_globus_compute() as service:
        yield Lab({"endpoint": service.endpoint}, service.environment)


LABS = {
    "two-hosts": Kind(
        two_hosts,
        frozenset({"near", "ssh_config", "ssh_init", "cable_down", "cable_up"}),
        HOST_PROGRAMS,
        HOST_PACKAGES,
    ),
    "slurm": Kind(slurm, frozenset({"checkout"}), slurmlab.PROGRAMS, slurmlab.PACKAGES),
    "globus": Kind(globus, frozenset({"endpoint"}), globuslab.PROGRAMS, globuslab.PACKAGES),
}


def main(argv: Sequence[str], labs: Mapping[str, Kind] = LABS) -> int:
    """Run a command in a lab, and return its exit code; 2 with a sentence where that cannot be."""
    try:
        kind, command = parse(argv, labs)
        if (reason := lacking(kind.programs, kind.package)) is not None:
            raise Unusable(f"this lab {reason}")
        with kind.make() as lab:
            return _run(fill(command, {**lab.words, "here": str(Path.cwd())}), lab)
    except Unusable as error:
        print(f"lab: {error}", file=sys.stderr)
        return USAGE


def parse(argv: Sequence[str], labs: Mapping[str, Kind] = LABS) -> tuple[Kind, list[str]]:
    """Return the lab that is asked for, and the command.

    Raises
    ------
    Unusable
        When either is missing, and for a word that only another lab fills in.
    """
    if len(argv) < 3 or argv[1] != "--" or argv[0] not in labs:
        raise Unusable(f"name a lab and a command: {'|'.join(labs)} -- COMMAND...")
    kind, command = labs[argv[0]], list(argv[2:])
    for name, other in labs.items():
        for word in sorted(other.words - kind.words):
            if any(f"{{{word}}}" in part for part in command):
                raise Unusable(f"{{{word}}} is filled in by the lab {name}, not by {argv[0]}: name that one")
    return kind, command


def fill(command: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Return a command with its words filled in; a lone ``{near}`` becomes the several words that it stands for."""
    filled: list[str] = []
    for part in command:
        if part == "{near}":
            filled += shlex.split(words["near"])
            continue
        for name, word in words.items():
            part = part.replace(f"{{{name}}}", word)
        filled.append(part)
    return filled


def _run(command: Sequence[str], lab: Lab) -> int:
    try:
        process = subprocess.Popen(command, env=os.environ | dict(lab.environment), cwd=lab.folder)
    except OSError as error:
        raise Unusable(f"{command[0]} cannot be run: {error.strerror}") from error
    try:
        code = process.wait()
    finally:  # of this one's end by a signal
        _end(process)
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_ORDERLY_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    for _number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(_number, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
