"""The page itself, in a browser: it opens at once, shows text as text, filters, and draws a search as a tree."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from support import processes
from support.run_house import ENVIRONMENT, interruptible
from support.view_house import RunFolder, dialogue, kept, said
from support.waiting import deadline_s

from protocols.turns import Role

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]
OPENS_S = 2.0
START_S = 60  # of the command: its imports, on a busy machine
INJECT = """text => new Promise((done) => {
    document.addEventListener("securitypolicyviolation", ({ effectiveDirective: what }) => {
        if (what.startsWith("script-src")) done(what);
    });
    setTimeout(() => done("nothing was forbidden"), 20000);
    document.querySelector("#group").innerHTML = text;
})"""  # returns what the page's policy kept from running
EVIL = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"


@contextmanager
def viewer(folder: Path, *arguments: str) -> Iterator[str]:
    """`redraft view` in a process of its own; yields the address that it prints."""
    process = processes.start(
        [sys.executable, "-m", "redraft", "view", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=interruptible,
    )
    try:
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=deadline_s(START_S))
        assert (process.returncode, errors) == (0, ""), "Ctrl-C ends it, quietly"
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> RunFolder:
    """10,000 turns: 1,997 dialogues of training, an evaluation, an error, a search, and a group that means harm."""
    made = RunFolder(tmp_path_factory.mktemp("runs") / "large")
    made.evaluation("before", 0, ["test/1"], "www")
    line = kept("signs/7128", dialogue("wrrrr"))
    for step in range(1, 1998):
        made.step(step, line)
    made.step(1998, kept("signs/failed", [said(0, "", role=Role.ERROR, extra={"error": "it hung"})], 0.0))
    made.step(1999, kept("craft/search", search(), -0.5))
    made.step(2000, kept(EVIL, [said(0, EVIL, question=EVIL, extra={"answer": EVIL})]))
    return made


def search() -> list:
    """0 -> 1 -> 3 on one branch, 0 -> 2 on another, and a root of its own."""
    places = {0: -1, 1: 0, 2: 0, 3: 1, 4: -1}
    return [said(turn, f"get {turn}", parent=parent, role=Role.ACTION) for turn, parent in places.items()]


@pytest.fixture(scope="module")
def address(house: RunFolder) -> Iterator[str]:
    with viewer(house.folder) as printed:
        yield printed


@pytest.fixture
def page(browser, address: str) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(1000 * deadline_s(START_S))
    opened.goto(address)
    yield opened
    opened.close()


def listed(page: Page):
    return page.locator("#groups button")


def choose(page: Page, **values: str) -> None:
    for name, value in values.items():
        field = page.locator(f"#filters [name={name}]")
        field.select_option(value) if name in ("kind", "label") else field.fill(value)


def test_a_run_of_ten_thousand_turns_opens_in_two_seconds(browser, address):
    page = browser.new_page()  # a browser that is there already: its own start is not the run's
    page.goto("about:blank")
    began = time.monotonic()
    page.goto(address)
    expect(page.locator(".turn .response").first).to_be_visible()
    seconds = time.monotonic() - began
    print(f"10,000 turns: the first group is there after {seconds:.2f} s")
    expect(page.locator("#facts")).to_contain_text("2001 of 2001 groups")
    page.close()
    assert seconds < deadline_s(OPENS_S)


def test_what_a_model_says_is_text_and_runs_nothing(page):
    expect(page.locator("#group h2")).to_have_text(EVIL)
    expect(page.locator(".response")).to_have_text(EVIL + "<eos>")
    expect(page.locator(".prompt")).to_have_text(EVIL)
    expect(page.locator(".turn .soft").last).to_contain_text(EVIL)
    assert page.evaluate("window.ran") is None
    assert page.locator("#group img, #group script, #side img, #side script").count() == 0


def test_nothing_would_run_even_if_markup_got_in(page):
    expect(page.locator("#group h2")).to_have_text(EVIL)
    forbidden = page.evaluate(INJECT, EVIL)
    assert forbidden.startswith("script-src") and page.evaluate("window.ran") is None


def test_filters_narrow_the_list(page):
    choose(page, kind="errors")
    expect(listed(page)).to_have_count(1)
    expect(listed(page)).to_contain_text("signs/failed")
    choose(page, kind="all", label="before")
    expect(listed(page)).to_have_count(1)
    expect(listed(page)).to_contain_text("test/1")
    choose(page, label="", first="10", last="12", task="7128")
    expect(listed(page)).to_have_count(3)
    expect(listed(page).first.locator(".marks")).to_have_text("✗✓✓✓✓")
    choose(page, kind="broken")
    expect(listed(page)).to_have_count(0)


def test_pages_of_the_list_turn(page):
    page.locator("#older").click()
    expect(page.locator("#place")).to_have_text("page 2 of 41")
    expect(listed(page).first).to_contain_text("step 1950")
    page.locator("#newer").click()
    expect(listed(page).first).to_contain_text("step 2000")


def test_a_search_is_a_tree_and_a_dialogue_is_a_list(page):
    listed(page).nth(1).click()
    expect(page.locator(".root")).to_have_count(2)
    expect(page.locator(".branch")).to_have_count(2)
    first, second = page.locator(".branch").all()
    expect(first.locator(".response")).to_have_text(["get 1<eos>", "get 3<eos>"])
    expect(second.locator(".response")).to_have_text(["get 2<eos>"])
    listed(page).nth(3).click()
    expect(page.locator(".turn")).to_have_count(5)
    expect(page.locator(".branch")).to_have_count(0)


def test_tokens_are_shaded_by_their_weight_and_say_their_numbers(page):
    expect(page.locator("#group h2")).to_have_text(EVIL)
    shades = [
        float(re.search(r"[\d.]+", one)[0])
        for one in page.locator(".response .t.up").evaluate_all(
            "all => all.map(one => one.style.getPropertyValue('--w'))"
        )
    ]
    assert len(shades) == len(EVIL) + 1 and shades == sorted(shades) and shades[0] < 0.1 < 0.5 < shades[-1]
    title = page.locator(".response .t").first.get_attribute("title")
    assert '"<"' in title and "log-prob -0.5" in title and "weight 0.1" in title
    listed(page).nth(1).click()
    expect(page.locator(".response .t.down").first).to_be_visible()


def test_on_a_phone_there_is_one_thing_at_a_time(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(address)
    expect(listed(page).first).to_be_visible()
    expect(page.locator("#group")).to_be_hidden()
    listed(page).nth(3).click()
    expect(page.locator(".response").first).to_be_visible()
    expect(page.locator("#side")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"
    page.locator("#back").click()
    expect(listed(page).first).to_be_visible()
    page.close()


def test_new_groups_appear_by_themselves(page, house):
    expect(listed(page).first).to_contain_text("step 2000")
    house.step(2001, kept("signs/new", dialogue("rr")))
    expect(listed(page).first).to_contain_text("signs/new")
    expect(page.locator("#group h2")).to_have_text(EVIL), "what is being read stays"


def test_with_a_token_the_printed_address_opens_it(browser, house):
    with viewer(house.folder, "--host", "0.0.0.0") as printed:
        token = printed.partition("?token=")[2]
        port = re.search(r":(\d+)/", printed)[1]
        page = browser.new_page()
        assert page.goto(f"http://127.0.0.1:{port}/").status == 401
        page.goto(f"http://127.0.0.1:{port}/?token={token}")
        expect(listed(page).first).to_be_visible()
        assert "token" not in page.url and token not in page.evaluate("document.cookie")
        page.close()
