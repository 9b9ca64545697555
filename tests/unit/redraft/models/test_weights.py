"""Weights that are not whole are told by file and tensor, before anything starts."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from actors.config import EnvironmentSettings
from protocols.errors import SettingError
from redraft.config import ModelSettings
from redraft.models import weights
from redraft.models.make import prepare

FILE = "model.safetensors"


@pytest.fixture
def model(tmp_path):
    save_file({"first": torch.ones(100), "second": torch.ones(200), "third": torch.ones(300)}, tmp_path / FILE)
    (tmp_path / "config.json").write_text("{}")
    weights.check(tmp_path)
    return tmp_path


def refused(model) -> str:
    with pytest.raises(SettingError) as error:
        prepare(ModelSettings(path=str(model)), EnvironmentSettings(name="signs"), model / "cache")
    assert error.value.setting == "model.path" and "\n" not in str(error.value)
    return str(error.value)


def test_the_first_tensor_that_is_not_whole_is_named(model):
    whole = (model / FILE).stat().st_size
    os.truncate(model / FILE, whole - 4)
    said = refused(model)
    assert f"{FILE} is cut off: {whole - 4:,} of {whole:,} bytes are there, and third is not whole. Fetch" in said
    os.truncate(model / FILE, whole - 4 * 301)
    assert "and second is not whole" in refused(model)


@pytest.mark.parametrize("left", [0, 5, 40])
def test_a_file_that_ends_within_its_header_is_told(model, left):
    os.truncate(model / FILE, left)
    assert f"{FILE} is cut off within its header, or damaged. Fetch" in refused(model)


def test_a_file_that_the_index_names_and_is_not_there_is_told(model):
    placed = {"first": FILE, "fourth": "model-00002.safetensors"}
    (model / weights.INDEX).write_text(json.dumps({"weight_map": placed}))
    assert "model-00002.safetensors is missing, which has fourth" in refused(model)
    (model / weights.INDEX).write_text('{"weight_map": {"fi')
    assert f"{weights.INDEX} cannot be read" in refused(model)


def test_a_folder_without_safetensors_is_told(model):
    (model / FILE).rename(model / "pytorch_model.bin")
    assert "holds no weights as *.safetensors. Name a model that has them" in refused(model)
