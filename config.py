"""The sites that a campaign can name with --simulate-site and --ml-site. Edit this file for your machines.

A site says how its executors are made, which stores its workers reach, and whether they see the run directory. Names
are flags: ``--ml-site polaris`` takes ``SITES["polaris"]``. Making a site touches no disk and no network; its
executors are made when a campaign starts.
"""

from __future__ import annotations

from parsl.launchers import MpiExecLauncher, SrunLauncher

from sites.batch import Nodes, pbs, slurm
from sites.local import local
from sites.site import Site, SiteMaker
from sites.ssh import ssh_site
from tasks.errors import BadInput

# GPU nodes under Slurm, with the values of NERSC's Perlmutter (4 A100 and 64 cores a node): put your own account and
# environment. Blocks of 2 nodes come while there is work for them, 2 of them at most.
EXAMPLE_SLURM = Nodes(
    walltime="02:00:00",
    account="m0000",
    per_block=2,
    max_blocks=2,
    devices=4,
    init="module load python\nsource activate wayfinder",
    launcher=SrunLauncher(overrides="--gpus-per-node=4 -c 64"),
)

# CPU workers under PBS Pro, with the values of ALCF's Polaris (32 cores, 64 threads a node): put your own project.
EXAMPLE_PBS = Nodes(
    walltime="01:00:00",
    account="MyProject",
    queue="prod",
    per_block=2,
    workers=32,
    init="module use /soft/modulefiles\nconda activate wayfinder",
    options="#PBS -l filesystems=home:eagle",
    launcher=MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--depth=64 --ppn 1"),
)

SITES: dict[str, SiteMaker] = {
    "local": local,
    # This machine once more, with workers of its own, to try a pool out: --simulate-site local,local-b.
    "local-b": lambda: local("local-b"),
    # This machine, with workers that may open no Redis: how a site behind a firewall behaves, to try it out.
    "local-no-redis": lambda: local("local-no-redis", frozenset({"file", "globus", "endpoint", "inline"})),
    # The host of --ssh-host. One with a name of its own: "gpubox": lambda: ssh_site("gpubox", SshAccess("gpubox")).
    "ssh": lambda: ssh_site("ssh"),
    "example-slurm": lambda: slurm("example-slurm", EXAMPLE_SLURM, qos="regular", constraint="gpu"),
    "example-pbs": lambda: pbs("example-pbs", EXAMPLE_PBS, cpus_per_node=64),
}


def site(name: str) -> Site:
    """Return the site of that name.

    Raises
    ------
    BadInput
        When there is none.
    """
    if name not in SITES:
        raise BadInput(f"site {name} is not known: choose one of {', '.join(SITES)}, or add it to config.py")
    return SITES[name]()
