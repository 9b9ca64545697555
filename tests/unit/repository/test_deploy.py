"""What deploy/ ships is well formed, fits together, and runs nothing with more rights than it needs.

Nothing here starts a cluster: docs/operations.md says what was tried how.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support.places import ROOT
from support.waiting import deadline_s
from typer.testing import CliRunner

from redraft import recipe as recipes
from redraft.cli.main import app
from replay.config import ReplaySettings
from replay.tools import standalone

DEPLOY = ROOT / "deploy"
KUBERAY = DEPLOY / "kuberay"
KUBERNETES = "1.33"
OURS = yaml.safe_load((KUBERAY / "schema.yaml").read_text())
OVERLAYS = ["base", *(f"overlays/{folder.name}" for folder in sorted((KUBERAY / "overlays").iterdir()))]


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request) -> list[dict]:
    """All objects of one overlay, as `kubectl apply --kustomize` would send them."""
    command = ["kubectl", "kustomize", str(KUBERAY / request.param)]
    rendered = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s(60))
    assert rendered.returncode == 0, rendered.stderr
    return list(yaml.load_all(rendered.stdout, yaml.CSafeLoader))


def one(manifests: list[dict], kind: str, name: str = "redraft") -> dict:
    [found] = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def templates(manifest: dict) -> Iterator[tuple[dict, dict]]:
    """Each pod template of an object, with the group of a Ray cluster or the spec that holds it."""
    spec = manifest.get("spec", {})
    for holder in (spec, spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", ())):
        if "template" in holder:
            yield holder, holder["template"]


def pods(manifests: list[dict]) -> Iterator[dict]:
    for manifest in manifests:
        for _, template in templates(manifest):
            yield template["spec"]


def recipe_of(manifests: list[dict]) -> recipes.Recipe:
    """The recipe that the job trains, with the settings that its command adds."""
    words = shlex.split(one(manifests, "RayJob")["spec"]["entrypoint"])
    values = yaml.safe_load(one(manifests, "ConfigMap", "redraft-recipe")["data"]["recipe.yaml"])
    for key, _, value in (word.partition("=") for word in words if "=" in word):
        section, name = key.split(".")
        values.setdefault(section, {})[name] = yaml.safe_load(value)
    return recipes.build(values)


def test_every_object_is_one_that_its_schema_knows_to_the_last_field(manifests):
    for manifest in manifests:
        kind = manifest["kind"]
        if kind in OURS:
            jsonschema.validate(manifest["spec"], OURS[kind])
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        for number, (_, template) in enumerate(templates(manifest)):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{kind}-{number}".lower()}, **template}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert kind == "Namespace" or manifest["metadata"]["namespace"] == "redraft"


def test_a_field_that_ray_does_not_know_would_be_noticed(manifests):
    spec = one(manifests, "RayCluster")["spec"]
    with pytest.raises(jsonschema.ValidationError, match="enableAutoscaling"):
        jsonschema.validate(spec | {"enableAutoscaling": True}, OURS["RayCluster"])


def test_every_pod_keeps_to_the_restricted_standard_and_says_what_it_needs(manifests):
    for pod in pods(manifests):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert container["image"].rpartition(":")[2] not in ("", "latest")


def test_secrets_are_read_from_files_that_only_their_owner_reads_and_none_is_shipped(manifests):
    assert not [each for each in manifests if each["kind"] == "Secret"]
    for pod in pods(manifests):
        assert "secretKeyRef" not in str(pod)
        for volume in pod.get("volumes", ()):
            assert "secret" not in volume or volume["secret"]["defaultMode"] == 0o400


def test_each_pool_has_bounds_and_the_resources_that_its_part_of_the_run_asks_for(manifests):
    recipe, cluster = recipe_of(manifests), one(manifests, "RayCluster")["spec"]
    groups = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", ())}
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert cluster.get("enableInTreeAutoscaling") or group["minReplicas"] == group["maxReplicas"]
    for part, pool, count in (
        (recipe.learner, "learner", recipe.learner.ranks),
        (recipe.actors, "actors", recipe.actors.count),
    ):
        if not groups:
            assert not part.resources, "a cluster of one node has no pools"
            continue
        offered = yaml.safe_load(yaml.safe_load(groups[pool]["rayStartParams"]["resources"]))
        assert offered == part.resources
        assert count <= groups[pool]["replicas"]
        [container] = groups[pool]["template"]["spec"]["containers"]
        assert part.gpus <= container["resources"]["limits"]["nvidia.com/gpu"]


def test_actors_may_become_as_many_as_there_may_be_nodes(manifests):
    recipe, cluster = recipe_of(manifests), one(manifests, "RayCluster")["spec"]
    if not cluster.get("enableInTreeAutoscaling"):
        assert recipe.actors.autoscale is None
        return
    assert cluster["autoscalerOptions"]["version"] == "v2"
    [actors] = [group for group in cluster["workerGroupSpecs"] if group["groupName"] == "actors"]
    bounds = recipe.actors.autoscale
    assert (bounds.min, bounds.max) == (actors["minReplicas"], actors["maxReplicas"])


def test_replay_serves_the_run_of_the_recipe_with_its_settings_where_the_recipe_looks_for_it(manifests):
    recipe, replay = recipe_of(manifests), one(manifests, "StatefulSet", "redraft-replay")["spec"]
    [container] = replay["template"]["spec"]["containers"]
    options = dict(word.removeprefix("--").split("=", 1) for word in container["args"] if word.startswith("--"))
    settings = standalone.settings([word for word in container["args"][2:] if not word.startswith("--")])
    for key in ReplaySettings.model_fields:
        assert getattr(settings, key) == getattr(recipe.replay, key), key
    assert options["run-id"] == recipe.name
    ports = {name: int(options[name].rpartition(":")[2]) for name in ("ingest", "serve")}
    service = one(manifests, "Service", "redraft-replay")["spec"]
    assert {port["name"]: port["port"] for port in service["ports"]} == ports
    hosts = [f"redraft-replay-{shard}.redraft-replay" for shard in range(replay["replicas"])]
    assert [where.ingest for where in recipe.replay.services] == [f"tcp://{host}:{ports['ingest']}" for host in hosts]
    assert [where.serve for where in recipe.replay.services] == [f"tcp://{host}:{ports['serve']}" for host in hosts]
    [rule] = one(manifests, "NetworkPolicy", "replay")["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == set(ports.values())


STUB = """#!/bin/sh
[ "$1 $2" = "job status" ] && exit 1
[ "$1 $2" = "job logs" ] && exit 0
printf '%s\\n' "$(basename "$0")" "$@" >> "$STUBS"
"""


def test_ray_gets_the_whole_command_also_through_the_shell_of_kuberays_submitter(manifests, tmp_path):
    """K8sJobMode submits by these words of shell, with the entrypoint among them as it is (BuildJobSubmitCommand in
    KubeRay's job.go, 1.5 and later); HTTPMode sends it as it is. Ray then runs what it got by a shell of its own."""
    entrypoint = one(manifests, "RayJob")["spec"]["entrypoint"]
    at, job = "--address http://redraft-head-svc:8265", "redraft-x2x4v"
    submit = f"ray job submit {at} --no-wait --submission-id {job}"
    line = f'until true >/dev/null 2>&1 ; do echo "Waiting" ; sleep 2 ; done ; if ! ray job status {at} {job} '
    line += f">/dev/null 2>&1 ; then {submit} -- {entrypoint.strip()} ; fi ; ray job logs {at} --follow {job}"
    for name in ("ray", "redraft"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)

    def called(command: str) -> list[str]:
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STUBS": str(said)}
        subprocess.run(["bash", "-c", command], env=path, check=True, timeout=deadline_s(60))
        return said.read_text().splitlines()

    words = ["redraft", "train", "/etc/redraft/recipe.yaml", "--resume-if-begun", "metrics.port=9464"]
    got = called(line)
    assert got == [*shlex.split(submit), "--", *words], "nothing ran in the submitter but this"
    assert called(shlex.join(got[got.index("--") + 1 :])) == called(entrypoint) == words


def test_the_job_is_a_command_that_redraft_takes_where_its_folders_are(manifests, tmp_path):
    _, *words = shlex.split(one(manifests, "RayJob")["spec"]["entrypoint"])
    (tmp_path / "recipe.yaml").write_text(one(manifests, "ConfigMap", "redraft-recipe")["data"]["recipe.yaml"])
    words = [str(tmp_path / "recipe.yaml") if word == "/etc/redraft/recipe.yaml" else word for word in words]
    ended = CliRunner().invoke(app, [*words, "--dry-run"])
    assert ended.exit_code == 0 and "port: 9464" in ended.output, ended.output
    assert one(manifests, "RayJob")["spec"]["submissionMode"] == "HTTPMode"
    [head] = one(manifests, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    [work] = [mount["mountPath"] for mount in head["volumeMounts"] if mount["name"] == "work"]
    assert head["workingDir"] == work, "jobs run where Ray was started, and the run folder is on the volume"


def test_the_network_begins_closed(manifests):
    assert one(manifests, "NetworkPolicy", "deny")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_all_dashboards_reach_grafana(manifests):
    shipped = one(manifests, "ConfigMap", "redraft-dashboards")["data"].keys()
    assert shipped == {path.name for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")}


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


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.s*[ht]*")), ids=lambda path: path.name)
def test_shell_scripts_are_shell(script: Path):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=deadline_s(60))
    assert checked.returncode == 0, checked.stderr
    assert "set -" in script.read_text()
