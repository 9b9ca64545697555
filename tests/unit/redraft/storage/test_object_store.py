"""A store: tried again, never waited for without end, refused before a run starts, and silent about secrets."""

import threading

import pytest
from pydantic import ValidationError
from support.store_house import Rough, settings

from protocols.errors import SettingError
from redraft import recipe as recipes
from redraft.config import StorageSettings
from redraft.storage import store as stores
from redraft.storage.store import Store, StoreError


@pytest.fixture
def store(tmp_path):
    made = Store(settings(tmp_path, tries=3), "r")
    made._fs = Rough(made._fs)
    return made


def test_what_fails_is_tried_again_as_often_as_is_set(store, monkeypatch):
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    store._fs.plan = {"pipe_file": [OSError("busy"), OSError("busy")]}
    store.put("a", b"1")
    assert store.get("a") == b"1" and store.sizes("") == {"a": 1}
    store._fs.plan = {"pipe_file": [OSError("busy")] * 3}
    with pytest.raises(StoreError, match="cannot write b at file://.*/r: busy"):
        store.put("b", b"1")


def test_who_may_not_is_not_tried_again(store):
    store._fs.plan = {"pipe_file": [PermissionError("Access Denied"), AssertionError("a second try")]}
    with pytest.raises(StoreError, match="Access Denied"):
        store.put("a", b"1")


def test_a_store_that_does_not_answer_is_given_up_at_the_deadline(store):
    never = threading.Event()
    store._fs.plan = {"cat_file": [lambda *_: never.wait()]}
    store.limit(0.2)
    with pytest.raises(StoreError, match="no answer within 0 s"):
        store.get("a")
    with pytest.raises(StoreError, match="no answer"):
        store.get("a")
    never.set()


def test_an_error_says_no_secret_of_the_environment(store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush/hush+hush")
    store._fs.plan = {"pipe_file": [PermissionError("signed with hush/hush+hush:\nno")]}
    with pytest.raises(StoreError, match=r"signed with \*\*\*: no$"):
        store.put("a", b"1")


def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "bucket").write_text("no folder")
    with pytest.raises(
        SettingError, match="storage.url: cannot write probe-.*. Name a place that this user may"
    ) as said:
        Store(settings(tmp_path), "r").probe()
    assert "\n" not in str(said.value)
    with pytest.raises(SettingError, match="storage.url: .*nosuch.*"):
        Store(StorageSettings(url="nosuch://place"), "r")


@pytest.mark.parametrize("url", ["s3://KEY:hush@bucket/runs", "s3://bucket/runs?secret=hush", "/mnt/hush", "hush"])
def test_a_url_with_secrets_or_that_is_none_is_refused_without_repeating_it(url):
    values = {"name": "r", "steps": 1, "model": {"make": {}}, "environment": {"name": "signs"}, "storage": {"url": url}}
    with pytest.raises(SettingError, match="storage.url") as said:
        recipes.build(values)
    assert "hush" not in str(said.value)


def test_a_url_keeps_no_slash_at_its_end():
    assert StorageSettings(url="s3://bucket/runs/").url == "s3://bucket/runs"
    with pytest.raises(ValidationError):
        StorageSettings(url="s3://")
