"""A real browser without a window, for tests of pages, and what it complains of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

from tests.needs import need, program

# As Debian's package calls it, and Ubuntu's.
_NAMES = ("chromium", "chromium-browser")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Lend a browser as long as it is needed; the test is skipped where the machine has none."""
    found = next(filter(None, map(program, _NAMES)), None)
    if found is None:
        need(_NAMES[0], package="chromium", requires="chromium")
    with sync_playwright() as playwright:
        # A container may let no unprivileged namespaces be made, nor have much of /dev/shm.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def complaints(page: Page) -> list[str]:
    """Return a list that fills with what goes wrong on a page: errors, warnings, and what it could not fetch."""
    found: list[str] = []

    def note_message(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            found.append(f"{message.type}: {message.text}")

    def note_error(error: Error) -> None:
        found.append(f"raised: {error}")

    page.on("console", note_message)
    page.on("pageerror", note_error)
    page.on("requestfailed", lambda request: found.append(f"not fetched: {request.url} ({request.failure})"))
    return found


def overflow_px(page: Page) -> int:
    """Return by how many pixels a page is wider than its window."""
    wider: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wider
