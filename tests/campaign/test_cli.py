"""How the command line and the configuration file become settings."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from campaign.cli import Command, parse
from campaign.looking import Export, Watch
from campaign.settings import GROUPS, Settings
from tasks.errors import BadInput


@pytest.fixture
def config(tmp_path):
    """Write a configuration file and return its path."""

    def write(content: str | bytes) -> str:
        path = tmp_path / "config.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def refusal(*argv: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse(argv)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def help_text(capsys, monkeypatch):
    """Return the help of a verb, with each flag on one line."""
    monkeypatch.setenv("COLUMNS", "1000")

    def shown(*argv: str) -> str:
        with pytest.raises(SystemExit) as caught:
            parse([*argv, "--help"])
        assert caught.value.code == 0
        return re.sub(r"\n {10,}", "  ", capsys.readouterr().out)

    return shown


def test_no_arguments_start_the_demonstration():
    assert parse([]) == Command("start", Settings())


def test_start_is_implied():
    assert parse(["start", "--walkers", "3"]) == parse(["--walkers", "3"])


def test_run_dir_and_json_are_not_settings():
    command = parse(["--run-dir", "here/run"])
    assert (command.run_dir, command.json) == (Path("here/run"), False)
    dry = parse(["--dry-run", "--json"])
    assert (dry.verb, dry.dry_run, dry.json, command.dry_run) == ("start", True, True, False)
    assert dry.settings == command.settings
    probe = parse(["probe", "--json", "--walkers", "3"])
    assert (probe.verb, probe.json, probe.run_dir, probe.settings.walkers) == ("probe", True, None, 3)


def test_flag_wins_over_file_wins_over_default(config):
    path = config("walkers: 5\nlatent: 3\n")
    settings = parse(["--config", path, "--walkers", "7"]).settings
    assert (settings.walkers, settings.latent, settings.neighbours) == (7, 3, 10)


@pytest.mark.parametrize("key", ["max-segments", "max_segments"])
def test_keys_may_be_written_with_either_dash(config, key):
    assert parse(["--config", config(f"{key}: 5\n")]).settings.max_segments == 5


def test_switches_can_be_undone(config):
    path = config("lockstep: true\nno-retrain: true\nno-proxystore: true\ncontrol: true\n")
    on = parse(["--config", path]).settings
    assert (on.lockstep, on.no_retrain, on.no_proxystore, on.control) == (True, True, True, True)
    off = parse(["--config", path, "--no-lockstep", "--retrain", "--proxystore", "--no-control"]).settings
    assert (off.lockstep, off.no_retrain, off.no_proxystore, off.control) == (False, False, False, False)


def test_switches_stand_alone():
    settings = parse(["--lockstep", "--no-retrain", "--no-proxystore", "--sequence", "AA", "--cap"]).settings
    assert settings.lockstep
    assert settings.no_retrain
    assert settings.no_proxystore
    assert settings.cap
    assert parse(["--max-segments", "1", "--control"]).settings.control


def test_force_fields_are_given_with_commas_or_one_by_one(config):
    wanted = ("a.xml", "b.xml", "c.xml")
    assert parse(["--forcefield", "a.xml,b.xml", "--forcefield", "c.xml"]).settings.forcefield == wanted
    assert parse(["--config", config("forcefield: [a.xml, b.xml, c.xml]\n")]).settings.forcefield == wanted
    assert parse(["--config", config("forcefield: a.xml, b.xml, c.xml\n")]).settings.forcefield == wanted


def test_starting_structures_are_given_one_by_one(config):
    wanted = (Path("/a.pdb"), Path("/b,c.pdb"))
    assert parse(["--start", "/a.pdb", "--start", "/b,c.pdb"]).settings.start == wanted
    assert parse(["--config", config("start: [/a.pdb, '/b,c.pdb']\n")]).settings.start == wanted
    assert parse(["--config", config("start: /a.pdb\n")]).settings.start == wanted[:1]


def test_pairs_of_files_are_lists_in_files(config):
    path = config("gromacs: [/a.top, /b.gro]\nsolvent: explicit\n")
    assert parse(["--config", path]).settings.gromacs == (Path("/a.top"), Path("/b.gro"))
    other = parse(["--config", path, "--amber", "/p", "/c"]).settings
    assert (other.gromacs, other.amber, other.solvent) == (None, (Path("/p"), Path("/c")), None)


def test_another_solvent_on_the_command_line_replaces_the_water_in_the_file(config):
    path = config("solvent: explicit\npadding-nm: 2\npressure-bar: 0\n")
    assert parse(["--config", path, "--sequence", "AA"]).settings.padding_nm == 2
    dry = parse(["--config", path, "--solvent", "vacuum"]).settings
    assert (dry.solvent, dry.padding_nm, dry.pressure_bar, dry.equilibrate_ps) == ("vacuum", None, None, 0.0)
    assert parse(["--config", config("equilibrate-ps: 0\n"), "--solvent", "explicit"]).settings.equilibrate_ps == 20


def test_minimising_can_be_switched_off(config):
    assert parse([]).settings.minimise
    assert not parse(["--no-minimise"]).settings.minimise
    assert parse(["--config", config("minimise: false\n"), "--minimise"]).settings.minimise


def test_molecule_on_the_command_line_replaces_the_one_in_the_file(config):
    path = config("sequence: AAA\ncap: true\n")
    other = parse(["--config", path, "--system", "chignolin"]).settings
    assert (other.system, other.sequence, other.cap) == ("chignolin", None, False)
    longer = parse(["--config", path, "--sequence", "AAAAA"]).settings
    assert (longer.sequence, longer.cap) == ("AAAAA", True)


def test_policy_on_the_command_line_replaces_the_measure_in_the_file(config):
    path = config("policy: lof\nnovelty: lof\n")
    assert parse(["--config", path, "--policy", "least-counts"]).settings.novelty == "least-counts"
    assert parse(["--config", path, "--policy", "rmsd:x.pdb"]).settings.novelty == "lof"


@pytest.mark.parametrize("text", ["1e-3", "0.001", "'0.001'", ".001"])
def test_numbers_in_files_may_be_written_in_every_usual_way(config, text):
    assert parse(["--config", config(f"friction: {text}")]).settings.friction == 0.001


def test_file_without_settings_changes_nothing(config):
    assert parse(["--config", config("# nothing yet\n")]) == parse([])


def test_parsing_makes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse(["--run-dir", "run", "--ps-file-dir", "dump", "--pdb", "absent.pdb"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--policy", "plain"],
        ["--start", "a, b.pdb", "--start", "folder"],
        ["--amber", "a b.prmtop", "c.rst7", "--pressure-bar", "0"],
        ["--openmm-system", "s.xml", "s.pdb", "--features", "name CA and not resid 1:3"],
        ["--solvent", "explicit", "--forcefield", "amber14-all.xml,amber14/opc.xml"],
        ["--policy", "random", "--max-minutes", "1e-5"],
        ["--policy", "lof"],
        ["--policy", "rmsd:a file.pdb", "--novelty", "least-counts"],
        ["--sequence", "GYG", "--cap", "--no-retrain", "--friction", "1e-05"],
        ["--pdb", "caf\u00e9 \U0001f600/a:b #1.pdb", "--no-proxystore"],
        ["--queue", "redis", "--redishost", "h", "--redisport", "1", "--ps-file-dir", "x"],
        ["--simulate-ps-backend", "globus", "--ps-globus-config", "g.json", "--aae-weights", "w"],
    ],
)
def test_params_of_a_run_give_equal_settings(tmp_path, argv):
    settings = parse(argv).settings
    as_json, as_yaml = tmp_path / "params.json", tmp_path / "params.yaml"
    as_json.write_text(json.dumps(settings.as_config(), indent=2))
    as_yaml.write_text(yaml.safe_dump(settings.as_config(), allow_unicode=True), encoding="utf-8")
    assert parse(["--config", str(as_json)]).settings == settings
    assert parse(["--config", str(as_yaml)]).settings == settings


def test_help_shows_each_flag_under_its_title_with_default_and_unit(help_text):
    sections = dict(zip(GROUPS, re.split(rf"\n(?:{'|'.join(GROUPS)}):\n", help_text())[1:], strict=True))
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        lines = sections[extra["group"]].splitlines()
        (line,) = (line for line in lines if re.match(rf"  --{name.replace('_', '-')}\b(?!-)", line))
        unit = f"{extra['unit']}; " if extra["unit"] else ""
        assert f"{field.description} ({unit}default: " in line
        assert line.endswith(")")


@pytest.mark.parametrize(
    "fragment",
    [
        "(K; default: 300)",
        "(ps; default: 0.25)",
        "(bytes; default: 100000)",
        "(ns; default: none; 1 if no limit is set)",
        "to build, in one-letter codes (default: none)",
        "on the ends of --sequence (default: off)",
        "{aae,pca}",
        "--policy {novelty,random,plain,least-counts,lof,weighted-ensemble,rmsd:FILE,MODULE:POLICY}",
        "--lockstep, --no-lockstep",
        "--no-retrain, --retrain",
        "--control, --no-control",
    ],
)
def test_help_shows_defaults_as_people_write_them(help_text, fragment):
    assert fragment in help_text()


def test_an_export_is_of_a_run():
    command = parse(["export", "run", "--west-cfg"])
    assert (command.verb, command.run) == ("export", Path("run").absolute())
    assert command.export == Export(west_cfg=True)
    assert parse(["export", "run", "--west-cfg", "--out", "there"]).export.out == Path("there").absolute()
    assert parse(["export", "run", "--west-cfg", "--replica", "12"]).export.replica == 12


def test_exports_may_be_several():
    flags = ["--perfetto", "t.json", "--trajectory", "all.xtc", "--select", "protein", "--stride", "10"]
    asked = parse(["export", "run", *flags, "--mlflow", "mlruns"]).export
    assert asked == Export(
        perfetto=Path("t.json").absolute(), trajectory=Path("all.xtc").absolute(), select="protein", stride=10,
        mlflow="mlruns",
    )  # fmt: skip


def test_a_report_compares_runs():
    command = parse(["report", "one", "two", "--out", "both.html"])
    assert (command.run, command.others) == (Path("one").absolute(), (Path("two").absolute(),))
    assert command.out == Path("both.html").absolute()


def test_a_campaign_is_watched_on_a_page_or_in_the_terminal():
    assert parse(["watch", "run"]).watch == Watch()
    assert parse(["watch", "run", "--port", "8080"]).watch == Watch(port=8080)
    assert parse(["watch", "run", "--terminal"]).watch == Watch(terminal=True)


def test_help_of_each_verb_shows_what_only_it_takes(help_text):
    start, probe = help_text(), help_text("probe")
    assert "--run-dir" in start
    assert "--dry-run" in start
    assert "--dry-run" not in probe
    assert "--json" in probe
    assert "--run-dir" not in probe
    assert "probe" in start


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--walkers", "0"], ["--walkers 0", "at least 1"]),
        (["--walkers", "-3"], ["--walkers -3", "at least 1"]),
        (["--walkers", "four"], ["--walkers four", "a whole number"]),
        (["--walkers", "4.5"], ["--walkers 4.5", "a whole number"]),
        (["--walkers="], ["--walkers ''", "a whole number"]),
        (["--walkers"], ["--walkers has no value: give a whole number"]),
        (["--amber"], ["--amber lacks a value: give two paths (PRMTOP COORDS)"]),
        (["--amber", "x"], ["--amber lacks a value: give two paths (PRMTOP COORDS)"]),
        (["--amber=x"], ["--amber lacks a value"]),
        (["--gromacs", "x", "--cap"], ["--gromacs lacks a value: give two paths (TOP GRO)"]),
        (["--gromacs", "x", "y", "z"], ["z", "after its flag"]),
        (["--forcefield", ""], ["--forcefield", "words with commas"]),
        (["--temperature", "nan"], ["--temperature nan", "(K)"]),
        (["--temperature=-inf"], ["--temperature -inf", "(K)"]),
        (["--temperature", "-inf"], ["--temperature", "-inf", "(K)"]),
        (["--temperature", "--cap"], ["--temperature has no value", "--cap", "(K)"]),
        (
            ["--policy", "greedy"],
            ["--policy greedy", "least-counts, lof, weighted-ensemble, rmsd:FILE or MODULE:POLICY"],
        ),
        (["--system", "lysozyme"], ["--system lysozyme", "alanine-dipeptide, chignolin or double-well"]),
        (["--lockstep=yes"], ["--lockstep", "yes", "alone"]),
        (["--cap", "yes"], ["yes", "after its flag"]),
        (["--wakers", "3"], ["--wakers", "--walkers comes closest"]),
        (["--wal", "3"], ["--wal", "--help"]),
        (["--walkers", "3", "probe"], ["probe", "verb first"]),
        (["-q"], ["-q", "--help"]),
        (["resum"], ["resum", "start, resume, rerun, status, gather, report, watch, export or probe"]),
        (["export", "run"], ["--west-cfg"]),
        (["export", "--west-cfg"], ["export", "run directory"]),
        (["export", "run", "--west-cfg", "--out"], ["--out has no value: give a path"]),
        (["export", "run", "--west-cfg", "--replica"], ["--replica has no value: give the number of an ensemble"]),
        (["export", "run", "--west-cfg", "--replica", "-1"], ["--replica -1 is no ensemble: give its number"]),
        (["export", "run", "--west-cfg", "--replica", "1.5"], ["--replica 1.5 is no ensemble", "from 0"]),
        (["export", "run", "--stride", "10"], ["export is not told what to write", "--trajectory"]),
        (["export", "run", "--perfetto", "f", "--stride", "10"], ["--stride is about --trajectory", "drop --stride"]),
        (["export", "run", "--trajectory", "f", "--stride", "0"], ["--stride 0", "every tenth"]),
        (["watch"], ["watch", "run directory"]),
        (["watch", "run", "--port", "70000"], ["--port 70000", "65535"]),
        (["watch", "run", "--port", "http"], ["--port http is no port"]),
        (["watch", "run", "--terminal", "--port", "80"], ["--port", "--terminal"]),
        (["report"], ["report", "run directory"]),
        ([""], ["''", "start, resume, rerun, status, gather, report, watch, export or probe"]),
        (["--json"], ["--json", "--dry-run"]),
        (["probe", "--dry-run"], ["--dry-run", "`python run.py probe`"]),
        (["probe", "--run-dir", "x"], ["--run-dir", "`python run.py probe`"]),
        (["--run-dir", ""], ["--run-dir ''", "path"]),
        (["--run-dir"], ["--run-dir has no value", "path"]),
        (["--config", "/nowhere/c.yaml"], ["--config /nowhere/c.yaml", "No such file"]),
        (["--config", "/"], ["--config /", "Is a directory"]),
        (["--cap"], ["--cap", "--sequence"]),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(argv, named):
    sentence = refusal(*argv)
    for fragment in named:
        assert fragment in sentence


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("walkers: four", ["--walkers four", "a whole number of at least 1"]),
        ("walkers: true", ["--walkers True", "a whole number of at least 1"]),
        ("walkers: 4.5", ["--walkers 4.5", "a whole number of at least 1"]),
        ("walkers: [4]", ["--walkers [4] in", "a whole number of at least 1"]),
        ("walkers: {a: 4}", ["--walkers", "a whole number of at least 1"]),
        ("temperature: .nan", ["--temperature nan", "(K)"]),
        ("temperature: warm", ["--temperature warm", "(K)"]),
        ("lockstep: 1", ["--lockstep 1", "true or false"]),
        ("sequence: 12", ["--sequence 12", "text"]),
        ("wakers: 4", ["wakers", "walkers comes closest"]),
        ("run-dir: x", ["run_dir", "--help"]),
        ("5: 4", ["5", "--help"]),
    ],
)
def test_bad_settings_in_a_file_are_refused_with_its_name(config, content, named):
    path = config(content)
    sentence = refusal("--config", path)
    for fragment in [path, *named]:
        assert fragment in sentence


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("walkers: 4\nlatent: [3\n", ["(line 3: expected ',' or ']'"]),
        ("- walkers\n", ["`setting: value`"]),
        ("walkers", ["`setting: value`"]),
        ("[]", ["`setting: value`"]),
        ("walkers: 4\nwalkers: 5\n", ["walkers is given twice"]),
        ('{"walkers": 4, "walkers": 5}', ["walkers is given twice"]),
        ("no-retrain: true\nno_retrain: false\n", ["is given twice"]),
        ("walkers: !!python/object:os.system 4\n", ["line 1"]),
        ("when: 2024-13-45\n", ["month"]),
        (b"\xff\xfe\xfa", ["utf-8"]),
        ("a: \x07", ["special characters"]),
        ("[" * 100_000, ["recursion"]),
    ],
)
def test_files_that_hold_no_settings_are_refused(config, content, named):
    path = config(content)
    sentence = refusal("--config", path)
    for fragment in [f"--config {path}", *named]:
        assert fragment in sentence


def test_a_bad_flag_is_not_blamed_on_the_file(config):
    path = config("walkers: 5\n")
    assert path not in refusal("--config", path, "--walkers", "0")


WORDS = ["start", "probe", "--", "-x", "-1", "nan", "yes", "", "--cap", "--run-dir", "--json", "\n", "--config=/"]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(WORDS),
            st.text(max_size=5),
            st.sampled_from([f"--{name.replace('_', '-')}" for name in Settings.model_fields]),
        ),
        max_size=6,
    ).filter(lambda argv: not any(word.startswith("-h") for word in argv))
)
def test_any_arguments_give_a_command_or_a_sentence(argv):
    try:
        outcome = str(parse(argv).verb)
    except BadInput as error:
        outcome = str(error)
    assert len(outcome.splitlines()) == 1
