"""What Prometheus and Grafana are given is sound: rules, dashboards, metric names, the page about them."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from support.places import ROOT
from support.waiting import deadline_s

from protocols import metrics, reports  # noqa: F401  reports declares metrics, too

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
METRICS = metrics.METRICS
SUFFIXES = {metrics.Histogram: ("_bucket", "_sum", "_count"), metrics.Counter: ("",), metrics.Gauge: ("",)}
EXPORTED = {metric.name + suffix for metric in METRICS for suffix in SUFFIXES[metric.kind]}
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


def test_dashboards_and_rules_ask_only_for_what_the_code_exports():
    assert len(DASHBOARDS) == 6
    asked = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(asked) > 40 and asked <= EXPORTED, sorted(asked - EXPORTED)


def test_the_page_about_watching_lists_every_metric_as_the_code_does():
    page = (ROOT / "docs" / "watching.md").read_text()
    listed = re.findall(r"^\| `(redraft_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", page, re.MULTILINE)
    assert sorted(listed) == sorted(
        (metric.name, metric.kind.__name__.lower(), ", ".join(metric.label_names), metric.help.replace("|", "\\|"))
        for metric in METRICS
    )
