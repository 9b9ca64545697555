"""The processes of math-verify: few and light, each hang costs one answer, and they end with whoever started them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from support.places import PYTHONPATH
from support.waiting import deadline_s

from actors import environments
from actors.config import EnvironmentSettings
from actors.environments import equivalence
from protocols import metrics

MATH = {"id": "", "problem": "", "type": "", "target": "5"}


def grader():
    return environments.make(EnvironmentSettings(name="math"))


def unchecked() -> float:
    return metrics.ENVIRONMENT_ERRORS.labels(kind="unchecked")._value.get()


def workers(of: psutil.Process | None = None) -> list[psutil.Process]:
    return [p for p in (of or psutil.Process()).children() if any("equivalence_worker" in part for part in p.cmdline())]


def test_an_answer_that_hangs_is_ended_by_its_own_limit_and_counted_and_the_next_one_is_judged(caplog, monkeypatch):
    equivalence.equivalence._logged = False
    monkeypatch.setattr(equivalence, "PATIENCE_S", 3600.0)  # nobody else ends it
    before, judge = unchecked(), grader().judge
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert judge(MATH, r"\boxed{9^{9^{9^9}}}").reward == 0
            assert judge(MATH, r"\boxed{4+1}").reward == 1
    assert unchecked() == before + 2
    assert len([record for record in caplog.records if "math-verify gave up" in record.message]) == 1


def test_a_killed_worker_is_replaced():
    judge = grader().judge
    assert judge(MATH, r"\boxed{4+1}").success
    for worker in workers():
        worker.kill()
        worker.wait(deadline_s(10))
    assert judge(MATH, r"\boxed{3+2}").success


def test_answers_are_judged_from_many_threads_by_few_light_processes():
    judge = grader().judge
    with ThreadPoolExecutor(16) as threads:
        verdicts = list(threads.map(lambda n: judge(MATH, rf"\boxed{{{n}+1}}").success, range(64)))
    assert [n for n, right in enumerate(verdicts) if right] == [4]
    running = workers()
    assert 1 <= len(running) <= equivalence.PROCESSES
    for worker in running:
        assert not [m.path for m in worker.memory_maps() if "torch" in m.path or "vllm" in m.path]
        assert worker.memory_info().rss < 300 << 20


JUDGED_AND_KILLED = """
import os, signal
from actors.environments.math import equal
from test_equivalence_processes import workers
equal("5", "4+1")
print(*(worker.pid for worker in workers()), flush=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been inherited as ignored
os.kill(os.getpid(), signal.{signal})
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_workers_end_with_their_process_however_it_ends(name):
    begun = [sys.executable, "-c", JUDGED_AND_KILLED.format(signal=name)]
    process = subprocess.run(
        begun,
        capture_output=True,
        text=True,
        timeout=deadline_s(60),
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )
    assert process.returncode != 0 and process.stdout.split(), process.stderr
    for pid in map(int, process.stdout.split()):
        try:
            psutil.Process(pid).wait(deadline_s(10))
        except psutil.NoSuchProcess:
            pass
