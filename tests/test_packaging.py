"""The wheel that sites install holds `tasks` alone, and works on its own."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tasks.probe import source_digest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(ROOT / "tasks", source / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_tasks_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"tasks", "wayfinder_tasks-0.1.0.dist-info"}


def test_tasks_from_the_wheel_are_those_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    told = subprocess.run(
        [sys.executable, "-c", "import tasks.probe as p; print(p.__file__, p.source_digest())"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    file, digest = told.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert digest == source_digest()


def test_tasks_need_nothing_of_the_driver(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    paths = [path.relative_to(tmp_path).with_suffix("") for path in (tmp_path / "tasks").rglob("*.py")]
    modules = [".".join(path.parts) for path in paths if path.stem != "__init__"]
    code = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "driver = {'colmena', 'parsl', 'agents', 'campaign', 'policies', 'sites', 'config', 'run'}\n"
        "found = sorted(driver & set(sys.modules))\n"
        "sys.exit(' '.join(found) or 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
