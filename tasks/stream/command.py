"""What ``python -m tasks.stream produce|consume`` does: frames from producers to consumers, whoever starts first.

Exit codes: 0 all frames came · 1 an end or a store failed, or frames are missing · 2 bad input, nothing left ·
130, 143 SIGINT, SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from tasks.errors import BadInput, TaskFailed
from tasks.stream.rank import Report, check, run_rank
from tasks.stream.ranks import end_with_parent, run_ranks
from tasks.stream.settings import Settings, add_flags, make, remove_empty, settings_of

_PROGRAM = "python -m tasks.stream"

# Added up over frames.
_SECONDS = {
    "produce": ("production", "writing", "waiting", "movement"),
    "consume": ("waiting", "movement", "analysis"),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}: see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Whoever starts a command in the background of a script would have it ignore this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        options = _parser().parse_args(words)
        settings = settings_of(options)
        _check_outputs(options)
        if options.rank_json is not None:
            end_with_parent()
        else:
            check(settings)
        made = make(settings.directories())
        code = 2
        try:
            code = _run(settings, options, words)
        finally:
            if code == 2:
                remove_empty(made)
        return code
    except BadInput as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(settings: Settings, options: argparse.Namespace, words: list[str]) -> int:
    if options.rank is None and settings.ranks > 1:
        reports, code = run_ranks(words, settings.ranks)
    else:
        report = Report(options.rank or 0)
        try:
            code = _run_one(settings, report)
        finally:
            if options.rank_json is not None:
                options.rank_json.write_text(json.dumps(asdict(report)))
        if options.rank_json is not None:
            return code
        reports = [asdict(report)]
    if code == 2:
        return code
    content = summed(settings, reports)
    told = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in content["seconds"].items())
    print(f"{content['frames']} frames, {content['bytes']} bytes: {told}", flush=True)
    if options.json is not None:
        _write(options.json, content)
    return code


def _run_one(settings: Settings, report: Report) -> int:
    try:
        run_rank(settings, report.rank, report, lambda line: print(line, flush=True))
    except TaskFailed as error:
        report.error = str(error)
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


def summed(settings: Settings, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the JSON file holds: all ranks, and their frames added up."""
    frames = [frame for report in reports for frame in report["frames"]]
    seconds = {name: sum(frame["seconds"].get(name, 0.0) for frame in frames) for name in _SECONDS[settings.command]}
    return {
        "schema": 1,
        **{name: getattr(settings, name) for name in ("command", "namespace", "backend", "storage")},
        **{name: getattr(settings, name) for name in ("num_frames", "num_atoms", "producers", "consumers")},
        "frames": len(frames),
        "bytes": sum(frame["bytes"] for frame in frames),
        **{name: sum(report[name] for report in reports) for name in ("lost", "damaged", "strangers")},
        "seconds": seconds,
        "ranks": list(reports),
    }


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=_PROGRAM,
        description="Producers write frames and consumers analyse each as soon as it is there, whoever starts first. "
        "Give both the same flags.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="produce|consume")
    for name, does in (("produce", "write frames"), ("consume", "wait for frames, move and analyse them")):
        command = commands.add_parser(name, help=does, description=parser.description)
        add_flags(command)
        command.add_argument(
            "--rank", type=int, metavar="K", help="be this one of them alone, as under srun (default: be all of them)"
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="write counts, bytes and seconds here")
        command.add_argument("--rank-json", type=Path, help=argparse.SUPPRESS)
    return parser


def _check_outputs(options: argparse.Namespace) -> None:
    n = options.producers if options.command == "produce" else options.consumers
    if options.rank is not None and not 0 <= options.rank < n:
        raise BadInput(f"--rank {options.rank} is none of the {n}: give 0 to {n - 1}")
    if options.json is not None and not os.access(options.json.absolute().parent, os.W_OK):
        raise BadInput(f"--json {options.json} cannot be written: name a file in a folder that is yours")


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, path)
