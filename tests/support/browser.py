"""A page as a browser lays it out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]


def width_of(file: Path, screen: int) -> int:
    """How many CSS pixels wide the page in a file is on a telephone whose screen has so many."""
    if not CHROMIUM.exists():
        problem = f"no browser at {CHROMIUM}: apt-get install chromium"
        pytest.fail(problem) if os.environ.get("CI") == "true" else pytest.skip(problem)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": screen, "height": 740}, is_mobile=True, device_scale_factor=2)
        page.goto(file.as_uri())
        width = page.evaluate("Math.max(document.documentElement.scrollWidth, Math.round(window.visualViewport.width))")
        browser.close()
    return width
