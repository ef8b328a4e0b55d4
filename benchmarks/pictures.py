"""Pictures of a real run for the README: ``python -m benchmarks.pictures RUN`` writes PNGs into benchmarks/pictures/.

They are what Chromium shows of the run's report.html, which is written anew, and of its live page. Each takes less
than 300 kB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.harness import ROOT
from campaign.report import write_report

FOLDER = Path(__file__).parent / "pictures"
MOST_BYTES = 300_000

_CHROMIUM = "/usr/bin/chromium"
_FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_SIZE = {"width": 1280, "height": 900}


def main(argv: list[str]) -> int:
    """Take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory")
    run = parser.parse_args(argv).run
    FOLDER.mkdir(exist_ok=True)
    report = write_report([run])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=list(_FLAGS))
        page = browser.new_page(viewport=_SIZE)  # type: ignore[arg-type]
        page.goto(report.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
        page.wait_for_timeout(1000)
        _take(page, "report")
        with _watched(run) as address:
            page.goto(address)
            page.wait_for_selector("#headline dd")
            page.wait_for_timeout(1000)
            _take(page, "watch")
        browser.close()
    return 0


def _take(page: Page, name: str) -> None:
    path = FOLDER / f"{name}.png"
    page.screenshot(path=path, full_page=False)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path} takes {path.stat().st_size} bytes, over {MOST_BYTES}: show less")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


@contextmanager
def _watched(run: Path) -> Iterator[str]:
    """Lend the address of the live page of a run."""
    command = [sys.executable, str(ROOT / "run.py"), "watch", str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = next((line for line in process.stdout if line.startswith("watch: ")), None)
        if told is None:
            raise SystemExit(f"`python run.py watch {run}` ended without an address")
        try:
            yield told.removeprefix("watch: ").strip()
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
