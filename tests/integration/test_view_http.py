"""The viewer answers whom it should: a name of loopback, or who has the token; its page runs only its own script."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from support.view_house import RunFolder, dialogue, kept

from protocols.errors import SettingError
from redraft.watch.viewer import serve
from redraft.watch.viewer.app import STATIC, application

TOKEN = "a-token-that-nobody-guesses"
PATHS = ["/", "/api/groups", "/api/group?key=000000:0", "/static/view.js"]


@pytest.fixture
def house(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "tiny")
    made.step(1, kept("signs/7128", dialogue("wr")))
    return made


def client(house: RunFolder, token: str | None = None, base: str = "http://127.0.0.1:8000") -> TestClient:
    return TestClient(application(house.run, token), base_url=base, follow_redirects=False)


@pytest.mark.parametrize("name", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "LOCALHOST"])
def test_on_loopback_its_names_are_answered(house, name):
    assert client(house).get("/api/groups", headers={"host": name}).json()["total"] == 1


def test_the_name_of_this_machine_is_answered_where_it_is_one_of_loopback(house):
    named = TestClient(application(house.run, None, "MyHost"), base_url="http://myhost:8000")
    assert named.get("/api/groups").status_code == 200
    assert named.get("/api/groups", headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("name", ["evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "localhost@evil.example"])
@pytest.mark.parametrize("path", PATHS)
def test_a_page_elsewhere_cannot_reach_it_under_a_name_of_its_own(house, name, path):
    assert client(house).get(path, headers={"host": name}).status_code == 421


@pytest.mark.parametrize("path", PATHS)
def test_elsewhere_nothing_is_answered_without_the_token(house, path):
    visitor = client(house, TOKEN, "http://10.0.0.5:8000")
    mark = "&" if "?" in path else "?"
    for wrong in (path, f"{path}{mark}token=", f"{path}{mark}token={TOKEN}x", f"{path}{mark}token=%C3%A9"):
        answer = visitor.get(wrong)
        assert answer.status_code == 401 and "set-cookie" not in answer.headers
    name = visitor.get(f"/?token={TOKEN}").headers["set-cookie"].split("=")[0]
    visitor.cookies.clear()
    assert visitor.get(path, headers={"cookie": f"{name}=wrong"}).status_code == 401


def test_the_token_is_taken_once_and_kept_where_scripts_cannot_read_it(house):
    visitor = client(house, TOKEN, "http://10.0.0.5:8000")
    entered = visitor.get(f"/?token={TOKEN}")
    assert entered.status_code == 303 and entered.headers["location"] == "/", "the address no longer shows it"
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie
    assert visitor.get("/").status_code == 200 and visitor.get("/api/groups").json()["total"] == 1


@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/static/../app.py", "/static/%2e%2e/app.py"])
def test_every_answer_forbids_the_browser_what_the_page_does_not_need(house, path):
    answer = client(house).get(path)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
    assert "Starlette" not in answer.text


def test_the_page_brings_all_that_it_needs_and_nothing_inline():
    page, script = (STATIC / "index.html").read_text(), (STATIC / "view.js").read_text()
    assert "<style" not in page and "style=" not in page and "onclick" not in page and "<script>" not in page
    assert all("//" not in line.split("// ")[0] for line in (page + script).replace("<!doctype", "").splitlines())
    assert not any(
        word in script for word in ("innerHTML", "insertAdjacentHTML", "outerHTML", "document.write", "eval(")
    )


def test_pages_of_the_list_and_odd_questions(house):
    for step in range(2, 121):
        house.step(step, kept(f"signs/{step}", dialogue("wr")))
    ask = client(house).get
    first, last = ask("/api/groups").json(), ask("/api/groups?page=99").json()
    assert first["pages"] == 3 and first["groups"][0]["step"] == 120 and len(first["groups"]) == 50
    assert last["page"] == 2 and len(last["groups"]) == 20
    assert ask("/api/groups?kind=nonsense&first=x&last=-1&page=%EF%BC%95").json()["total"] == 120
    assert ask("/api/groups?first=119&last=119").json()["total"] == 1
    assert ask("/api/group?key=nothing").status_code == 404
    (turn, _) = ask(f"/api/group?key={last['groups'][-1]['key']}").json()["turns"]
    assert "".join(turn["response_words"]) == "answer 0<eos>" and turn["response_special"] == [8]


def test_a_host_or_port_that_cannot_be_used_is_named(house):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("192.0.2.1", 0), ("no.such.name.invalid", 0)):
            with pytest.raises(SettingError, match=f"--host: nothing can listen at {host}"):
                serve.serve(house.run, host, port)


@pytest.mark.parametrize(("host", "asked"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_an_address_that_others_reach_gets_a_token_which_is_printed_once_and_never_logged(
    house, host, asked, monkeypatch, capsys, caplog
):
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: [one.close() for one in sockets])
    with caplog.at_level(logging.DEBUG):
        serve.serve(house.run, host, 0)
    address, rest = capsys.readouterr().out.split("\n", 1)
    token = address.partition("?token=")[2]
    assert (len(token) >= 40) == asked and not rest
    assert not token or token not in caplog.text
