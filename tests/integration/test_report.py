"""report.html of a real campaign, as a person finds it: in a browser, offline, by mouse and by keyboard."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from campaign.report import write_report
from campaign.trajectories import each_trajectory, read_positions, trajectory_files
from tests.browser import chromium, complaints, overflow_px
from tests.integration.conftest import ROOT, Campaign

PANELS = (
    "latent", "conformations", "coverage", "tree", "timeline", "utilisation", "latency", "bytes", "losses",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@contextmanager
def opening(browser: Browser, path: Path, width: int = 1440, scheme: str = "light") -> Iterator[Page]:
    """Open a page without a network; whatever it complains of is a failure."""
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, reduced_motion="reduce"
    )
    found = complaints(page)
    page.goto(path.as_uri())
    page.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
    yield page
    page.close()
    # Software that draws WebGL is slow to be read back, which Chromium finds worth a word.
    assert [each for each in found if "GPU stall due to ReadPixels" not in each] == []


@pytest.fixture(scope="module")
def page(browser: Browser, short_run: Campaign) -> Iterator[Page]:
    """The report that the campaign left."""
    with opening(browser, short_run.run_dir / "report.html") as found:
        yield found


def run_py(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def points(page: Page, panel: str) -> list[list[int]]:
    """Segment and frame of each point that is drawn and shows a structure."""
    told: list[list[int]] = page.evaluate(
        "name => document.getElementById(`plot-${name}`).data.filter(t => t.customdata && t.mode === 'markers')"
        ".flatMap(t => t.customdata.map(c => Array.from(c)))",
        panel,
    )
    return told


def drawn(page: Page) -> np.ndarray:
    """The picture of the molecule, as grey values."""
    from io import BytesIO

    from matplotlib.image import imread

    return np.asarray(imread(BytesIO(page.locator("#viewer canvas").first.screenshot())))[..., :3].mean(axis=2)


def test_a_campaign_leaves_its_report_and_that_of_its_control(
    short_run: Campaign, page: Page, browser: Browser
) -> None:
    summary = short_run.summary()
    assert f"report: {short_run.run_dir / 'report.html'}" in short_run.out
    assert short_run.out.splitlines()[-1] == f"run directory: {short_run.run_dir}"
    facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert facts["segments"] == f"{summary['segments']:,}"
    assert facts["simulated"] == f"{summary['simulated_ns']:.4g} ns"
    assert facts["frames"] == f"{summary['frames']:,}"
    assert facts["coverage"] == f"{summary['coverage']['value']:.0f} phi/psi cells of 15 degrees"
    assert facts["steered"].startswith(f"{summary['steered_fraction']:.0%}")
    for panel in PANELS:
        assert page.locator(f"#{panel} .main-svg").count() > 0, panel
    with opening(browser, short_run.run_dir / "control" / "report.html") as control:
        assert "policy plain: complete" in control.inner_text(".lead")
        assert control.locator("#coverage .main-svg").count() > 0
        assert "No model was trained" in control.inner_text("#losses")


def test_panels_hold_the_run_s_own_data(short_run: Campaign, page: Page) -> None:
    told = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
    segments = {line["task_info"]["segment_id"] for line in short_run.traces("simulation")}
    assert {segment for segment, _ in points(page, "tree")} == segments
    n_tasks = sum(len(short_run.traces(topic)) for topic in ("simulation", "inference", "training"))
    bars = page.evaluate("document.getElementById('plot-timeline')._fullData.reduce((n, t) => n + t.x.length, 0)")
    assert bars == n_tasks
    curves = page.evaluate(
        "document.getElementById('plot-coverage')._fullData.map(t => [t.name, t.y[t.y.length - 1]])"
    )
    control = json.loads((short_run.run_dir / "control" / "summary.json").read_text())
    assert curves == [
        ["novelty", short_run.summary()["coverage"]["value"]],
        ["plain control", control["coverage"]["value"]],
    ]
    names = {colour["name"] for colour in told["figures"]["latent"]["colours"]}
    assert {"simulated time (ns)", "novelty when looked at first"} <= names
    epochs = [len(line["task_info"]["losses"]["critic"]) for line in short_run.traces("training")]
    assert len(page.evaluate("Array.from(document.getElementById('plot-losses')._fullData[0].y)")) == sum(epochs)


def test_coordinates_on_the_page_are_those_of_the_trajectories(short_run: Campaign, page: Page) -> None:
    from scipy.spatial.distance import pdist

    told = page.evaluate("JSON.parse(document.getElementById('data').textContent).coordinates")
    each = told[len(told) // 2]
    page.select_option("#segment", str(each["s"]))
    shown = page.evaluate(
        "([segment]) => { const each = JSON.parse(document.getElementById('data').textContent).coordinates"
        ".find(e => e.s === segment); const bytes = Uint8Array.from(atob(each.x), c => c.charCodeAt(0));"
        "return Array.from(new Int16Array(bytes.buffer)); }",
        [each["s"]],
    )
    ((_, path),) = each_trajectory(trajectory_files(short_run.run_dir, [each["s"]]))
    frames = read_positions(path)
    found = np.array(shown).reshape(len(each["f"]), -1, 3) / 1000
    for row, frame in enumerate(each["f"]):
        # Laid on the start: what stays is how far its atoms are from one another.
        assert pdist(found[row]) == pytest.approx(pdist(frames[frame]), abs=2e-3)


@pytest.mark.parametrize("panel", ["latent", "tree"])
def test_a_click_shows_the_structure(page: Page, panel: str) -> None:
    before = drawn(page)
    assert before.std() > 0.01  # the last segment is shown from the start
    symbols = page.locator(f"#plot-{panel} .scatterlayer .point")
    wanted = points(page, panel)[3]
    # A point may lie under others: the browser is told which one the mouse is on.
    symbols.nth(3).dispatch_event("mousemove")
    page.evaluate(
        "([name, n]) => { const plot = document.getElementById(`plot-${name}`);"
        "const trace = plot.data.findIndex(t => t.mode === 'markers');"
        "plot.emit('plotly_click', { points: [{ customdata: plot.data[trace].customdata[n] }] }); }",
        [panel, 3],
    )
    page.wait_for_function("n => document.getElementById('segment').value === String(n)", arg=wanted[0])
    assert page.inner_text("#shown").startswith(f"Segment {wanted[0]}, frame {wanted[1]}")
    assert page.get_attribute("#trajectory", "href") == f"./trajectories/{wanted[0]:08d}.dcd"
    page.wait_for_timeout(500)
    after = drawn(page)
    assert after.std() > 0.01
    assert np.abs(after - before).max() > 0.1


def test_a_real_click_of_the_mouse(page: Page) -> None:
    page.locator("#plot-latent").scroll_into_view_if_needed()
    page.evaluate("document.getElementById('shown').textContent = ''")
    symbols = page.locator("#plot-latent .scatterlayer .point")
    for n in range(symbols.count()):
        box = symbols.nth(n).bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(120)
        page.mouse.down()
        page.mouse.up()
        if page.inner_text("#shown"):
            break
    assert re.match(r"Segment \d+, frame \d+", page.inner_text("#shown"))


def test_the_keyboard_reaches_all(page: Page) -> None:
    page.focus("#segment")
    page.keyboard.press("ArrowUp")
    first = page.inner_text("#shown")
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert page.inner_text("#shown") != first
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.get_attribute("#play", "aria-pressed") == "true"
    page.keyboard.press("Enter")
    assert page.get_attribute("#play", "aria-pressed") == "false"


def test_everything_has_a_name_for_those_who_cannot_see_it(page: Page) -> None:
    named = page.locator("button, select, input, [role=img]:not(svg)").all()
    assert len(named) > 10
    for each in named:
        told = "e => e.getAttribute('aria-label') || e.innerText || (e.labels || [])[0]?.innerText"
        assert each.evaluate(told), each.evaluate("e => e.outerHTML.slice(0, 200)")
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("img", name="Coverage over simulated time: novelty").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"


def ground_and_ink(page: Page) -> list[str]:
    """Colours of the page, which those of its figures follow."""
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert page.evaluate("getComputedStyle(document.querySelector('#plot-coverage .xtick text')).fill") == ink
    return [ground, ink]


def test_it_fits_its_window_light_and_dark(short_run: Campaign, page: Page, browser: Browser) -> None:
    assert overflow_px(page) == 0
    light = ground_and_ink(page)
    with opening(browser, short_run.run_dir / "report.html", 390, "dark") as narrow:
        assert overflow_px(narrow) == 0
        dark = ground_and_ink(narrow)
        assert set(light).isdisjoint(dark)
        narrow.emulate_media(color_scheme="light")
        narrow.wait_for_function(
            "ink => getComputedStyle(document.querySelector('#plot-coverage .xtick text')).fill === ink", arg=light[1]
        )


def test_markup_in_names_and_errors_is_shown_and_not_run(
    short_run: Campaign, browser: Browser, tmp_path: Path
) -> None:
    hostile = "<img src=x onerror=document.title='owned'>"
    run = tmp_path / hostile.replace("/", "")
    shutil.copytree(short_run.run_dir, run)
    with sqlite3.connect(run / "ledger.sqlite") as db:
        error = f"{hostile}</script><script>document.title='owned'</script>\nTraceback: {hostile}"
        db.execute("UPDATE attempt SET outcome = 'error', error = ? WHERE task_id = 3", (error,))
    with opening(browser, write_report([run])) as page:
        assert page.title() == run.name
        assert page.inner_text("h1") == run.name
        page.click("summary")
        assert hostile in page.inner_text("#failures pre")
        assert page.locator("#failures img, h1 img").count() == 0
        trajectory = page.evaluate("document.getElementById('trajectory').href")
        assert Path(unquote(urlsplit(trajectory).path)).is_file()


def test_runs_are_compared(short_run: Campaign, browser: Browser, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    told = run_py("report", short_run.run_dir, short_run.run_dir / "control", "--out", out)
    assert told.returncode == 0, told.stderr
    with opening(browser, out) as page:
        names = page.locator("thead a").all_inner_texts()
        assert names == [short_run.run_dir.name, "control"]
        for link in page.locator("thead a").all():
            assert (out.parent / unquote(link.get_attribute("href") or "")).resolve().is_file()
        assert page.evaluate("document.getElementById('plot-coverage')._fullData.map(t => t.name)") == names
        assert overflow_px(page) == 0


def embedded(report: Path) -> dict[str, Any]:
    """What a report's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', report.read_text(), re.DOTALL)
    assert found is not None
    told: dict[str, Any] = json.loads(found[1])
    return told


@pytest.mark.slow
def test_a_weighted_ensemble_has_its_own(campaign: Callable[..., Campaign]) -> None:
    run = campaign(
        *("--system", "double-well", "--policy", "weighted-ensemble", "--segment-ps", "0.5", "--frame-ps", "0.1"),
        *("--max-iterations", "6", "--bins", "rectilinear:-0.3,-0.2,-0.1,0,0.1,0.2", "--report"),
    )
    assert run.wait() == 0, run.err
    told = embedded(run.run_dir / "report.html")
    assert {"ensemble", "conformations", "tree"} <= told["figures"].keys()
    assert "weight (log10)" in [colour["name"] for colour in told["figures"]["conformations"]["colours"]]
    assert "sum to 1 .. 1" in (run.run_dir / "report.html").read_text()


@pytest.mark.slow
def test_structures_come_out_of_archives(campaign: Callable[..., Campaign], tmp_path: Path) -> None:
    run = campaign(
        *("--max-segments", "30", "--scratch", str(tmp_path / "scratch"), "--gather-every", "10"),
        *("--no-control", "--report"),
    )
    assert run.wait() == 0, run.err
    told = embedded(run.run_dir / "report.html")
    assert len(told["coordinates"]) == 30
    assert all(re.fullmatch(r"archives/\S+\.tar\.gz \(\S+\.dcd\)", each["p"]) for each in told["coordinates"])


def test_methods_say_what_was_run(short_run: Campaign) -> None:
    from campaign.report.facts import methods
    from campaign.trace import Run
    from tasks.inputs import HYDROGEN_MASS_AMU

    told = methods(Run(short_run.run_dir))
    for words in (
        "alanine-dipeptide (22 atoms)",
        "ff14SB",
        "OBC2",
        "steps of 4.0 fs",
        "300.0 K",
        "seed 11",
        "8 dimensions",
        f"hydrogens of {HYDROGEN_MASS_AMU:g} amu",
    ):
        assert words in told.paragraph
    assert {"OpenMM", "ff14SB", "Colmena", "adversarial autoencoder"} <= {each.what for each in told.cited}
    assert (
        f"OpenMM {json.loads((short_run.run_dir / 'host_info.json').read_text())['versions']['OpenMM']}"
        in told.versions
    )
    plain = methods(Run(short_run.run_dir / "control"))
    assert "nothing was steered" in plain.paragraph
    assert "adversarial autoencoder" not in {each.what for each in plain.cited}


def test_what_is_no_run_is_refused(short_run: Campaign, tmp_path: Path) -> None:
    told = run_py("report", tmp_path)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "is no run" in told.stderr
    told = run_py("report", short_run.run_dir, short_run.run_dir)
    assert told.returncode == 2
    assert "named twice" in told.stderr
    told = run_py("report", short_run.run_dir, "--out", tmp_path / "none" / "report.html")
    assert told.returncode == 2
    assert "cannot be written" in told.stderr
    assert list(tmp_path.iterdir()) == []
