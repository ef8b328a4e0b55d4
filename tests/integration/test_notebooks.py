"""Every notebook, from top to bottom on runs that were made for it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.conftest import ROOT, Campaign

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))

# Figures of each on a run with learning and a control, by the labels of their axes.
LABELS = {
    "0-post-process": ["mean temperature of a segment (K)", "potential energy at the end (kJ/mol)"],
    "1-utilisation": [
        "time since the first task began (s)",
        "busy share of the workers",
        "wait between two attempts",
    ],
    "2-latency": [
        "median, and to the 95th percentile",
        "share of tasks that",
        "from result to next",
        "put into stores",
    ],
    "3-latent-and-coverage": ["model version", "cells visited", "φ (degrees)"],
    "4-weighted-ensemble": [],
    "5-compare-runs": ["cells visited", "site, topic", "share of segments that are shorter"],
    "6-markov-model": ["implied timescale (ps)", "state, along the slowest coordinate", "free energy (kT)"],
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(notebook: nbformat.NotebookNode, run: Path, folder: Path, **environment: str) -> nbformat.NotebookNode:
    env = {**os.environ, "WAYFINDER_NOTEBOOK_RUN": str(run), **environment}
    client = NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute(env=env)


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """What cells printed (``text``), or their figures (``image/svg+xml``)."""
    found = [each for cell in notebook.cells if cell.cell_type == "code" for each in cell.outputs]
    warned = [each.text for each in found if each.output_type == "stream" and each.name == "stderr"]
    assert not any("Warning" in text for text in warned), warned
    if kind == "text":
        return [each.text for each in found if each.output_type == "stream"]
    return [each.data[kind] for each in found if "data" in each and kind in each.data]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_without_what_it_showed(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "parameters" in code[0].metadata.tags
    assert 'RUN = ""' in code[0].source
    assert str(ROOT) not in json.dumps(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_on_a_campaign_with_learning(short_run, name, tmp_path):
    shown = execute(read(name), short_run.run_dir, FOLDER, WAYFINDER_NOTEBOOK_FIGURES=str(tmp_path / "figures"))
    figures = outputs(shown, "image/svg+xml")
    for label, figure in zip(LABELS[name], figures, strict=True):
        assert label in figure
    kept = sorted(path.name for path in (tmp_path / "figures").glob("*"))
    assert len(kept) == 2 * len(figures)
    assert all(each.startswith(name[0]) for each in kept)
    text = "".join(outputs(shown, "text"))
    assert str(short_run.run_dir) in text
    CHECKS.get(name, lambda *_: None)(text, short_run.summary(), short_run)


def rows(text: str) -> dict[str, list[str]]:
    """What is printed in tables, by the first word of a line."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def sound(text, summary, _):
    told = rows(text)
    assert told["segments"] == [str(summary["segments"])] * 2
    assert [float(each) for each in told["simulated_ns"]] == pytest.approx([summary["simulated_ns"]] * 2, rel=1e-4)
    assert [float(each) for each in told["coverage"]] == [summary["coverage"]["value"]] * 2
    assert "yes summary.json tells what the traces tell" in text
    assert "yes every segment's trajectory is here" in text
    assert "NO " not in text or summary["failures"]


def busy(text, summary, _):
    for topic, told in summary["worker_utilisation"]["local"].items():
        (line,) = [line for line in text.splitlines() if f" {topic} " in line]
        workers, share, theirs = map(float, line.split()[-3:])
        assert theirs == pytest.approx(told, abs=1e-4)
        # It counts workers that had nothing to do as well.
        slots = share * workers / theirs
        assert slots == pytest.approx(round(slots), rel=0.02)
        assert round(slots) >= workers


def in_parts(text, summary, _):
    ours, theirs = map(float, rows(text)["p50"])
    assert ours > 0
    assert theirs == pytest.approx(summary["decision_ms"]["p50"], abs=0.01)


def covered(text, summary, campaign):
    plain = json.loads((campaign.run_dir / "control/summary.json").read_text())
    assert f"this run: {summary['coverage']['value']:.0f} cells" in text
    assert f"plain control: {plain['coverage']['value']:.0f} cells" in text
    assert f"{summary['frames']} frames; 0 segments could not be read" in text


def compared(text, summary, campaign):
    plain = json.loads((campaign.run_dir / "control/summary.json").read_text())
    assert rows(text)["coverage"] == [str(summary["coverage"]["value"]), str(plain["coverage"]["value"])]
    assert rows(text)["policy"] == ["novelty", "plain"]


def no_ensemble(text, *_):
    assert "This campaign has no weighted ensemble" in text


def counted(text, summary, _):
    assert f"this run: {summary['segments']} segments in" in text
    # Of four walkers that carry on from segment to segment.
    assert f"plain control: {summary['segments']} segments in 4 stretches" in text
    shown = dict(re.findall(r"(this run|plain control): (\d+) states with", text))
    assert shown["this run"] == shown["plain control"]
    assert re.search(rf"Intervals of run and control meet in \d+ of {shown['this run']} states", text)


CHECKS = {
    "0-post-process": sound,
    "1-utilisation": busy,
    "2-latency": in_parts,
    "3-latent-and-coverage": covered,
    "4-weighted-ensemble": no_ensemble,
    "5-compare-runs": compared,
    "6-markov-model": counted,
}


def all_in_one() -> nbformat.NotebookNode:
    """All notebooks in a row, for one kernel that forgets all between them: its start takes longer than they do."""
    cells = []
    for name in NAMES:
        cells += [cell for cell in read(name).cells if cell.cell_type == "code"]
        cells.append(nbformat.v4.new_code_cell("%reset -f"))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return nbformat.v4.new_notebook(cells=cells)


def test_all_run_on_plain_dynamics(short_run):
    shown = execute(all_in_one(), short_run.run_dir / "control", ROOT)
    text = "".join(outputs(shown, "text"))
    assert "model version 0" in text
    assert "without a plain control" in text
    assert "yes summary.json tells what the traces tell" in text


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """A weighted ensemble of a particle in a double well, with a target so near that it has a rate."""
    run = Campaign(
        tmp_path_factory.mktemp("ensemble") / "run",
        *("--system", "double-well", "--policy", "weighted-ensemble", "--segment-ps", "0.5", "--frame-ps", "0.1"),
        *("--max-iterations", "30", "--bins", "rectilinear:-0.3,-0.25,-0.2,-0.1,0,0.1", "--target", "x > -0.23"),
        *("--seed", "3", "--bundle", "4"),
    )
    assert run.wait() == 0, run.err
    return run


def test_all_run_on_a_weighted_ensemble_of_a_double_well(ensemble):
    shown = execute(all_in_one(), ensemble.run_dir, ROOT)
    figures = outputs(shown, "image/svg+xml")
    text = "".join(outputs(shown, "text"))
    for label in ("weight of a walker", "flux into the target (1/ps)", "-ln of the density (kT)", "x (nm)"):
        assert any(label in figure for figure in figures), label
    told = ensemble.summary()["weighted_ensemble"]
    (rate,) = [line for line in text.splitlines() if line.startswith("rate:")]
    assert float(rate.split()[1]) == pytest.approx(told["rate_per_s"], rel=0.01)
    if told["rate_low_per_s"] is None:
        assert "too little flux for an interval" in rate
    else:
        low, high = rate.split("interval ")[1].split(")")[0].split(" to ")
        assert [float(low), float(high)] == pytest.approx([told["rate_low_per_s"], told["rate_high_per_s"]], rel=0.01)
    (deviation,) = [line for line in text.splitlines() if line.startswith("largest deviation")]
    assert float(deviation.split()[-1]) < 1e-12
    assert "Nothing was embedded yet" in text
    assert f"this run: {told_segments(ensemble)} segments in {told_segments(ensemble)} stretches" in text


def told_segments(campaign: Campaign) -> int:
    return int(campaign.summary()["segments"])


def test_all_run_where_nothing_happened_yet(tmp_path, short_run):
    """As of a campaign whose first segment is out."""
    from campaign.ledger import Ledger

    Ledger(tmp_path / "ledger.sqlite").close()
    for name in ("params.json", "system.safetensors", "topology.pdb"):
        (tmp_path / name).write_bytes((short_run.run_dir / name).read_bytes())
    text = "".join(outputs(execute(all_in_one(), tmp_path, ROOT), "text"))
    assert "There are no two frames in a row: nothing can be counted." in text
    assert "NO  the campaign ended in order" in text
