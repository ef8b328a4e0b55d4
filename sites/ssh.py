"""A machine behind ssh: one ssh per block carries the tunnel, the worker pool, and the line that its life hangs on.

Nothing but sshd need be reachable there, and from there nothing need be. Keys of the encrypted connections and the
password of a private Redis travel inside the connection, never on a command line, and are removed with the block.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import random
import re
import shlex
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState, JobStatus
from parsl.providers.base import ExecutionProvider

from sites.htex import htex
from sites.reach import check, ssh, tell_master
from sites.site import Resources, Site, SshAccess, no_devices, worker_environment
from tasks.errors import BadInput
from tasks.transport import FORWARDED_VARIABLE, PASSWORD_VARIABLE, TOKEN_VARIABLE

logger = logging.getLogger(__name__)

# Ports of the far loopback to try, below those that kernels give away by themselves.
_FAR_PORTS = range(20_000, 32_000)

# How long a worker pool has to end when the line is cut.
_END_S = 5

_RUN_VARIABLE = "WAYFINDER_RUN"

# Read by the far shell from the connection, so that no other user there sees it. Its standard input is the life line:
# when that ends, whoever cut it, the pool ends. The last line is whole before it runs, for `cat` reads what follows.
_SCRIPT = """\
main() {{
umask 077
mkdir -p {folder} && cd {folder} || exit 97
{keys}
{exports}
{worker_init}
set -m
{command} &
pool=$!
{{ cat <&3 > /dev/null; kill -TERM -- -$pool; sleep {end_s}; kill -KILL -- -$pool; }} 2> /dev/null &
guard=$!
wait $pool
code=$?
{{ kill -KILL -- -$guard; wait $guard; }} 2> /dev/null
rm -rf {folder}/certificates
return $code
}}
main 3<&0 < /dev/null; exit $?
"""


@dataclass(slots=True)
class _Block:
    """A worker pool at the other end of an ssh."""

    process: subprocess.Popen[bytes]
    log: Path
    cancelled: bool = False
    lent: tuple[str, ...] = ()  # what a ControlMaster forwards for it, and would go on forwarding

    def status(self) -> JobStatus:
        code = self.process.poll()
        if code is None:
            return JobStatus(JobState.RUNNING)
        if self.cancelled:
            return JobStatus(JobState.CANCELLED)
        state = JobState.COMPLETED if code == 0 else JobState.FAILED
        return JobStatus(state, message=_last_line(self.log), exit_code=code, stdout_path=str(self.log))


@dataclass(eq=False)
class SshProvider(ExecutionProvider):  # type: ignore[misc]  # Parsl has no types
    """Starts worker pools on a host, each by an ssh of its own.

    Parameters
    ----------
    forwards
        Ports of this machine's loopback that the far one finds on its own, under other numbers.
    heartbeat_s, silence_s
        How often ssh itself looks for the other end, and after which silence it gives it up.
    """

    access: SshAccess
    worker_init: str
    forwards: tuple[int, ...]
    heartbeat_s: int
    silence_s: int
    secrets: Sequence[str] = (_RUN_VARIABLE, PASSWORD_VARIABLE, TOKEN_VARIABLE)
    init_blocks: int = 1
    min_blocks: int = 1
    max_blocks: int = 1
    parallelism: float = 1
    nodes_per_block: int = 1
    script_dir: str | None = None
    cores_per_node: int | None = None
    mem_per_node: float | None = None
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return what Parsl calls it."""
        return "ssh"

    @property
    def status_polling_interval(self) -> int:
        """Return after how many seconds a block is looked at again."""
        return 1

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.ssh") -> str:
        """Start a worker pool and return the id of its block."""
        log = Path(self.script_dir or ".") / f"{job_name}.log"
        command, tunnel = self._through_the_tunnel(command)
        script = self._script(command, job_name).encode()
        lent = tuple(tunnel) if tell_master(self.access, "check") else ()
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*ssh(self.access), *self._options(tunnel), self.access.host, "exec bash -s"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert process.stdin is not None
        try:
            process.stdin.write(script)
            process.stdin.flush()
        except BrokenPipeError:
            logger.warning("ssh to %s ended at once: %s", self.access.host, _last_line(log))
        block_id = str(process.pid)
        self.resources[block_id] = _Block(process, log, lent=lent)
        return block_id

    def status(self, job_ids: list[Any]) -> list[JobStatus]:
        """Return how blocks are."""
        for job_id in job_ids:
            if self.resources[job_id].process.poll() is not None:
                self._give_back(self.resources[job_id])
        return [self.resources[job_id].status() for job_id in job_ids]

    def cancel(self, job_ids: list[Any]) -> list[bool]:
        """End blocks: the line is cut, and the pool at its end goes with it."""
        for job_id in job_ids:
            block = self.resources[job_id]
            block.cancelled = True
            assert block.process.stdin is not None
            block.process.stdin.close()
        for job_id in job_ids:
            try:
                self.resources[job_id].process.wait(2 * _END_S)
            except subprocess.TimeoutExpired:
                self.resources[job_id].process.kill()
            self._give_back(self.resources[job_id])
        return [True] * len(job_ids)

    def _give_back(self, block: _Block) -> None:
        """Let a ControlMaster forward no longer what it did for a block."""
        for forward in block.lent:
            tell_master(self.access, "cancel", "-R", forward)
        block.lent = ()

    def _through_the_tunnel(self, command: str) -> tuple[str, list[str]]:
        """Return the pool's command with the port that it dials over there, and what ssh is to forward."""
        if self.access.tunnel == "manual":
            return command, []
        here = int(_only(r"--port=(\d+)", command))
        # Others each time: who finds a port taken ends, and the next block is luckier.
        there, *others = random.sample(_FAR_PORTS, 1 + len(self.forwards))
        near = dict(zip(others, self.forwards, strict=True))
        told = ",".join(f"{port}={far}" for far, port in near.items())
        command = command.replace(f"--port={here}", f"--port={there}")
        return f"{FORWARDED_VARIABLE}={told} {command}", [
            f"127.0.0.1:{far}:127.0.0.1:{port}" for far, port in {there: here, **near}.items()
        ]

    def _options(self, tunnel: Sequence[str]) -> list[str]:
        alive = max(1, self.silence_s // max(1, self.heartbeat_s))
        options = [f"ServerAliveInterval={self.heartbeat_s}", f"ServerAliveCountMax={alive}"]
        words = [word for option in options for word in ("-o", option)]
        return [*words, *(word for forward in tunnel for word in ("-R", forward))]

    def _script(self, command: str, job_name: str) -> str:
        """Return what the far shell runs."""
        folder = f"{self.access.folder}/{os.environ.get(_RUN_VARIABLE, 'run')}/{job_name}"
        keys_here = _only(r"--cert_dir (\S+)", command)
        command = command.replace(f"--cert_dir {keys_here}", "--cert_dir $PWD/certificates")
        exports = [f"export {name}={shlex.quote(os.environ[name])}" for name in self.secrets if name in os.environ]
        return _SCRIPT.format(
            folder=folder,
            keys=_unpack(Path(keys_here)),
            exports="\n".join(exports) or ":",
            worker_init=self.worker_init,
            command=command,
            end_s=_END_S,
        )


def ssh_site(
    name: str,
    access: SshAccess | None = None,
    n_workers: int = 1,
    reaches: frozenset[str] = frozenset({"redis", "globus", "endpoint", "inline"}),
) -> Site:
    """Return a machine behind ssh, with one worker pool for whatever topic is sent there.

    Parameters
    ----------
    access
        How to reach it; None for what ``--ssh-host`` and its like say.
    n_workers
        Segments at once, unless ``--simulate-workers`` says otherwise.
    reaches
        Stores that its workers can open: ``file`` as well where it shares the folder of ``--ps-file-dir``.
    """

    def executor(label: str, resources: Resources, workers: int) -> HighThroughputExecutor:
        no_devices(name, resources)
        found = access or resources.ssh
        if found is None:
            raise BadInput(f"site {name} is reached by ssh and no host is named: add --ssh-host HOST")
        check(found)
        environment = worker_environment(reaches, unpacking=resources.unpacking)
        provider = SshProvider(
            found,
            "\n".join(filter(None, (found.init, environment))),
            resources.forwards,
            max(1, round(resources.heartbeat_s)),
            max(2, round(resources.heartbeat_threshold_s)),
        )
        return htex(
            label,
            provider,
            resources,
            workers_per_node=workers,
            worker_logdir=Path(found.folder) / "logs",
            worker_port=found.port if found.tunnel == "manual" else None,
        )

    return Site(
        name=name,
        simulate=lambda resources: executor("ssh-simulate", resources, resources.simulate_workers or n_workers),
        learn=lambda resources: executor("ssh-learn", resources, resources.ml_workers),
        simulate_slots=lambda resources: resources.simulate_workers or n_workers,
        learn_slots=lambda resources: resources.ml_workers,
        reaches=reaches,
        shares_run_dir=False,
        dials_back=True,
    )


def _unpack(keys: Path) -> str:
    """Return shell lines that unpack a folder's files into ``certificates``."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(keys, arcname=".")
    told = base64.encodebytes(packed.getvalue()).decode()
    return f"mkdir -p certificates && base64 -d << 'END' | tar -xz --no-same-owner -C certificates\n{told}END"


def _only(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{pattern} is not in Parsl's command {text}")
    return found[1]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
