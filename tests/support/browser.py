"""A page as a browser lays it out."""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]


def width_of(file: Path, screen: int) -> int:
    """How many CSS pixels wide the page in a file is on a telephone whose screen has so many. Needs Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": screen, "height": 740}, is_mobile=True, device_scale_factor=2)
        page.goto(file.as_uri())
        width = page.evaluate("Math.max(document.documentElement.scrollWidth, Math.round(window.visualViewport.width))")
        browser.close()
    return width
