"""What `redraft serve` says, and what it refuses before it starts anything."""

import json
import re

import pytest
from support.certificates import certificate

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
        serving.serve("nobody", (), None, False, serving.Door("127.0.0.1", 0), tmp_path)


def opened(host: str, certificate=None, key=None, trusted=False) -> str:
    door = serving.Door.of(host, 0, certificate, key, trusted)
    with door.listen() as listening:
        return door.url(listening.getsockname()[1])


def test_where_other_machines_reach_it_it_speaks_tls_or_their_network_is_trusted(tmp_path):
    files = certificate(tmp_path)
    assert opened("127.0.0.1").startswith("http://127.0.0.1:") and opened("::1").startswith("http://[::1]:")
    assert opened("0.0.0.0", *files).startswith("https://") and opened("127.0.0.1", *files).startswith("https://")
    assert opened("0.0.0.0", trusted=True).startswith("http://")
    for host in ("0.0.0.0", "::"):
        with pytest.raises(SettingError, match=r"--host: other machines reach .* Give --tls-certificate and --tls-key"):
            opened(host)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trusted": True}, "--trust-network: has no effect at 127.0.0.1"),
        ({"certificate": "certificate.pem", "key": "key.pem", "trusted": True}, "--trust-network: has no effect with"),
        ({"certificate": "certificate.pem"}, "--tls-key: a certificate has no effect without its key"),
        ({"key": "key.pem"}, "--tls-certificate: a certificate has no effect without its key"),
        ({"certificate": "key.pem", "key": "key.pem"}, "--tls-certificate: .* cannot be used"),
        ({"certificate": "nowhere.pem", "key": "key.pem"}, "--tls-certificate: .* cannot be used"),
    ],
)
def test_what_of_tls_has_no_effect_or_cannot_be_used_is_refused(tmp_path, given, words):
    certificate(tmp_path)
    files = {name: tmp_path / value for name, value in given.items() if isinstance(value, str)}
    with pytest.raises(SettingError, match=words):
        opened("127.0.0.1", **given | files)
