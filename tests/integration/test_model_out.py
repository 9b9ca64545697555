"""The model comes out: vLLM serves an exported folder as it is, and one can talk to a run's model through a pipe."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from support.made_run import made_run
from support.run_house import ENVIRONMENT
from support.waiting import deadline_s
from transformers import AutoModelForCausalLM

from actors.config import EngineSettings
from actors.engines import vllm_common

pytestmark = pytest.mark.vllm

CLOSE = 1e-4  # float32 on both sides
IDS = [5, 9, 200, 3, 17, 80, 4, 4, 31]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("work")
    before = os.getcwd()
    os.chdir(made)
    made_run(made)
    os.chdir(before)
    return made


def redraft(folder, *arguments: str, typed: str = "") -> str:
    command = [sys.executable, "-m", "redraft", *arguments]
    ended = subprocess.run(
        command, cwd=folder, input=typed, capture_output=True, text=True, timeout=deadline_s(240), env=ENVIRONMENT
    )
    assert ended.returncode == 0, ended
    return ended.stdout


def test_vllm_serves_the_exported_folder_with_the_log_probs_of_the_checkpoint(folder):
    redraft(folder, "export", "mine", "out", "--step", "1")
    vllm_common.prepare_process(EngineSettings(), separate=False)
    from vllm import LLM, SamplingParams

    arguments = {"kv_cache_memory_bytes": 2**27, "enforce_eager": True, "async_scheduling": False}
    served = LLM(str(folder / "out"), dtype="float32", max_model_len=256, max_num_seqs=2, **arguments)
    [said] = served.generate({"prompt_token_ids": IDS}, SamplingParams(max_tokens=1, prompt_logprobs=0))
    found = [at[token].logprob for at, token in zip(said.prompt_logprobs[1:], IDS[1:], strict=True)]
    checkpoint = folder / "runs" / "mine" / "checkpoints" / "step-000001" / "model"
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(checkpoint)(torch.tensor([IDS])).logits[0].log_softmax(-1)
    wanted = wanted[:-1].gather(-1, torch.tensor(IDS[1:])[:, None])[:, 0]
    assert torch.allclose(torch.tensor(found), wanted, atol=CLOSE)
    [chatted] = served.chat([{"role": "user", "content": "hello"}], SamplingParams(max_tokens=3, temperature=0))
    tokenizer = served.get_tokenizer()
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert tokenizer.decode(chatted.prompt_token_ids).startswith(prompt)


def test_a_task_is_played_through_a_pipe_on_a_real_engine(folder):
    task = "signs/8591>-7"
    told = redraft(folder, "chat", "mine", "sampling.temperature=0.1", "--task", task, typed="\nhello\n").splitlines()
    who = [line.split(":")[0] for line in told if line.split(":")[0] in ("model", "environment")]
    assert told[0].startswith("mine, step-000002") and who == ["environment", "model"] * 3 + ["environment"], told
