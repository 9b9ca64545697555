"""Makes the pictures of docs/images: `python -m tools.pictures [--into FOLDER] [--only run|boards]`.

Of one run of the quickstart, in a folder of its own: the live view and `redraft top` while it trains, and the report
and the viewer when it is done. Of Grafana's boards, which are drawn from their own queries (tools/boards.py): two runs
of it side by side, watched by a Prometheus. Ten to fifteen minutes, Chromium and Prometheus; view-search.png needs a
run of minicraft-agent-r and is not made here.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import yaml
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

from protocols.reports import RunStatus
from redraft.control.remote import Remote
from redraft.run import find
from redraft.watch.live import Pace, panel
from redraft.watch.top import Top
from tools import boards

ROOT = Path(__file__).resolve().parent.parent
RUN, OTHER = "quickstart", "quickstart-warm"
HALF, SOME = 60, 20  # steps after which the run is pictured; and two beside each other
BEFORE_S = 60.0  # of the pictures of boards, before the first step
LIMIT_S = 1800.0
SCRAPE_S, POINTS = 2, 150  # of the Prometheus that watches; of a line in a picture
SOFTWARE = ["--no-sandbox", "--disable-gpu"]


@contextmanager
def training(folder: Path, *arguments: str, said: str = "output.txt") -> Iterator[subprocess.Popen]:
    """The quickstart, in `folder`; what it says goes to a file there."""
    command = [sys.executable, "-m", "redraft", "train", str(ROOT / "recipes" / "quickstart.yaml"), *arguments]
    with open(folder / said, "wb") as output:
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


@contextmanager
def watched(folder: Path, ports: list[int]) -> Iterator[str]:
    """A Prometheus, by the configuration that we ship, over the runs whose metrics are at these ports; its address."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    config["rule_files"] = [str(ROOT / "deploy" / "prometheus" / name) for name in config["rule_files"]]
    (scraped,) = config["scrape_configs"]
    scraped["http_sd_configs"] = [
        {"url": f"http://127.0.0.1:{port}/sd", "refresh_interval": f"{SCRAPE_S}s"} for port in ports
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus"]
    with open(folder / "prometheus.txt", "wb") as output:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=output, stderr=output)
    try:
        yield f"http://{address}/api/v1"
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(address: str, begin: float, end: float, runs: str) -> boards.Asked:
    """What Grafana would be told: with these runs chosen, and everything else that there is to choose."""
    step_s = max((end - begin) / POINTS, SCRAPE_S)
    chosen = {"$run": runs, "$namespace": ".*", "$actor": ".*", "$price": "1", "$peak": "1000"}
    chosen["$__rate_interval"] = f"{math.ceil(step_s + 4 * SCRAPE_S)}s"

    def asked(query: str, now: bool) -> list[boards.Series]:
        for variable, value in chosen.items():
            query = query.replace(variable, value)
        when = {"time": str(end)} if now else {"start": str(begin), "end": str(end), "step": str(step_s)}
        url = f"{address}/query{'' if now else '_range'}?{urllib.parse.urlencode({'query': query} | when)}"
        with urllib.request.urlopen(url, timeout=60) as page:
            data = json.load(page)["data"]
        if data["resultType"] == "scalar":
            return [({}, [(end, float(data["result"][1]))])]
        series = [(one["metric"], one.get("values") or [one["value"]]) for one in data["result"]]
        numbers = [(labels, [(float(at), float(text)) for at, text in values]) for labels, values in series]
        return [(labels, [pair for pair in values if math.isfinite(pair[1])]) for labels, values in numbers]

    return asked


def of_boards(folder: Path, into: Path) -> None:
    """Grafana's boards, while two runs train that differ in how the answers are drawn."""
    names, ports = (RUN, OTHER), [free_port(), free_port()]
    own = {name: ("--run", name, f"metrics.port={port}") for name, port in zip(names, ports, strict=True)}
    begin, deadline = math.inf, time.monotonic() + LIMIT_S
    files = [folder / "runs" / name / "metrics.jsonl" for name in names]
    with (
        training(folder, *own[RUN]) as one,
        training(folder, *own[OTHER], "sampling.temperature=1.3", said="other") as two,
    ):
        with watched(folder, ports) as address:
            while any(not file.exists() or file.read_text().count("\n") < SOME for file in files):
                if one.poll() is not None or two.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("they did not train:\n" + (folder / "output.txt").read_text()[-3000:])
                time.sleep(1.0)
                begin = min(begin, time.time() - BEFORE_S) if files[0].exists() else begin
            end = time.time()
            for name, said in boards.load(ROOT / "deploy" / "grafana" / "dashboards").items():
                asked = answers(address, begin, end, "|".join(names) if name == "against" else RUN)
                boards.Board(said, asked, begin, end).save(into / f"board-{name}.png")


def of_a_run(folder: Path, into: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("no chromium: apt-get install chromium")
    with training(folder) as process:
        while_it_trains(folder, process, into)
        if process.wait(LIMIT_S):
            raise SystemExit((folder / "output.txt").read_text())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=SOFTWARE)
        when_it_is_done(folder, browser, into)
        browser.close()
    print((folder / "output.txt").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--only", choices=("run", "boards"))
    given = parser.parse_args()
    for kind, make in (("run", of_a_run), ("boards", of_boards)):
        if given.only in (None, kind):
            with tempfile.TemporaryDirectory() as place:
                make(Path(place), given.into)


if __name__ == "__main__":
    main()
