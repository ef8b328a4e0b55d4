"""Executors of the sites as real Parsl objects; none of them is started."""

import stat
import subprocess
from dataclasses import replace

import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import MpiExecLauncher, SrunLauncher
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

import config
from sites import batch, local
from sites.htex import htex
from sites.site import REACHES_ALL, Resources, worker_environment
from tasks.errors import BadInput


@pytest.fixture
def resources(tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    return Resources(
        simulate_workers=3, ml_workers=2, private_dir=private, heartbeat_s=2.4, heartbeat_threshold_s=9.6
    )


@pytest.fixture
def no_gpus(monkeypatch):
    monkeypatch.setattr(local, "gpus", list)


@pytest.mark.usefixtures("no_gpus")
def test_this_machine_has_a_pool_for_segments_and_one_for_learning(resources):
    site = local.local()
    simulate, learn = site.simulate(resources), site.learn(resources)
    assert (simulate.label, learn.label) == ("cpu", "gpu")
    assert (simulate.max_workers_per_node, learn.max_workers_per_node) == (3, 2)
    assert (site.simulate_slots(resources), site.learn_slots(resources)) == (3, 2)
    assert simulate.available_accelerators == learn.available_accelerators == []
    for executor in (simulate, learn):
        assert isinstance(executor.provider, LocalProvider)
        assert (executor.provider.init_blocks, executor.provider.max_blocks) == (1, 1)
        assert executor.address == executor.loopback_address == "127.0.0.1"
    Config(executors=[simulate, learn, local.submit_host(resources)])  # Parsl refuses labels that meet


@pytest.mark.usefixtures("no_gpus")
def test_a_lost_manager_does_not_end_an_executor(resources):
    executor = local.local().simulate(resources)
    # Parsl's default handler sets the executor bad for good; False leaves blocks to be restarted.
    assert executor.block_error_handler(executor, {"0": None}) is None
    assert executor.bad_state_is_set is False
    assert (executor.heartbeat_period, executor.heartbeat_threshold) == (2, 10)


def test_heartbeats_are_whole_seconds_and_never_none(resources):
    short = Resources(1, 1, resources.private_dir, 0.1, 0.3)
    executor = htex("short", LocalProvider(), short, workers_per_node=1)
    assert (executor.heartbeat_period, executor.heartbeat_threshold) == (1, 2)


@pytest.mark.usefixtures("no_gpus")
def test_keys_lie_in_a_private_directory_and_nowhere_else(resources, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    monkeypatch.chdir(run_dir)
    executors = [local.local().simulate(resources), local.local().learn(resources), local.submit_host(resources)]
    assert list(run_dir.iterdir()) == []
    secrets = set()
    for executor in executors:
        assert executor.encrypted is True
        assert executor.cert_dir.startswith(str(resources.private_dir / executor.label))
        folder = resources.private_dir / executor.label
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        # What Parsl itself insists on before it starts.
        assert stat.S_IMODE((folder / "certificates").stat().st_mode) == 0o700
        for secret in (folder / "certificates").glob("*_secret"):
            secrets.add(secret.read_text())
    assert len(secrets) == 2 * len(executors), "executors share keys"


def test_workers_keep_to_one_thread_and_to_the_stores_they_reach(tmp_path):
    lines = worker_environment(frozenset({"inline", "file"}))
    script = f"{lines}\necho $OMP_NUM_THREADS $OPENBLAS_NUM_THREADS $MKL_NUM_THREADS $WAYFINDER_REACHES"
    said = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "1 1 1 file,inline\n"


@pytest.mark.usefixtures("no_gpus")
def test_a_site_without_redis_says_so_to_its_workers(resources):
    site = config.site("local-no-redis")
    assert "redis" not in site.reaches
    assert site.reaches < REACHES_ALL
    for executor in (site.simulate(resources), site.learn(resources)):
        assert "WAYFINDER_REACHES=endpoint,file,globus,inline" in executor.provider.worker_init


def example(monkeypatch, module):
    """Make an example site where the host's name need not resolve."""
    monkeypatch.setattr(batch, "address_by_hostname", lambda: "10.0.0.5")
    return config.site(module)


def test_the_slurm_example_is_what_it_says(resources, monkeypatch):
    site = example(monkeypatch, "example-slurm")
    executors = [site.simulate(resources), site.learn(resources)]
    assert len({executor.label for executor in executors}) == 2
    for executor in executors:
        assert isinstance(executor, HighThroughputExecutor)
        provider = executor.provider
        assert isinstance(provider, SlurmProvider)
        assert isinstance(provider.launcher, SrunLauncher)
        # Parsl makes "--time=0", unlimited, of a walltime below a minute.
        assert provider.walltime == "02:00:00"
        assert executor.address == "10.0.0.5"
        assert executor.max_workers_per_node == len(executor.available_accelerators) == 4
        assert "OMP_NUM_THREADS=1" in provider.worker_init
        assert "#SBATCH --gpus-per-node=4" in provider.scheduler_options
        assert (provider.init_blocks, provider.min_blocks, provider.max_blocks) == (1, 0, 2)
        # Accounting asks by number, and so does a queue without it, once it is asked for all.
        assert provider.status_polling_interval == 20
    # As many as all blocks have, or nobody would ask for the second.
    assert site.simulate_slots(resources) == site.learn_slots(resources) == 4 * 2 * 2
    assert site.reaches == {"file", "inline"}
    assert site.shares_run_dir


def test_the_slurm_example_puts_several_segments_on_a_device(resources, monkeypatch):
    site = example(monkeypatch, "example-slurm")
    asked = replace(resources, segments_per_device=3)
    simulate, learn = site.simulate(asked), site.learn(asked)
    assert simulate.max_workers_per_node == len(simulate.available_accelerators) == 12
    assert learn.max_workers_per_node == len(learn.available_accelerators) == 4
    assert (site.simulate_slots(asked), site.learn_slots(asked)) == (12 * 4, 4 * 4)
    assert "nvidia-cuda-mps-control -d" in simulate.provider.worker_init
    assert "mps" not in learn.provider.worker_init


@pytest.mark.parametrize("walltime", ["00:00:30", "0:00:00", "90", "01:00", "1-00:00:00"])
def test_a_walltime_that_a_scheduler_would_not_keep_is_refused(walltime):
    with pytest.raises(BadInput, match=f"site lab asks for a walltime of '{walltime}': write HH:MM:SS"):
        batch.slurm("lab", batch.Nodes(walltime))


def test_a_site_without_devices_refuses_segments_on_them(resources, monkeypatch):
    site = example(monkeypatch, "example-pbs")
    with pytest.raises(BadInput, match=r"--segments-per-device 2: site example-pbs has no device; drop it, or name"):
        site.simulate(replace(resources, segments_per_device=2))


def test_the_pbs_example_is_what_it_says(resources, monkeypatch):
    site = example(monkeypatch, "example-pbs")
    executors = [site.simulate(resources), site.learn(resources)]
    assert len({executor.label for executor in executors}) == 2
    for executor in executors:
        assert isinstance(executor.provider, PBSProProvider)
        assert isinstance(executor.provider.launcher, MpiExecLauncher)
        assert executor.max_workers_per_node == 32
        assert "OMP_NUM_THREADS=1" in executor.provider.worker_init
    assert site.simulate_slots(resources) == 32 * executors[0].provider.nodes_per_block


@pytest.mark.parametrize("name", ["example-slurm", "example-pbs"])
def test_keys_of_a_cluster_are_private_too(resources, monkeypatch, name):
    executor = example(monkeypatch, name).simulate(resources)
    assert executor.encrypted is True
    assert executor.cert_dir.startswith(str(resources.private_dir))


def test_an_executor_is_made_once_in_a_private_directory(resources):
    htex("cpu", LocalProvider(), resources, workers_per_node=1)
    # Keys of another executor would be overwritten under its workers.
    with pytest.raises(FileExistsError):
        htex("cpu", LocalProvider(), resources, workers_per_node=1)
