import importlib
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import tasks
from sites import redis_server
from tasks.messages import ProbeSpec, StoreSpec
from tasks.probe import SHARING_VARIABLE, probe, source_digest
from tasks.transport import keys, ship

MD = ProbeSpec(role="md", platforms=("Reference",), stores=(), run_dir=None)
ML = ProbeSpec(role="ml", platforms=(), stores=(), run_dir=None)


# ---- where all is well


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        (MD, {"OpenMM", "MDAnalysis"}),
        (ML, {"torch", "scikit-learn", "MDAnalysis"}),
        (replace(ML, role="host"), set()),
    ],
    ids=["md", "ml", "host"],
)
def test_a_sound_executor_has_no_problems(
    tmp_path: Path, file_store: StoreSpec, redis_store: StoreSpec, spec: ProbeSpec, needed: set[str]
) -> None:
    stores = (file_store, redis_store, StoreSpec("inline", "inline"))
    report = probe(replace(spec, stores=stores, run_dir=str(tmp_path)))
    assert report.problems == ()
    shared = {"numpy", "proxystore", "colmena", "parsl"}
    assert set(report.versions) - {"wayfinder-tasks"} == needed | shared
    assert all(metadata.version(name) == version for name, version in report.versions.items())
    assert (report.host, report.python) == (platform.node(), platform.python_version())
    assert report.tasks_digest == source_digest()
    assert report.free_disk_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert ("Reference" in report.platforms) == (spec.role == "md")
    assert report.device


@pytest.mark.parametrize(
    ("environment", "device"),
    [
        ({}, "device GPU-a1"),
        ({SHARING_VARIABLE: "3"}, "device GPU-a1 (3 segments at once in turns, without MPS)"),
        ({SHARING_VARIABLE: "3", "CUDA_MPS_PIPE_DIRECTORY": "/p"}, "device GPU-a1 (3 segments at once by MPS)"),
    ],
)
def test_a_pinned_worker_says_its_device_and_how_it_is_shared(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], device: str
) -> None:
    for name, value in ({"CUDA_VISIBLE_DEVICES": "GPU-a1"} | environment).items():
        monkeypatch.setenv(name, value)
    assert probe(MD).device == device


def test_a_probe_leaves_nothing_behind(tmp_path: Path, file_store: StoreSpec, redis_store: StoreSpec) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    probe(replace(MD, stores=(file_store, redis_store), run_dir=str(run_dir)))
    assert len(keys(file_store)) == len(keys(redis_store)) == 0
    assert not list(run_dir.iterdir())


def test_a_probe_warms_what_the_tasks_import() -> None:
    script = (
        "import sys\n"
        "from tasks.messages import ProbeSpec\n"
        "from tasks.probe import probe\n"
        "report = probe(ProbeSpec('md', ('Reference',), (), None))\n"
        "assert not report.problems, report.problems\n"
        "print('tasks.simulate' in sys.modules, 'openmm' in sys.modules, 'torch' in sys.modules)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(tasks.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.stdout.split() == ["True", "True", "False"], answer.stderr


# ---- what would make work fail


def the_problem(spec: ProbeSpec) -> str:
    (problem,) = probe(spec).problems
    return problem


def test_stores_are_timed_where_somebody_asks_and_left_empty(file_store: StoreSpec, redis_store: StoreSpec) -> None:
    spec = replace(ML, role="host", stores=(file_store, redis_store, StoreSpec("inline", "inline")))
    assert probe(spec).stores == {}
    speeds = probe(replace(spec, bulk_bytes=100_000)).stores
    assert {name: speed.kind for name, speed in speeds.items()} == {
        file_store.name: "file",
        redis_store.name: "redis",
    }
    for speed in speeds.values():
        assert 0 < speed.round_trip_s < 5
        assert speed.bytes_per_s > 0
    assert keys(file_store) == keys(redis_store) == []


def test_an_unknown_platform_is_told_with_those_that_are_there() -> None:
    assert the_problem(replace(MD, platforms=("Abacus",))).startswith(
        "OpenMM platform Abacus is not there, only Reference"
    )


def test_a_run_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    # Below a file, where not even root writes.
    (tmp_path / "file").touch()
    spec = replace(MD, run_dir=str(tmp_path / "file" / "run"))
    assert "file/run cannot be written: " in the_problem(spec)
    assert probe(spec).free_disk_bytes == 0


def test_a_run_directory_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    assert "absent cannot be written: " in the_problem(replace(ML, role="host", run_dir=str(tmp_path / "absent")))
    assert not (tmp_path / "absent").exists()


def test_a_dead_redis_is_told(tmp_path: Path, file_store: StoreSpec) -> None:
    server = redis_server.start(None, tmp_path / "redis.log")
    dead = StoreSpec("dead", "redis", (("hostname", server.host), ("port", str(server.port))))
    server.stop()
    problem = the_problem(replace(MD, stores=(file_store, dead)))
    assert problem.startswith("store dead (redis) cannot be used: store dead (redis) does not answer: ")
    assert f"127.0.0.1:{server.port}" in problem


def test_a_file_store_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = StoreSpec("below", "file", (("store_dir", str(tmp_path / "file" / "store")),))
    assert the_problem(replace(ML, role="host", stores=(store,))).startswith("store below (file) cannot be used: ")


def test_a_store_of_the_same_name_that_is_another_is_told(tmp_path: Path, file_store: StoreSpec) -> None:
    left = ship({"probe": np.zeros(1)}, file_store)
    assert probe(replace(ML, role="host", left=(left,))).problems == ()
    # As on a host that has a folder of its own under that path.
    shutil.rmtree(dict(file_store.options)["store_dir"])
    problem = the_problem(replace(ML, role="host", left=(left,)))
    assert problem.startswith(f"store {file_store.name} (file) lacks here what the campaign's host put there (")
    assert problem.endswith("name a folder or server that both see, or another backend")


def test_a_globus_store_without_endpoints_is_told() -> None:
    problem = the_problem(replace(ML, role="host", stores=(StoreSpec("far", "globus", (("endpoints", "{}"),)),)))
    assert problem.startswith("store far (globus) cannot be used: the Globus store cannot be opened: ")


@pytest.mark.parametrize(("spec", "module", "name"), [(ML, "torch", "torch"), (MD, "openmm", "OpenMM")])
def test_a_missing_library_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: ProbeSpec, module: str, name: str
) -> None:
    # None is how Python itself marks a module that must not be imported; what looks for it there comes before.
    importlib.import_module("sklearn.neighbors")
    monkeypatch.setitem(sys.modules, module, None)
    report = probe(spec)
    assert report.problems[0].startswith(f"{name} is missing: ")
    assert "install the wayfinder-tasks wheel with its extras" in report.problems[0]
    assert name not in report.versions
    assert report.device.startswith("cpu")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "x")
    report = probe(
        replace(MD, platforms=("Abacus",), stores=(StoreSpec("s", "file", (("store_dir", below),)),), run_dir=below)
    )
    assert [problem.split()[0] for problem in report.problems] == ["OpenMM", "store", "run"]


# ---- the digest


def digest_of(package: Path) -> str:
    """Return the digest that the probe of a copied package computes."""
    spec = importlib.util.spec_from_file_location("copied_probe", package / "probe.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    return copied.source_digest()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return shutil.copytree(Path(tasks.__file__).parent, tmp_path / "elsewhere" / "tasks")


def test_equal_sources_have_equal_digests_anywhere(package: Path) -> None:
    assert digest_of(package) == source_digest()
    # What Python and editors leave does not count.
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    (package / "notes.txt").write_text("x")
    assert digest_of(package) == source_digest()


@pytest.mark.parametrize(
    "change",
    [
        lambda package: (package / "aae.py").write_bytes((package / "aae.py").read_bytes() + b"#"),
        lambda package: (package / "novelty.py").rename(package / "newness.py"),
        lambda package: (package / "novelty.py").unlink(),
        lambda package: (package / "new.py").touch(),
    ],
    ids=["edited", "renamed", "removed", "added"],
)
def test_other_sources_have_another_digest(package: Path, change: Callable[[Path], object]) -> None:
    change(package)
    assert digest_of(package) != source_digest()
