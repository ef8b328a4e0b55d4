"""The run directory: made whole or refused in a sentence, and never a word of the environment in it."""

import json
import os
import shutil
from pathlib import Path

import psutil
import pytest

from campaign.rundir import RunDirectory, host_info
from tasks.errors import BadInput
from tasks.systems import named_system, prepare


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refusal(named, runs, free_bytes=0) -> str:
    with pytest.raises(BadInput) as caught:
        RunDirectory.create(named, runs, "chignolin", free_bytes)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "--run-dir" in sentence
    return sentence


def test_a_named_directory_is_made_with_its_folders(tmp_path):
    run_dir = RunDirectory.create(tmp_path / "a" / "b", tmp_path / "runs", "chignolin", 0)
    assert run_dir.path == tmp_path / "a" / "b"
    assert everything_below(run_dir.path) == ["logs", "models", "trajectories"]
    assert not (tmp_path / "runs").exists()


def test_one_without_a_name_is_named_by_system_and_time(tmp_path):
    run_dir = RunDirectory.create(None, tmp_path / "runs", "chignolin", 0)
    assert run_dir.path.parent == tmp_path / "runs"
    assert run_dir.path.name.startswith("chignolin-2")
    assert run_dir.path.name.endswith(f"-{os.getpid()}")


def test_its_path_holds_wherever_workers_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RunDirectory.create(Path("here"), tmp_path, "s", 0).path == tmp_path / "here"


def test_an_existing_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("data")
    assert f"run directory {tmp_path / 'run'} exists already" in refusal(tmp_path / "run", tmp_path)
    assert everything_below(tmp_path) == ["run", "run/precious"]


@pytest.mark.parametrize("kind", ["file", "link to nowhere"])
def test_what_exists_and_is_no_directory_is_refused_and_left_alone(tmp_path, kind):
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("data")
    else:
        path.symlink_to(tmp_path / "nowhere")
    assert "exists already" in refusal(path, tmp_path)
    assert everything_below(tmp_path) == ["run"]


@pytest.mark.parametrize("below", ["run", "a/b/run"])
def test_a_path_below_a_file_is_refused_and_leaves_nothing(tmp_path, below):
    (tmp_path / "file").write_text("data")
    sentence = refusal(tmp_path / "file" / below, tmp_path)
    assert str(tmp_path / "file" / below) in sentence
    assert "Not a directory" in sentence
    assert everything_below(tmp_path) == ["file"]


def test_a_name_that_is_too_long_is_refused_and_leaves_nothing(tmp_path):
    assert "File name too long" in refusal(tmp_path / "new" / ("x" * 300), tmp_path)
    assert everything_below(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "Permission denied" in refusal(tmp_path / "closed" / "a" / "run", tmp_path)
    (tmp_path / "shut").mkdir(mode=0o000)
    assert "Permission denied" in refusal(tmp_path / "shut" / "run", tmp_path)


@pytest.mark.parametrize("call", ["exists", "mkdir"])
def test_what_the_system_refuses_is_a_sentence(tmp_path, monkeypatch, call):
    """As for a user without permission, which root does not meet."""
    real = getattr(Path, call)

    def denied(path, *args, **kwargs):
        if path.name == "models" or (call == "exists" and path.name == "run"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, call, denied)
    sentence = refusal(tmp_path / "a" / "run", tmp_path)
    monkeypatch.undo()
    assert "Permission denied" in sentence
    assert everything_below(tmp_path) == []


def test_a_disk_too_full_is_refused_and_leaves_nothing(tmp_path):
    total = shutil.disk_usage(tmp_path).total
    sentence = refusal(tmp_path / "a" / "b" / "run", tmp_path, free_bytes=2 * total)
    assert f"--min-free-mb asks for {2 * total / 1e6:.0f}" in sentence
    assert "MB free" in sentence
    assert everything_below(tmp_path) == []


def test_a_refusal_leaves_what_was_there_before(tmp_path):
    (tmp_path / "runs" / "earlier").mkdir(parents=True)
    refusal(None, tmp_path / "runs", free_bytes=2 * shutil.disk_usage(tmp_path).total)
    assert everything_below(tmp_path) == ["runs", "runs/earlier"]


@pytest.fixture(scope="module")
def prepared():
    return prepare(named_system("alanine-dipeptide"))


def test_inputs_are_written_and_params_can_be_read_back(tmp_path, prepared):
    run_dir = RunDirectory.create(tmp_path / "run", tmp_path, "s", 0)
    run_dir.write_inputs({"seed": 5, "max_ns": None}, prepared)
    assert json.loads((run_dir.path / "params.json").read_text()) == {"seed": 5, "max_ns": None}
    assert (run_dir.path / "topology.pdb").read_text() == prepared.topology_pdb
    assert run_dir.read_system().digest == prepared.digest
    assert json.loads((run_dir.path / "host_info.json").read_text())["cores"] == psutil.cpu_count()
    assert everything_below(run_dir.path) == [
        "host_info.json", "logs", "models", "params.json", "system.safetensors", "topology.pdb",
        "trajectories",
    ]  # fmt: skip


@pytest.mark.parametrize("length", [0, 4, 100, 5000])
def test_a_torn_system_is_refused(tmp_path, prepared, length):
    run_dir = RunDirectory.create(tmp_path / "run", tmp_path, "s", 0)
    run_dir.write_inputs({}, prepared)
    run_dir.system.write_bytes(run_dir.system.read_bytes()[:length])
    with pytest.raises(BadInput, match=r"system.safetensors is damaged .*: restore it from a copy"):
        run_dir.read_system()


def test_nothing_of_the_environment_is_written(tmp_path, monkeypatch, prepared):
    canary = "s3cret-c4nary-value"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", canary)
    monkeypatch.setenv("WAYFINDER_CANARY_NAME", "1")
    run_dir = RunDirectory.create(tmp_path / "run", tmp_path, "s", 0)
    run_dir.write_inputs({"seed": 5}, prepared)
    for path in run_dir.path.rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert canary not in text
            assert "WAYFINDER_CANARY_NAME" not in text
            assert "AWS_SECRET_ACCESS_KEY" not in text


def test_host_info_tells_machine_and_versions():
    told = host_info()
    assert set(told) == {"host", "system", "python", "cores", "memory_bytes", "versions"}
    assert told["memory_bytes"] > 10**8
    assert told["versions"]["numpy"][0].isdigit()
    assert {"colmena", "parsl", "proxystore", "OpenMM", "torch"} <= told["versions"].keys()


def test_json_is_replaced_whole(tmp_path):
    run_dir = RunDirectory.create(tmp_path / "run", tmp_path, "s", 0)
    run_dir.write_json("summary.json", {"status": "failed"})
    with pytest.raises(TypeError):
        run_dir.write_json("summary.json", {"status": object()})
    assert json.loads((run_dir.path / "summary.json").read_text()) == {"status": "failed"}
    run_dir.write_json("summary.json", {"status": "complete"})
    assert json.loads((run_dir.path / "summary.json").read_text()) == {"status": "complete"}
    assert everything_below(run_dir.path) == ["logs", "models", "summary.json", "trajectories"]


def test_paths_are_those_of_the_contract(tmp_path):
    run_dir = RunDirectory(tmp_path)
    assert run_dir.ledger == tmp_path / "ledger.sqlite"
    assert run_dir.log == tmp_path / "runtime.log"
    assert run_dir.proxystore.parent == tmp_path


def test_a_campaign_that_never_began_leaves_no_directory(tmp_path, prepared):
    run_dir = RunDirectory.create(tmp_path / "run", tmp_path, "s", 0)
    run_dir.write_inputs({}, prepared)
    run_dir.remove()
    assert everything_below(tmp_path) == []
    run_dir.remove()
