"""A command knows the processes below it, waits for them to go, ends those that do not, and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from support import processes as started
from support.places import ROOT
from support.waiting import until

from redraft import processes

HANGS = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
FAMILY = f"""
import sys
from subprocess import PIPE, Popen
child = Popen([sys.executable, "-c", {HANGS!r}], stdout=PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family():
    """A process and its child, which would outlive it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = started.start([sys.executable, "-c", FAMILY], **pipes, text=True)
    return parent, int(parent.stdout.readline())


def test_a_process_that_does_not_end_is_killed_and_named_also_when_its_parent_has_gone(family, caplog):
    parent, child = family
    known = processes.below(processes.children(os.getpid()) & {parent.pid})
    assert set(known) == {parent.pid, child}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    [killed] = processes.end(known, 0.0)
    assert killed.startswith(f"process {child} (python") and "had not ended after 0 s" in caplog.text
    until(lambda: not processes.identity(child), "it has gone", 30)
    assert processes.end(known, 60.0) == [], "nothing is waited for once all have ended"


def test_a_number_that_another_process_has_by_now_is_left_alone(family):
    parent, child = family
    assert processes.end({child: processes.identity(child).replace(" ", " 0", 1)}, 60.0) == []
    assert processes.identity(child) and parent.poll() is None


RUNS = """
import os, signal, sys
from redraft import recipe
from redraft.control import cluster
cluster.END_S = 1.0
loaded = recipe.load({recipe!r})
with cluster.ray_for(loaded):
    import ray

    class Hangs:
        def ignore(self):  # Ray itself ends the child of a worker, and not what that has started
            read, write = os.pipe()
            if not os.fork():
                if not os.fork():
                    os.setsid()
                    os.write(write, str(os.getpid()).encode())
                signal.pause()
            return os.read(read, 99).decode()

    print(ray.get(ray.remote(Hangs).remote().ignore.remote()), flush=True)
"""


@pytest.mark.prove
@pytest.mark.ray
def test_what_a_part_has_left_ends_with_the_command(tmp_path):
    code = RUNS.format(recipe=str(ROOT / "recipes" / "quickstart.yaml"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = started.start([sys.executable, "-c", code], **pipes, text=True, cwd=tmp_path, env=environment)
    output, errors = command.communicate(timeout=300)
    assert command.returncode == 0, errors
    assert f"process {output.strip()} (ray::Hangs" in errors and "was killed" in errors
    until(lambda: not processes.identity(int(output)), "it has gone", 30)


def test_a_ray_that_hangs_in_its_end_is_left_after_its_processes_are_ended(family):
    parent, child = family
    known = processes.below({parent.pid})
    code = f"""
import threading
from redraft import processes
from redraft.control import cluster
cluster._bounded(threading.Event().wait, 0.1, ends=lambda: processes.end({known!r}, 0.0))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120)
    assert ended.returncode == 75
    until(lambda: not processes.identity(child) and not processes.identity(parent.pid), "both have gone", 30)
