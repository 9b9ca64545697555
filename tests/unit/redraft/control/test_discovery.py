"""Prometheus's HTTP service discovery: who serves metrics now, in the format that Prometheus reads."""

import json
import socket
import urllib.request

import pytest
from support.waiting import deadline_s, until
from support.watch_house import Prometheus

from protocols import metrics_page
from protocols.errors import SettingError
from protocols.metrics_page import Listen
from redraft.config import MetricsSettings
from redraft.control import discovery
from redraft.run import Run


def fetched(url: str) -> tuple[str, bytes]:
    with urllib.request.urlopen(url, timeout=deadline_s(10)) as page:
        return page.headers["Content-Type"], page.read()


def test_processes_appear_and_vanish_at_once_and_carry_run_part_and_name():
    processes = [("replay", "replay-0", "192.0.2.1", 2)]
    url = discovery.serve("tiny", MetricsSettings(), Listen(), None, lambda: processes)
    kind, body = fetched(url)
    port = int(url.rsplit(":", 1)[1].removesuffix("/sd"))
    assert kind == "application/json" and url.startswith("http://127.0.0.1:")
    assert json.loads(body) == [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {"run": "tiny", "part": "controller", "name": "controller"},
        },
        {"targets": ["127.0.0.1:2"], "labels": {"run": "tiny", "part": "replay", "name": "replay-0"}},
    ]
    processes[:] = [("actor", "actor-3", "192.0.2.1", 3)]
    assert [found["labels"]["name"] for found in json.loads(fetched(url)[1])] == ["controller", "actor-3"]
    assert b"python_info" in fetched(url.removesuffix("sd") + "metrics")[1], "the controller's own metrics, beside it"


@pytest.mark.parametrize(
    ("host", "address", "targets"),
    [
        (None, "192.0.2.7", ["192.0.2.7", "192.0.2.1"]),
        ("head", "192.0.2.7", ["head", "192.0.2.1"]),
        ("head", None, ["head", "head"]),
    ],
)
def test_others_reach_a_cluster_by_its_nodes_and_a_single_node_by_its_name(host, address, targets):
    settings, processes = MetricsSettings(host=host), [("replay", "replay-0", "192.0.2.1", 2)]
    url = discovery.serve("tiny", settings, Listen(), address, lambda: processes)
    assert url.startswith(f"http://{targets[0]}:")
    local = url.replace(targets[0], "127.0.0.1")
    assert [found["targets"][0].split(":")[0] for found in json.loads(fetched(local)[1])] == targets


@pytest.mark.parametrize(
    ("host", "cluster", "closed"),
    [(None, False, True), ("127.0.0.1", False, True), (None, True, False), ("head", False, False)],
)
def test_metrics_of_a_single_node_are_closed_to_others_until_they_are_opened_to_who_has_the_token(
    tmp_path, host, cluster, closed
):
    run = Run(tmp_path, "id", "model", cluster=cluster)
    listen = discovery.listen(run, MetricsSettings(host=host))
    port = metrics_page.serve(0, "actors.metrics_port", listen)
    another = ("127.0.0.2", port)  # an address of this machine that is not the one of LOOPBACK
    if closed:
        assert not list(tmp_path.iterdir())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(another, timeout=deadline_s(10))
    else:
        socket.create_connection(another, timeout=deadline_s(10)).close()
        assert listen.token == (tmp_path / "metrics.token").read_text().strip()
        assert discovery.listen(run, MetricsSettings(host=host)) == listen, "all processes ask for the same"


def test_a_token_of_the_users_own_is_asked_for_or_refused_where_nobody_would_be(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("a-token-of-my-own\n")
    run, settings = Run(tmp_path, "id", "model", cluster=True), MetricsSettings(token=str(mine))
    discovery.check(settings, cluster=True)
    assert discovery.listen(run, settings).token == "a-token-of-my-own"
    with pytest.raises(SettingError, match=r"metrics\.token: .* Leave it out, or set metrics\.host"):
        discovery.check(settings, cluster=False)
    mine.unlink()
    with pytest.raises(SettingError, match=r"metrics\.token: .*cannot be read"):
        discovery.check(settings, cluster=True)


@pytest.mark.prometheus
def test_prometheus_with_the_token_finds_and_scrapes_what_is_closed_to_one_without(tmp_path):
    listen = Listen("127.0.0.1", metrics_page.made(tmp_path))
    port = metrics_page.serve(0, "actors.metrics_port", listen)
    others = [("actor", "actor-0", "127.0.0.1", port)]
    sd = discovery.serve("tiny", MetricsSettings(), listen, None, lambda: others)
    (tmp_path / "without").mkdir()
    with (
        Prometheus(tmp_path, sd, token=tmp_path / "metrics.token") as knows,
        Prometheus(tmp_path / "without", sd) as not_,
    ):
        found = until(lambda: len(up := knows.healthy()) == 2 and up, "both are scraped", 60)
        assert found.keys() == {"controller", "actor-0"} and not not_.healthy()


def test_a_port_in_use_is_refused_by_the_name_of_its_setting():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingError, match=r"metrics\.port: port \d+ cannot be used"):
            discovery.serve("tiny", MetricsSettings(port=taken.getsockname()[1]), Listen(), None, tuple)
