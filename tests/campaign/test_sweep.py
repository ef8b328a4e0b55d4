"""Tables of flag values, and what is refused in them."""

from pathlib import Path

import pytest

from campaign.cli import parse
from campaign.settings import Settings
from campaign.sweep import Row, read_table, refuse_differing
from tasks.errors import BadInput


@pytest.fixture
def table(tmp_path: Path):
    def write(text: str) -> Path:
        file = tmp_path / "table.csv"
        file.write_text(text)
        return file

    return write


def test_a_row_is_words_of_a_command_line(table):
    file = table(
        "name, seed, cap, features, start, amber, after-segment\n"
        'warm, 1, yes, name CA and resid 1:3, a.pdb "b c.pdb", top.prmtop in.rst7, m:f\n'
        "\n"
        ", 2, no, , , ,\n"
    )
    warm = ("--seed=1", "--cap", "--features=name CA and resid 1:3", "--start=a.pdb", "--start=b c.pdb")
    amber = ("--amber", "top.prmtop", "in.rst7", "--after-segment=m:f")
    assert read_table(file).rows == (Row("warm", (*warm, *amber)), Row("002", ("--seed=2", "--no-cap")))


def test_a_hook_is_a_cell_as_a_whole(table):
    file = table('after-segment\n"python analyse.py --fast"\n')
    assert read_table(file).rows[0].words == ("--after-segment=python analyse.py --fast",)


def test_a_row_wins_where_a_flag_may_be_repeated(table, tmp_path: Path):
    for name in "ab":
        (tmp_path / f"{name}.pdb").write_text("")
    file = table(f"name,start\nother,{tmp_path}/b.pdb\nsame,\n")
    command = parse(["--sweep", str(file), "--start", f"{tmp_path}/a.pdb", "--max-segments", "5"])
    assert {name: [path.name for path in its.start] for name, its in command.several.items()} == {
        "other": ["b.pdb"],
        "same": ["a.pdb"],
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed\n", "has no rows"),
        ("", "has no rows"),
        ("sead\n1\n", "'?sead'? is unknown as a column"),
        ("seed,seed\n1,2\n", "has column seed twice"),
        ("seed,policy\n1\n", "row 1 .* has 1 cells and there are 2 columns"),
        ("simulate-workers\n1\n", "column simulate-workers .* give --simulate-workers once, on the command line"),
        ("queue\nredis\n", "column queue .* is about workers"),
        ("name,seed\na,1\na,2\n", "has two campaigns called a"),
        ("name,seed\n../a,1\n", "cannot be that of a directory"),
        ("name,seed\nlogs,1\n", "cannot be that of a directory"),
        ("name,seed\nsweep.csv,1\n", "cannot be that of a directory"),
        ("name,seed\nledger.sqlite,1\n", "cannot be that of a directory"),
        ("cap\nperhaps\n", "is a switch, not perhaps"),
        ('start\n"a ""b"\n', "has a quote without its end"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_a_sentence(table, text, sentence):
    with pytest.raises(BadInput, match=sentence):
        read_table(table(text))


def test_a_missing_table_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="cannot be read .*: give a CSV file"):
        read_table(tmp_path / "none.csv")


def test_a_row_wins_over_what_is_said_for_all(table):
    file = table("name,seed,policy\na,7,plain\nb,,\n")
    command = parse(["start", "--sweep", str(file), "--seed", "3", "--max-segments", "5", "--run-dir", "sweep"])
    assert command.run_dir == Path("sweep")
    seeds = {name: (settings.seed, settings.policy) for name, settings in command.several.items()}
    assert seeds == {"a": (7, "plain"), "b": (3, "novelty")}
    assert {settings.max_segments for settings in command.several.values()} == {5}


def test_the_campaign_of_a_bad_value_is_named(table):
    file = table("name,walkers\ngood,2\nbad,none\n")
    with pytest.raises(BadInput, match=r"--sweep .*, campaign bad: --walkers none"):
        parse(["--sweep", str(file), "--max-segments", "5"])


@pytest.mark.parametrize("flag", ["--dry-run", "--json"])
def test_what_is_about_one_campaign_is_refused(table, flag):
    with pytest.raises(BadInput, match=f"{flag} is about one campaign"):
        parse(["--sweep", str(table("seed\n1\n")), flag])


def test_a_control_is_refused(table):
    with pytest.raises(BadInput, match="campaign 001 would have a control run: add --no-control"):
        parse(["--sweep", str(table("seed\n1\n"))])


def test_campaigns_that_differ_about_their_workers_are_refused():
    here, there = Settings(max_segments=1), Settings(max_segments=2, simulate_workers=3)
    refuse_differing({"a": here, "b": Settings(max_segments=9, seed=4)})
    with pytest.raises(BadInput, match="--simulate-workers is None in campaign a and 3 in b"):
        refuse_differing({"a": here, "b": there})
