"""Trace files: appended to in whole lines, by whoever writes."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from campaign.ledger import Ledger
from campaign.trace_files import FILES, Traces, mend_traces

CONTRACT = {
    "simulate": "simulation-results.jsonl",
    "infer": "inference-results.jsonl",
    "train": "training-results.jsonl",
}


def test_the_files_of_the_contract_are_there_from_the_start(tmp_path):
    with Traces(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == set(CONTRACT.values())
    assert CONTRACT.items() <= FILES.items()


def test_lines_go_to_the_file_of_their_topic_in_order(tmp_path):
    with Traces(tmp_path) as traces:
        for number in range(3):
            for topic in FILES:
                traces.write(topic, json.dumps({"topic": topic, "number": number}))
    for topic, name in FILES.items():
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert lines == [{"topic": topic, "number": number} for number in range(3)]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    with Traces(tmp_path) as traces:
        traces.write("simulate", "{}")
        assert (tmp_path / CONTRACT["simulate"]).read_text() == "{}\n"


def test_what_is_there_is_appended_to(tmp_path):
    for number in range(2):
        with Traces(tmp_path) as traces:
            traces.write("train", str(number))
    assert (tmp_path / CONTRACT["train"]).read_text() == "0\n1\n"


def test_an_unknown_topic_is_an_error(tmp_path):
    with Traces(tmp_path) as traces, pytest.raises(KeyError):
        traces.write("probe", "{}")


def test_files_are_closed(tmp_path):
    # Not all files of the process: what other tests left is closed whenever it is collected.
    def n_open() -> int:
        opened = psutil.Process().open_files()
        return sum(Path(file.path).parent == tmp_path for file in opened)

    with Traces(tmp_path) as traces:
        traces.write("move", "{}")
        assert n_open() == 4
    assert n_open() == 0


def test_threads_write_whole_lines(tmp_path):
    with Traces(tmp_path) as traces:

        def write(number):
            for _ in range(50):
                traces.write("simulate", json.dumps({"number": number, "filler": "x" * 20_000}))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    lines = [json.loads(line)["number"] for line in (tmp_path / CONTRACT["simulate"]).open()]
    assert sorted(lines) == sorted(list(range(4)) * 50)


ENDLESS = """
import sys
from pathlib import Path
from campaign.trace_files import Traces
with Traces(Path(sys.argv[1])) as traces:
    while True:
        traces.write("simulate", '{"filler": "' + "x" * 30_000 + '"}')
"""


def test_a_kill_spares_every_line_but_the_one_it_met(tmp_path):
    path = tmp_path / CONTRACT["simulate"]
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)]) as writer:
        deadline = time.monotonic() + 20
        while (not path.exists() or path.stat().st_size < 3_000_000) and time.monotonic() < deadline:
            time.sleep(0.005)
        writer.send_signal(signal.SIGKILL)
    *whole, last = path.read_text().split("\n")
    assert len(whole) > 90
    assert set(whole) == {'{"filler": "' + "x" * 30_000 + '"}'}
    # The kernel may break off a write at a page when the process is killed in its midst.
    assert whole[0].startswith(last)


@pytest.mark.parametrize(
    "left", [b"", b'{"a": 1}\n{"b"', b'{"a": 1}\n{"b": 2}', b'{"a": 1}\n{"b": 2}\n{"c": 3}\n', None]
)
def test_a_trace_that_tells_something_else_is_made_anew(tmp_path, left):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with ledger.transaction():
        for number, line in enumerate(['{"a": 1}', '{"b": 2}']):
            ledger.add_record("simulate", number, 1, line)
    path = tmp_path / FILES["simulate"]
    if left is not None:
        path.write_bytes(left)
    mend_traces(ledger, tmp_path)
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    assert not (tmp_path / FILES["move"]).exists()
    ledger.close()
