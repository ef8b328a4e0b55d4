"""A campaign on a machine with devices: fake ones, and a real one where there is one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, Campaign
from tests.sites.fakes import install

UUIDS = ["GPU-aaaaaaaa", "GPU-bbbbbbbb"]


@pytest.fixture
def machine(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """The environment of a machine with two devices and MPS, and where calls of MPS are recorded."""
    programs, record = install(tmp_path, UUIDS)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0,1"}, record


def calls(record: Path) -> list[str]:
    return [line.split()[0] for line in record.read_text().splitlines()] if record.exists() else []


@pytest.mark.slow
def test_segments_run_on_every_device_and_mps_ends_with_the_campaign(
    campaign: Callable[..., Campaign], machine: tuple[dict[str, str], Path]
) -> None:
    env, record = machine
    flags = ("--segments-per-device", "2", "--walkers", "3", "--bundle", "1", "--max-segments", "40")
    run = campaign(*flags, "--policy", "plain", "--infer-every", "0", env=env)
    assert run.wait() == 0, run.err
    devices = {line["task_info"]["device"] for line in run.traces("simulation")}
    assert devices == set(UUIDS)
    # The platform is none of a GPU's here, and whoever asked for devices is told so.
    assert "--segments-per-device 2: OpenMM's platform Reference uses no device" in run.out
    assert "--walkers 3 keeps only 3 of 4 workers busy: give 8" in run.out
    assert "(2 segments at once by MPS)" in (run.run_dir / "runtime.log").read_text()
    assert calls(record)[0] == "-d"
    (folder,) = {line.split()[-1] for line in record.read_text().splitlines()}
    assert not Path(folder).exists()


@pytest.mark.slow
def test_mps_ends_though_the_campaign_is_killed(
    campaign: Callable[..., Campaign], machine: tuple[dict[str, str], Path]
) -> None:
    env, record = machine
    run = campaign("--segments-per-device", "2", "--max-minutes", "5", env=env)
    run_id = run.run_id
    run.until_segments(4)
    daemon = [process for process in run.processes(run_id) if process.name() == "sleep"]
    assert len(daemon) == 1
    run.process.kill()
    run.wait()
    daemon[0].wait(10)
    assert calls(record).count("-d") == 1


@pytest.mark.parametrize("verb", ["start", pytest.param("probe", marks=pytest.mark.slow)])
def test_without_devices_segments_on_them_are_refused(tmp_path: Path, verb: str) -> None:
    flags = [] if verb == "probe" else ["--run-dir", str(tmp_path / "run")]
    ended = subprocess.run(
        [sys.executable, "run.py", verb, "--segments-per-device", "2", *flags],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "wayfinder: --segments-per-device 2: site local has no device; drop it, or name a site that has some with "
        "--simulate-site\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_probe_says_that_devices_are_shared_without_mps(machine: tuple[dict[str, str], Path]) -> None:
    env, record = machine
    (record.parent / "programs" / "nvidia-cuda-mps-control").unlink()
    command = [sys.executable, "run.py", "probe", "--json", "--segments-per-device", "2"]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    device = json.loads(ended.stdout)["cpu"]["device"]
    assert device in {f"device {uuid} (2 segments at once in turns, without MPS)" for uuid in UUIDS}


@pytest.mark.gpu
def test_two_segments_run_at_once_on_a_real_device(campaign: Callable[..., Campaign]) -> None:
    flags = ("--platform", "CUDA", "--segments-per-device", "2", "--system", "chignolin", "--segment-ps", "20")
    run = campaign(*flags, "--walkers", "8", "--max-segments", "16", "--retrain-every", "8", "--first-epochs", "2")
    assert run.wait() == 0, run.err
    lines = run.traces("simulation")
    assert all(line["task_info"]["device"].startswith("GPU-") for line in lines)
    on_one = [line["timestamp"] for line in lines if line["task_info"]["device"] == lines[0]["task_info"]["device"]]
    began, ended = ([times[f"compute_{name}"] for times in on_one] for name in ("started", "ended"))
    assert any(a < b < c for a, c in zip(began, ended, strict=True) for b in began), "no two ran at once on a device"
