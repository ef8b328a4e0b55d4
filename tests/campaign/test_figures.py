"""Which runs notebooks are about, and where their figures go."""

import os

import pytest

from campaign import figures
from campaign.ledger import Ledger
from tasks.errors import BadInput


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with two runs, of which ``new`` was written last."""
    monkeypatch.setattr(figures, "_ROOT", tmp_path)
    monkeypatch.delenv(figures.RUN_VARIABLE, raising=False)
    for age, name in enumerate(["new", "old"]):
        (tmp_path / "runs" / name).mkdir(parents=True)
        path = tmp_path / "runs" / name / "ledger.sqlite"
        Ledger(path).close()
        os.utime(path, (1000 - age, 1000 - age))
    return tmp_path


def names(named=""):
    return [run.name for run in figures.runs_of(named)]


def test_where_none_is_named_it_is_the_newest(checkout):
    assert names() == ["new"]


def test_what_the_notebook_names_goes_before_the_environment(checkout, monkeypatch):
    monkeypatch.setenv(figures.RUN_VARIABLE, str(checkout / "runs/old"))
    assert names() == ["old"]
    assert names("runs/new") == ["new"]


def test_several_are_separated_as_in_path(checkout):
    assert names(os.pathsep.join(["runs/old", str(checkout / "runs/new")])) == ["old", "new"]


def test_without_any_run_the_remedy_is_told(checkout):
    for name in ("old", "new"):
        (checkout / "runs" / name / "ledger.sqlite").unlink()
    with pytest.raises(BadInput, match="holds no run: start one, or name its directory in WAYFINDER_NOTEBOOK_RUN"):
        names()


def test_what_is_no_run_is_bad_input(checkout):
    with pytest.raises(BadInput, match="runs/none is no run"):
        names("runs/none")


def figure():
    from matplotlib.figure import Figure

    made = Figure()
    made.subplots().set(xlabel="time (ns)")
    return made


def test_figures_are_kept_nowhere_unless_that_is_wanted(tmp_path, monkeypatch):
    monkeypatch.delenv(figures.FIGURES_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    figures.save(figure(), "one")
    assert list(tmp_path.iterdir()) == []


def test_equal_figures_are_equal_files_whose_text_is_text(tmp_path, monkeypatch):
    import matplotlib as mpl

    contents = []
    with mpl.rc_context():
        figures.set_style()
        for name in ("first", "second"):
            monkeypatch.setenv(figures.FIGURES_VARIABLE, str(tmp_path / name))
            figures.save(figure(), "one")
            contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert contents[0].keys() == {"one.pdf", "one.svg"}
    assert b"time (ns)" in contents[0]["one.svg"]
    assert contents[0]["one.pdf"].startswith(b"%PDF")


def test_every_topic_has_its_colour():
    from campaign.trace_files import FILES

    assert len({figures.colour_of(topic) for topic in FILES}) == len(FILES)
