"""The rules that figures are made by: intervals, discarded repeats, the file, the exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.harness import Figure, Session, Wanted, conclude, interval, parse
from benchmarks.load import Load


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return new_session(tmp_path)


def new_session(folder: Path, *flags: str) -> Session:
    return Session(parse("demo", None, None, list(flags)), folder, "mark")


class KnownLoad:
    """Stands for the machine: others take what the test says, one value per repeat."""

    shares: list[float] = []

    def __init__(self, mark: str) -> None:
        self.others = KnownLoad.shares.pop(0)

    def __enter__(self) -> "KnownLoad":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def others_take(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def say(*shares: float) -> None:
        KnownLoad.shares = list(shares)
        monkeypatch.setattr(harness, "Load", KnownLoad)

    return say


def test_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(100):
        figure = interval(rng.normal(3.0, 1.0, 16), "s")
        assert figure.low is not None
        assert figure.high is not None
        hits += figure.low <= 3.0 <= figure.high
    assert 85 <= hits <= 99


def test_interval_repeats_and_narrows_with_repeats() -> None:
    values = np.random.default_rng(1).normal(size=8)
    few, many = interval(values, "s"), interval(np.tile(values, 16), "s")
    assert few == interval(values, "s")
    assert few.value == pytest.approx(many.value)
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_one_repeat_has_no_interval_and_none_no_value() -> None:
    assert interval([2.0], "s") == Figure(2.0, None, None, "s")
    assert interval([], "s") == Figure(None, None, None, "s")


@pytest.mark.parametrize(
    ("figure", "ok"),
    [
        (Figure(0.7, 0.6, 0.8, "", Wanted(at_least=0.7)), True),
        (Figure(0.69, 0.6, 0.8, "", Wanted(at_least=0.7)), False),
        (Figure(1.6, 1.4, 1.8, "", Wanted(at_most=1.5)), False),
        (Figure(1.3, 1.16, 1.4, "", Wanted(at_least=1.25, low_above=1.15)), True),
        (Figure(1.3, 1.15, 1.4, "", Wanted(at_least=1.25, low_above=1.15)), False),
        (Figure(1.3, None, None, "", Wanted(at_least=1.25, low_above=1.15)), False),
        (Figure(None, None, None, "", Wanted(at_most=1.5)), False),
        (Figure(99.0, None, None, ""), None),
    ],
)
def test_a_mark_is_reached_or_missed(figure: Figure, ok: bool | None) -> None:
    assert figure.ok is ok


def test_a_disturbed_repeat_is_discarded_made_again_and_counted(
    session: Session, others_take: Callable[..., None]
) -> None:
    others_take(0.05, 0.11, 0.10, 0.02)
    made = iter(range(100))
    rounds = session.rounds("demo", {"only": lambda: next(made)}, 3)
    assert [repeat["only"] for repeat in rounds] == [0, 2, 3]
    assert (session.kept, session.discarded) == (3, 1)


def test_tries_end_on_a_busy_machine(session: Session, others_take: Callable[..., None]) -> None:
    others_take(*[0.5] * 6)
    assert session.rounds("demo", {"only": lambda: 1}, 3) == []
    assert (session.kept, session.discarded) == (0, 6)


def test_quick_does_not_try_again(tmp_path: Path, others_take: Callable[..., None]) -> None:
    others_take(0.5, 0.0)
    assert len(new_session(tmp_path, "--quick").rounds("demo", {"only": lambda: 1}, 2)) == 1


def test_busy_repeats_are_kept_on_request(tmp_path: Path, others_take: Callable[..., None]) -> None:
    others_take(0.9)
    session = new_session(tmp_path, "--keep-busy")
    assert session.rounds("demo", {"only": lambda: 1}, 1) == [{"only": 1}]
    assert session.discarded == 0


def test_arms_take_turns_in_alternating_order(session: Session, others_take: Callable[..., None]) -> None:
    others_take(0.0, 0.0, 0.0)
    order: list[str] = []
    session.rounds("demo", {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "abbaab"


def burn(seconds: float, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    program = f"import time\nwhile time.process_time() < {seconds}: pass\ntime.sleep(60)"
    return subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **environment})


def others_beside(mark: str) -> tuple[float, bool]:
    """Return what Load takes for the share of others while a process with a mark burns 1.5 s, and if it is ours."""
    with Load("ours") as load:
        process = burn(1.5, {"WAYFINDER_BENCHMARK": mark})
        time.sleep(2.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return load.others, process.pid in {counted.pid for counted in load._last}


def test_load_tells_our_processes_from_those_of_others() -> None:
    # The same burner, once as somebody else's and once as ours; what others really do meanwhile is in both.
    foreign, counted_foreign = others_beside("theirs")
    own, counted_own = others_beside("ours")
    share = 1.5 / 2.5 / (os.cpu_count() or 1)
    assert (counted_foreign, counted_own) == (False, True)
    assert foreign >= 0.6 * share
    if own < 0.15:  # nobody else was busy, so the difference tells
        assert foreign - own >= 0.5 * share


def test_json_file_follows_the_contract(session: Session, tmp_path: Path) -> None:
    session.options.json = tmp_path / "figures.json"
    session.kept, session.discarded = 5, 2
    figures = {"speed": Figure(2.0, 1.5, 2.5, "ps/s", Wanted(at_least=1.0)), "none": Figure(None, None, None, "ms")}
    assert conclude("demo", session, figures) == 0
    content = json.loads(session.options.json.read_text())
    assert set(content) >= {"benchmark", "machine", "command", "repeats", "figures"}
    assert content["benchmark"] == "demo"
    assert content["repeats"] == 5
    assert content["discarded"] == 2
    assert content["machine"]["cores"] == os.cpu_count()
    assert content["figures"] == {
        "speed": {"value": 2.0, "low": 1.5, "high": 2.5, "unit": "ps/s", "wanted": ">= 1", "ok": True},
        "none": {"value": None, "low": None, "high": None, "unit": "ms", "wanted": None, "ok": None},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize(
    ("flags", "value", "code"),
    [((), 1.0, 0), (("--check",), 1.0, 1), (("--check",), 3.0, 0), (("--check",), None, 1)],
)
def test_exit_code(tmp_path: Path, flags: tuple[str, ...], value: float | None, code: int) -> None:
    figures = {"speed": Figure(value, None, None, "ps/s", Wanted(at_least=2.0)), "free": Figure(0.0, None, None, "s")}
    assert conclude("demo", new_session(tmp_path, *flags), figures) == code
