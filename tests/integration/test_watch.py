"""A campaign is followed while it runs, after it was killed, and when it goes on: in a browser, and in figures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from campaign.trace import Run
from campaign.watch.following import Following
from campaign.watch.view import View
from tests.browser import chromium, complaints, overflow_px
from tests.campaign.watch.conftest import Made, make  # noqa: F401  # a fixture
from tests.integration.conftest import ROOT, Campaign

Start = Callable[..., Campaign]

# What the page shows of any campaign.
PANELS = ("headline", "workers", "learning", "failures", "pace", "latency", "tasks", "newest")

# As short as campaigns of a molecule come, with learning all along.
QUICK = (
    *("--segment-ps", "0.5", "--frame-ps", "0.1", "--walkers", "4", "--infer-every", "4", "--seed", "5"),
    *("--retrain-every", "30", "--first-epochs", "3", "--epochs", "2"),
)

WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@contextmanager
def watching(run: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Watch a run as a user does; yield the process and the address of its page."""
    words = [sys.executable, "run.py", "watch", str(run), *flags]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("watch: http://127.0.0.1:"), process.communicate(timeout=60)
        yield process, line.removeprefix("watch: ").strip()
    finally:
        process.kill()
        process.communicate(timeout=60)


def shown(page: Page, key: str) -> str:
    return page.locator(f"#headline [data-key={key}]").inner_text()


def segments_on(page: Page) -> int:
    return int(shown(page, "segments").split()[0])


def assert_ended_as(view: View, summary: dict[str, Any]) -> None:
    """What both tell is the same, and they tell the same of a good many things."""
    both = [name for name in summary if hasattr(view, name)]
    assert len(both) >= 17
    assert {name: getattr(view, name) for name in both} == {name: summary[name] for name in both}


def test_figures_of_an_ended_campaign_are_those_of_its_summary(short_run: Campaign) -> None:
    summary = short_run.summary()
    view = Following(short_run.run_dir).look()
    assert_ended_as(view, summary)
    assert view.over
    assert view.summary is not None
    assert view.summary["decision_ms"] == summary["decision_ms"]
    assert view.trouble == []


def test_what_learning_found_is_what_the_traces_tell(short_run: Campaign) -> None:
    run, view = Run(short_run.run_dir), Following(short_run.run_dir).look()
    told = run.inferences
    assert [ns for ns, _ in view.learning.coverage] == pytest.approx(list(told.simulated_ns))
    assert [value for _, value in view.learning.coverage] == list(told.coverage)
    of_a_model = told.dropna(subset=["novelty"])
    assert [value for _, value in view.learning.novelty] == pytest.approx(list(of_a_model.novelty))
    newest = run.losses[run.losses.model_version == run.losses.model_version.max()]
    assert view.learning.model_version == newest.model_version.iloc[0] == run.summary["model_versions"]
    assert view.learning.losses["reconstruction"] == list(newest.reconstruction)
    assert {(row.site, row.topic): row.n_results for row in view.workers} == dict(
        run.tasks[run.tasks.success].groupby(["site", "topic"]).size()
    )
    assert all(row.seen <= row.slots for row in view.workers)


def test_an_ensembles_figures_are_those_of_its_summary(campaign: Start) -> None:
    run = campaign(
        *("--system", "double-well", "--policy", "weighted-ensemble", "--segment-ps", "0.5", "--frame-ps", "0.1"),
        *("--bins", "rectilinear:-0.3,-0.28,-0.26,-0.24", "--target", "x > -0.24", "--max-iterations", "12"),
    )
    assert run.wait() == 0, run.err
    summary = run.summary()
    view = Following(run.run_dir).look()
    assert_ended_as(view, summary)
    assert view.ensemble is not None
    assert view.ensemble.iterations == summary["weighted_ensemble"]["iterations"] == [12]
    assert view.ensemble.flux_per_ps == pytest.approx(summary["weighted_ensemble"]["flux_per_ps"])
    assert view.ensemble.flux_per_ps is not None
    assert view.ensemble.flux_per_ps > 0


def test_a_page_follows_a_campaign_through_its_death_and_resumption(campaign: Start, browser: Browser) -> None:
    run = campaign("--max-segments", "5000", *QUICK)
    run.until_segments(8, 120)
    with watching(run.run_dir) as (_, url):
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        complained = complaints(page)
        page.goto(url)
        expect(page.locator("#status")).to_have_text("The campaign is running.", timeout=WAIT_MS)
        before = segments_on(page)
        run.until(lambda: page.wait_for_timeout(100) or segments_on(page) > before, WAIT_MS / 1000)
        expect(page.locator("#workers table")).to_contain_text("of 2", timeout=WAIT_MS)
        _assert_drawn(page)
        run.process.send_signal(signal.SIGKILL)
        run.process.communicate()
        expect(page.locator("#status")).to_contain_text("has died", timeout=WAIT_MS)
        left = segments_on(page)
        run.resume("--max-segments", str(left + 20))
        expect(page.locator("#status")).to_have_text("The campaign is running.", timeout=WAIT_MS)
        assert run.wait() == 0, run.err
        expect(page.locator("#status")).to_contain_text("is complete", timeout=WAIT_MS)
        summary = run.summary()
        expect(page.locator("#end")).to_contain_text("Decisions", timeout=WAIT_MS)
        assert segments_on(page) == summary["segments"]
        assert shown(page, "simulated") == f"{summary['simulated_ns']:.3f} ns, {summary['frames']} frames"
        assert shown(page, "model") == str(summary["model_versions"])
        assert shown(page, "inferences") == str(summary["inferences"])
        assert shown(page, "coverage").startswith(f"{summary['coverage']['value']:.0f} phi/psi cells")
        assert shown(page, "steered") == f"{round(100 * summary['steered_fraction'])} %"
        assert complained == []
        context.close()
    assert_ended_as(Following(run.run_dir).look(), summary)


def _assert_drawn(page: Page) -> None:
    for name in PANELS:
        body = page.locator(f"#{name} .body")
        assert body.inner_text().strip(), f"{name} is empty"
    assert page.locator("#learning svg[role=img]").count() >= 2
    assert page.locator("#pace svg[role=img]").count() == 1
    assert page.locator("#workers svg[role=img]").count() >= 2
    assert page.locator("#latency svg[role=img]").count() >= 2


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_its_window_and_says_what_it_shows(
    short_run: Campaign, browser: Browser, width: int, scheme: Any
) -> None:
    with watching(short_run.run_dir) as (_, url):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
        )
        page = context.new_page()
        complained = complaints(page)
        page.goto(url)
        expect(page.locator("#status")).to_contain_text("is complete", timeout=WAIT_MS)
        _assert_drawn(page)
        assert overflow_px(page) == 0
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", ground)[:3])) > 3 * 128
        assert light == (scheme == "light")
        _assert_named(page)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert (
            page.evaluate("getComputedStyle(document.querySelector('#status'), '::before').animationName") == "none"
        )
        assert complained == []
        context.close()


def _assert_named(page: Page) -> None:
    """Whoever does not see the page is told what there is: by landmarks, headings, captions and figures."""
    for role in ("banner", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    assert page.get_by_role("heading", level=1).inner_text()
    for section in page.locator("main > section:visible").all():
        name = section.locator("h2").inner_text()
        assert page.get_by_role("region", name=name, exact=True).count() == 1
    for picture in page.locator("svg[role=img]").all():
        assert re.search(r"\d", picture.get_attribute("aria-label") or "")
    for table in page.locator("table").all():
        assert table.locator("caption").inner_text()
        assert table.locator("th:not([scope])").count() == 0
    assert page.locator("#status").get_attribute("aria-live") == "polite"
    assert page.evaluate("document.documentElement.lang") == "en"


HOSTILE = '<img src=x onerror="window.hostile=1"><script>window.hostile=1</script>'


def test_markup_in_names_and_errors_is_text(make: Callable[..., Made], browser: Browser) -> None:  # noqa: F811
    run = make(HOSTILE.replace("/", "\u2044"))
    with run.ledger.transaction():
        for name in ("system", "reason"):
            run.ledger.set_meta(name, HOSTILE)
        run.ledger.set_meta("settings", {"policy": HOSTILE, "seed": 1})
        run.ledger.set_meta("status", "failed")
    run.segment(0, error=f"{HOSTILE}\n{HOSTILE}")
    run.write("simulate", run.segment(1).replace('"here"', json.dumps(HOSTILE)))
    with watching(run.path) as (_, url):
        page = browser.new_page()
        complained = complaints(page)
        page.goto(url)
        expect(page.locator("#status")).to_contain_text("The campaign failed", timeout=WAIT_MS)
        page.locator("#failures summary").click()
        expect(page.locator("#failures pre")).to_have_text(f"{HOSTILE}\n{HOSTILE}")
        assert page.locator("h1").inner_text() == run.path.name
        for words in ("#headline", "#workers", "#newest", "#status"):
            assert HOSTILE in page.locator(words).inner_text()
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 1
        assert page.evaluate("window.hostile") is None
        # What is open stays open when figures change.
        run.write("simulate", run.segment(2))
        expect(page.locator("#headline [data-key=segments]")).to_contain_text("2", timeout=WAIT_MS)
        assert page.locator("#failures details[open]").count() == 1
        assert complained == []
        page.close()


def test_a_page_without_its_server_says_so(short_run: Campaign, browser: Browser) -> None:
    with watching(short_run.run_dir) as (process, url):
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#status")).to_contain_text("is complete", timeout=WAIT_MS)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
        expect(page.locator("#status")).to_contain_text("has lost its server", timeout=WAIT_MS)
        assert segments_on(page) == short_run.summary()["segments"]
        page.close()


def watch_in_vain(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run.py", "watch", *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_what_cannot_be_watched_is_refused_in_a_sentence(short_run: Campaign, tmp_path: Path) -> None:
    for flags in ((), ("--terminal",)):
        found = watch_in_vain(str(tmp_path), *flags)
        assert (found.returncode, found.stdout) == (2, "")
        assert found.stderr == (
            f"wayfinder: {tmp_path} is no run: it has no ledger.sqlite; name the directory of a campaign\n"
        )
    with watching(short_run.run_dir) as (_, url):
        port = url.split(":")[2].split("/")[0]
        found = watch_in_vain(str(short_run.run_dir), "--port", port)
    assert (found.returncode, found.stdout) == (2, "")
    assert f"--port {port} of 127.0.0.1 cannot be had" in found.stderr
    assert os.listdir(tmp_path) == []


def test_the_terminal_tells_of_an_ended_campaign_in_a_line(short_run: Campaign) -> None:
    found = watch_in_vain(str(short_run.run_dir), "--terminal")
    assert found.returncode == 0, found.stderr
    (line,) = found.stdout.splitlines()
    assert f"complete  {short_run.summary()['segments']}" in line
