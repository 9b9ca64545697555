"""What `redraft serve` says, and what it refuses before it starts anything."""

import json
import re

import pytest

from protocols.errors import SettingError
from redraft.launch import serving


def test_what_it_says_is_where_it_is_its_key_and_a_request_that_can_be_pasted():
    where, names, curl = serving.told("mine/step-000001", "http://127.0.0.1:8000/v1", "sk-key").splitlines()
    assert where == "mine/step-000001 answers at http://127.0.0.1:8000/v1, until Ctrl-C"
    assert names.split() == ["export", "OPENAI_BASE_URL=http://127.0.0.1:8000/v1", "OPENAI_API_KEY=sk-key"]
    body = json.loads(re.findall(r"-d '(.*)'$", curl)[0])
    assert body["model"] == "mine/step-000001" and body["messages"][0]["role"] == "user"


def test_a_run_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="nobody"):
        serving.serve("nobody", (), None, False, ("127.0.0.1", 0), tmp_path)
