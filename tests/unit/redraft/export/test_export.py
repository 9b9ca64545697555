"""What a run's model is exported as: a folder that transformers loads as it was trained, with a card for the Hub."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from support.made_run import made_run
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from learner.checkpoint import mark
from protocols.errors import RedraftError, SettingError
from redraft.export.card import base_of
from redraft.export.folder import export, write_adapted
from redraft.models import make as models

IDS = torch.tensor([[5, 9, 200, 3, 17, 80, 4, 4, 31]])
FIGURES = {
    "accuracy_by_turn": [0.25, 0.5],
    "keep_rate": 0.5,
    "fix_rate": 0.1,
    "repeat_rate": 0.2,
    "majority_turns": 0.5,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = tmp_path_factory.mktemp("work")
    before = os.getcwd()
    os.chdir(made)
    yield made_run(made)
    os.chdir(before)


def logprobs(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits.log_softmax(-1)


def exported(folder: Path, name="mine", step: int | None = None, best=False, merge=False, push: str | None = None):
    said: list[str] = []
    export(name, folder, step, best, merge, push, said.append)
    return said


def evaluated(run, label: str, step: int, right: float) -> None:
    figures = FIGURES | {"any_turn": right}
    se = {key: [0.01, 0.01] if isinstance(value, list) else 0.01 for key, value in figures.items()}
    facts = {"label": label, "step": step, "kind": "answers", "n": 50, "turns": 2, "k": 1, "errors": 0}
    run.append("evaluations.jsonl", facts | figures | {"se": se, "generations": {}, "greedy": None, "controls": {}})


def test_the_best_checkpoint_is_exported_where_the_run_keeps_one(run, tmp_path):
    with pytest.raises(SettingError, match="--best: mine keeps no best checkpoint. Train with evaluation.every"):
        exported(tmp_path / "out", best=True)
    mark(run.folder, best=1, evaluated=None)
    with pytest.raises(SettingError, match="--best and --step exclude each other"):
        exported(tmp_path / "out", best=True, step=1)
    assert exported(tmp_path / "out", best=True) == [f"{tmp_path / 'out'}: mine, step-000001"]
    mark(run.folder, best=None, evaluated=None)


@pytest.mark.parametrize("step", [None, 1])
def test_the_folder_computes_what_the_checkpoint_does_and_ends_where_training_ended(run, tmp_path, step):
    assert exported(tmp_path / "out", step=step) == [f"{tmp_path / 'out'}: mine, step-00000{step or 2}"]
    checkpoint = run.checkpoints / f"step-00000{step or 2}" / "model"
    assert torch.equal(logprobs(tmp_path / "out"), logprobs(checkpoint))
    assert not torch.equal(logprobs(tmp_path / "out"), logprobs(Path(run.model)))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(run.model).chat_template
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert ends == [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    assert os.listdir(tmp_path) == ["out"], "what was written aside is gone"


def test_a_start_models_generation_config_keeps_what_it_says(run, tmp_path):
    file = run.checkpoints / "step-000001" / "model" / "generation_config.json"
    file.write_text(json.dumps({"temperature": 0.6, "eos_token_id": [7]}))
    exported(tmp_path / "out", step=1)
    kept = GenerationConfig.from_pretrained(tmp_path / "out")
    assert kept.temperature == 0.6 and 7 in kept.eos_token_id and len(kept.eos_token_id) == 3
    file.unlink()


def test_the_card_tells_what_it_is_how_well_it_does_and_how_it_was_made(run, tmp_path):
    evaluated(run, "before", 0, 0.25)
    evaluated(run, "after", 2, 0.75)
    exported(tmp_path / "two")
    card = (tmp_path / "two" / "README.md").read_text()
    facts = ModelCard(card).data.to_dict()
    assert facts["library_name"] == "transformers" and "base_model" not in facts, "a model made here has no Hub name"
    body = card.split("---\n", 2)[2]
    assert "step 2 of the run `mine`" in body and "Redraft 0." in body
    assert "| any of 2 turns | 0.250 ± 0.010 | 0.750 ± 0.010 | +0.500 ± 0.014 |" in body
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])["name"] == "mine"
    exported(tmp_path / "one", step=1)
    assert "Step 1 was not evaluated" in (tmp_path / "one" / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "revision", "base"),
    [
        ({"path": "Qwen/Qwen3-0.6B"}, "0123abc", "Qwen/Qwen3-0.6B"),
        ({"path": "runs/mine"}, "", None),
        ({"path": "models/pruned-since"}, "", None),
        ({"path": "/models/mine"}, "", None),
        ({"pretrained": "smollm2"}, "", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ({"make": {"layers": 3}}, "", None),
    ],
)
def test_the_card_names_a_base_model_only_where_it_came_from_the_hub(model, revision, base):
    assert base_of({"model": model}, revision) == base


@pytest.mark.parametrize(
    ("folder", "options", "words"),
    [
        ("full", {}, "FOLDER: .* is not empty"),
        ("out", {"merge": True}, "--merge: mine trains whole weights"),
        ("out", {"step": 7}, "--step: mine has no such checkpoint. Steps with one: 1, 2"),
        ("out", {"name": "yours"}, "no run 'yours'"),
        ("out", {"push": "yours"}, "must be ORG/NAME, got 'yours'"),
        ("out", {"push": "me/yours"}, "no token for the Hub"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    run, tmp_path, monkeypatch, folder, options, words
):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SettingError, match=words):
        exported(tmp_path / folder, **options)
    assert os.listdir(tmp_path) == ["full"] and os.listdir(tmp_path / "full") == ["file"]


@pytest.fixture
def hub(monkeypatch):
    """A server that answers what a client of the Hub asks for an upload; yields its address and what it was asked."""
    asked: list[tuple[str, str, bytes]] = []

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers["Authorization"], body))
            answer = {"errors": [], "warnings": [], "url": f"{address}/me/mine"}
            answer |= {"commitUrl": f"{address}/me/mine/commit/1", "commitOid": "1"}
            if "preupload" in self.path:
                paths = [file["path"] for file in json.loads(body)["files"]]
                answer["files"] = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        yield address, asked
        server.shutdown()


def test_an_upload_makes_a_private_repository_and_sends_every_file_with_the_users_token(run, tmp_path, hub):
    address, asked = hub
    assert exported(tmp_path / "out", push="me/mine")[-1] == f"{address}/me/mine"
    assert all(token == "Bearer hf_mine" for _, token, _ in asked)
    (made,) = (json.loads(body) for path, _, body in asked if path == "/api/repos/create")
    assert made["visibility"] == "private" and (made["organization"], made["name"]) == ("me", "mine")
    (commit,) = (body for path, _, body in asked if path == "/api/models/me/mine/commit/main")
    sent = [json.loads(line) for line in commit.splitlines()]
    assert {line["value"]["path"] for line in sent if line["key"] == "file"} == set(os.listdir(tmp_path / "out"))


def test_an_upload_that_fails_is_told_in_one_line_and_the_folder_is_there(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RedraftError, match=r"^--push: me/mine was not uploaded: .*`hf upload me/mine .*out`$"):
        exported(tmp_path / "out", push="me/mine")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_an_adapter_is_exported_as_it_is_or_merged_into_its_model(run, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    checkpoint = tmp_path / "adapted" / "checkpoints" / "step-000001"
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(run.model)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(checkpoint / "adapter")
    with torch.no_grad():
        wanted = model(IDS).logits.log_softmax(-1)
    (tmp_path / "adapted" / "run.json").write_text(json.dumps({"id": "a", "model": run.model}))
    played = models.trained(tmp_path / "adapted", tmp_path / "cache")
    assert torch.allclose(logprobs(played), wanted, atol=1e-5), "whoever plays with the run's model has the same"
    for merge in (False, True):
        (tmp_path / str(merge)).mkdir()
        write_adapted(checkpoint, Path(run.model), tmp_path / str(merge), merge)
        AutoTokenizer.from_pretrained(tmp_path / str(merge))
    assert torch.allclose(logprobs(tmp_path / "True"), wanted, atol=1e-5)
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run.model), tmp_path / "False")
    with torch.no_grad():
        assert torch.equal(alone(IDS).logits.log_softmax(-1), wanted)
    assert not (tmp_path / "False" / "config.json").exists()
