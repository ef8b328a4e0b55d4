"""Reports made at the end of campaigns, and what becomes of them otherwise."""

import time
from pathlib import Path

import psutil

from campaign.ledger import Ledger
from campaign.report.aside import report_aside
from campaign.trace_files import Traces


def begun(path: Path) -> Path:
    """A campaign that has decided nothing yet."""
    path.mkdir()
    ledger = Ledger(path / "ledger.sqlite")
    with ledger.transaction():
        ledger.set_meta("system", "alanine-dipeptide")
    ledger.close()
    Traces(path).close()
    return path


def test_a_campaign_without_a_segment_has_a_report(tmp_path: Path) -> None:
    runs = [begun(tmp_path / "one"), begun(tmp_path / "two")]
    told = report_aside(runs, lambda: False)
    assert told == f"report: {tmp_path / 'one' / 'report.html'}, {tmp_path / 'two' / 'report.html'}"
    for run in runs:
        page = (run / "report.html").read_text()
        assert "No task ran." in page
        assert "None of 0 attempts failed." in page


def test_what_cannot_be_reported_on_is_said_in_a_sentence(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run / "simulation-results.jsonl").write_text("no JSON\n{}\n")
    told = report_aside([run], lambda: False)
    assert told is not None
    assert told.startswith("report: run: ")
    assert "line 1, is no JSON" in told
    assert not (run / "report.html").exists()


def test_a_person_in_a_hurry_is_not_kept(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    ends = time.monotonic() + 0.3
    assert report_aside([run], lambda: time.monotonic() > ends) is None
    # Other tests of this process may have children of their own.
    assert not [child for child in psutil.Process().children() if "campaign.report" in child.cmdline()]
    assert not (run / "report.html").exists()
