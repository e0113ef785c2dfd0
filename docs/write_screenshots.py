"""Writes the screenshots of the demo's page to docs/figures: desktop light, desktop dark, phone, its first figure.

python docs/write_screenshots.py runs/demo/report.html
python docs/write_screenshots.py http://127.0.0.1:8000

The second form writes those of the server's page, with `make chat COMPARE=runs/demo/sft` at the address.
Needs Chromium (`apt-get install -y chromium`) and the dev extra.
"""

import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
MAX_BYTES = 300_000
SCALE = 2  # pixels of the picture for one of the page
# name: (colour scheme, viewport, the heading that stands at the top, height in pixels)
VIEWS = {
    "demo_desktop": ("light", {"width": 1140, "height": 1000}, "", 1500),
    "demo_dark": ("dark", {"width": 1140, "height": 1000}, "migration", 1500),
    "demo_phone": ("light", {"width": 390, "height": 844}, "", 1700),
}
CHATS = {
    "chat_desktop": ("light", {"width": 1200, "height": 720}),
    "chat_dark": ("dark", {"width": 1200, "height": 720}),
    "chat_phone": ("light", {"width": 390, "height": 844}),
}
ASKED = "?9+4+9+7="


def main(page: str) -> None:
    sys.path.insert(0, str(ROOT))
    from tests.helpers.browser import chromium

    with chromium() as browser:
        (write_chats if page.startswith("http") else write_report)(browser, page)


def write_chats(browser, address: str) -> None:
    """A question that both models have answered; the first answer shows its tokens, and one of them its log-prob."""
    for name, (scheme, viewport) in CHATS.items():
        tab = browser.new_page(viewport=viewport, color_scheme=scheme, device_scale_factor=SCALE)
        tab.goto(address)
        tab.locator("#names:not(:empty)").wait_for()
        settings = tab.locator("#settings")
        settings.evaluate("fold => fold.open = true")
        tab.fill("[name=temperature]", "0")
        tab.fill("[name=max_tokens]", "96")
        settings.evaluate("fold => fold.open = innerWidth > 760")
        tab.fill("#text", ASKED)
        tab.press("#text", "Enter")
        tab.locator("#stop").wait_for(state="hidden")
        tab.locator("details.tokens summary").first.click()
        tab.locator("details.tokens span").nth(4).hover()
        write_png(tab.screenshot(), FIGURES / f"{name}.png")


def write_report(browser, page: str) -> None:
    """Parts of the page of `make demo`."""
    for name, (scheme, viewport, heading, height) in VIEWS.items():
        tab = browser.new_page(viewport=viewport, color_scheme=scheme, device_scale_factor=SCALE)
        tab.goto(Path(page).resolve().as_uri())
        whole = tab.evaluate("document.documentElement.scrollHeight")
        top = tab.evaluate("id => id && document.getElementById(id).offsetTop - 20", heading) or 0
        clip = {"x": 0, "y": top, "width": viewport["width"], "height": min(height, whole - top)}
        write_png(tab.screenshot(full_page=True, clip=clip), FIGURES / f"{name}.png")
        if name == "demo_desktop":
            write_png(tab.locator(".grid.wide").first.screenshot(), FIGURES / "demo_hero.png")


def write_png(png: bytes, path: Path) -> None:
    """With 256 colours, which a page of flat colours does with. Raises ValueError where that is still too large."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(path, optimize=True)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; expected at most {MAX_BYTES}: lower its height in VIEWS")
    print(f"{path}: {size / 1e3:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/write_screenshots.py runs/demo/report.html, or the address of `make chat`")
    main(sys.argv[1])
