"""A Slurm of one's own: munged, slurmctld and slurmd on this machine, without systemd, gone with their folder."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration.sites.conftest import free_ports, until
from tests.needs import program

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
PACKAGES = "slurm-wlm munge"

# A user's own site, as config.py takes it.
OWN_SITE = f"""
from parsl.launchers import SimpleLauncher

SITES["lab"] = lambda: slurm(
    "lab",
    Nodes(
        walltime="00:10:00", queue="debug", max_blocks=2, launcher=SimpleLauncher(), address="127.0.0.1", poll_s=1,
        init="export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={{checkout}}",
        reaches=frozenset(("file", "redis", "inline")),
    ),
)
"""

_CONFIGURATION = """\
ClusterName={name}
SlurmctldHost={host}({address})
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser={user}
SlurmdUser={user}
MailProg=/bin/true
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=0
KillWait=2
MinJobAge={forgets_after_s}
PropagateResourceLimits=NONE
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname={host} NodeAddr={address} Port={node_port} CPUs=4 RealMemory={memory_mb}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """A cluster of one node with four cores, whose jobs share it."""

    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What makes Slurm's programs talk to it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *words: str) -> str:
        """Return what one of Slurm's programs prints."""
        asked = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True, timeout=30)
        return asked.stdout

    def jobs(self) -> dict[str, str]:
        """State of each job in the queue (``PD``, ``R``, ``CG``), by its number."""
        return dict(line.split() for line in self.ask("squeue", "-h", "-o", "%i %t").splitlines())


@contextmanager
def own_slurm() -> Iterator[Slurm]:
    """Start one in a folder of its own, and end it."""
    # A short path, for sockets; and munge wants to be reached by everybody.
    folder = Path(tempfile.mkdtemp(prefix="wf-"))
    folder.chmod(0o755)
    try:
        with slurm(folder / "lab") as lab:
            yield lab
    finally:
        shutil.rmtree(folder)


@contextmanager
def slurm(folder: Path, forgets_after_s: int = 300) -> Iterator[Slurm]:
    """Start one, and end it with all of its jobs.

    Parameters
    ----------
    folder
        A short path, for sockets are in it.
    forgets_after_s
        How long a job that ended is remembered.
    """
    lab = Slurm(folder)
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    port, node_port = free_ports(2)
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(
            name=f"lab{port}",
            host=socket.gethostname().split(".")[0],
            address=socket.gethostbyname(socket.gethostname()),
            port=port,
            node_port=node_port,
            folder=folder,
            user=getpass.getuser(),
            memory_mb=psutil.virtual_memory().total // 2**20,
            forgets_after_s=forgets_after_s,
        )
    )
    try:
        sock = folder / "munge.sock"
        _start(
            lab, "munged", "-F", f"--key-file={key}", f"--socket={sock}", f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        )  # fmt: skip
        until(sock.exists, "munged", lab.folder)
        _start(lab, "slurmctld", "-D", "-i")
        until(lambda: "UP" in lab.ask("scontrol", "ping"), "slurmctld", lab.folder)
        _start(lab, "slurmd", "-D", "-N", "n1")
        until(lambda: lab.ask("sinfo", "-h", "-N", "-o", "%T").strip() == "idle", "an idle node", lab.folder)
        yield lab
    finally:
        with suppress(subprocess.TimeoutExpired):  # of a controller that never came up
            lab.ask("scancel", "--user", getpass.getuser())
            deadline = time.monotonic() + 15
            while lab.jobs() and time.monotonic() < deadline:
                time.sleep(0.1)
        for daemon in reversed(lab.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _start(lab: Slurm, name: str, *words: str) -> None:
    with (lab.folder / f"{name}.out").open("wb") as out:
        daemon = subprocess.Popen(
            [str(program(name)), *words], env=os.environ | lab.environment, stdout=out, stderr=out,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    lab.daemons.append(daemon)
