"""ScienceWorld's Java: its simulator in a JVM beside the actor, that several sessions share.

The simulator keeps its random numbers and the count of its objects in globals, so that sessions which act in turn
change what each other sees, and it lists what a room holds in the order of hashes that Java draws. Here every call goes
alone, with the globals of its own session, and all hashes are equal, so that lists keep the order in which they were
filled: the same actions give the same observations, whoever else plays. A call that does not end is ended with its JVM.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from protocols.errors import SettingError

SESSIONS = 8  # of one JVM: with all tasks mixed they hold up to 106 MB, and below 384 MB of heap it begins to thrash
FLAGS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")  # 2: all hashes are 1
GONE = "ScienceWorld's Java process has ended; another one is started for the next episode"
END_S = 5.0  # that a JVM may take to end before it is killed


def check() -> None:
    """Raises SettingError where the extra or Java is missing."""
    if find_spec("scienceworld") is None or find_spec("py4j") is None:
        raise SettingError(
            "environment.name", "scienceworld is not installed", "Run pip install 'redraft[scienceworld]'"
        )
    if shutil.which("java") is None:
        raise SettingError(
            "environment.name",
            "scienceworld needs Java, and there is no java here",
            "Run apt-get install default-jre-headless",
        )


class Machine:
    """One JVM. `sessions` counts who uses it; `simplifications` is global to it."""

    def __init__(self, simplifications: str):
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from scienceworld.constants import BASEPATH, JAR_PATH

        _quiet()
        self.simplifications, self.sessions, self._lock = simplifications, 0, threading.Lock()
        launched: tuple[int, str, subprocess.Popen] = launch_gateway(  # pyright: ignore[reportAssignmentType]
            classpath=JAR_PATH,
            die_on_exit=True,  # its standard input closes with this process, however that ends
            cwd=BASEPATH,
            javaopts=list(FLAGS),
            daemonize_redirect=True,
            enable_auth=True,  # who else reaches the loopback could have it run anything
            return_proc=True,
        )
        port, token, self.process = launched
        parameters = GatewayParameters(port=port, auth_token=token, auto_field=True)
        self.gateway: Any = JavaGateway(gateway_parameters=parameters, java_process=self.process)  # knows only names
        jvm = self.gateway.jvm
        self._count = _only(jvm.util, "UniqueIdentifier")
        self._random = _only(jvm.scala.util, "Random")
        self._chance = jvm.java.lang.Class.forName("scala.util.Random").getDeclaredField("self")
        self._chance.setAccessible(True)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def call(self, session: Session, function: Callable[[], Any]) -> Any:
        """What `function` returns, called with the session's globals and no other call beside it."""
        from py4j.protocol import Py4JError, Py4JJavaError

        with self._lock:
            if session.closed or not self.alive:
                raise RuntimeError(GONE)
            session.calling = True
            try:
                if session.chance is None:
                    session.chance = self.gateway.jvm.java.util.Random(0)
                self._chance.set(self._random, session.chance)
                getattr(self._count, "count_$eq")(session.count)
                result = function()
                session.count = self._count.count()
                return result
            except Py4JJavaError as error:
                raise RuntimeError(f"ScienceWorld raised {error.java_exception}") from None
            except (Py4JError, OSError):
                self.kill()
                raise RuntimeError(GONE) from None
            finally:
                session.calling = False

    def kill(self) -> None:
        """Ends it at once, with all its sessions."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Ends it in order: it does when its standard input closes."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()


class Session:
    """One simulator. `chance` is its java.util.Random, `count` how many objects it has numbered."""

    def __init__(self, machine: Machine):
        self._machine, self.calling, self.closed = machine, False, False
        self.count = 0
        self.chance: Any = None
        self._simulator: Any = None

    @property
    def alive(self) -> bool:
        return self._machine.alive

    def ask(self, name: str, *arguments: Any) -> Any:
        """What the simulator's method returns, a list in place of an array. Raises RuntimeError where Java raises or is
        gone."""

        def asked() -> Any:
            if self._simulator is None:
                self._simulator = self._machine.gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()
            result = getattr(self._simulator, name)(*arguments)
            return result if isinstance(result, str | int | float) else list(result)

        return self._machine.call(self, asked)

    def close(self) -> None:
        """Gives up the simulator; one that is in a call that does not end goes with its JVM."""
        self.closed = True
        if self.calling:
            self._machine.kill()
        _give_back(self._machine)
        for held in (self._simulator, self.chance):
            if held is not None and self._machine.alive:
                self._machine.gateway.detach(held)


_machines: list[Machine] = []
_guard = threading.Lock()


def session(simplifications: str) -> Session:
    """A simulator of its own, in a JVM that has room for it; one is started where none has."""
    with _guard:
        _machines[:] = [machine for machine in _machines if machine.alive]
        fitting = (m for m in _machines if m.simplifications == simplifications and m.sessions < SESSIONS)
        machine = next(fitting, None)
        if machine is None:
            machine = Machine(simplifications)
            _machines.append(machine)
        machine.sessions += 1
    return Session(machine)


def _give_back(machine: Machine) -> None:
    with _guard:
        machine.sessions -= 1
        if machine.sessions:
            return
        if machine in _machines:
            _machines.remove(machine)
    machine.end()


def _only(package: Any, name: str) -> Any:
    """The object of a Scala `object`."""
    return getattr(getattr(package, f"{name}$"), "MODULE$")


def _quiet() -> None:
    """py4j logs a traceback for each connection of a JVM that is gone, at the root, too: it is said once, by us."""
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_not_of_py4j)


def _not_of_py4j(record: logging.LogRecord) -> bool:
    return record.module != "java_gateway"
