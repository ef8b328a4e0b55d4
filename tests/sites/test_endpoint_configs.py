"""The endpoint directories, rendered and built into the real objects of Globus Compute's endpoint."""

import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from globus_compute_endpoint.endpoint.config.utils import (
    load_config_yaml,
    load_user_config_schema,
    render_config_user_template,
)
from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity
from jsonschema import ValidationError
from parsl.launchers import MpiExecLauncher, SrunLauncher
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

CONFIGS = Path(__file__).parents[2] / "funcx-configs"


@pytest.fixture(autouse=True)
def interfaces(monkeypatch) -> None:
    """Give this machine the interfaces of a cluster's login node."""
    for module in ("parsl.addresses", "globus_compute_endpoint.endpoint.config.utils"):
        monkeypatch.setattr(f"{module}.address_by_interface", lambda ifname: "10.0.0.1", raising=False)


def engine_of(name: str, **given: Any) -> Any:
    """Return the engine of an endpoint for values that a user sends."""
    folder = CONFIGS / name
    core = load_config_yaml((folder / "config.yaml").read_text())
    assert core.display_name == f"wayfinder-{name}"
    schema = load_user_config_schema(folder / "user_config_schema.json")
    template = folder / "user_config_template.yaml.j2"
    identity = MappedPosixIdentity(pwd.getpwuid(os.getuid()), [], None)
    text = render_config_user_template(core, template.read_text(), template, identity, schema, given, {})
    return load_config_yaml(text).engine


def test_segments_run_on_pbs_nodes() -> None:
    executor = engine_of("simulate").executor
    provider = executor.provider
    assert isinstance(provider, PBSProProvider)
    assert isinstance(provider.launcher, MpiExecLauncher)
    assert (provider.nodes_per_block, provider.cpus_per_node, provider.walltime) == (2, 64, "01:00:00")
    assert (provider.min_blocks, provider.max_blocks) == (0, 1)
    assert executor.max_workers_per_node == 32
    assert engine_of("simulate", max_workers=8, walltime="00:30:00").executor.max_workers_per_node == 8


def test_learning_runs_here_by_itself_and_on_slurm_nodes_when_told() -> None:
    here = engine_of("ml").executor
    assert isinstance(here.provider, LocalProvider)
    assert list(here.available_accelerators) == []
    there = engine_of("ml", scheduler="slurm", devices=4, max_workers=4, account="m1234").executor
    assert isinstance(there.provider, SlurmProvider)
    assert isinstance(there.provider.launcher, SrunLauncher)
    assert there.provider.account == "m1234"
    assert len(there.available_accelerators) == there.max_workers_per_node == 4


@pytest.mark.parametrize("given", [{"walltime": "soon"}, {"max_workers": 0}, {"gpus": 4}])
@pytest.mark.parametrize("name", ["simulate", "ml"])
def test_values_that_mean_nothing_are_refused(name: str, given: dict[str, Any]) -> None:
    told = {"walltime": "soon", "max_workers": "0 is less", "gpus": "'gpus' was unexpected"}
    with pytest.raises(ValidationError, match=told[next(iter(given))]):
        engine_of(name, **given)
