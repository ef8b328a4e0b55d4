"""What a campaign left or leaves is told as it is, however it is come by."""

import json
import shutil

import pytest

from campaign.watch import books
from campaign.watch.bins import MOST_BINS
from campaign.watch.following import Following
from campaign.watch.tally import tally_of
from tasks.announce import Announcement, announce
from tasks.errors import BadInput


def told(following):
    # But for what is of a moment.
    view = json.loads(following.look().as_json())
    for row in view["workers"]:
        row["recent"] = None
    return view


def test_a_run_in_which_nothing_happened_has_noughts(run):
    view = Following(run.path).look()
    assert (view.segments, view.simulated_ns, view.steered_fraction, view.coverage) == (0, 0.0, 0.0, None)
    assert (view.workers, view.errors, view.newest, view.worker_utilisation) == ([], [], [], {})
    json.loads(view.as_json())


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no run"):
        Following(tmp_path)
    with pytest.raises(BadInput, match="no run"):
        Following(tmp_path / "none")


def test_numbers_are_those_of_the_newest_decision(run):
    lines = [run.segment(number) for number in range(6)]
    run.write("simulate", *lines)
    run.write("infer", run.inference(6, 17.0))
    view = Following(run.path).look()
    assert (view.segments, view.frames, view.inferences, view.target) == (6, 48, 1, 40)
    assert view.simulated_ns == pytest.approx(0.012)
    assert view.steered_fraction == 0.5
    assert view.coverage == {"metric": "phi_psi_cells", "value": 17.0, "cells_deg": 15}
    assert view.worker_utilisation == {"here": {"simulate": 3.0 / (2 * 6.0)}}
    assert view.tasks == {"simulate": {"complete": 6}, "infer": {"complete": 1}}
    assert view.learning.coverage == [(pytest.approx(0.002), 17.0)]
    assert view.learning.novelty == [(pytest.approx(0.002), 2.0)]
    assert [each.segment_id for each in view.newest] == [5, 4, 3, 2, 1, 0]


def test_a_ledger_that_does_not_tell_of_workers_has_those_that_were_seen(make):
    run = make(workers=None)
    run.write("simulate", *(run.segment(number) for number in range(4)))
    view = Following(run.path).look()
    assert view.workers[0].slots == view.workers[0].seen == 2
    assert view.worker_utilisation == {"here": {"simulate": 2.0 / (2 * 4.0)}}


def test_what_comes_bit_by_bit_comes_to_what_it_is_at_once(run):
    bit_by_bit = Following(run.path)
    for number in range(40):
        line = run.segment(number, error="NotFinite: no\n  at x" if number % 7 == 3 else None)
        with (run.path / "simulation-results.jsonl").open("a") as file:
            file.write(line[:50])
            file.flush()
            bit_by_bit.look()
            file.write(f"{line[50:]}\n")
        if number % 5 == 4:
            run.write("infer", run.inference(number, float(number)))
        bit_by_bit.look()
    run.end("complete")
    told(bit_by_bit)
    assert told(bit_by_bit) == told(Following(run.path))
    assert told(bit_by_bit)["workers"][0]["n_results"] == 34


def test_parts_of_a_results_life_are_told_by_their_medians(run):
    run.write("simulate", *(run.segment(number) for number in range(5)))
    (latency,) = Following(run.path).look().latencies
    assert latency.n == 5
    parts = {"server_s": 0.01, "queue_s": 0.09, "compute_s": 0.3, "store_s": 0.2, "return_s": 0.1, "notify_s": 0.05}
    assert latency.parts == pytest.approx(parts, abs=1e-5)


def test_traces_that_are_made_anew_are_counted_once(run):
    lines = [run.segment(number) for number in range(6)]
    run.write("simulate", *lines[:4])
    following = Following(run.path)
    assert following.look().workers[0].n_results == 4
    part = run.path / "part"
    part.write_text("".join(f"{line}\n" for line in lines))
    part.replace(run.path / "simulation-results.jsonl")
    view = following.look()
    assert view.workers[0].n_results == 6
    assert len(view.newest) == 6


def test_lines_that_are_none_are_told_and_the_others_count(run):
    odd = ("{", "[]", "null", '{"task_info": 3}', '{"task_info": {"site": "here"}, "success": true, "timestamp": 7}')
    run.write("simulate", run.segment(0), *odd, run.segment(1))
    view = Following(run.path).look()
    assert view.workers[0].n_results == 2
    assert view.trouble == ["simulation-results.jsonl has 5 lines that are no trace lines"]


def test_a_line_without_finite_numbers_can_be_told(run):
    line = json.loads(run.segment(0))
    line["task_info"] |= {"novelty": float("nan"), "mean_temperature_K": float("inf")}
    line["timestamp"] |= {"compute_started": float("nan")}
    run.write("simulate", json.dumps(line))
    view = Following(run.path).look()
    assert view.newest[0].novelty is None
    assert b"NaN" not in view.as_json()
    assert b"Infinity" not in view.as_json()


def test_what_is_kept_does_not_grow_with_the_campaign(run):
    line = json.loads(run.segment(0))
    tally = tally_of("simulate")
    lines = []
    for number in range(20_000):
        for name, of in line["timestamp"].items():
            line["timestamp"][name] = of + 5.0
        line["task_info"]["segment_id"] = number
        line["worker_info"]["hostname"] = f"node{number}"
        lines.append(json.dumps(line).encode())
    tally.take(lines)
    site = tally.sites["here"]
    assert site.n_results == 20_000
    assert sum(site.busy.dense()[1]) == pytest.approx(10_000, rel=1e-3)
    assert len(site.busy.dense()[1]) <= MOST_BINS
    assert len(tally.pace.dense()[1]) <= MOST_BINS
    assert len(site.last_ended) <= 4096
    assert len(tally.newest) == 12


def test_losses_of_many_epochs_are_thinned_and_end_where_they_end(run):
    info = {"model_version": 2, "n_frames": 50, "losses": {"reconstruction": [1000.0 - n for n in range(1000)]}}
    run.write("train", run.line("train", info, 1.0, True))
    learning = Following(run.path).look().learning
    assert (learning.model_version, learning.n_frames, learning.n_epochs) == (2, 50, 1000)
    assert len(learning.losses["reconstruction"]) <= MOST_BINS
    assert learning.losses["reconstruction"][-1] == 1.0


def test_a_long_trace_is_caught_up_with_bit_by_bit(run, monkeypatch):
    monkeypatch.setattr("campaign.watch.following._READ_AT_ONCE", 3000)
    run.write("simulate", *(run.segment(number) for number in range(30)))
    following = Following(run.path)
    first = following.look()
    assert first.segments == 30
    assert 0 < first.behind < 1
    assert first.workers[0].n_results < 30
    for _ in range(20):
        last = following.look()
    assert last.behind == 0
    assert last.workers[0].n_results == 30


def test_a_process_that_is_gone_without_a_word_died(run):
    run.send(0)
    following = Following(run.path)
    with run.held():
        view = following.look()
        assert (view.status, view.over) == ("running", False)
        assert (view.workers[0].busy, view.workers[0].out) == (1, 1)
        assert view.workers[0].recent > 0
    view = following.look()
    assert (view.status, view.over) == ("died", True)
    assert (view.workers, view.live) == ([], ())


def test_no_more_workers_are_busy_than_there_are(run):
    for number in range(5):
        run.send(number)
    with run.held():
        (row,) = Following(run.path).look().workers
    assert (row.slots, row.busy, row.out) == (2, 2, 5)


def test_what_is_announced_after_its_commit_is_seen(run, monkeypatch):
    monkeypatch.setattr(books, "_SETTLED_S", 0.0)
    run.send(3)
    following = Following(run.path)
    with run.held():
        assert following.look().live == []
        announce(run.path, Announcement(3, 1, "127.0.0.1", 41233))
        (served,) = following.look().live
    assert served["url"] == "imd://127.0.0.1:41233"


def test_a_result_that_came_too_late_is_no_segment(run):
    line = json.loads(run.segment(0))
    line["task_info"]["late"] = True
    run.write("simulate", json.dumps(line))
    view = Following(run.path).look()
    assert view.newest == []


def test_an_ended_campaign_is_taken_up_again_when_it_is_resumed(run):
    following = Following(run.path)
    run.write("simulate", run.segment(0))
    run.end("interrupted", "SIGTERM was received")
    view = following.look()
    assert (view.status, view.reason, view.over, view.segments) == ("interrupted", "SIGTERM was received", True, 1)
    run.begin()
    run.write("simulate", run.segment(1))
    with run.held():
        view = following.look()
        assert (view.status, view.over, view.segments, view.processes) == ("running", False, 2, 2)
    run.end("complete")
    assert following.look().status == "complete"


def test_the_summary_is_shown_once_nobody_has_the_run(run):
    (run.path / "summary.json").write_text('{"wall_s": 12.5, "decision_ms": {"p50": 2.0}, "more": 1}')
    following = Following(run.path)
    with run.held():
        assert following.look().summary is None
    summary = following.look().summary
    assert summary is not None
    assert (summary["wall_s"], summary["decision_ms"], summary["proxies"]) == (12.5, {"p50": 2.0}, None)
    (run.path / "summary.json").write_text("[")
    assert following.look().summary is None


def test_failures_are_told_newest_first_and_not_endlessly(run):
    run.segment(0, error="NotFinite: first")
    run.segment(1, error="NotFinite: " + 9000 * "x")
    view = Following(run.path).look()
    assert view.failures == {"nan": 2}
    assert [error["task_id"] for error in view.errors] == [1, 0]
    assert len(view.errors[0]["error"]) < 6100
    assert view.errors[0]["error"].endswith("(9011 characters in all)")


def test_a_run_that_goes_away_is_told_and_the_last_view_stays(run):
    run.write("simulate", run.segment(0))
    following = Following(run.path)
    following.look()
    run.ledger.close()
    shutil.rmtree(run.path)
    view = following.look()
    assert view.segments == 1
    assert any("no run" in sentence for sentence in view.trouble)


def test_a_ledger_in_which_nothing_changed_is_not_read_again(run, monkeypatch):
    reads = []
    read = books.read_ledger
    monkeypatch.setattr(books, "read_ledger", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(books, "_SETTLED_S", 0.0)
    run.segment(0)
    following = Following(run.path)
    with run.held():
        following.look()
        following.look()
        before = len(reads)
        for _ in range(5):
            following.look()
        assert len(reads) == before
        run.segment(1)
        assert following.look().segments == 2


def test_what_takes_long_is_asked_seldom_but_at_the_end(run, monkeypatch):
    # As if every answer took an hour.
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr("campaign.watch.books.time.thread_time", lambda: float(next(clock)))
    following = Following(run.path)
    run.segment(0)
    with run.held():
        view = following.look()
        assert (view.segments, view.tasks) == (1, {})
    run.end("complete")
    assert following.look().tasks == {"simulate": {"complete": 1}}


def test_nothing_in_the_run_is_changed_or_locked(run):
    run.write("simulate", run.segment(0))
    following = Following(run.path)
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if not path.name.endswith("-shm")}
    following.look()
    after = {path.name: path.read_bytes() for path in run.path.iterdir() if not path.name.endswith("-shm")}
    assert after == before
    with run.ledger.transaction():
        following.look()
    run.segment(1)
    assert following.look().segments == 2
