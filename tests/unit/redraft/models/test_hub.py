"""A model of the hub that cannot be fetched says why, by what the real client makes of the hub's answers."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from support.ports import free_port

from protocols.errors import SettingError
from redraft.models import hub

ANSWERS = {
    "typo": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"}),
    "private": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "down": (503, {"X-Error-Message": "Down for maintenance"}),
}


class Hub(BaseHTTPRequestHandler):
    """Answers for /api/models/some/NAME as the hub does for what cannot be read."""

    def do_GET(self) -> None:
        kind = next(kind for kind in ANSWERS if f"some/{kind}" in self.path)
        status, headers = ANSWERS[kind]
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    """The client asks a hub of the test's own, without a token."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield
        server.shutdown()


def refused(name: str, revision: str = "") -> str:
    with pytest.raises(SettingError) as error:
        hub.fetch(name, revision)
    assert error.value.setting == "model.path" and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("some/typo", "has no such model, or it is private, and there is no token. Correct its name, .* HF_TOKEN"),
        ("some/private", "has no such model, or it is private"),
        ("some/gated", "only to those who were granted access. Ask for access on http.*/some/gated, .* HF_TOKEN"),
        ("some/down", "the hub answers with 503: .*Try again later"),
        ("no such/name/at all", "is no name of the hub. Write ORGANISATION/MODEL"),
    ],
)
def test_what_the_hub_answers_is_told_with_the_cure(endpoint, name, words):
    assert re.search(words, refused(name)), refused(name)


def test_a_hub_that_is_not_reached_is_told_from_a_client_that_may_not_ask(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert "the hub cannot be reached (http://127.0.0.1" in refused("some/typo")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE keeps the hub's client from fetching it. Unset" in refused("some/typo")
