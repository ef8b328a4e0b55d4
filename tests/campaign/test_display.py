"""How a campaign looks on a terminal and elsewhere."""

import os
import pty
import subprocess
import sys

import pytest

from campaign import display
from campaign.display import Display, Snapshot, cautions
from campaign.settings import Settings

NOW = Snapshot(
    segments=10,
    target=504,
    simulated_ns=0.02,
    elapsed_s=8.0,
    coverage="12 phi/psi cells of 15 degrees",
    model_version=2,
    busy=4,
    slots=2,
    failures=1,
)

LINE = (
    "     8 s  10/504 segments  0.020 ns  216.0 ns/day  coverage 12 phi/psi cells of 15 degrees  model 2  "
    "2/2 workers busy  1 failed attempts"
)


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that the test moves."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def test_a_line_has_all_figures():
    assert NOW.line() == LINE


def test_without_a_target_there_is_none_to_show():
    assert "10 segments" in Snapshot(10, None, 0.0, 0.0, "c", 0, 0, 1, 0).line()


def test_nothing_was_simulated_at_the_very_start():
    assert Snapshot(0, None, 0.0, 0.0, "c", 0, 0, 1, 0).ns_per_day == 0.0


def test_elsewhere_a_line_comes_every_ten_seconds(capsys, clock):
    taken = []
    shown = Display(lambda: taken.append(clock.now) or NOW)
    for _ in range(100):  # in steps of a tenth of a second
        shown.update()
        clock.now += 0.1
    assert capsys.readouterr().out == ""
    assert taken == [], "a snapshot that nobody sees costs the lock"
    clock.now += 0.1
    shown.update()
    shown.update()
    assert capsys.readouterr().out == LINE + "\n"
    clock.now += 10.1
    shown.update()
    assert capsys.readouterr().out == LINE + "\n"


def test_the_last_snapshot_stays(capsys, clock):
    Display(lambda: NOW).close()
    assert capsys.readouterr().out == LINE + "\n"


def test_on_a_terminal_there_is_a_panel():
    script = (
        "import time\n"
        "from campaign.display import Display, Snapshot\n"
        f"now = {NOW!r}\n"
        "shown = Display(lambda: now)\n"
        "for _ in range(3):\n"
        "    shown.update()\n"
        "    time.sleep(0.15)\n"
        "shown.close()\n"
    )
    theirs, ours = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen([sys.executable, "-c", script], stdout=ours, stderr=ours, env=environment) as process:
        os.close(ours)
        seen = b""
        while chunk := _read(theirs):
            seen += chunk
        assert process.wait(20) == 0
    os.close(theirs)
    text = seen.decode()
    for fragment in ("segments", "10 of 504", "0.020 ns, 216.0 ns/day", "workers busy", "2 of 2", "elapsed"):
        assert fragment in text
    assert "\x1b[?25h" in text, "the cursor was not given back"
    assert text.rstrip().endswith(LINE)


def _read(descriptor: int) -> bytes:
    """Return what the terminal shows next; nothing once the other end is closed (Linux raises EIO then)."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("policy", "slots", "walkers", "told"),
    [
        ("plain", 4, 4, []),
        ("plain", 5, 4, ["--walkers 4 keeps only 4 of 5 workers busy: give 10"]),
        ("weighted-ensemble", 24, 24, []),
        (
            "weighted-ensemble",
            30,
            24,
            [
                "24 walkers, were every bin reached, keep only 24 of 30 workers busy: give more --bins, "
                "--walkers-per-bin or --replicas"
            ],
        ),
    ],
)
def test_walkers_that_are_too_few_for_the_workers_are_told(policy, slots, walkers, told):
    settings = Settings(policy=policy, walkers=4, max_minutes=1)
    assert list(cautions(settings, "Reference", slots, walkers)) == told
