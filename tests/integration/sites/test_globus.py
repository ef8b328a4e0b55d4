"""Learning through Globus Compute: real SDK and endpoint against a stand-in service, with a real RabbitMQ between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Campaign
from tests.integration.sites.conftest import listens, need
from tests.integration.sites.globuslab import PACKAGES, PROGRAMS, SERVICE_PORT, GlobusCompute, own_globus_compute

Start = Callable[..., Campaign]

NOBODYS = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def service() -> Iterator[GlobusCompute]:
    need(*PROGRAMS, package=PACKAGES, requires="globus")
    if listens(SERVICE_PORT):
        pytest.skip(f"port {SERVICE_PORT}, where the SDK looks for a local service, is taken")
    with own_globus_compute() as made:
        yield made


def flags(endpoint: str, tmp_path: Path) -> tuple[str, ...]:
    """What sends learning there, with data in a folder that both sides see."""
    backends = [word for topic in ("simulate", "infer", "train") for word in (f"--{topic}-ps-backend", "file")]
    return ("--ml-endpoint", endpoint, *backends, "--ps-file-dir", str(tmp_path / "store"), "--no-control")


@pytest.mark.slow
def test_a_campaign_learns_on_an_endpoint_and_outlives_a_cut(
    campaign: Start, service: GlobusCompute, tmp_path: Path
) -> None:
    run = campaign(
        *flags(service.endpoint, tmp_path), "--max-segments", "150", "--min-segment-seconds", "0.2",
        "--retrain-every", "24", "--min-model-versions", "2", env=service.environment,
    )  # fmt: skip
    run.until_segments(20)
    running = "SELECT count(*) FROM attempt JOIN task ON task.id = task_id WHERE kind = 'train' AND outcome IS NULL"
    run.until(lambda: run.ask(running)[0][0] > 0, 60)
    service.cut()
    assert run.wait(200) == 0, run.err
    summary = run.summary()
    assert summary["segments"] >= 150
    assert summary["model_versions"] >= 2
    assert summary["steered_fraction"] > 0.3
    assert summary["failures"].keys() <= {"manager_lost"}
    assert {line["task_info"]["site"] for line in run.traces("training")} == {"globus-learn"}
    # Secrets of the service enter no file of ours.
    secret = service.environment["GLOBUS_COMPUTE_CLIENT_SECRET"].encode()
    assert not [path for path in run.run_dir.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_an_endpoint_that_cannot_be_used_is_refused_in_a_sentence(
    campaign: Start, service: GlobusCompute, tmp_path: Path
) -> None:
    for endpoint, sentence in (
        (NOBODYS, f"endpoint {NOBODYS}: Globus Compute does not know it: check the UUID"),
        ("gpubox", "endpoint 'gpubox' is not a UUID: take the one that `globus-compute-endpoint list` shows there"),
    ):
        run = campaign(*flags(endpoint, tmp_path), "--max-segments", "4", name=endpoint, env=service.environment)
        assert run.wait() == 2
        assert run.err.startswith(f"wayfinder: {sentence}")
        assert len(run.err.splitlines()) == 1
        assert not run.run_dir.exists()


@pytest.mark.slow
def test_nobody_logged_in_is_told(campaign: Start, service: GlobusCompute, tmp_path: Path) -> None:
    without = {name: value for name, value in service.environment.items() if "CLIENT" not in name}
    without["GLOBUS_COMPUTE_USER_DIR"] = str(tmp_path / "nobody")
    (tmp_path / "nobody").mkdir()
    run = campaign(*flags(service.endpoint, tmp_path), "--max-segments", "4", env=without)
    assert run.wait() == 2
    assert "nobody has logged in to Globus Compute here; run `globus-compute-endpoint login` once" in run.err
