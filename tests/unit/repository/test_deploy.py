"""What deploy/ ships beside the chart is well formed, and runs nothing with more rights than it needs.

Nothing here starts a container: docs/operations.md says what was tried how.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from support.places import ROOT
from support.waiting import deadline_s
from typer.testing import CliRunner

from redraft.cli.main import app

DEPLOY = ROOT / "deploy"


def test_every_alert_has_its_section_of_what_to_do():
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    sections = (DEPLOY.parent / "docs" / "operations.md").read_text().split("## Alerts\n")[1].split("\n## ")[0]
    assert set(re.findall("^### (.*)$", sections, re.MULTILINE)) == alerts


def test_the_compose_file_is_one_and_mounts_what_is_there():
    path = DEPLOY / "compose" / "compose.yaml"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s(60))
    assert checked.returncode == 0, checked.stdout
    for service in yaml.safe_load(path.read_text())["services"].values():
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), "tags are pinned"
        assert service["healthcheck"] and service["cap_drop"] == ["ALL"]
        mounts = [mount.split(":")[0] for mount in service.get("volumes", ())]
        assert all((path.parent / mount).exists() for mount in mounts if mount.startswith("."))


def test_the_run_of_the_compose_file_is_in_no_other_services_network_and_its_command_is_one_that_redraft_takes():
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    assert not [name for name, service in services.items() if "network_mode" in service]
    assert "depends_on" not in services["run"] and services["dcgm-exporter"]["profiles"] == ["gpu"]
    words = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", services["run"]["command"]).split()
    words = [str(ROOT / word.removeprefix("/opt/redraft/")) if "/opt/" in word else word for word in words]
    said = CliRunner().invoke(app, [*words, "--dry-run"])
    assert said.exit_code == 0, said.output
    metrics = yaml.safe_load(said.output)["metrics"]
    watches = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())["scrape_configs"]
    where = {one["job_name"]: one for one in watches}
    assert where["redraft"]["http_sd_configs"][0]["url"] == f"http://{metrics['host']}:{metrics['port']}/sd"
    usual = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert where["redraft"]["relabel_configs"] == usual["relabel_configs"]
    assert where["dcgm"]["dns_sd_configs"][0]["names"] == ["dcgm-exporter"]


@pytest.mark.prometheus
def test_prometheus_takes_the_configuration_of_the_compose_file(tmp_path):
    text = (DEPLOY / "compose" / "prometheus.yml").read_text().replace("/etc/prometheus", str(DEPLOY / "prometheus"))
    assert text.count("/run/secrets/metrics_token") == 2, "for the list, and for the pages"
    (tmp_path / "token").write_text("a-token-of-my-own")
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/metrics_token", str(tmp_path / "token")))
    command = ["promtool", "check", "config", tmp_path / "prometheus.yml"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s(60))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_list_of_an_images_packages_names_all_that_python_has_there():
    script = DEPLOY / "docker" / "sbom.py"
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=deadline_s(120))
    assert said.returncode == 0, said.stderr
    listed = json.loads(said.stdout)
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
    known = {one["name"]: one for one in listed["components"] if one["purl"].startswith("pkg:pypi/")}
    for name in ("torch", "ray", "deepspeed"):
        assert known[name]["version"] == metadata.version(name)
        assert known[name]["purl"] == f"pkg:pypi/{name}@{quote(known[name]['version'])}"


def test_the_dockerfile_has_nothing_that_hadolint_minds():
    hadolint = Path(sys.executable).parent / "hadolint"
    command = [hadolint, "--no-color", DEPLOY / "docker" / "Dockerfile"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s(60))
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", [*DEPLOY.rglob("*.sh"), *DEPLOY.rglob("*.sbatch")], ids=lambda path: path.name)
def test_shell_scripts_are_shell(script: Path):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=deadline_s(60))
    assert checked.returncode == 0, checked.stderr
    assert "set -" in script.read_text()
