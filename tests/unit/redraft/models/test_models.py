"""The tiny-model maker: what it makes loads, is found again, appears whole, and learns the form of dialogues."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from support.waiting import deadline_s
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors import environments
from actors.config import EnvironmentSettings
from actors.rendering import Renderer
from protocols.errors import SettingError
from redraft.config import MakeSettings, ModelSettings, PretrainSettings
from redraft.models.make import _digest, build_tokenizer, prepare
from redraft.models.pretrain import collate, device_of_training

SIGNS = EnvironmentSettings(name="signs", feedback="residual")
BRIEF = PretrainSettings(steps=8, warmup=2, threads=1, batch=((1, 16, 0.5), (2, 8, 0.5)))


def make(cache: Path, environment=SIGNS, progress=lambda line: None, **settings) -> Path:
    return prepare(ModelSettings(make=MakeSettings(**settings)), environment, cache, progress)


def test_a_made_model_is_a_float32_hugging_face_folder(tmp_path):
    folder = make(tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        file.name for file in folder.iterdir()
    }
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}
        assert "lm_head.weight" not in file.keys()  # tied
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("7128>6\n", add_special_tokens=False)
    assert tokenizer.decode(ids) == "7128>6\n" and ids[-1] == tokenizer.eos_token_id == model.config.eos_token_id
    assert model(torch.tensor([ids])).logits.shape == (1, 7, len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")


def test_a_byte_tokenizer_spells_any_text():
    tokenizer = build_tokenizer("bytes", 256)
    text = "Größe: 再试  <x>\n\t🙂"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    assert len(tokenizer) == 258 and max(ids) < 256


def test_the_same_settings_find_the_same_folder_and_others_another(tmp_path):
    first = make(tmp_path)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert make(tmp_path) == first and (first / "model.safetensors").stat().st_mtime_ns == stamp
    blank = EnvironmentSettings(name="signs", feedback="blank")
    assert make(tmp_path, blank) == first  # random weights do not depend on the environment
    assert make(tmp_path, seed=1) != first
    assert make(tmp_path, pretrain=BRIEF) != make(tmp_path, blank, pretrain=BRIEF)
    assert not list(tmp_path.glob("making-*"))


def test_a_pretrained_model_depends_on_the_options_of_its_environment_and_older_ones_are_found_again(tmp_path):
    settings = ModelSettings(make=MakeSettings(pretrain=BRIEF))
    known = tmp_path / "made-0f11908d4957e91c73be"
    known.mkdir()
    (known / "config.json").write_text("{}")
    assert prepare(settings, SIGNS, tmp_path) == known, "what settings without options made is found"
    optional = EnvironmentSettings(name="signs", feedback="residual", options={"nonsense": 1})
    with pytest.raises(SettingError, match="environment.options.nonsense"):
        prepare(settings, optional, tmp_path)


def test_a_pretrained_model_depends_on_what_ones_own_environment_says(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("import beside\nclass Env: ...\n")
    (tmp_path / "beside.py").write_text("SHOWN = 1\n")
    environment, settings = EnvironmentSettings(name=f"{mine}:Env"), MakeSettings(pretrain=BRIEF)
    first = _digest(settings, environment)
    assert _digest(settings, environment) == first
    (tmp_path / "beside.py").write_text("SHOWN = 2\n")
    assert _digest(settings, environment) != first


def test_processes_that_prepare_at_once_agree_on_one_whole_folder(tmp_path):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(make(tmp_path, layers=1))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=deadline_s(60))
    assert len(found) == 3 and len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]


def test_pretraining_lowers_the_loss_reports_progress_and_is_reproducible(tmp_path):
    lines: list[str] = []
    folder = make(tmp_path / "a", progress=lines.append, pretrain=BRIEF)
    again = make(tmp_path / "b", pretrain=BRIEF)
    untrained = make(tmp_path)
    assert any("8/8" in line for line in lines)
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    source = environments.make(SIGNS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pad = tokenizer.pad_token_id
    batch = collate(source.demonstrations(np.random.default_rng(9), 32, 2), tokenizer)
    losses = {}
    for name, path in (("before", untrained), ("after", folder)):
        model = AutoModelForCausalLM.from_pretrained(path)
        with torch.no_grad():
            losses[name] = model(input_ids=batch, labels=batch.where(batch != pad, -100)).loss.item()
    print(f"loss of demonstrations {losses['before']:.2f} -> {losses['after']:.2f} in 8 steps; {lines[-1]}")
    assert losses["after"] < 0.8 * losses["before"]


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_demonstrations_are_tokenised_as_they_are_played(kind):
    tokenizer = build_tokenizer(kind, 256)
    renderer = Renderer(tokenizer)
    dialogue = [("7128>6\n", False), ("7+1-2-8", True), ("?-8\n", False), ("", True), ("7+1-2-8", True)]
    ids = collate([dialogue, dialogue[:2]], tokenizer)
    own = [*tokenizer.encode("7+1-2-8", add_special_tokens=False), renderer.end]
    expected = [*renderer.first("7128>6\n"), *own, *renderer.next("?-8\n", True), renderer.end, *own]
    assert ids[0].tolist() == expected
    assert ids[1, 15:].unique().tolist() == [tokenizer.pad_token_id]


def test_settings_that_cannot_work_name_the_key(tmp_path):
    for wrong in ({}, {"path": "x", "make": {}}):
        with pytest.raises(ValidationError, match="exactly one of path"):
            ModelSettings(**wrong)
    with pytest.raises(ValidationError, match=r"heads.*24"):
        MakeSettings(heads=4)
    with pytest.raises(SettingError, match=r"^model\.path"):
        prepare(ModelSettings(path=str(tmp_path)), SIGNS, tmp_path)
    with pytest.raises(SettingError, match=r"^model\.make\.pretrain"):
        make(tmp_path, EnvironmentSettings(name="countdown"), pretrain=BRIEF)
    with pytest.raises(SettingError, match=r"^model\.make\.max_length"):
        make(tmp_path, max_length=16, pretrain=BRIEF)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_fetched_names_model_path(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingError, match=r"^model\.path"):
        prepare(ModelSettings(path="nobody/nothing-of-this-name"), SIGNS, tmp_path)


def test_pretraining_runs_on_a_gpu_where_torch_has_one(monkeypatch):
    assert device_of_training() == ("cuda" if torch.cuda.is_available() else "cpu")
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_of_training() == device
