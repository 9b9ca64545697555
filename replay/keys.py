"""CURVE keys of replay: `redraft keys new` makes them, a Gate lets in who has one, a Watch counts who was refused.

FOLDER/server.key, server.key_secret     the service's own pair
FOLDER/client.key, client.key_secret     the pair that all peers of a run share
FOLDER/metrics.token                     what the metrics of a service ask for, where it listens to other machines
FOLDER/allowed/*.key                     public keys that are let in: the client's, and any that a person adds
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import zmq
from zmq.auth import create_certificates, load_certificate, load_certificates
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from protocols import metrics_page
from protocols.errors import SettingError
from replay.config import ClientKeys

SETTING = "replay.keys"
DOMAIN = "redraft"
DRAIN_EVENTS = 1000  # the most that one drain reads: peers who hammer do not keep the service's thread
FAILED: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "HANDSHAKE_FAILED_AUTH: its key is not in allowed/",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "HANDSHAKE_FAILED_PROTOCOL: no keys, the wrong ones, or not ZeroMQ",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "HANDSHAKE_FAILED_NO_DETAIL: it hung up or fell silent, no keys perhaps",
}
CUT_OFF = "DISCONNECTED: cut off within its handshake, as whoever does not speak ZeroMQ"
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | sum(FAILED)


def new(folder: Path) -> None:
    """Makes `folder` with new keys, whole or not at all. Raises SettingError when anything is there already."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".keys-") as work:  # private, as all that it holds
            made = Path(work) / "keys"
            (made / "allowed").mkdir(parents=True)
            for name in ("server", "client"):
                create_certificates(made, name)
            metrics_page.made(made)
            (made / "allowed" / "client.key").write_bytes((made / "client.key").read_bytes())
            for path in made.rglob("*"):
                path.chmod(0o700 if path.is_dir() else 0o600)
            made.chmod(0o700)
            made.rename(folder)  # refused by the system unless `folder` is missing or empty
    except OSError as error:
        problem = f"no keys were made in {folder}: {error.strerror}"
        raise SettingError(SETTING, problem, "Name a folder that is not there yet: keys are never replaced") from None


def client_keys(folder: Path) -> ClientKeys:
    """The keys of a peer. Raises SettingError when one is missing, damaged, or open to others."""
    try:
        server, _ = load_certificate(folder / "server.key")
    except (OSError, ValueError) as error:
        raise _unusable(folder, str(error)) from None
    return ClientKeys(server, *_pair(folder / "client.key_secret"))


def secure_client(socket: zmq.Socket, keys: ClientKeys) -> None:
    """Has a DEALER speak CURVE to the service of these keys; before it connects."""
    socket.curve_serverkey = keys.server
    socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret


class Gate:
    """Decides, on a thread of its own, who may connect to the CURVE sockets of `context`; one a context.

    Reads the keys once: who adds one to allowed/ starts the service again. Stop it before the context is destroyed.
    """

    def __init__(self, context: zmq.Context, folder: Path):
        _, self._secret = _pair(folder / "server.key_secret")
        allowed = folder / "allowed"
        try:
            if not load_certificates(allowed):
                raise ValueError(f"no *.key in {allowed}, so nobody can connect")
        except (OSError, ValueError) as error:
            raise _unusable(folder, str(error)) from None
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.configure_curve(DOMAIN, allowed)
        self._authenticator.start()

    def secure(self, router: zmq.Socket) -> None:
        """Makes it a CURVE server; before it binds. Without a running gate such a socket lets nobody in."""
        router.curve_secretkey = self._secret
        router.curve_server = True
        router.zap_domain = DOMAIN.encode()
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # otherwise any key is let in while nobody answers for the gate

    def stop(self) -> None:
        self._authenticator.stop()


class Watch:
    """Counts peers whose handshake with `router` failed, with CURVE or without; used by the router's thread only.

    Register `socket` in a poller and `drain` it. Close it before the router.
    """

    def __init__(self, router: zmq.Socket):
        self._router = router
        address = f"inproc://watch-{id(self)}"
        router.monitor(address, EVENTS)
        self.socket = router.context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.RCVHWM, 0)  # a full queue of events would block ZeroMQ's io thread, and all peers
        self.socket.connect(address)
        self._young: set[int] = set()  # connections that are, as far as known, not past their handshake
        self._through = self._failed = 0  # how many of them are: events do not say which

    def drain(self) -> list[str]:
        """A short text for each peer refused since the last call. Never waits."""
        refused = []
        for _ in range(DRAIN_EVENTS):
            try:
                event = recv_monitor_message(self.socket, zmq.NOBLOCK)
            except zmq.Again:
                break
            if (text := self._take(event["event"], int(event["value"]))) is not None:
                refused.append(text)
        return refused

    def close(self) -> None:
        self._router.disable_monitor()  # first: events to a closed socket would block ZeroMQ's io thread
        self.socket.close(linger=0)

    def _take(self, event: int, connection: int) -> str | None:
        """Why a peer was refused, if this event says so.

        ZeroMQ cuts off peers of another protocol without an event of its own, so a connection that ends young is one.
        """
        text = FAILED.get(event)
        if text is not None:
            self._failed += 1
        elif event == zmq.EVENT_ACCEPTED:
            self._young.add(connection)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._through += 1
        elif connection in self._young:
            self._young.remove(connection)
            text = None if self._failed else CUT_OFF
            self._failed -= bool(self._failed)
        if len(self._young) <= self._through:  # no handshake is under way
            self._young.clear()
            self._through = self._failed = 0
        return text


def _pair(path: Path) -> tuple[bytes, bytes]:
    """The public and the secret key in a file that only its owner may read. Raises SettingError."""
    try:
        if path.stat().st_mode & 0o077:
            raise ValueError(f"other users may read {path}: `chmod 600 {path}` if nobody has")
        public, secret = load_certificate(path)
        if secret is None or zmq.curve_public(secret) != public:
            raise ValueError(f"{path} does not hold a pair of keys")
    except (OSError, ValueError, zmq.ZMQError) as error:
        raise _unusable(path.parent, str(error)) from None
    return public, secret


def _unusable(folder: Path, problem: str) -> SettingError:
    cure = f"Make new keys: remove {folder} if it is there, then run `redraft keys new {folder}`"
    return SettingError(SETTING, problem, cure)
