"""The start model of a run: found on any node by its name, known by its bytes, fetched there by one process alone."""

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.waiting import deadline_s

from actors.config import EnvironmentSettings
from learner import checkpoint
from protocols.errors import DeadlineError, SettingError
from redraft import recipe as recipes
from redraft import run as runs
from redraft.config import ModelSettings
from redraft.models import start
from redraft.models.make import Wanted, begun, prepare, wanted
from redraft.models.start import digest
from redraft.run import Start

SIGNS = EnvironmentSettings(name="signs")

EMPTY = (2).to_bytes(8, "little") + b"{}"  # a safetensors file without tensors; more may follow


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(EMPTY + bytes(990))
    return folder


def test_the_digest_is_of_names_and_bytes_and_not_of_where_they_lie(model, tmp_path):
    first = digest(model, tmp_path / "cache")
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    (moved / ".DS_Store").write_text("no part of it")
    (moved / "README.md").write_text("nor this")
    assert digest(moved, tmp_path / "cache") == first == digest(model, tmp_path / "another cache")
    (moved / "model.safetensors").write_bytes(EMPTY + bytes(989) + b"1")
    assert digest(moved, tmp_path / "cache") != first
    (moved / "model.safetensors").rename(moved / "other.safetensors")
    (moved / "other.safetensors").write_bytes(EMPTY + bytes(990))
    assert digest(moved, tmp_path / "cache") != first


def test_the_bytes_are_read_once_on_a_node(model, tmp_path, monkeypatch):
    first = digest(model, tmp_path / "cache")
    monkeypatch.setattr(start, "_read", lambda path: pytest.fail("they were read again"))
    assert digest(model, tmp_path / "cache") == first


def test_a_node_with_another_mount_prepares_the_model_by_its_name(model, tmp_path):
    begins = begun(ModelSettings(path=str(model)), SIGNS, model, tmp_path / "cache")
    assert begins == Start(str(model), "", digest(model, tmp_path / "cache"))
    there = Wanted(begins, "/mnt/of/another/pod", ModelSettings(path=str(model)), SIGNS, None, 5)
    assert there.here(tmp_path / "its cache") == model.resolve()
    assert replace(there, path=str(model)).here(tmp_path / "its cache") == model


def test_another_model_by_that_name_is_refused_with_both_digests(model, tmp_path):
    begins = begun(ModelSettings(path=str(model)), SIGNS, model, tmp_path / "cache")
    (model / "model.safetensors").write_bytes(EMPTY + b"another")
    with pytest.raises(SettingError, match=f"model: {model} .* began with: digest .*, not {begins.digest[:12]}. Put"):
        Wanted(begins, str(model), ModelSettings(path=str(model)), SIGNS, None, 5).here(tmp_path / "cache")


def _fetch(begins: Start, cache: Path, barrier, fetched) -> None:
    def prepare() -> Path:
        folder = cache / "fetched"
        if not (folder / "config.json").exists():
            with fetched.get_lock():
                fetched.value += 1
            shutil.copytree(begins.name, folder)
        return folder

    barrier.wait()
    assert start.find(begins, cache / "nowhere", prepare, cache) == cache / "fetched"


def test_one_process_of_a_node_fetches_and_the_others_find_it(model, tmp_path):
    begins = Start(str(model), "", digest(model, tmp_path / "cache"))
    fork = multiprocessing.get_context("fork")
    barrier, fetched = fork.Barrier(4), fork.Value("i", 0)
    given = begins, tmp_path / "node", barrier, fetched
    processes = [fork.Process(target=_fetch, args=given) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(deadline_s(30))
    assert [process.exitcode for process in processes] == [0] * 4 and fetched.value == 1


def test_who_waits_for_a_fetch_waits_no_longer_than_its_limit(model, tmp_path):
    begins = Start(str(model), "", digest(model, tmp_path / "cache"))
    with start.locked(tmp_path / "node", begins.digest):
        with pytest.raises(DeadlineError, match="another one that fetches or reads"):
            start.find(begins, tmp_path / "nowhere", lambda: pytest.fail("fetched"), tmp_path / "node", 0.2)


@pytest.mark.parametrize("path", ["runs/older", "runs/older/checkpoints/step-000001/model"])
def test_a_run_that_began_from_another_run_goes_on_when_that_one_is_pruned(tmp_path, monkeypatch, model, path):
    monkeypatch.chdir(tmp_path)
    older = runs.Run(tmp_path / "runs" / "older", "older", str(model))
    older.folder.mkdir(parents=True)
    older.save()
    aside = checkpoint.begin(older.folder, 1)
    shutil.copytree(model, aside / "model")
    (aside / "model" / "chat_template.jinja").symlink_to(model / "config.json")
    checkpoint.finish(aside, checkpoint.RunState("older", 1, 0, {}, 1, 1), 1)
    values = {"name": "r", "steps": 1, "model": {"path": path}, "environment": {"name": "signs"}}
    recipe = recipes.build(values | {"rollout": {"name": "attempt", "episodes": 2}})
    found = prepare(recipe.model, recipe.environment, tmp_path / "cache")
    begins = begun(recipe.model, recipe.environment, found, tmp_path / "cache")
    with runs.owned(recipe, None, resume=False, again=False) as owner:
        run = runs.create(recipe, str(found), owner, start=begins)
    assert (run.folder / "model" / "model.safetensors").samefile(found / "model.safetensors"), "it takes no room"
    shutil.rmtree(older.folder)
    shutil.rmtree(model)
    moved = runs.find(str(run.folder.rename(tmp_path / "elsewhere")))
    here = wanted(moved, recipe).here(tmp_path / "cache of another node")
    assert here == tmp_path / "elsewhere" / "model" and digest(here, tmp_path / "cache") == begins.digest
    assert (here / "chat_template.jinja").read_text() == "{}"


def test_a_made_model_goes_with_the_run_folder_wherever_that_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"name": "r", "steps": 1, "model": {"make": {}, "dtype": "float32"}, "environment": {"name": "signs"}}
    values |= {"rollout": {"name": "attempt", "episodes": 2}}
    recipe = recipes.build(values)
    made = prepare(recipe.model, recipe.environment, tmp_path / "cache")
    with runs.owned(recipe, None, resume=False, again=False) as owner:
        begins = begun(recipe.model, recipe.environment, made, tmp_path / "cache")
        run = runs.create(recipe, str(made), owner, start=begins)
    assert json.loads((run.folder / "run.json").read_text())["start"] == {
        "name": "made",
        "revision": "",
        "digest": begins.digest,
    }
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "pod").mkdir()
    moved = runs.find(str(run.folder.rename(tmp_path / "pod" / "r")))
    assert moved.start == begins
    assert wanted(moved, recipe).here(tmp_path / "pod" / "cache") == moved.folder / "model"
