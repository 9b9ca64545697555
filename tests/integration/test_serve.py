"""`redraft serve`: what a run has trained answers OpenAI's client, and ends with Ctrl-C."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import openai
import psutil
import pytest
from support import processes
from support.made_run import made_run
from support.run_house import ENVIRONMENT
from support.waiting import deadline_s, until

pytestmark = pytest.mark.prove
ASK = {"model": "mine/step-000001", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@contextlib.contextmanager
def served(folder, monkeypatch, *overrides: str) -> Iterator[openai.OpenAI]:
    """A client of the server of a run's first checkpoint, which is ended by Ctrl-C and leaves no process behind."""
    monkeypatch.chdir(folder)
    made_run(folder)
    command = [sys.executable, "-m", "redraft", "serve", "mine", *overrides, "--step", "1"]
    running = processes.start(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    lines = [running.stdout.readline() for _ in range(4)]
    [url] = re.findall(r"^mine/step-000001 answers at (http://127\.0\.0\.1:\d+/v1)", lines[1])
    [key] = re.findall(r"OPENAI_API_KEY=(\S+)", lines[2])
    assert f"OPENAI_BASE_URL={url}" in lines[2] and "curl $OPENAI_BASE_URL/chat/completions" in lines[3]
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=deadline_s(60)) as client:
        yield client
    started = psutil.Process(running.pid).children(recursive=True)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait(deadline_s(30)) == 0 and running.stdout.read() == "ended\n"
    until(lambda: not any(one.is_running() for one in started), "what it started is gone", deadline_s(30))


def test_a_checkpoint_is_served_with_its_key_until_ctrl_c(tmp_path, monkeypatch):
    with served(tmp_path, monkeypatch, "actors.engine.name=scripted") as client:
        assert [one.id for one in client.models.list()][:2] == [ASK["model"], "redraft"]
        once = client.chat.completions.create(**ASK)
        assert once.usage.completion_tokens <= 4
        streamed = client.chat.completions.create(**ASK, stream=True)
        told = "".join(choice.delta.content or "" for piece in streamed for choice in piece.choices)
        assert told == once.choices[0].message.content
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-other").models.list()


@pytest.mark.vllm
def test_a_real_engine_follows_what_a_request_says_of_sampling(tmp_path, monkeypatch):
    with served(tmp_path, monkeypatch) as client:
        greedy = [client.chat.completions.create(**ASK, temperature=0).choices[0].message.content for _ in range(2)]
        assert greedy[0] == greedy[1]
        assert client.completions.create(model="m", prompt="hello", max_tokens=4).choices[0].finish_reason
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**ASK | {"max_tokens": 100_000})
        assert caught.value.code == "context_length_exceeded"
