"""The command line, generated from `Settings`: verbs, flags, ``--config`` and their help."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Literal, get_args

from pydantic.fields import FieldInfo

from campaign.configfile import read_config
from campaign.flags import (
    choices,
    core_type,
    flag,
    from_text,
    n_values,
    note,
    opposite,
    repeats,
    several,
    shown,
    unknown,
    wanted,
)
from campaign.looking import (
    TAKEN,
    Export,
    Watch,
    add_export_flags,
    add_report_flags,
    add_watch_flags,
    export_of,
    watch_of,
)
from campaign.settings import FORCE_FIELDS, GROUPS, MOLECULE, SOLVENT, Settings
from campaign.sweep import read_table
from policies import measure
from tasks.errors import BadInput

Verb = Literal["start", "resume", "rerun", "status", "gather", "report", "watch", "export", "probe"]

# These are about a campaign that is there already, whose directory comes first.
_OF_A_RUN: frozenset[Verb] = frozenset({"resume", "rerun", "status", "gather", "report", "watch", "export"})

# These take no settings.
_ONLY_LOOK = _OF_A_RUN - {"resume"}

_PURPOSE: dict[Verb, str] = {
    "start": "Run a campaign: dynamics that a model steers while it learns from them.",
    "resume": "Go on with a campaign, whatever ended it; limits and sites may be others.",
    "rerun": "Let segments that were given up run again, when the campaign is resumed.",
    "status": "Tell how a campaign stands, or all campaigns in a folder, and change nothing.",
    "gather": "Bring what a campaign left on this host's scratch into its directory, and check its archives.",
    "report": "Write a page with all that is to be seen of a campaign, or a comparison of several.",
    "watch": "Follow a campaign while it runs, on a page or in the terminal; it does not notice.",
    "export": "Write what other programs need to read a campaign, and change nothing in it.",
    "probe": "Ask every executor for its versions, devices and free disk, and send no work.",
}


_CALL: dict[Verb, str] = {
    "start": "[start]", "resume": "resume RUN", "rerun": "rerun RUN", "status": "status RUN", "gather": "gather RUN",
    "report": "report RUN [RUN ...]", "watch": "watch RUN", "export": "export RUN",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Command:
    """What the user asked for.

    Attributes
    ----------
    run_dir
        Directory of the run as it was given; None to have one made in ``runs/``.
    json
        Whether the answer is to be JSON.
    dry_run
        Whether to say what a start would take, and start nothing.
    run
        The campaign that a verb is about, or a folder of several.
    others
        Further campaigns that it is compared with.
    flags
        Settings that were given for a campaign that is there already.
    segments
        Of these only.
    out
        The file that a report is written to; None for the one in the run's directory.
    export, watch
        What is to be written of the campaign, how it is to be followed.
    sweep
        The text of a table of flag values, each of whose rows is a campaign.
    several
        These campaigns, by their names.
    """

    verb: Verb
    settings: Settings | None = None
    run_dir: Path | None = None
    json: bool = False
    dry_run: bool = False
    run: Path | None = None
    others: tuple[Path, ...] = ()
    flags: Mapping[str, object] = field(default_factory=dict)
    segments: tuple[int, ...] = ()
    out: Path | None = None
    export: Export | None = None
    watch: Watch | None = None
    sweep: str | None = None
    several: Mapping[str, Settings] = field(default_factory=dict)

    @property
    def campaign(self) -> Settings:
        """The settings of a new campaign."""
        assert self.settings is not None  # as every verb has them that begins one
        return self.settings

    @property
    def named(self) -> Path:
        """The campaign that is there already."""
        assert self.run is not None  # as every verb has one that is about it
        return self.run


# What flags take that are no settings and take no path.
_TAKEN = {"--segment": "the id of a segment", **TAKEN}

# Other words for a setting.
_ALIASES = {"min_free_mb": ("--min-free",)}


class _Switch(argparse.Action):
    """A boolean with a flag for yes and a flag for no, so that the command line can undo a configuration file."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def parse(argv: Sequence[str]) -> Command:
    """Return the command that the arguments (without the program's name) ask for.

    A flag overrides the configuration file, which overrides the default. Reads no file but that one. ``--help``
    prints and exits with 0.

    Raises
    ------
    BadInput
        For anything that cannot be used, in one sentence.
    """
    verb, rest = _split_verb(argv)
    run, rest = _split_run(verb, rest)
    others, rest = _split_others(verb, rest)
    given = _read_flags(verb, rest)
    if run is not None:
        return _about_a_run(verb, run, others, given)
    if "sweep" in given:
        return _sweep(given)
    run_dir = given.pop("run_dir", None)
    as_json, dry_run = bool(given.pop("json", False)), bool(given.pop("dry_run", False))
    if verb == "start" and as_json and not dry_run:
        raise BadInput(
            "--json is how --dry-run answers, and a campaign leaves summary.json: add --dry-run or drop it"
        )
    if run_dir == "":
        raise BadInput("--run-dir '' names no directory: give the path of one that does not exist yet")
    return Command(verb, _settings(given), Path(run_dir) if isinstance(run_dir, str) else None, as_json, dry_run)


def _sweep(given: dict[str, object]) -> Command:
    """Return the command to start a campaign for each row of a table; what is on the command line is for all."""
    file = Path(str(given["sweep"]))
    for name in ("dry_run", "json"):
        if given.get(name):
            raise BadInput(f"{flag(name)} is about one campaign and --sweep starts several: give one of them")
    several: dict[str, Settings] = {}
    table, run_dir = read_table(file), given.get("run_dir")
    common = {name: value for name, value in given.items() if name not in ("sweep", "run_dir")}
    for row in table.rows:
        try:
            # A row wins, also where a flag may be repeated.
            settings = several[row.name] = _settings({**common, **_read_flags("start", row.words)})
        except BadInput as error:
            raise BadInput(f"--sweep {shown(file)}, campaign {row.name}: {error}") from error
        if settings.control:
            raise BadInput(
                f"--sweep {shown(file)}, campaign {row.name} would have a control run: add --no-control, and a row "
                "with the policy plain"
            )
    return Command("start", run_dir=Path(str(run_dir)) if run_dir else None, sweep=table.text, several=several)


def _split_verb(argv: Sequence[str]) -> tuple[Verb, Sequence[str]]:
    if not argv or argv[0].startswith("-"):
        return "start", argv
    for verb in get_args(Verb):
        if argv[0] == verb:
            return verb, argv[1:]
    *verbs, last = get_args(Verb)
    raise BadInput(f"{shown(argv[0])} is no verb: give {', '.join(verbs)} or {last}, or flags only")


def _split_run(verb: Verb, argv: Sequence[str]) -> tuple[Path | None, Sequence[str]]:
    if verb not in _OF_A_RUN or "-h" in argv or "--help" in argv:
        return None, argv
    if not argv or argv[0].startswith("-"):
        raise BadInput(f"{verb} is about a campaign and none is named: give its run directory after the verb")
    return Path(argv[0]).absolute(), argv[1:]


def _split_others(verb: Verb, argv: Sequence[str]) -> tuple[tuple[Path, ...], Sequence[str]]:
    """Return the further campaigns of a verb that compares, and what is left."""
    if verb != "report":
        return (), argv
    named = list(takewhile(lambda word: not word.startswith("-"), argv))
    return tuple(Path(word).absolute() for word in named), argv[len(named) :]


def _about_a_run(verb: Verb, run: Path, others: tuple[Path, ...], given: dict[str, object]) -> Command:
    as_json, failed = bool(given.pop("json", False)), bool(given.pop("failed", False))
    segments = given.pop("segment", [])
    assert isinstance(segments, list)
    if verb == "rerun" and failed == bool(segments):
        raise BadInput("rerun takes either --failed or --segment ID: give one of them")
    if verb == "export":
        return Command(verb, run=run, export=export_of(given))
    if verb == "watch":
        return Command(verb, run=run, watch=watch_of(given))
    if verb == "report":
        out = given.get("out")
        return Command(verb, run=run, others=others, out=Path(out).absolute() if isinstance(out, str) else None)
    flags = {name: _typed(name, value) for name, value in given.items()}
    return Command(verb, None, json=as_json, run=run, flags=flags, segments=tuple(map(_segment_id, segments)))


def _segment_id(text: str) -> int:
    if not text.isdecimal():
        raise BadInput(f"--segment {shown(text)} is no segment: give its id, a whole number from 0")
    return int(text)


def _read_flags(verb: Verb, argv: Sequence[str]) -> dict[str, object]:
    """Return what was given on the command line, by names; values are text, switches are booleans."""
    try:
        known, surplus = _parser(verb).parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise BadInput(_about_misuse(error, argv)) from None
    if surplus:
        raise BadInput(_about_surplus(surplus[0], verb))
    return vars(known)


def _about_misuse(error: argparse.ArgumentError, argv: Sequence[str]) -> str:
    """Return a sentence for what argparse itself can refuse: a flag without its value, a switch with one."""
    option = str(error.argument_name).split("/")[0]
    field = Settings.model_fields.get(option.strip("-").replace("-", "_"))
    if not error.message.startswith("expected"):
        return f"{option} takes no value ({error.message}): give the flag alone"
    taken = wanted(field) if field else _TAKEN.get(option, "a path")
    if field and n_values(field) > 1:
        return f"{option} lacks a value: give {taken}"
    follower = next((after for before, after in pairwise(argv) if before == option), None)
    if follower is None:
        return f"{option} has no value: give {taken}"
    return f"{option} has no value, for {shown(follower)} looks like a flag: give {taken}, or write {option}=VALUE"


def _about_surplus(argument: str, verb: Verb) -> str:
    if argument.startswith("--"):
        flags = [flag(name) for name in Settings.model_fields]
        return unknown(argument.split("=")[0], flags, f"to `python run.py {verb}`")
    return f"{shown(argument)} belongs to no flag: give the verb first and each value after its flag (see --help)"


def _settings(given: dict[str, object]) -> Settings:
    """Return the settings that flags and the configuration file among them say."""
    config = given.pop("config", None)
    flags = {name: _typed(name, value) for name, value in given.items()}
    if not isinstance(config, str):
        return Settings.model_validate(flags)
    file = Path(config)
    kept = {name: value for name, value in read_config(file).items() if name not in _overridden(flags)}
    values = {name: _typed(name, value) for name, value in kept.items()}
    return Settings.model_validate({**values, **flags}, context=dict.fromkeys(values, config))


def _overridden(flags: Mapping[str, object]) -> set[str]:
    """Return the settings on which the flags have the last word."""
    names = set(flags)
    if names & MOLECULE:
        # A molecule on the command line replaces the one in the file, however that was named.
        names |= MOLECULE
        if "sequence" not in flags:
            names.add("cap")
    if flags.keys() & FORCE_FIELDS:
        names |= SOLVENT | {"forcefield"}
    if "solvent" in flags:
        names |= SOLVENT
    if measure(str(flags.get("policy"))) is not None:
        names.add("novelty")
    return names


def _typed(name: str, value: object) -> object:
    """Return text as the number or words that a setting takes (YAML 1.1 reads 1e-3 as text), lists as tuples.

    Anything else is returned as it is.
    """
    field = Settings.model_fields.get(name)
    if field and repeats(field) and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return several(field, value)
    return from_text(field, value) if field and isinstance(value, str) else value


def _parser(verb: Verb) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        usage=f"python run.py {_CALL.get(verb, verb)} [FLAGS]",
        description=_PURPOSE[verb],
        epilog="Verbs: " + " ".join(f"{name}: {purpose}" for name, purpose in _PURPOSE.items()),
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    _add_general_flags(parser, verb)
    if verb in _ONLY_LOOK:
        return parser
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, setting in Settings.model_fields.items():
        _add_setting(groups[note(setting, "group")], name, setting)
    return parser


def _add_general_flags(parser: argparse.ArgumentParser, verb: Verb) -> None:
    general = parser.add_argument_group("general")
    general.add_argument("-h", "--help", action="help", help="show this help and exit")
    if verb == "rerun":
        general.add_argument("--segment", action="append", metavar="ID", help="this segment; may be repeated")
        general.add_argument("--failed", action="store_true", help="all tasks that were given up")
    if verb == "report":
        add_report_flags(general)
    if verb == "watch":
        add_watch_flags(general)
    if verb == "export":
        add_export_flags(general)
    if verb in ("start", "probe"):
        general.add_argument(
            "--config",
            metavar="FILE",
            help="YAML file (or params.json of a run) with any of the settings below; flags win",
        )
    if verb == "start":
        general.add_argument(
            "--run-dir", metavar="DIR", help="run directory, which must not exist (default: a new one in runs/)"
        )
        general.add_argument(
            "--sweep",
            metavar="FILE",
            help="CSV table of flag values: a campaign for each row, all over one set of workers, each with its own "
            "run directory in that of the sweep",
        )
        general.add_argument(
            "--dry-run",
            action="store_true",
            help="only say what the campaign would take: segments, bytes, wall time from a short timing",
        )
    if verb in ("start", "status", "probe"):
        general.add_argument(
            "--json", action="store_true", help=f"answer in JSON{' (with --dry-run)' if verb == 'start' else ''}"
        )


def _add_setting(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    # argparse expands % in help texts.
    text = f"{field.description} ({_default(field)})".replace("%", "%%")
    if core_type(field) is bool:
        group.add_argument(flag(name), opposite(name), dest=name, action=_Switch, nargs=0, help=text)
    elif n_values(field) > 1:
        names = tuple(note(field, "metavar").split())
        group.add_argument(flag(name), dest=name, metavar=names, nargs=n_values(field), help=text)
    else:
        action = "append" if repeats(field) else "store"
        names = (flag(name), *_ALIASES.get(name, ()))
        group.add_argument(*names, dest=name, action=action, metavar=_metavar(field), help=text)


def _metavar(field: FieldInfo) -> str:
    if words := choices(field):
        return "{" + ",".join(words) + "}"
    return note(field, "metavar") or ("N" if core_type(field) is int else "X")


def _default(field: FieldInfo) -> str:
    """Return a setting's unit and default: ``K; default: 300``."""
    text = f"default: {note(field, 'default') or _plainly(field.default)}"
    return "; ".join(filter(None, (note(field, "unit"), text)))


def _plainly(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.15g}" if isinstance(value, float) else str(value)
