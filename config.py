"""The sites that a campaign can name with --simulate-site and --ml-site. Edit this file for your machines.

A site says how its executors are made, which stores its workers reach, and whether they see the run directory. Names
are flags: ``--ml-site polaris`` takes ``SITES["polaris"]``. Making a site touches no disk and no network; its
executors are made when a campaign starts.
"""

from __future__ import annotations

from parsl.addresses import address_by_hostname
from parsl.executors import HighThroughputExecutor
from parsl.launchers import MpiExecLauncher, SrunLauncher
from parsl.providers import PBSProProvider, SlurmProvider

from sites.devices import sharing
from sites.htex import htex
from sites.local import local
from sites.site import Resources, Site, SiteMaker, no_devices, worker_environment
from sites.ssh import ssh_site
from tasks.errors import BadInput


def example_slurm() -> Site:
    """Return an example of a cluster under Slurm: GPU nodes, 4 devices each, a file system shared with this host.

    The values are NERSC Perlmutter's; put your own account, module and environment lines. With NVIDIA's devices a
    number of accelerators is enough: Parsl divides it by the devices that it finds on a node, and each gets its share
    of the workers. With others name the device of each worker (`sites.devices.deal`).
    """
    devices_per_node, nodes = 4, 1
    reaches = frozenset({"file", "inline"})

    def executor(label: str, resources: Resources, per_device: int = 1) -> HighThroughputExecutor:
        environment = worker_environment(
            reaches, shared=sharing(per_device), pinned=True, unpacking=resources.unpacking
        )
        provider = SlurmProvider(
            partition=None,
            qos="regular",
            constraint="gpu",
            account="m0000",
            nodes_per_block=nodes,
            init_blocks=1,
            min_blocks=0,
            max_blocks=2,
            walltime="02:00:00",
            exclusive=False,
            scheduler_options=f"#SBATCH --gpus-per-node={devices_per_node}",
            worker_init=f"module load python\nsource activate wayfinder\n{environment}",
            launcher=SrunLauncher(overrides=f"--gpus-per-node={devices_per_node} -c 64"),
        )
        return htex(
            label,
            provider,
            resources,
            workers_per_node=devices_per_node * per_device,
            address=address_by_hostname(),
            accelerators=devices_per_node * per_device,
        )

    return Site(
        name="example-slurm",
        simulate=lambda resources: executor("slurm-simulate", resources, resources.segments_per_device or 1),
        learn=lambda resources: executor("slurm-learn", resources),
        simulate_slots=lambda resources: nodes * devices_per_node * (resources.segments_per_device or 1),
        learn_slots=lambda resources: nodes * devices_per_node,
        reaches=reaches,
        shares_run_dir=True,
    )


def example_pbs() -> Site:
    """Return an example of a cluster under PBS Pro: CPU nodes, a file system shared with this host.

    The values are ALCF Polaris's; put your own project and environment lines.
    """
    workers_per_node, nodes = 32, 2
    reaches = frozenset({"file", "inline"})

    def executor(label: str, resources: Resources) -> HighThroughputExecutor:
        no_devices("example-pbs", resources)
        environment = worker_environment(reaches, unpacking=resources.unpacking)
        provider = PBSProProvider(
            queue="prod",
            account="MyProject",
            nodes_per_block=nodes,
            cpus_per_node=64,
            init_blocks=1,
            min_blocks=0,
            max_blocks=1,
            walltime="01:00:00",
            scheduler_options="#PBS -l filesystems=home:eagle",
            worker_init=f"module use /soft/modulefiles\nconda activate wayfinder\n{environment}",
            launcher=MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--depth=64 --ppn 1"),
        )
        return htex(label, provider, resources, workers_per_node=workers_per_node, address=address_by_hostname())

    return Site(
        name="example-pbs",
        simulate=lambda resources: executor("pbs-simulate", resources),
        learn=lambda resources: executor("pbs-learn", resources),
        simulate_slots=lambda resources: nodes * workers_per_node,
        learn_slots=lambda resources: nodes * workers_per_node,
        reaches=reaches,
        shares_run_dir=True,
    )


SITES: dict[str, SiteMaker] = {
    "local": local,
    # This machine once more, with workers of its own, to try a pool out: --simulate-site local,local-b.
    "local-b": lambda: local("local-b"),
    # This machine, with workers that may open no Redis: how a site behind a firewall behaves, to try it out.
    "local-no-redis": lambda: local("local-no-redis", frozenset({"file", "globus", "inline"})),
    # The host of --ssh-host. One with a name of its own: "gpubox": lambda: ssh_site("gpubox", SshAccess("gpubox")).
    "ssh": lambda: ssh_site("ssh"),
    "example-slurm": example_slurm,
    "example-pbs": example_pbs,
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
