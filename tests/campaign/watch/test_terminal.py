"""The terminal has the essentials, and nothing that a name or an error could do to it."""

import re
import subprocess
import sys
import threading
from io import StringIO

import pytest
from rich.console import Console

from campaign.watch import terminal
from campaign.watch.following import Following
from tasks.errors import BadInput
from tests.campaign.watch.conftest import until
from tests.integration.conftest import ROOT

FOLLOW = """
import sys
from itertools import count
from pathlib import Path
from campaign.looking import Watch
from campaign.watch import follow
asked = count()
follow(Path(sys.argv[1]), Watch(terminal=True), lambda: next(asked) > 3)
"""


def shown(view):
    console = Console(width=120, record=True, file=StringIO())
    console.print(terminal._panel(view))
    return console.export_text(styles=True)


def test_a_line_tells_how_a_campaign_stands(run):
    run.write("simulate", *(run.segment(number) for number in range(6)))
    run.send(6)
    with run.held():
        told = terminal.line(Following(run.path).look())
    for words in ("running", "6/40 segments", "0.012 ns", "model 0", "0 failed attempts", "simulate@here 1/2"):
        assert words in told


def test_without_a_terminal_there_are_lines_until_the_campaign_has_ended(run, monkeypatch):
    said = []
    monkeypatch.setattr(terminal, "tell", said.append)
    monkeypatch.setattr(terminal, "_LINE_EVERY_S", 0.05)
    with run.held():
        thread = threading.Thread(target=terminal.show, args=(run.path, lambda: False))
        thread.start()
        until(lambda: len(said) >= 2)
        run.write("simulate", run.segment(0))
        run.end("complete")
    thread.join(20)
    assert not thread.is_alive()
    assert re.match(r" +\d+ s  running  0/40 segments", said[0])
    assert "complete  1/40 segments" in said[-1]


def test_it_ends_when_told_though_the_campaign_goes_on(run):
    with run.held():
        found = subprocess.run(
            [sys.executable, "-c", FOLLOW, str(run.path)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    assert found.returncode == 0, found.stderr
    assert "running" in found.stdout


def test_names_and_errors_are_no_markup_and_move_no_cursor(make):
    run = make()
    with run.ledger.transaction():
        run.ledger.set_meta("system", "[red]sys\x1b[2Jtem[/red]")
    run.segment(0, error="Error: [bold]no[/bold] \x1b]0;title\x07\x9b2J")
    view = Following(run.path).look()
    told = shown(view)
    assert "[bold]no[/bold]" in told
    assert "\x1b]0" not in told
    assert "\x1b[2J" not in told
    assert "\x9b" not in told
    assert terminal.line(view).isprintable()


def test_the_panel_has_the_essentials(run):
    run.write("simulate", *(run.segment(number) for number in range(6)))
    run.write("infer", run.inference(6, 17.0))
    run.send(7)
    with run.held():
        told = shown(Following(run.path).look())
    for words in ("6 of 40", "17 phi/psi cells", "1 of 2 busy", "50 %", "failed attempts"):
        assert words in told


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no run"):
        terminal.show(tmp_path, lambda: False)
