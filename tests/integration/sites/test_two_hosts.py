"""Learning on a host from which nothing leads back: two network namespaces, a real sshd, and a cable to pull."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import Campaign, edited_checkout
from tests.integration.sites.conftest import (
    FarHost,
    assert_learnt,
    far_host,
    lines_of_ssh,
    running,
)

Start = Callable[..., Campaign]

LISTENER = """
import socket, sys
server = socket.create_server(("0.0.0.0", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_the_far_host_can_neither_dial_the_near_one_nor_see_its_files(hosts: FarHost, tmp_path) -> None:
    (tmp_path / "of-the-near-host").touch()
    with subprocess.Popen(
        [*hosts.near, "python3", "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdout is not None
        port = int(listener.stdout.readline())
        dial = f"import socket; socket.create_connection(('10.77.0.1', {port}), 3)"
        here = subprocess.run([*hosts.near, "python3", "-c", dial], capture_output=True)
        assert here.returncode == 0
        there = subprocess.run([*hosts.shell, f'python3 -c "{dial}"'], capture_output=True, text=True)
        assert there.returncode != 0
        assert "Error" in there.stderr
        listener.communicate("")
    seen = subprocess.run([*hosts.shell, f"ls {tmp_path}"], capture_output=True, text=True)
    assert seen.returncode != 0
    assert "No such file" in seen.stderr


def test_a_campaign_learns_where_nothing_leads_back(campaign: Start, hosts: FarHost) -> None:
    run = campaign(
        *hosts.host.flags, "--max-segments", "60", "--retrain-every", "16", "--min-model-versions", "1",
        "--no-control", on=hosts.near,
    )  # fmt: skip
    assert_learnt(run, on="gpubox")
    assert "gpubox" not in {line["worker_info"]["hostname"] for line in run.traces("simulation")}
    assert not list(hosts.host.folder.glob("work/**/certificates"))


@pytest.mark.slow
def test_a_campaign_learns_through_a_tunnel_that_the_user_opened(campaign: Start, hosts: FarHost) -> None:
    # Below those that kernels give away by themselves.
    ports, forwards = (19_201, 19_202), []
    for port in ports:
        forwards += ["-R", f"127.0.0.1:{port}:127.0.0.1:{port}"]
    by_hand = [*hosts.near, "ssh", "-F", str(hosts.host.config), "-N", *forwards, "gpubox"]
    with running(*by_hand) as tunnel:
        run = campaign(
            *hosts.host.flags, "--ssh-tunnel", "manual", "--ssh-port", str(ports[0]), "--redisport", str(ports[1]),
            "--max-segments", "40", "--retrain-every", "16", "--min-model-versions", "1", "--no-control",
            on=hosts.near,
        )  # fmt: skip
        assert run.wait() == 0, run.err
        assert tunnel.poll() is None
    assert {line["worker_info"]["hostname"] for line in run.traces("training")} == {"gpubox"}
    assert run.summary()["failures"] == {}


TWO_SITES = """
from pathlib import Path
from sites.site import SshAccess

def behind(name, config, store):
    access = SshAccess("gpubox", Path(config), "{init}", "{far}/work")
    return ssh_site(name, access, reaches=frozenset({{store, "inline"}}))

SITES["segments"] = lambda: behind("segments", "{segments}", "redis")
SITES["learning"] = lambda: behind("learning", "{learning}", "file")
"""


@pytest.mark.slow
def test_both_topics_run_elsewhere_and_neither_reaches_the_store_of_the_other(
    campaign: Start, hosts: FarHost, near: str, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "lab").mkdir()
    with far_host(tmp_path / "lab", near, 1, shared) as other:
        flags = hosts.host.flags
        sites = TWO_SITES.format(
            init=flags[flags.index("--ssh-init") + 1], far=hosts.host.far,
            segments=hosts.host.config, learning=other.host.config,
        )  # fmt: skip
        checkout = edited_checkout(tmp_path / "checkout", sites.replace("{", "{{").replace("}", "}}"))
        run = campaign(
            "--simulate-site", "segments", "--ml-site", "learning", "--simulate-ps-backend", "redis",
            "--infer-ps-backend", "file", "--train-ps-backend", "file", "--ps-file-dir", str(shared / "store"),
            "--max-segments", "60", "--retrain-every", "16", "--min-model-versions", "1", "--ps-threshold", "0",
            "--no-control", "--stream", "--min-segment-seconds", "0.5", on=hosts.near, checkout=checkout,
        )  # fmt: skip
        assert run.wait(200) == 0, run.err
    summary = run.summary()
    assert summary["failures"] == {}
    assert summary["steered_fraction"] > 0.3
    assert summary["proxies"]["left"] == 0
    assert {told["worker_info"]["hostname"] for told in run.traces("simulation")} == {"gpubox"}
    assert {told["worker_info"]["hostname"] for told in run.traces("training")} == {"gpubox1"}
    # News of batches through the tunnel, their bytes by `move`.
    assert {told["worker_info"]["hostname"] for told in run.traces("glance")} == {"gpubox1"}
    assert summary["stream"]["embedded"] > 20
    assert all(told["task_info"]["watched"]["fed"]["error"] is None for told in run.traces("simulation"))
    assert run.ask("SELECT count(*) FROM task WHERE kind = 'move' AND state = 'complete'")[0][0] > 0


TRANSFER_PORT = 54_210

NEAR, FAR = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


@pytest.mark.slow
def test_data_go_by_globus_between_hosts_that_share_no_directory(
    campaign: Start, hosts: FarHost, tmp_path: Path
) -> None:
    near, far = tmp_path / "near", hosts.host.folder / "store"
    roots = {NEAR: near, FAR: far}
    for root in roots.values():
        root.mkdir()
        (root / "the-users-own").write_text("kept")
    endpoints = {
        NEAR: {"host_regex": re.escape(socket.gethostname()), "endpoint_path": "/", "local_path": str(near)},
        FAR: {"host_regex": "gpubox", "endpoint_path": "/", "local_path": str(hosts.host.far / "store")},
    }
    config = tmp_path / "globus_config.json"
    config.write_text(json.dumps(endpoints))
    service = f"http://127.0.0.1:{TRANSFER_PORT}"
    environment = {
        "GLOBUS_SDK_SERVICE_URL_TRANSFER": service,
        "GLOBUS_SDK_SERVICE_URL_AUTH": service,
        "PROXYSTORE_GLOBUS_CLIENT_ID": NEAR,
        "PROXYSTORE_GLOBUS_CLIENT_SECRET": "a-secret-of-a-test",
    }
    standin = [sys.executable, str(Path(__file__).parent / "transfer_standin.py"), str(TRANSFER_PORT)]
    standin.append(json.dumps({name: str(root) for name, root in roots.items()}))
    # The far host reaches the service as it would the internet.
    internet = f"127.0.0.1:{TRANSFER_PORT}:127.0.0.1:{TRANSFER_PORT}"
    line = [*hosts.near, "ssh", "-F", str(hosts.host.config), "-N", "-R", internet, "gpubox"]
    flags = list(hosts.host.flags)
    # Flags are written down; what is secret lies in a file over there.
    mine = hosts.host.folder / "globus.sh"
    mine.write_text("\n".join(f"export {name}={value}" for name, value in environment.items()))
    flags[flags.index("--ssh-init") + 1] += f"; . {hosts.host.far}/globus.sh"
    backends = [word for topic in ("simulate", "infer", "train") for word in (f"--{topic}-ps-backend", "globus")]
    with running(*hosts.near, *standin, stderr=subprocess.DEVNULL), running(*line):
        run = campaign(
            *flags, *backends, "--ps-globus-config", str(config), "--ps-threshold", "0", "--max-segments", "24",
            "--retrain-every", "12", "--min-model-versions", "1", "--no-control", on=hosts.near, env=environment,
        )  # fmt: skip
        assert run.wait(200) == 0, run.err
    summary = run.summary()
    assert summary["failures"] == {}
    assert summary["model_versions"] >= 1
    assert {told["worker_info"]["hostname"] for told in run.traces("training")} == {"gpubox"}
    for root in roots.values():
        assert (root / "the-users-own").read_text() == "kept"
    secret = environment["PROXYSTORE_GLOBUS_CLIENT_SECRET"].encode()
    assert not [path for path in run.run_dir.rglob("*") if path.is_file() and secret in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_learning_outlives_a_blip_a_killed_ssh_and_a_dead_link(campaign: Start, hosts: FarHost) -> None:
    run = campaign(
        *hosts.host.flags, "--max-segments", "1200", "--min-segment-seconds", "0.15", "--retrain-every", "8",
        "--heartbeat-threshold-s", "8", "--no-control", on=hosts.near,
    )  # fmt: skip
    run.until_segments(1)
    run.until(lambda: trainings(run) >= 1, 120)

    begin_training(run)
    hosts.cable("down")
    time.sleep(3)
    hosts.cable("up")
    learns_again(run)
    assert lost(run) == 0  # a blip costs nobody an attempt

    begin_training(run)
    (line,) = lines_of_ssh(run.run_id)
    line.send_signal(signal.SIGKILL)
    learns_again(run)

    begin_training(run)
    hosts.cable("down")
    before = len(run.traces("simulation"))
    run.until(lambda: lost(run) > 0 and len(run.traces("simulation")) > before + 20, 60)
    hosts.cable("up")
    learns_again(run)

    assert run.wait(240) == 0, run.err
    summary = run.summary()
    assert summary["segments"] == 1200
    assert summary["failures"].keys() <= {"manager_lost", "worker_lost"}
    assert summary["proxies"]["left"] == 0


def trainings(run: Campaign) -> int:
    """How many are complete."""
    return int(run.ask("SELECT count(*) FROM task WHERE kind = 'train' AND state = 'complete'")[0][0])


def begin_training(run: Campaign) -> None:
    """Wait until one is running."""
    running = "SELECT count(*) FROM attempt JOIN task ON task.id = task_id WHERE kind = 'train' AND outcome IS NULL"
    run.until(lambda: run.ask(running)[0][0] > 0, 60)
    time.sleep(0.1)


def lost(run: Campaign) -> int:
    """How many attempts were lost with the far host's workers."""
    return int(run.ask("SELECT count(*) FROM attempt WHERE outcome IN ('manager_lost', 'worker_lost')")[0][0])


def learns_again(run: Campaign) -> None:
    """Wait for a training that began after now."""
    now = time.time()
    query = (
        "SELECT count(*) FROM attempt JOIN task ON task.id = task_id"
        f" WHERE kind = 'train' AND outcome = 'success' AND started > {now}"
    )
    run.until(lambda: run.ask(query)[0][0] > 0, 90)
