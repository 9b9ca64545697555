"""Metrics of a process: for its own machine, or for all that reach it and have the token."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.waiting import deadline_s

from protocols import metrics_page
from protocols.errors import SettingError
from protocols.metrics_page import EVERYWHERE, LOOPBACK, TOKEN, Listen

RIGHT = "right-token-0123456789"


def asked(port: int, path: str = "/metrics", authorization: str | None = None) -> tuple[int, bytes]:
    headers = {} if authorization is None else {"Authorization": authorization}
    request = urllib.request.Request(f"http://127.0.0.2:{port}{path}", headers=headers)  # not that of LOOPBACK
    try:
        with urllib.request.urlopen(request, timeout=deadline_s(10)) as page:
            return page.status, page.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()


def test_where_others_reach_them_metrics_are_told_to_who_has_the_token_alone():
    port = metrics_page.serve(0, "actors.metrics_port", Listen(EVERYWHERE, RIGHT))
    for wrong in (
        None,
        "",
        RIGHT,
        f"Bearer {RIGHT[:-1]}",
        f"Bearer {RIGHT}x",
        f"Basic {RIGHT}",
        "Bearer ",
        "Bearer \xe9",
    ):
        for path in ("/metrics", "/", "/sd"):
            assert asked(port, path, wrong) == (401, b""), wrong
    status, page = asked(port, authorization=f"Bearer {RIGHT}")
    assert status == 200 and b"python_info" in page


def test_a_port_in_use_is_refused_by_the_name_of_its_setting():
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        with pytest.raises(SettingError, match=r"actors\.metrics_port: port \d+ cannot be used"):
            metrics_page.serve(taken.getsockname()[1], "actors.metrics_port", Listen())


def test_a_token_is_made_once_for_its_owner_alone_and_is_in_no_text_of_what_listens(tmp_path):
    token = metrics_page.made(tmp_path)
    assert metrics_page.made(tmp_path) == token and len(token) >= 32
    assert [path.name for path in tmp_path.iterdir()] == [TOKEN]
    assert (tmp_path / TOKEN).stat().st_mode & 0o777 == 0o600
    assert token not in repr(Listen(EVERYWHERE, token))


@pytest.mark.parametrize(
    "text", ["", "short", "two words of a token", "line-one-0123456789\nline-two", "gr\xfc\xdfe-0123456789"]
)
def test_a_file_without_a_token_is_refused_with_the_command_that_makes_one(tmp_path, text):
    (tmp_path / "mine").write_text(text)
    with pytest.raises(SettingError, match=r"metrics\.token: .*mine holds no token.*openssl rand -hex 32 > .*mine"):
        metrics_page.read(tmp_path / "mine", "metrics.token")
    with pytest.raises(SettingError, match="none cannot be read: No such file"):
        metrics_page.read(Path(tmp_path / "none"), "metrics.token")


def test_a_peer_that_sends_no_request_holds_no_thread_for_long(monkeypatch):
    monkeypatch.setattr(metrics_page.Page, "timeout", 0.1)
    port = metrics_page.serve(0, "actors.metrics_port", Listen(EVERYWHERE, RIGHT))
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.settimeout(deadline_s(10))
        assert silent.recv(1) == b"", "it is closed"
