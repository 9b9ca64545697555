"""`redraft serve`: what a run has trained answers OpenAI's client, and ends with Ctrl-C."""

import os
import re
import signal
import subprocess
import sys

import openai
import pytest
from support import processes
from support.made_run import made_run
from support.run_house import ENVIRONMENT
from support.waiting import deadline_s

pytestmark = [pytest.mark.vllm, pytest.mark.prove]


def test_a_checkpoint_is_served_with_its_key_until_ctrl_c(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path)
    command = [sys.executable, "-m", "redraft", "serve", "mine", "--step", "1"]
    running = processes.start(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    lines = [running.stdout.readline() for _ in range(4)]
    [url] = re.findall(r"answers at (http://127\.0\.0\.1:\d+/v1)", lines[1])
    [key] = re.findall(r"OPENAI_API_KEY=(\S+)", lines[2])
    assert f"OPENAI_BASE_URL={url}" in lines[2] and "curl $OPENAI_BASE_URL/chat/completions" in lines[3]
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=deadline_s(60)) as client:
        served = next(iter(client.models.list())).id
        assert served == "mine/step-000001"
        ask = {"model": served, "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 4}
        once, again = (client.chat.completions.create(**ask) for ask in (ask, ask))
        assert once.usage.completion_tokens <= 4
        assert once.choices[0].message.content == again.choices[0].message.content, "temperature 0 is followed"
        streamed = client.chat.completions.create(**ask, stream=True)
        told = "".join(choice.delta.content or "" for piece in streamed for choice in piece.choices)
        assert told == once.choices[0].message.content
        assert client.completions.create(model=served, prompt="hello", max_tokens=4).choices[0].finish_reason
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{**ask, "max_tokens": 100_000})
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-other").models.list()
    os.kill(running.pid, signal.SIGINT)
    assert running.wait(deadline_s(30)) == 0 and running.stdout.read() == "ended\n"
