"""Which worker gets which device, and how several share one.

The devices are a fake `nvidia-smi`, and MPS is a fake daemon that runs until it is told to quit; shells, executors
and workers are real.
"""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import parsl
import pytest
from parsl.app.app import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor

from campaign.processes import RUN_VARIABLE, processes_of, reap
from sites.devices import deal, gpus, sharing
from sites.local import lay_out, local
from sites.site import Resources
from tasks.errors import BadInput
from tests.sites.fakes import install

UUIDS = [f"GPU-{letter * 8}" for letter in "abcd"]


@pytest.fixture
def resources(tmp_path: Path) -> Resources:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    return Resources(None, 1, private, 2.0, 10.0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make this a machine with so many devices, with MPS or without; returns where calls of MPS are recorded."""

    def make(n_devices: int, *, mps: bool = True) -> Path:
        programs, record = install(tmp_path, UUIDS[:n_devices], mps=mps)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return record

    return make


# ---- which devices there are


@pytest.mark.parametrize(
    ("lines", "devices"),
    [
        (["GPU 0: NVIDIA H100 PCIe (UUID: GPU-a1)", "GPU 1: NVIDIA H100 PCIe (UUID: GPU-b2)"], ["GPU-a1", "GPU-b2"]),
        (["GPU 0: H100 (UUID: GPU-a1)", "  MIG 1g.10gb     Device  0: (UUID: MIG-c3)"], ["GPU-a1"]),
        (["GPU 0: NVIDIA H100"], ["0"]),
        (["No devices found."], []),
    ],
)
def test_devices_are_known_by_what_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], devices: list[str]
) -> None:
    (tmp_path / "listing").write_text("\n".join(lines) + "\n")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/listing\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == devices


@pytest.mark.parametrize("script", [None, "echo 'NVIDIA-SMI has failed' >&2; exit 9"])
def test_without_a_driver_there_are_no_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == []


@pytest.mark.parametrize(
    ("allotted", "devices"),
    [("3", [UUIDS[3]]), ("1, 2", UUIDS[1:3]), ("GPU-else,0", ["GPU-else", UUIDS[0]]), ("7", ["7"]), ("", [])]
    + [("-1", [])],
)
def test_only_allotted_devices_are_used(
    machine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, allotted: str, devices: list[str]
) -> None:
    machine(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allotted)
    assert gpus() == devices


# ---- who gets which


@pytest.mark.parametrize(
    ("n_devices", "asked", "segments", "learning"),
    [
        (4, {}, ["a", "b", "c", "d"], ["d"]),
        (2, {"segments_per_device": 2}, ["a", "b", "a", "b"], ["b"]),
        (2, {"segments_per_device": 2, "simulate_workers": 3}, ["a", "b", "a"], ["b"]),
        (4, {"segments_per_device": 4, "simulate_workers": 3, "ml_workers": 2}, ["a", "b", "c"], ["d", "d"]),
        (1, {"simulate_workers": 3}, ["a", "a", "a"], ["a"]),
        (3, {"on_devices": False}, [], ["a"]),
        (3, {"on_devices": False, "segments_per_device": 1}, ["a", "b", "c"], ["c"]),
        (0, {}, [], []),
    ],
)
def test_workers_are_dealt_over_devices(
    resources: Resources, n_devices: int, asked: dict[str, int], segments: list[str], learning: list[str]
) -> None:
    laid = lay_out("local", ["a", "b", "c", "d"][:n_devices], replace(resources, **{"on_devices": True, **asked}))
    assert (laid.segments, laid.learning) == (segments, learning)
    assert laid.n_segments == (len(segments) or 2)


def test_more_workers_than_the_devices_take_are_refused(resources: Resources) -> None:
    asked = replace(resources, segments_per_device=2, simulate_workers=5)
    with pytest.raises(BadInput) as caught:
        lay_out("local", ["a", "b"], asked)
    assert str(caught.value) == (
        "--simulate-workers 5 is more than --segments-per-device 2 allows on 2 devices: "
        "give at most 4, or leave it out"
    )


def test_without_devices_segments_on_them_are_refused(resources: Resources) -> None:
    with pytest.raises(BadInput, match=r"--segments-per-device 1: site local has no device; drop it, or name a site"):
        lay_out("local", [], replace(resources, segments_per_device=1))


def test_devices_are_dealt_in_turn() -> None:
    assert deal(["a", "b", "c"], 5) == ["a", "b", "c", "a", "b"]
    assert deal([], 5) == []


# ---- in real workers


@contextmanager
def served(executor: HighThroughputExecutor, folder: Path) -> Iterator[Callable[[int], dict[int, dict[str, str]]]]:
    """Run an executor's workers until the end; what it gives returns the environments of so many, by their rank."""
    config = Config([executor], run_dir=str(folder / "parsl"), usage_tracking=0, initialize_logging=False)
    with parsl.load(config) as kernel:
        run = python_app(subprocess.run, data_flow_kernel=kernel, executors=[executor.label])

        def environments(n_workers: int) -> dict[int, dict[str, str]]:
            found: dict[int, dict[str, str]] = {}
            while len(found) < n_workers:
                # They sleep so that each worker gets one.
                asked = [
                    run(["sh", "-c", "sleep 0.3; env"], capture_output=True, text=True) for _ in range(n_workers)
                ]
                for each in asked:
                    told = each.result(timeout=120).stdout.splitlines()
                    environment = dict(line.split("=", 1) for line in told if "=" in line)
                    found[int(environment["PARSL_WORKER_RANK"])] = environment
            return found

        yield environments
    parsl.clear()


@pytest.fixture
def run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The id of a run in the environment; what still carries it after the test is ended."""
    run_id = f"test-{tmp_path.name}-{os.getpid()}"
    monkeypatch.setenv(RUN_VARIABLE, run_id)
    monkeypatch.setenv("SPT_NOENV", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    yield run_id
    reap(run_id, grace_s=0.1)


def gone(run_id: str) -> bool:
    """Whether nothing of a run is left within some seconds."""
    deadline = time.monotonic() + 10
    while processes_of(run_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes_of(run_id)


def test_two_segments_share_each_device_by_mps_which_ends_with_them(
    tmp_path: Path, run_id: str, machine: Callable[..., Path], resources: Resources
) -> None:
    record = machine(2)
    asked = replace(resources, segments_per_device=2)
    site = local()
    assert site.simulate_slots(asked) == 4
    with served(site.simulate(asked), tmp_path) as environments:
        seen = environments(4)
        (folder,) = resources.private_dir.glob("mps-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert record.read_text() == f"-d serves {UUIDS[0]},{UUIDS[1]} in {folder}\n"
    # Of numbers Parsl would have made halves: all four workers on the first device.
    assert [seen[rank]["CUDA_VISIBLE_DEVICES"] for rank in range(4)] == [UUIDS[0], UUIDS[1], UUIDS[0], UUIDS[1]]
    for env in seen.values():
        assert env["CUDA_MPS_PIPE_DIRECTORY"] == env["CUDA_MPS_LOG_DIRECTORY"] == str(folder)
        assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "100"
        assert env["HIP_VISIBLE_DEVICES"] == "0"
    assert gone(run_id)
    assert record.read_text().splitlines()[1:] == [f"quit serves  in {folder}"]
    assert not folder.exists()


@pytest.mark.parametrize("asked", [{"segments_per_device": 1}, {"simulate_workers": 2}])
def test_where_nobody_shares_there_is_no_mps(
    machine: Callable[..., Path], resources: Resources, asked: dict[str, int]
) -> None:
    machine(2)
    site, wanted = local(), replace(resources, on_devices=True, **asked)
    for executor in (site.simulate(wanted), site.learn(wanted)):
        assert "mps" not in executor.provider.worker_init
        assert "HIP_VISIBLE_DEVICES=0" in executor.provider.worker_init


# ---- the shell lines by themselves


def run_lines(script: str, tmp_path: Path) -> str:
    lines = "\n".join(sharing(3, tmp_path))
    return subprocess.run(["bash", "-c", f"{lines}\n{script}"], capture_output=True, text=True, check=True).stdout


def test_each_of_three_may_use_two_thirds_of_a_device(tmp_path: Path, machine: Callable[..., Path]) -> None:
    record = machine(1)
    assert run_lines("echo $CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", tmp_path) == "66\n"
    assert [line.split()[0] for line in record.read_text().splitlines()] == ["-d", "quit"]
    assert list(tmp_path.glob("mps-*")) == []


def test_without_mps_workers_share_their_device_in_turns(tmp_path: Path, machine: Callable[..., Path]) -> None:
    machine(1, mps=False)
    assert run_lines("env | grep CUDA_MPS; echo $WAYFINDER_SEGMENTS_PER_DEVICE", tmp_path) == "3\n"


def test_a_daemon_that_does_not_start_leaves_workers_without(tmp_path: Path, machine: Callable[..., Path]) -> None:
    machine(1)
    program = tmp_path / "programs" / "nvidia-cuda-mps-control"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert run_lines("env | grep -c CUDA_MPS || true", tmp_path) == "0\n"
    assert not list(tmp_path.glob("mps-*"))


def test_a_block_that_is_told_to_end_ends_its_daemon(
    tmp_path: Path, run_id: str, machine: Callable[..., Path]
) -> None:
    record = machine(1)
    # As Parsl's launcher: the block waits for its workers.
    script = "\n".join([*sharing(2, tmp_path), "sleep 600 & echo ready; wait $!"])
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as block:
        block.stdout.readline()
        assert len(processes_of(run_id)) == 3, "the block, its worker and the daemon"
        os.killpg(block.pid, signal.SIGTERM)
        assert block.wait(10) == 143
    assert gone(run_id)
    assert record.read_text().splitlines()[-1].startswith("quit")


def test_a_daemon_whose_block_was_killed_is_found_by_the_runs_id(
    tmp_path: Path, run_id: str, machine: Callable[..., Path]
) -> None:
    machine(1)
    script = "\n".join([*sharing(2, tmp_path), "echo ready; wait; read"])
    with subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as block:
        block.stdout.readline()
        block.kill()
    assert reap(run_id) == 1
    assert gone(run_id)


# ---- where there is a GPU


@pytest.mark.gpu
def test_each_worker_sees_the_one_device_it_was_given(tmp_path: Path, run_id: str, resources: Resources) -> None:
    asked = replace(resources, segments_per_device=2)
    site, devices = local(), gpus()
    with served(site.simulate(asked), tmp_path) as environments:
        seen = environments(site.simulate_slots(asked))
        # The driver itself, in an environment as the worker's: one device, whatever MPS makes of its number.
        for env in seen.values():
            code = "import torch; print(torch.cuda.device_count(), torch.zeros(1).cuda().device)"
            said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
            assert said.stdout == "1 cuda:0\n", said.stderr
    assert sorted(env["CUDA_VISIBLE_DEVICES"] for env in seen.values()) == sorted(devices * 2)
    assert gone(run_id)
