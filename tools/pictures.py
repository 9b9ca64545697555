"""Makes the pictures of docs/images from one run of the quickstart: `python -m tools.pictures [--into FOLDER]`.

It trains in a folder of its own, takes the live view and `redraft top` while it trains, and the report and the viewer
when it is done: five to ten minutes, and Chromium. view-search.png needs a run of minicraft-agent-r and is not made
here; neither are Grafana's dashboards, which need a Grafana.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

from protocols.reports import RunStatus
from redraft.control.remote import Remote
from redraft.run import find
from redraft.watch.live import Pace, panel
from redraft.watch.top import Top

ROOT = Path(__file__).resolve().parent.parent
RUN = "quickstart"
HALF = 60  # steps after which the run is pictured
LIMIT_S = 1800.0
SOFTWARE = ["--no-sandbox", "--disable-gpu"]


@contextmanager
def training(folder: Path) -> Iterator[subprocess.Popen]:
    """The quickstart, in `folder`; what it says goes to `output.txt` there."""
    command = [sys.executable, "-m", "redraft", "train", str(ROOT / "recipes" / "quickstart.yaml")]
    with open(folder / "output.txt", "wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environment())
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def while_it_trains(folder: Path, process: subprocess.Popen, into: Path) -> None:
    """The live view, and `redraft top`."""
    name, deadline, pace = str(folder / "runs" / RUN), time.monotonic() + LIMIT_S, Pace()
    remote = None
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the run did not train:\n" + (folder / "output.txt").read_text()[-3000:])
        time.sleep(1.0)
        if not (folder / "runs" / RUN / "metrics.jsonl").exists():
            continue
        remote = remote or Remote(name)
        status = remote.status()
        if isinstance(status, RunStatus):
            pace.see(status)
            if status.step >= HALF:
                break
    remote.close()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(panel(RUN, status, pace.left_s(status)))
    console.save_svg(str(into / "live.svg"), title="make demo")
    asyncio.run(top(name, into / "top.svg"))


async def top(name: str, path: Path) -> None:
    app = Top(find(name))
    async with app.run_test(size=(120, 36)) as pilot:
        for _ in range(100):
            await pilot.pause(0.2)
            picture = app.export_screenshot(title=f"redraft top {RUN}")
            if "tokens/s" in picture.replace("&#160;", " "):
                break
        path.write_text(picture)


@contextmanager
def viewer(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "redraft", "view", str(folder / "runs" / RUN)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def when_it_is_done(folder: Path, browser: Browser, into: Path) -> None:
    """The report on a screen and on a telephone, and the viewer on both."""
    report = (folder / "runs" / RUN / "report.html").as_uri()
    for file, width, height in (("report.png", 1200, 1000), ("report-phone.png", 390, 760)):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(report)
        page.screenshot(path=into / file)
    with viewer(folder) as address:
        for file, width, dark in (("view-dialogue.png", 1200, False), ("view-phone.png", 390, True)):
            scheme: Literal["dark", "light"] = "dark" if dark else "light"
            page = browser.new_page(viewport={"width": width, "height": 760}, color_scheme=scheme)
            page.goto(address)
            page.locator("#groups button").first.wait_for()
            page.locator("#filters [name=kind]").select_option(label="failed, then fixed")
            page.locator("#filters [name=label]").select_option("training")
            page.wait_for_load_state("networkidle")
            page.locator("#groups button").nth(1).click()
            page.locator(".turn .response").first.wait_for()
            page.wait_for_load_state("networkidle")
            page.screenshot(path=into / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    into = parser.parse_args().into
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("no chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with training(folder) as process:
            while_it_trains(folder, process, into)
            if process.wait(LIMIT_S):
                raise SystemExit((folder / "output.txt").read_text())
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=SOFTWARE)
            when_it_is_done(folder, browser, into)
            browser.close()
        print((folder / "output.txt").read_text())


if __name__ == "__main__":
    main()
