"""What Prometheus and Grafana are given is sound: rules, dashboards, metric names, the page about them."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from support import gpu_exporter, grafana
from support.places import ROOT
from support.waiting import deadline_s

from protocols import metrics, reports  # noqa: F401  reports declares metrics, too

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
METRICS = metrics.METRICS
SUFFIXES = {metrics.Histogram: ("_bucket", "_sum", "_count"), metrics.Counter: ("",), metrics.Gauge: ("",)}
EXPORTED = {metric.name + suffix for metric in METRICS for suffix in SUFFIXES[metric.kind]}
OTHERS = re.compile(r"\b(?:ray_|vllm\[:_\]|DCGM_)\w+")
FOREIGN = {name for name in gpu_exporter.NAMES if not name.startswith("redraft_")} | {
    *("ray_node_mem_used", "ray_node_mem_total", "ray_node_cpu_utilization"),
    *("ray_node_disk_usage", "ray_node_disk_free", "ray_node_network_send_speed", "ray_node_network_receive_speed"),
    *("ray_object_store_used_memory", "ray_object_store_available_memory"),
    *("vllm[:_]kv_cache_usage_perc", "vllm[:_]num_requests_running", "vllm[:_]num_requests_waiting"),
    *("vllm[:_]num_preemptions_total", "vllm[:_]generation_tokens_total"),
}
"""Of Ray, vLLM and DCGM: those of a run without GPUs are seen in one (tests/integration/test_run.py)."""
NAME = re.compile(r"(?<![\w:])redraft_\w+")  # not those that a recording rule makes


def promtool(*arguments: str) -> str:
    answer = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=deadline_s(60)
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def rules(file: str) -> list[dict]:
    return [rule for group in yaml.safe_load((PROMETHEUS / file).read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    panels = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return asked + [rule["expr"] for file in ("recording.yml", "alerts.yml") for rule in rules(file)]


@pytest.mark.prometheus
def test_prometheus_takes_the_configuration_and_its_rules():
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


@pytest.mark.prometheus
def test_each_alert_fires_when_it_should_and_only_then():
    promtool("test", "rules", "rules.test.yml")
    told = yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text())["tests"]
    assert {rule["alertname"] for test in told for rule in test["alert_rule_test"]} == {
        rule["alert"] for rule in rules("alerts.yml")
    }


def test_each_alert_says_what_is_wrong_and_where_to_read_on():
    for rule in rules("alerts.yml"):
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_the_dashboards_are_what_their_code_generates():
    command = [sys.executable, "deploy/grafana/generate.py", "--check"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=deadline_s(60))
    assert answer.returncode == 0, answer.stderr


def test_dashboards_and_rules_ask_only_for_what_is_exported():
    assert len(DASHBOARDS) == 8
    queries = expressions()
    asked = {name for expression in queries for name in NAME.findall(expression)}
    assert len(asked) > 60 and asked <= EXPORTED, sorted(asked - EXPORTED)
    others = {name for expression in queries for name in OTHERS.findall(expression)}
    assert others and others <= FOREIGN, sorted(others - FOREIGN)
    assert {name for name in gpu_exporter.NAMES if name.startswith("redraft_")} <= EXPORTED


def test_no_metric_has_a_label_that_prometheus_gives_what_it_finds_at_sd():
    """Prometheus would rename ours, and a panel would show the part of the process that exports it."""
    given = {"run", "part", "name", "instance", "job", "namespace", "pod", "container", "endpoint"}
    assert not [metric.name for metric in METRICS if given & set(metric.label_names)]


def test_numbers_are_of_this_moment_and_no_data_is_neither_good_nor_bad():
    panels = grafana.panels()
    assert len(panels) > 100
    for title, panel in panels.items():
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["noValue"] == "no data", title
        assert defaults["thresholds"]["steps"][0] == {"value": None, "color": "text"}, title
        if panel["type"] == "stat":
            assert all(target["instant"] and not target["range"] for target in panel["targets"]), title


def test_every_query_is_of_the_chosen_run_and_namespace_and_boards_have_the_variables_that_they_ask_by():
    for name, board in grafana.boards().items():
        variables = {variable["name"] for variable in board["templating"]["list"]}
        queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
        queries += [event["expr"] for event in board["annotations"]["list"]]
        for query in queries:
            asked = set(re.findall(r"\$([a-z]\w*)", query))
            assert asked <= variables, f"{name}: {query}"
            assert query.count("{") == query.count('{namespace=~"$namespace"'), f"{name}: {query}"
            assert "run" in asked or "DCGM" in query, f"{name}: {query}"
        for variable in board["templating"]["list"]:
            assert set(re.findall(r"\$(\w+)", str(variable["query"]))) <= variables
    assert {event["name"] for event in grafana.boards()["overview"]["annotations"]["list"]} == {
        *("Scale", "Restarts", "Checkpoints", "Evaluations"),
    }


def test_the_page_about_watching_lists_every_metric_as_the_code_does():
    page = (ROOT / "docs" / "watching.md").read_text()
    listed = re.findall(r"^\| `(redraft_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", page, re.MULTILINE)
    assert sorted(listed) == sorted(
        (metric.name, metric.kind.__name__.lower(), ", ".join(metric.label_names), metric.help.replace("|", "\\|"))
        for metric in METRICS
    )
