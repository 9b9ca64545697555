"""Code that comes with a model is not run, nor is anybody asked whether to run it."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.places import ROOT

from actors import rendering
from learner.lora_config import LoraSettings
from learner.model import load, lora
from redraft.evaluation import failures
from redraft.launch import fits
from redraft.models import sizes
from redraft.report import dialogues

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedTokenizerFast
Path(__file__).with_name("it-ran").touch()
Path({mark!r}).touch()
class Config(PretrainedConfig):
    model_type = "mine"
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
READERS: dict[str, Callable[[Path], object]] = {
    "a plan": sizes.config_at,
    "the look before a start": fits._config,
    "the renderer": rendering.tokenizer_of,
    "the learner": lambda model: load.load_model(str(model), torch.float32, "eager"),
    "an adapter's learner": lambda model: lora.check(model, LoraSettings()),
    "failures of another run": failures.tokenizer_digest,
    "a report": dialogues.Speller,
}


@pytest.mark.parametrize("reader", READERS)
def test_nothing_of_a_model_that_brings_code_runs_whatever_a_person_would_answer(reader, tmp_path, monkeypatch):
    asked, ran = [], tmp_path / "ran"
    model = tmp_path / "model"
    model.mkdir()
    (model / "code.py").write_text(CODE.format(mark=str(ran)))
    classes = {"AutoConfig": "code.Config", "AutoTokenizer": ["code.Tokenizer", None]}
    (model / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": classes}))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Tokenizer", "auto_map": classes}))
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    with pytest.raises(Exception, match="custom code|no tokenizer"):
        READERS[reader](model)
    assert not asked and not ran.exists()


def test_every_place_that_loads_from_a_model_says_that_its_code_is_not_trusted():
    files = [file for package in ("actors", "learner", "redraft") for file in (ROOT / package).rglob("*.py")]
    loads = {file: text for file in files if ".from_pretrained(" in (text := file.read_text())}
    found = {}
    for file, text in loads.items():
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained":
                said = {word.arg: ast.unparse(word.value) for word in call.keywords}
                where = f"{file.relative_to(ROOT)}:{call.lineno}"
                found[where] = said.get("trust_remote_code", said.get("config"))  # a config in hand is a known class's
    assert found and set(found.values()) <= {"False", "config"}, found
