"""What deploy/ ships beside the chart is well formed, and runs nothing with more rights than it needs.

Nothing here starts a container: docs/operations.md says what was tried how.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.places import ROOT
from support.waiting import deadline_s

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
        mounts = [mount.split(":")[0] for mount in service["volumes"]]
        assert all((path.parent / mount).is_dir() for mount in mounts if mount.startswith("."))


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
