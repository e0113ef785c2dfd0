"""Pages in the Chromium of this machine, driven by Playwright, and what can be wrong with them."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FIGURES = """() => [...document.querySelectorAll('svg')].map(svg => {
  const frame = svg.getBoundingClientRect();
  const inside = box => box.left >= frame.left - 1 && box.right <= frame.right + 1
    && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
  const drawn = one => { const box = one.getBoundingClientRect(); return box.width + box.height > 0 && inside(box) };
  return {
    name: svg.getAttribute('aria-label'),
    marks: [...svg.querySelectorAll(':is(polyline, circle, rect, path):not(.key)')].filter(drawn).length,
    cut_off: [...svg.querySelectorAll('text')].filter(one => !drawn(one)).map(one => one.textContent),
  };
})"""
TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter(one =>
  one.getBoundingClientRect().right > innerWidth + 1 || one.scrollWidth > innerWidth).map(one => one.outerHTML)"""


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser. Raises RuntimeError where no Chromium is installed, ImportError without Playwright."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        raise RuntimeError(f"no {', '.join(NAMES)} on PATH; install one, such as with apt-get install -y chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # works as root too
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def chromium_or_skip() -> Iterator[Any]:
    """The same for a test, which is skipped where the browser or Playwright is missing."""
    pytest.importorskip("playwright", reason="Playwright of the dev extra is not installed")
    if find_chromium() is None:
        pytest.skip("no Chromium on PATH; apt-get install -y chromium")
    with chromium() as browser:
        yield browser


def open_file(browser, path: Path, width: int = 1200, scheme: str = "light"):
    """A tab with the page; `tab.errors` are what it logs and raises, `tab.requests` the addresses that it loads."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.errors, tab.requests = [], []
    tab.on("console", lambda message: tab.errors.append(message.text))
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(path.resolve().as_uri())
    return tab


def figures_of(tab) -> list[dict[str, Any]]:
    """{"name", "marks": how many are drawn inside the figure, "cut_off": texts that are not whole} of each SVG."""
    return tab.evaluate(FIGURES)


def too_wide(tab) -> list[str]:
    """The elements that a reader would have to scroll sideways for."""
    return tab.evaluate(TOO_WIDE)
