"""Labs for a command: what is asked for and filled in, and that a lab is taken down; none is really brought up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.sites.lab import LABS, USAGE, Kind, Lab, fill, main, parse


def test_a_lab_and_a_command_are_told_apart() -> None:
    kind, command = parse(["slurm", "--", "python", "-m", "benchmarks.sites", "--", "--site"])
    assert kind is LABS["slurm"]
    assert command == ["python", "-m", "benchmarks.sites", "--", "--site"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "name a lab and a command: two-hosts|slurm|globus -- COMMAND..."),
        (["slurm", "--"], "name a lab and a command"),
        (["slurm", "true"], "name a lab and a command"),
        (["pbs", "--", "true"], "name a lab and a command"),
        (["slurm", "--", "echo", "{endpoint}"], "{endpoint} is filled in by the lab globus, not by slurm"),
    ],
)
def test_what_is_no_use_is_refused_in_a_sentence(argv: list[str], sentence: str, capsys) -> None:
    assert main(argv) == USAGE
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.splitlines()) == 1


def test_words_are_filled_in() -> None:
    words = {"near": "ip netns exec it", "ssh_init": "export PATH=/x:$PATH", "cable_down": "ip link set c down"}
    command = ["{near}", "python", "--ssh-init", "{ssh_init}", "--down", "{cable_down}", "{near} true", "${HOME} {x}"]
    assert fill(command, words) == [
        *("ip", "netns", "exec", "it", "python", "--ssh-init", "export PATH=/x:$PATH"),
        *("--down", "ip link set c down", "ip netns exec it true", "${HOME} {x}"),
    ]


EXITS = "import os, sys; sys.exit(int(os.environ['CODE']) + int(sys.argv[1]))"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ((sys.executable, "-c", EXITS, "{more}"), 7),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("no-such-program",), USAGE),
    ],
)
def test_the_exit_code_is_the_commands_and_the_lab_is_taken_down(command: tuple[str, ...], code: int) -> None:
    events = []

    @contextmanager
    def make() -> Iterator[Lab]:
        events.append("up")
        try:
            yield Lab({"more": "4"}, {"CODE": "3"})
        finally:
            events.append("down")

    assert main(["it", "--", *command], {"it": Kind(make, frozenset({"more"}))}) == code
    assert events == ["up", "down"]
