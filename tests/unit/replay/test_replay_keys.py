"""Keys of replay: who has the right ones gets through, whoever else is refused, counted, and harms nobody."""

from __future__ import annotations

import logging
import pickle
import re
import shutil
import socket
import struct
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import typer
import zmq
from support.waiting import deadline_s
from typer.testing import CliRunner
from zmq.auth import create_certificates

from protocols.errors import SettingError
from redraft.cli import keys as keys_cli
from replay import keys

DEADLINE_S = 20  # generous for a busy machine
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(15) + bytes(32)
HUGE = b"\x06" + struct.pack(">Q", 1 << 62)  # a command of more bytes than there are
GARBAGE = {  # what is sent, and the event that it ends with where keys are asked for
    "http": (b"GET / HTTP/1.1\r\nHost: replay\r\n\r\n", "DISCONNECTED"),
    "random": (bytes(range(200, 256)) * 9, "DISCONNECTED"),
    "nothing": (b"", "HANDSHAKE_FAILED_NO_DETAIL"),
    "greeting": (GREETING, "HANDSHAKE_FAILED_NO_DETAIL"),
    "greeting-garbage": (GREETING + b"\x04\x06\x05HELLO", "HANDSHAKE_FAILED_PROTOCOL"),
    "huge": (GREETING + HUGE + bytes(100), "DISCONNECTED"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "run"
    keys.new(folder)
    return folder


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> keys.ClientKeys:
    """Keys of another run."""
    keys.new(other := tmp_path_factory.mktemp("keys") / "other")
    return keys.client_keys(other)


class Server:
    """A ROUTER that answers whatever it gets; all refusals seen so far are in `refused`."""

    def __init__(self, stack: ExitStack, folder: Path | None, gated: bool = True):
        self.context = stack.enter_context(zmq.Context())
        self.router = stack.enter_context(self.context.socket(zmq.ROUTER))
        self.router.linger = 0
        if folder:
            gate = keys.Gate(self.context if gated else stack.enter_context(zmq.Context()), folder)
            stack.callback(gate.stop)
            gate.secure(self.router)
        self.watch = stack.enter_context(closing(keys.Watch(self.router)))
        self.port = self.router.bind_to_random_port("tcp://127.0.0.1")
        self.got: list[bytes] = []
        self.refused: list[str] = []

    def serve(self, until, seconds: float = DEADLINE_S) -> bool:
        """Serves until `until()` holds; whether it did in time."""
        poller = zmq.Poller()
        poller.register(self.router, zmq.POLLIN)
        poller.register(self.watch.socket, zmq.POLLIN)
        began = time.monotonic()
        while not until():
            if time.monotonic() - began > deadline_s(seconds):
                return False
            ready = dict(poller.poll(20))
            if self.router in ready:
                identity, *frames = self.router.recv_multipart()
                self.got += frames
                self.router.send_multipart([identity, *frames])
            if self.watch.socket in ready:
                self.refused += self.watch.drain()
        return True

    def has_refused(self, count: int) -> bool:
        """Whether so many and no more are counted."""
        return self.serve(lambda: len(self.refused) >= count) and not self.serve(lambda: len(self.refused) > count, 0.1)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def client(stack):
    context = stack.enter_context(zmq.Context())

    def connect(server: Server, with_keys: keys.ClientKeys | None, word: bytes) -> zmq.Socket:
        dealer = stack.enter_context(context.socket(zmq.DEALER))
        dealer.linger = 0
        if with_keys is not None:
            keys.secure_client(dealer, with_keys)
        dealer.connect(f"tcp://127.0.0.1:{server.port}")
        with suppress(zmq.Again):  # refused already, before there was anything to say: ZeroMQ does not try again
            dealer.send(word, zmq.NOBLOCK)
        return dealer

    return connect


def visit(port: int, data: bytes) -> None:
    """Sends `data`, hears the service's greeting out (as closing earlier may lose what was sent), and leaves."""
    with socket.create_connection(("127.0.0.1", port), timeout=deadline_s(DEADLINE_S)) as peer:
        peer.sendall(data)
        left = len(GREETING) if data.startswith(GREETING) else 10
        with suppress(ConnectionError):
            while left and (heard := peer.recv(left)):
                left -= len(heard)


def gets_through(server: Server, dealer: zmq.Socket) -> bool:
    return server.serve(lambda: dealer.poll(0))


def test_the_right_keys_pass_both_ways(stack, client, folder):
    server = Server(stack, folder)
    dealer = client(server, keys.client_keys(folder), b"word")
    assert gets_through(server, dealer) and dealer.recv() == b"word"
    assert server.refused == []


def wrong_keys(case: str, right: keys.ClientKeys, strange: keys.ClientKeys) -> keys.ClientKeys | None:
    return {
        "no key": None,
        "wrong server key": replace(right, server=strange.server),
        "unknown client key": replace(right, public=strange.public, secret=strange.secret),
    }[case]


@pytest.mark.parametrize(
    ("case", "event"),
    [  # who has no key may notice it first and hang up
        ("no key", "PROTOCOL|NO_DETAIL"),
        ("wrong server key", "PROTOCOL"),
        ("unknown client key", "AUTH"),
    ],
)
def test_a_peer_without_the_right_keys_is_refused_and_counted_and_harms_nobody(
    stack, client, folder, strange, case, event
):
    server, right = Server(stack, folder), keys.client_keys(folder)
    old = client(server, right, b"old")
    assert gets_through(server, old) and old.recv() == b"old"
    refused = client(server, wrong_keys(case, right, strange), b"evil")
    assert server.serve(lambda: server.refused), "not counted"
    assert re.match(f"HANDSHAKE_FAILED_({event}):", server.refused[0])
    old.send(b"old again")
    assert gets_through(server, old)
    assert gets_through(server, client(server, right, b"new"))
    assert server.got == [b"old", b"old again", b"new"] and not refused.poll(0)


@pytest.mark.parametrize(("data", "event"), GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("secure", [True, False], ids=["curve", "plain"])
def test_whoever_speaks_something_else_is_counted_once_and_harms_nobody(stack, client, folder, secure, data, event):
    server, right = Server(stack, folder if secure else None), keys.client_keys(folder) if secure else None
    visit(server.port, data)
    assert server.has_refused(1)
    assert server.refused[0].startswith(event) or not secure
    dealer = client(server, right, b"word")
    assert gets_through(server, dealer) and server.got[-1] == b"word"
    assert not secure or server.got == [b"word"]  # without keys anything may look like a message of ZMTP 1
    dealer.close()
    visit(server.port, data)
    assert server.has_refused(2), "or the right client was counted when it left"


def test_a_client_with_keys_does_not_talk_to_a_service_without(stack, client, folder):
    server = Server(stack, None)
    refused = client(server, keys.client_keys(folder), b"word")
    assert server.serve(lambda: server.refused)
    assert gets_through(server, client(server, None, b"plain")) and server.got == [b"plain"] and not refused.poll(0)


def test_many_refusals_that_nobody_reads_hold_up_nobody_and_all_are_counted(stack, client, folder):
    """ZeroMQ's io thread would wait for room in a full queue of events: no peer would be served any more."""
    server, visits = Server(stack, folder), 1200
    try:
        for _ in range(visits):
            visit(server.port, b"GET / HTTP/1.1\r\n\r\n")
        dealer = client(server, keys.client_keys(folder), b"word")
        assert server.router.poll(1000 * deadline_s(DEADLINE_S)), "held up"  # not serve: it would read the events
    finally:
        server.serve(lambda: len(server.refused) >= visits)  # first: a router that is held up cannot be closed
    assert gets_through(server, dealer) and server.has_refused(visits)


def test_a_router_goes_on_without_its_watch(stack, client, folder):
    """ZeroMQ's io thread would wait for ever to send an event to a watch that is gone."""
    server = Server(stack, folder)
    server.watch.close()
    for data, _ in GARBAGE.values():
        visit(server.port, data)
    client(server, keys.client_keys(folder), b"word")
    assert server.router.poll(1000 * deadline_s(DEADLINE_S)) and server.router.recv_multipart()[1:] == [b"word"]


def test_without_its_gate_a_socket_lets_nobody_in(stack, client, folder, strange):
    server, right = Server(stack, folder, gated=False), keys.client_keys(folder)
    client(server, right, b"word")
    client(server, replace(strange, server=right.server), b"evil")
    assert server.serve(lambda: len(server.refused) >= 2)
    assert not server.serve(lambda: server.got, 0.2)


def test_a_key_added_to_allowed_gets_through_and_one_removed_does_not(stack, client, folder, strange, tmp_path):
    added = tmp_path / "run"
    shutil.copytree(folder, added)
    (added / "allowed" / "client.key").unlink()
    public, _ = create_certificates(tmp_path, "other")
    shutil.copy(public, added / "allowed")
    other = keys.ClientKeys(keys.client_keys(added).server, *keys.load_certificate(tmp_path / "other.key_secret"))
    server = Server(stack, added)
    assert gets_through(server, client(server, other, b"other"))
    client(server, keys.client_keys(added), b"removed")
    assert server.serve(lambda: server.refused) and server.got == [b"other"]


def test_neither_a_repr_nor_the_log_shows_a_secret(stack, client, folder, strange, caplog):
    right = keys.client_keys(folder)
    assert right.secret.decode() not in repr(right) and pickle.loads(pickle.dumps(right)) == right
    with caplog.at_level(logging.DEBUG):
        server = Server(stack, folder)
        assert gets_through(server, client(server, right, b"word"))
        client(server, replace(strange, server=right.server), b"evil")
        assert server.serve(lambda: server.refused)
    assert right.public.decode() in caplog.text  # so that the next lines look at what was really logged
    server_secret = keys.load_certificate(folder / "server.key_secret")[1]
    for secret in (right.secret, strange.secret, server_secret):
        assert secret.decode() not in caplog.text + "".join(server.refused)


def test_only_the_owner_can_read_what_is_made(tmp_path):
    (folder := tmp_path / "empty").mkdir(mode=0o755)
    keys.new(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    made = {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    files = (
        "server.key",
        "server.key_secret",
        "client.key",
        "client.key_secret",
        "metrics.token",
        "allowed/client.key",
    )
    assert made == dict.fromkeys(files, 0o600) | {"allowed": 0o700}
    assert list(tmp_path.iterdir()) == [folder], "something was left beside it"


def test_keys_are_never_replaced(tmp_path):
    keys.new(tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.key*")}
    with pytest.raises(SettingError, match=r"replay\.keys: .*run.*not empty.*Name a folder"):
        keys.new(tmp_path / "run")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.key*")} == before


def loosen(folder, name):
    (folder / name).chmod(0o640)


def damage(folder, name):
    (folder / name).write_text("nonsense")


def remove(folder, name):
    (folder / name).unlink()


def make_unreadable(folder, name):  # in a way that holds for root too
    remove(folder, name)
    (folder / name).mkdir(mode=0o700)


def swap(folder, name):
    pair = (folder / name).read_text().replace("public-key = ", f'public-key = "{"0" * 40}" #')
    (folder / name).write_text(pair)


@pytest.mark.parametrize("harm", [loosen, damage, remove, make_unreadable, swap])
@pytest.mark.parametrize("name", ["client.key_secret", "server.key_secret"])
def test_a_secret_that_cannot_be_used_is_named_with_its_cure(tmp_path, harm, name):
    keys.new(folder := tmp_path / "run")
    harm(folder, name)
    with pytest.raises(SettingError, match=rf"replay\.keys: .*{name}.*redraft keys new {folder}"):
        keys.client_keys(folder) if name.startswith("client") else keys.Gate(zmq.Context.instance(), folder)


@pytest.mark.parametrize("harm", [damage, remove, make_unreadable])
def test_a_public_key_that_cannot_be_used_is_named_with_its_cure(tmp_path, harm):
    keys.new(folder := tmp_path / "run")
    harm(folder, "server.key")
    with pytest.raises(SettingError, match=rf"replay\.keys: .*server\.key.*redraft keys new {folder}"):
        keys.client_keys(folder)
    harm(folder, "allowed/client.key")
    with pytest.raises(SettingError, match=rf"replay\.keys: .*allowed.*redraft keys new {folder}"):
        keys.Gate(zmq.Context.instance(), folder)


def test_the_command_makes_keys_and_says_which_are_secret(tmp_path):
    app = typer.Typer()
    app.add_typer(keys_cli.app, name="keys")
    said = CliRunner().invoke(app, ["keys", "new", str(tmp_path / "run")])
    assert said.exit_code == 0 and keys.client_keys(tmp_path / "run")
    secret = {line.split()[1] for line in said.output.splitlines() if line.split()[0] == "secret"}
    assert secret == {path.name for path in (tmp_path / "run").glob("*_secret")} | {"metrics.token"}
    again = CliRunner().invoke(app, ["keys", "new", str(tmp_path / "run")])
    assert isinstance(again.exception, SettingError)
