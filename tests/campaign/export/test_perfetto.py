"""A run as trace events: what is on which worker, what led to what, and how many at a time."""

import json
from collections import defaultdict

import pytest

from campaign.export.perfetto import write_perfetto
from campaign.trace import Run
from tasks.errors import BadInput
from tests.campaign.export.conftest import segment


def exported(path, place):
    write_perfetto(Run(path), place)
    return json.loads(place.read_text())["traceEvents"]


@pytest.fixture
def events(eventful, tmp_path):
    return exported(eventful, tmp_path / "trace.json")


def named(events, what):
    """Return names of processes or threads, by their number."""
    key = "pid" if what == "process" else "tid"
    return {each[key]: each["args"]["name"] for each in events if each["name"] == f"{what}_name"}


def slices(events):
    return {each["name"]: each for each in events if each["ph"] == "X" and each["cat"] != "part"}


def curve(events, name):
    (of,) = {tuple(each["args"]) for each in events if each["ph"] == "C" and each["name"] == name}
    return [(each["ts"], each["args"][of[0]]) for each in events if each["ph"] == "C" and each["name"] == name]


def arrows(events):
    """Return what leads to what, by the names of slices: (kind, from, to)."""

    def at(each):
        places = (
            name
            for name, found in slices(events).items()
            if (found["pid"], found["tid"]) == (each["pid"], each["tid"])
            and found["ts"] <= each["ts"] < found["ts"] + found["dur"]
        )
        return next(places)

    ends = {each["id"]: each for each in events if each["ph"] == "f"}
    starts = {each["id"]: each for each in events if each["ph"] == "s"}
    assert starts.keys() == ends.keys()
    assert all(each["bp"] == "e" and each["ts"] >= starts[id]["ts"] for id, each in ends.items())
    return {(each["name"], at(each), at(ends[id])) for id, each in starts.items()}


def test_every_attempt_is_a_slice_where_a_worker_ran_it_and_else_a_mark(events, eventful):
    attempts = Run(eventful).attempts
    marks = [each["name"] for each in events if each["ph"] == "i" and each["cat"] != "campaign"]
    assert len(slices(events)) + len(marks) == len(attempts)
    assert marks == ["segment 6 failed", "segment 6 lost", "segment 6 out"]


def test_no_two_slices_of_a_worker_overlap(events):
    spans = defaultdict(list)
    for each in slices(events).values():
        spans[each["pid"], each["tid"]].append((each["ts"], each["ts"] + each["dur"]))
    for of_worker in spans.values():
        edges = [edge for span in sorted(of_worker) for edge in span]
        assert edges == sorted(edges)


def test_workers_are_threads_of_their_sites(events):
    processes, threads = named(events, "process"), named(events, "thread")
    where = {name: (processes[each["pid"]], threads[each["tid"]]) for name, each in slices(events).items()}
    assert where["segment 0"] == ("site here", "cpu node/0 (p0)")
    assert where["segment 1"] == ("site here", "cpu node/1")
    assert where["segment 4"] == ("site here", "cpu node/0 (p1)")
    assert where["inference 1"] == ("site there", "gpu node/0")
    assert processes[1] == "campaign told"


def test_times_are_microseconds_since_the_first_event(events):
    # The process began 5 s before the campaign did.
    assert min(each["ts"] for each in events if "ts" in each) == 0
    found = slices(events)["segment 3"]
    assert (found["ts"], found["dur"]) == (9_000_000, 1_000_000)


def test_a_slice_tells_of_its_task(events):
    args = slices(events)["segment 3"]["args"]
    wanted = {"segment_id": 3, "parent_id": 0, "parent_frame": 7, "simulated_ps": 2.0, "outcome": "success"}
    assert wanted.items() <= args.items()
    failed = slices(events)["segment 5 failed"]["args"]
    assert (failed["outcome"], failed["error"]) == ("nan", "NotFinite('energy')")
    assert slices(events)["inference 1"]["args"]["novelty"] == 2.0


def test_an_attempt_that_never_came_back_tells_why(events):
    args = {each["name"]: each["args"] for each in events if each["ph"] == "i"}
    assert args["segment 6 lost"]["error"] == "no result within 60 s"
    assert args["segment 6 out"]["outcome"] == "out"


def test_parts_are_laid_end_to_end_only_as_far_as_that_is_known(events):
    parts = [(each["tid"], each["name"], each["ts"], each["dur"]) for each in events if each.get("cat") == "part"]
    lone, bundled = (slices(events)[f"segment {number}"]["tid"] for number in (0, 1))
    assert parts == [
        (lone, "prepare", 6_000_000, 200_000),
        (lone, "integrate", 6_200_000, 700_000),
        (lone, "write", 6_900_000, 100_000),
        (bundled, "prepare", 7_100_000, 100_000),
        (bundled, "integrate", 7_200_000, 250_000),
    ]


def test_arrows_go_to_children_inferences_and_models(events):
    assert arrows(events) == {
        ("start", "segment 0", "segment 3"),
        ("start", "segment 0", "segment 4"),
        ("start", "segment 3", "segment 5"),
        *(("frames", f"segment {number}", "inference 1") for number in (0, 1, 2)),
        *(("frames", f"segment {number}", "inference 2") for number in (3, 4)),
        ("reference set", "inference 1", "training 1"),
        ("reference set", "inference 2", "training 2"),
        ("model", "training 1", "inference 2"),
        ("model", "training 1", "training 2"),
    }


def test_no_arrow_goes_back_in_time(told, tmp_path):
    told.add("simulate", segment(0, 5, 6))
    told.add("simulate", segment(1, 1, 2, parent_id=0, parent_frame=0))  # by a clock that is behind
    assert not arrows(exported(told.path, tmp_path / "trace.json"))


def test_counters_are_never_negative_and_come_back_to_zero(events):
    counters = {each["name"] for each in events if each["ph"] == "C"}
    assert all(value >= 0 for each in events if each["ph"] == "C" for value in each["args"].values())
    for topic in ("simulate", "infer", "train"):
        assert curve(events, f"running: {topic}")[-1][1] == 0
        assert curve(events, f"queued: {topic}")[-1][1] == 0
    assert {"utilisation: cpu", "utilisation: gpu", "coverage", "model version", "memory: cpu node/0"} <= counters


def test_as_many_run_as_have_begun_and_not_ended(events):
    running = dict(curve(events, "running: simulate"))
    assert running[6_000_000] == 1
    assert running[9_000_000] == 2


def test_utilisation_is_of_the_workers_that_are_there(events):
    found = dict(curve(events, "utilisation: cpu"))
    # The first worker alone; later it has nothing to do while the second works.
    assert found[6_000_000] == 1.0
    assert found[7_100_000] == 0.5
    assert max(found.values()) <= 1


def test_memory_is_told_when_it_grows(events):
    assert [value for _, value in curve(events, "memory: cpu node/0")] == [100.0, 150.0]


def test_an_empty_run_has_a_trace(told, tmp_path):
    assert named(exported(told.path, tmp_path / "trace.json"), "process") == {1: "campaign told"}


def test_half_a_line_counts_as_not_there(eventful, tmp_path):
    with (eventful / "simulation-results.jsonl").open("a") as file:
        file.write('{"success": tr')
    assert "segment 0" in slices(exported(eventful, tmp_path / "trace.json"))


def test_a_place_that_cannot_be_written_is_refused(eventful, tmp_path):
    with pytest.raises(BadInput, match="cannot be written .*: name another place"):
        write_perfetto(Run(eventful), tmp_path / "nowhere" / "trace.json")


@pytest.mark.parametrize("name", ["ledger.sqlite", "params.json", "trajectories/x.json", "simulation-results.jsonl"])
def test_what_the_campaign_lives_by_is_not_written_over(eventful, name):
    with pytest.raises(BadInput, match="is a campaign's own"):
        write_perfetto(Run(eventful), eventful / name)


def test_a_failed_export_leaves_nothing(eventful, tmp_path):
    lines = (eventful / "inference-results.jsonl").read_text()
    (eventful / "inference-results.jsonl").write_text("no JSON\n" + lines)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="is no JSON"):
        write_perfetto(Run(eventful), tmp_path / "out" / "trace.json")
    assert not list((tmp_path / "out").iterdir())
