"""A run as one of MLflow's, read back by its own client."""

import json
import sys

import pytest

from campaign.export.mlflow import log_run
from campaign.trace import Run
from tasks.errors import BadInput
from tests.campaign.export.conftest import BEGAN


@pytest.fixture
def logged(eventful, told, tmp_path):
    """Log the run, and return a client and what it has of it."""
    (eventful / "models").mkdir()
    (eventful / "models" / "model-000001.pt").write_bytes(b"weights")
    (eventful / "report.html").write_text("<p>")
    (eventful / "summary.json").write_text(json.dumps({"schema": 1, "segments": 6, "sites": {"a@b": {"x": 0.5}}}))
    with told.ledger.transaction():
        told.ledger.set_meta("status", "complete")
        told.ledger.set_meta("campaign", "c1")
    log_run(Run(eventful), str(tmp_path / "mlruns"))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("wayfinder").experiment_id])
    return client, run


def history(logged, name):
    client, run = logged
    return sorted(
        (each.step, each.value, each.timestamp) for each in client.get_metric_history(run.info.run_id, name)
    )


def test_settings_are_parameters_and_what_it_is_are_tags(logged, eventful):
    _, run = logged
    assert run.data.params == {"system": "alanine-dipeptide", "policy": "novelty"}
    wanted = {"system": "alanine-dipeptide", "policy": "novelty", "status": "complete", "campaign": "c1"}
    assert {**wanted, "run_directory": str(eventful)}.items() <= run.data.tags.items()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "told"
    assert run.info.start_time == 1000 * (BEGAN - 5)


def test_coverage_is_a_series_by_inference(logged, eventful):
    frame = Run(eventful).inferences.reset_index()
    wanted = zip(frame.reference_number, frame.coverage, (1000 * frame.received).round(), strict=True)
    assert history(logged, "coverage") == list(wanted)


def test_losses_are_a_series_over_the_epochs_of_all_trainings(logged, eventful):
    losses = Run(eventful).losses
    for name in ("reconstruction", "critic"):
        assert [(step, value) for step, value, _ in history(logged, f"loss/{name}")] == list(
            enumerate(losses[name], 1)
        )
    assert [value for _, value, _ in history(logged, "model_version")] == losses.model_version.tolist()
    assert history(logged, "loss/critic")[-1][2] == round(1000 * (BEGAN + 8.7))


def test_the_summary_is_a_metric_for_each_number(logged):
    _, run = logged
    found = {name: value for name, value in run.data.metrics.items() if name.startswith("summary/")}
    assert found == {"summary/segments": 6, "summary/sites/a_b/x": 0.5}


def test_models_and_pages_are_artifacts(logged):
    client, run = logged
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert names == {"models", "params.json", "summary.json", "report.html"}
    assert [each.path for each in client.list_artifacts(run.info.run_id, "models")] == ["models/model-000001.pt"]


def test_a_run_that_died_is_no_finished_one(told, tmp_path):
    log_run(Run(told.path), str(tmp_path / "mlruns"))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("wayfinder").experiment_id])
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "died")


def test_a_server_that_is_not_there_is_refused_without_its_password(told):
    with pytest.raises(BadInput, match="http://127.0.0.1:9 cannot be used") as refused:
        log_run(Run(told.path), "http://me:secret-5f2c@127.0.0.1:9")
    assert "secret" not in str(refused.value)


def test_a_database_is_refused_and_no_folder_made(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="sqlite:///x.db cannot be used"):
        log_run(Run(told.path), "sqlite:///x.db")
    assert not (tmp_path / "sqlite:").exists()


def test_without_the_library_it_says_how_to_get_it(told, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", None)
    with pytest.raises(BadInput, match=r"pip install -c constraints.txt -e '.\[mlflow\]'"):
        log_run(Run(told.path), str(tmp_path / "mlruns"))
    assert not (tmp_path / "mlruns").exists()
