"""What benchmarks compute from what they saw."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.efficiency import CASES, rate
from benchmarks.faults import BLIP, DEAD_LINK, KILLED_SSH, Told, Window, idle_between
from benchmarks.faults import figures_of as figures_of_faults
from benchmarks.latency import Sample, cost_between
from benchmarks.learning import growth
from benchmarks.sampling import ARMS, Journal, Run, code_digest, figures_of
from benchmarks.sites import repeated, sites_of
from tasks.errors import BadInput


def test_rate_of_one_worker_leaves_the_first_segment_out() -> None:
    assert rate([[100.0, 101.0, 102.0, 103.0]], 2.0) == pytest.approx(2.0)


def test_rate_of_two_workers_counts_only_while_both_are_busy() -> None:
    # 2 ps each second and each half second; the second worker stops long before the first.
    slow, fast = np.arange(0.0, 30.0, 1.0), np.arange(0.25, 10.0, 0.5)
    assert rate([list(slow), list(fast)], 2.0) == pytest.approx(6.0)


def test_efficiency_measures_what_is_wanted() -> None:
    wanted = {(case.segment_ps, case.layout): case.wanted for case in CASES if case.wanted is not None}
    assert wanted == {
        (2, "a"): 0.70, (20, "a"): 0.97, (100, "a"): 0.98, (2, "b"): 0.55, (20, "b"): 0.88, (100, "b"): 0.92,
    }  # fmt: skip


def test_cost_is_cpu_per_segment_between_two_counts() -> None:
    samples = [
        Sample(0, 5.0, 10),
        Sample(98, 6.0, 20),
        Sample(103, 6.1, 30),
        Sample(503, 7.1, 40),
        Sample(600, 9, 50),
    ]
    seconds, memory = cost_between(samples, 100, 500)
    assert seconds == pytest.approx(1.0 / 400)
    assert memory == 40


def test_growth_compares_after_the_reference_set_is_full() -> None:
    newest = np.arange(4, 1000, 4)
    seconds = np.where(newest < 250, 0.01, np.where(newest < 900, 0.02, 0.03))
    assert growth(seconds, newest, 250, 90) == pytest.approx(1.5)


def a_run(arm: str, seed: int, coverage: float, *, padded: bool = True, keep_busy: bool = False) -> Run:
    return Run(arm, padded, seed, f"{arm} {seed} {padded}", "code", keep_busy, coverage, 0.95)


def test_sampling_ratios_pair_seeds() -> None:
    runs = [a_run("plain", 1, 100), a_run("plain", 2, 200), a_run("novelty", 1, 150), a_run("novelty", 2, 260)]
    runs += [a_run("novelty", 3, 999), a_run("plain", 1, 10, padded=False), a_run("novelty", 1, 12, padded=False)]
    figures = figures_of(runs, list(ARMS))
    assert figures["novelty / plain"].value == pytest.approx(1.4)
    assert figures["novelty / plain"].ok is True
    assert figures["novelty: segments steered"].value == pytest.approx(0.95)
    assert figures["novelty / plain, not padded"].value == pytest.approx(1.2)
    assert figures["novelty / plain, not padded"].wanted is None
    assert figures["random / plain"].value is None


def test_sampling_without_its_runs_has_missed() -> None:
    assert figures_of([], list(ARMS))["novelty / plain"].ok is False


def test_sampling_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out.json")
    quiet, busy = a_run("plain", 1, 100), a_run("plain", 2, 100, keep_busy=True)
    first.add(quiet)
    first.add(busy)
    again = Journal(tmp_path / "out.json")
    assert again.find(quiet.command, "code", keep_busy=False) == quiet
    assert again.find(quiet.command, "other code", keep_busy=False) is None
    assert again.find("other flags", "code", keep_busy=False) is None
    assert again.find(busy.command, "code", keep_busy=False) is None
    assert again.find(busy.command, "code", keep_busy=True) == busy


def test_sampling_without_a_file_keeps_nothing(tmp_path: Path) -> None:
    Journal(None).add(a_run("plain", 1, 100))
    assert list(tmp_path.iterdir()) == []


def test_code_digest_repeats() -> None:
    assert code_digest() == code_digest()


def ways(*, host: str | None = None, endpoint: str | None = None, named: tuple[str, ...] = ()) -> Namespace:
    return Namespace(ssh_host=host, ml_endpoint=endpoint, site=list(named))


def test_sites_that_are_named_are_measured_in_that_order() -> None:
    named = sites_of(ways(host="gpubox", endpoint="00000000-0000-4000-8000-000000000000", named=("example-slurm",)))
    assert list(named) == ["ssh", "globus", "example-slurm"]
    assert all(site.learn is not None for site in named.values())


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ((), "no way is named: add --ssh-host HOST"),
        (("local",), "--site local is measured already"),
        (("local-b", "local-b"), "--site local-b is measured already"),
        (("nowhere",), "site nowhere is not known"),
    ],
)
def test_sites_that_cannot_be_measured_are_refused(named: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        sites_of(ways(named=named))


def test_slow_turns_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0.0, 100.0, 3.0))
    monkeypatch.setattr("benchmarks.sites.time.monotonic", lambda: next(clock))
    assert len(repeated(lambda: 1, 50)) == 4
    assert len(repeated(lambda: 1, 2)) == 2


def told_by_a_campaign() -> Told:
    """20 s of calm with 5 segments a second, and faults of 20 s in which it makes 4, 5, and 5."""
    told = Told(idle_s=np.array([0.01, 0.3, 0.02]))
    for number, fault in enumerate((BLIP, KILLED_SSH, DEAD_LINK)):
        start = 40.0 * number
        told.calm.append(Window(start, start + 20))
        told.faults[fault] = Window(start + 20, start + 40)
        told.until_learnt_s[fault], told.lost[fault] = 7.0 + number, number
    told.calm.append(Window(120, 140))
    every = np.arange(0.1, 140, 0.2)
    in_blip = (every >= 20) & (every < 40)
    told.committed = np.concatenate([every[~in_blip], np.arange(20.1, 40, 0.25)])
    return told


def test_a_fault_is_held_against_the_calm_beside_it() -> None:
    figures = figures_of_faults([told_by_a_campaign(), told_by_a_campaign()])
    assert figures[f"{BLIP}: rate kept"].value == pytest.approx(0.8)
    assert figures[f"{BLIP}: rate kept"].ok is False
    assert figures[f"{DEAD_LINK}: rate kept"].value == pytest.approx(1.0)
    assert figures[f"{DEAD_LINK}: attempts lost"].value == 2
    assert figures["calm"].value == pytest.approx(5.0)
    assert figures["slot idle, longest"].value == pytest.approx(0.3)
    assert figures["slot idle, longest"].ok is True
    assert figures["found wrong"].ok is True


def test_faults_that_nothing_was_seen_of_were_missed() -> None:
    figures = figures_of_faults([])
    wanted = [figure for figure in figures.values() if figure.wanted is not None]
    assert len(wanted) == 5
    assert not any(figure.ok for figure in wanted)


def test_a_slot_idles_between_segments() -> None:
    times = [(10.0, 10.15), (10.5, 10.65), (10.16, 10.31)]
    segments = [{"timestamp": {"compute_started": start, "compute_ended": end}} for start, end in times]
    assert idle_between(segments) == pytest.approx([0.01, 0.19])
    assert len(idle_between([])) == 0
