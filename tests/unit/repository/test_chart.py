"""The Helm chart: what Helm itself makes of it is well formed, fits together, and runs nothing with more rights than it
needs.

Nothing here starts a cluster: docs/operations.md says what was tried how.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from math import ceil
from pathlib import Path
from types import ModuleType

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support import needs
from support.places import ROOT
from support.waiting import deadline_s
from typer.testing import CliRunner

from redraft import recipe as recipes
from redraft.cli.main import app
from replay.config import ReplaySettings
from replay.tools import standalone

CHART = ROOT / "deploy" / "chart"
KUBERNETES = "1.33"
OPERATORS = yaml.safe_load((ROOT / "tests" / "support" / "operators.yaml").read_text())
EXAMPLES = [None, *sorted((CHART / "examples").glob("*.yaml"))]


def values_of(example: Path | None) -> dict:
    return yaml.safe_load(example.read_text()) if example else {}


def engine() -> ModuleType:
    """Helm's own code, as a package of Python."""
    try:
        return importlib.import_module("helm_python")
    except ImportError:
        needs.missing("there is no helm-python-sdk here: make setup")


def render(chart: Path, values: dict, release: str = "exp-1") -> list[dict]:
    """All objects of a release, as `helm install` would send them: by Helm's own engine."""
    with engine().Chart.load(str(chart)) as loaded:
        loaded.validate_schema(values)
        files = loaded.render(values, name=release, namespace="redraft")
    return [found for text in files.values() for found in yaml.load_all(text, yaml.CSafeLoader) if found]


@pytest.fixture(scope="module", params=EXAMPLES, ids=lambda path: path.stem if path else "defaults")
def example(request) -> dict:
    return values_of(request.param)


@pytest.fixture(scope="module")
def manifests(example) -> list[dict]:
    return render(CHART, example)


def one(manifests: list[dict], kind: str, name: str = "") -> dict:
    """The only object of a kind, or of a kind and a name."""
    [found] = [each for each in manifests if each["kind"] == kind and name in ("", each["metadata"]["name"])]
    return found


def cluster_of(manifests: list[dict]) -> dict:
    return one(manifests, "RayJob")["spec"]["rayClusterSpec"]


def templates(manifests: list[dict]) -> Iterator[dict]:
    """Each pod template, by the part that it is of."""
    cluster = cluster_of(manifests)
    for holder in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
        yield holder["template"]
    yield one(manifests, "StatefulSet")["spec"]["template"]


def part_of(template: dict) -> str:
    return template["metadata"]["labels"]["app.kubernetes.io/component"]


def recipe_text(manifests: list[dict]) -> str:
    [found] = [each["data"]["recipe.yaml"] for each in manifests if "recipe.yaml" in each.get("data", ())]
    return found


def recipe_of(manifests: list[dict]) -> recipes.Recipe:
    return recipes.build(yaml.safe_load(recipe_text(manifests)))


def test_every_object_is_one_that_its_schema_knows_to_the_last_field(manifests):
    for manifest in manifests:
        kind = manifest["kind"]
        if kind in OPERATORS:
            jsonschema.validate(manifest["spec"], OPERATORS | {"$ref": f"#/{kind}"})
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for template in templates(manifests):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": part_of(template), **template["metadata"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_field_that_ray_does_not_know_would_be_noticed(manifests):
    spec = one(manifests, "RayJob")["spec"]
    spec = spec | {"rayClusterSpec": spec["rayClusterSpec"] | {"enableAutoscaling": True}}
    with pytest.raises(jsonschema.ValidationError, match="enableAutoscaling"):
        jsonschema.validate(spec, OPERATORS | {"$ref": "#/RayJob"})


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"headd": {}}, "headd"),
        ({"image": {"tag": "latest"}}, "tag"),
        ({"run": "Not A Name"}, "run"),
        ({"recipe": {"name": "mine"}}, "the chart writes it"),
        ({"recipe": {"actors": {"resources": {"x": 1}}}}, "recipe.actors.resources"),
        ({"run": "a-name-of-thirty-eight-letters-is-long"}, "KubeRay leaves room for 40"),
        ({"recipe": {"actors": {"autoscale": {"max": 8}}}, "kueueQueue": "mine"}, "leave out recipe.actors.autoscale"),
    ],
)
def test_values_that_cannot_work_are_refused_by_helm(values, problem):
    with pytest.raises(engine().HelmError, match=problem):
        render(CHART, values)


@pytest.mark.parametrize("release", ["7b", "exp.1"])
def test_a_release_whose_name_kuberay_would_not_take_is_refused_by_helm(release):
    with pytest.raises(engine().HelmError, match="that begin with a letter"):
        render(CHART, {}, release)


def test_the_job_keeps_to_what_kuberays_operator_and_kueue_ask_beyond_the_schema(manifests):
    """ValidateRayJobMetadata, ValidateRayJobSpec and ValidateRayClusterSpec of KubeRay, and Kueue's webhook of RayJobs,
    in so far as they concern fields that are used here."""
    job, cluster = one(manifests, "RayJob"), cluster_of(manifests)
    name = job["metadata"]["name"]
    assert len(name) <= 47 and re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert job["spec"]["ttlSecondsAfterFinished"] >= 0 and job["spec"]["backoffLimit"] >= 0
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    rayed = tuple(int(number) for number in cluster["rayVersion"].split("."))
    assert rayed >= (2, 52, 0) and cluster["rayVersion"] == metadata.version("ray"), "tokens, and the image's own Ray"
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]
    names = [group["groupName"] for group in groups[1:]]
    assert len(set(names)) == len(names) <= 7 and "head" not in names
    for group in groups:
        pod = group["template"]["spec"]
        given = {variable["name"] for variable in pod["containers"][0]["env"]}
        assert "labels" not in group["rayStartParams"]
        assert pod.get("restartPolicy", "Never") == "Never", "Ray's autoscaler v2 makes pods, and Kubernetes none again"
        assert not {"RAY_REDIS_ADDRESS", "RAY_enable_autoscaler_v2"} & given
    queued = "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
    assert not (queued and cluster.get("enableInTreeAutoscaling"))


def test_two_runs_in_one_namespace_have_no_name_in_common_and_reach_each_other_nowhere(example):
    [first, second] = [render(CHART, example, release) for release in ("first", "second")]
    names = [{(each["kind"], each["metadata"]["name"]) for each in release} for release in (first, second)]
    assert len(names[0]) == len(first) and not names[0] & names[1]
    folders = [one(release, "StatefulSet")["spec"]["serviceName"] for release in (first, second)]
    assert folders == ["first-replay", "second-replay"]
    for policy in (each for each in first if each["kind"] == "NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "first"
    assert "second" not in str([each for each in first if each["kind"] not in ("PrometheusRule", "ConfigMap")])


def test_another_run_of_a_release_is_another_job_and_begins_with_an_empty_replay(example):
    before, after = render(CHART, example), render(CHART, example | {"run": "exp-2"})
    assert one(after, "RayJob")["metadata"]["name"] not in ("exp-1", one(before, "RayJob")["metadata"]["name"])
    arguments = one(after, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--folder=/spool/exp-2", "--run-id=exp-2"} <= set(arguments) and recipe_of(after).name == "exp-2"


def test_every_pod_keeps_to_the_restricted_standard_and_says_what_it_needs(manifests):
    for pod in (template["spec"] for template in templates(manifests)):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert container["image"].rpartition(":")[2] not in ("", "latest")


def test_secrets_are_read_from_files_that_only_their_owner_reads_and_none_is_shipped(manifests):
    assert not [each for each in manifests if each["kind"] == "Secret"]
    for template in templates(manifests):
        assert "secretKeyRef" not in str(template)
        for volume in template["spec"].get("volumes", ()):
            assert "secret" not in volume or volume["secret"]["defaultMode"] == 0o400


def test_each_pool_has_the_nodes_and_the_resources_that_its_part_of_the_run_asks_for(manifests, example):
    recipe, cluster = recipe_of(manifests), cluster_of(manifests)
    groups = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", ())}
    if not groups:
        assert not recipe.learner.resources and not recipe.actors.resources, "a cluster of one node has no pools"
        [head] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        needed = recipe.learner.gpus * recipe.learner.ranks + recipe.actors.gpus * recipe.actors.count
        assert needed <= head["resources"]["limits"]["nvidia.com/gpu"]
        return
    bounds = recipe.actors.autoscale
    least, most = (bounds.min, bounds.max) if bounds else (recipe.actors.count, recipe.actors.count)
    for pool, part, low, high in (
        ("learner", recipe.learner, recipe.learner.ranks, recipe.learner.ranks),
        ("actors", recipe.actors, least, most),
    ):
        group, [[resource, amount]] = groups[pool], part.resources.items()
        offered = yaml.safe_load(yaml.safe_load(group["rayStartParams"]["resources"]))[resource] / amount
        assert (group["minReplicas"], group["maxReplicas"]) == (ceil(low / offered), ceil(high / offered))
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        [container] = group["template"]["spec"]["containers"]
        assert part.gpus * offered <= container["resources"]["limits"]["nvidia.com/gpu"]
    assert bool(cluster.get("enableInTreeAutoscaling")) == bool(bounds)
    assert not bounds or cluster["autoscalerOptions"]["version"] == "v2"


def test_replay_serves_the_run_with_the_settings_of_its_recipe_where_the_recipe_looks_for_it(manifests):
    recipe, replay = recipe_of(manifests), one(manifests, "StatefulSet")["spec"]
    [container] = replay["template"]["spec"]["containers"]
    options = dict(word.removeprefix("--").split("=", 1) for word in container["args"] if word.startswith("--"))
    settings = standalone.settings([word for word in container["args"][2:] if not word.startswith("--")])
    for key in ReplaySettings.model_fields.keys() - {"shards"}:
        assert getattr(settings, key) == getattr(recipe.replay, key), key
    assert options["run-id"] == recipe.name
    ports = {name: int(options[name].rpartition(":")[2]) for name in ("ingest", "serve")}
    service = one(manifests, "Service", replay["serviceName"])["spec"]
    assert {port["name"]: port["port"] for port in service["ports"]} == ports
    hosts = [f"exp-1-replay-{shard}.exp-1-replay" for shard in range(replay["replicas"])]
    assert [where.ingest for where in recipe.replay.services] == [f"tcp://{host}:{ports['ingest']}" for host in hosts]
    assert [where.serve for where in recipe.replay.services] == [f"tcp://{host}:{ports['serve']}" for host in hosts]
    [rule] = one(manifests, "NetworkPolicy", "exp-1-replay")["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == set(ports.values())


def test_numbers_reach_the_recipe_as_they_were_written():
    learner = {"optimizer": {"lr": 1e-7}, "max_staleness": 0}
    made = recipe_of(render(CHART, {"recipe": {"learner": learner, "replay": {"max_bytes": 8_000_000_000}}}))
    assert (made.learner.optimizer.lr, made.replay.max_bytes, made.learner.max_staleness) == (1e-7, 8_000_000_000, 0)


def test_an_n_that_helm_took_for_false_is_an_n_again(tmp_path):
    """Helm reads YAML 1.1, in which a key n without quotes is false; here as from a file of `helm --values`."""
    shutil.copytree(CHART, tmp_path / "chart")
    written = tmp_path / "chart" / "values.yaml"
    written.write_text(written.read_text().replace('{"n": 256}', "{n: 77}"))
    assert recipe_of(render(tmp_path / "chart", {})).evaluation.n == 77


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

    words = ["redraft", "train", "/etc/redraft/recipe.yaml", "--resume-if-begun", "--restarts", "5"]
    got = called(line)
    assert got == [*shlex.split(submit), "--", *words], "nothing ran in the submitter but this"
    assert called(shlex.join(got[got.index("--") + 1 :])) == called(entrypoint) == words


def test_the_job_is_a_command_that_redraft_takes_where_its_folders_are(manifests, tmp_path):
    _, *words = shlex.split(one(manifests, "RayJob")["spec"]["entrypoint"])
    (tmp_path / "recipe.yaml").write_text(recipe_text(manifests))
    words = [str(tmp_path / "recipe.yaml") if word == "/etc/redraft/recipe.yaml" else word for word in words]
    ended = CliRunner().invoke(app, [*words, "--dry-run"])
    assert ended.exit_code == 0 and "port: 9464" in ended.output, ended.output
    assert one(manifests, "RayJob")["spec"]["submissionMode"] == "HTTPMode"
    for template in list(templates(manifests))[:-1]:
        [container] = template["spec"]["containers"]
        [work] = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "work"]
        assert container["workingDir"] == work, "jobs run where Ray was started, and the run folder is on the volume"


def test_head_and_learner_leave_only_after_a_checkpoint_and_actors_at_once(manifests):
    recipe = recipe_of(manifests)
    disruptions = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "PodDisruptionBudget"}
    for template in templates(manifests):
        part, pod = part_of(template), template["spec"]
        annotations = template["metadata"].get("annotations", {})
        [container] = pod["containers"]
        assert part == "replay" or template["metadata"]["labels"]["redraft/run"] == recipe.name
        if part in ("head", "learner"):
            command = container["lifecycle"]["preStop"]["exec"]["command"]
            assert command == ["redraft", "stop", recipe.name, "--evict", f"--wait={recipe.stop_s:g}"]
            assert pod["terminationGracePeriodSeconds"] > recipe.stop_s
            assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": f"{recipe.stop_s:g}"} in container["env"]
        else:
            assert "lifecycle" not in container and pod["terminationGracePeriodSeconds"] <= 60
        kept = part != "actors"
        assert (annotations.get("karpenter.sh/do-not-disrupt") == "true") == kept
        assert (annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict") == "false") == kept
        assert (f"exp-1-{part}" in disruptions) == kept
        if kept:
            selects = disruptions[f"exp-1-{part}"]["spec"]["selector"]["matchLabels"].items()
            assert selects <= template["metadata"]["labels"].items()


def test_a_run_that_is_copied_has_the_time_of_the_last_copy_and_pods_keep_models_in_the_nodes_cache():
    manifests = render(CHART, {"recipe": {"storage": {"url": "s3://bucket/runs", "deadline_s": 400}}})
    assert recipe_of(manifests).storage.url == "s3://bucket/runs"
    for template in templates(manifests):
        pod = template["spec"]
        (container, *_) = pod["containers"]
        if (part := part_of(template)) == "replay":
            continue
        kept = {one["name"]: one.get("value") for one in container["env"]}
        assert kept["REDRAFT_CACHE"] == "/cache" and kept["HF_HOME"].startswith("/cache/")
        if part != "actors":
            assert pod["terminationGracePeriodSeconds"] == 600 + 400 + 60


def test_a_shared_cluster_gets_what_it_asks_for():
    manifests = render(CHART, values_of(CHART / "examples" / "sixteen-ranks.yaml"))
    job = one(manifests, "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "researchers"
    by_part = {part_of(template): template["spec"] for template in templates(manifests)}
    assert {part for part, pod in by_part.items() if pod.get("priorityClassName") == "training"} == {
        "head",
        "learner",
        "replay",
    }
    for part, pod in by_part.items():
        assert pod["imagePullSecrets"] == [{"name": "registry-key"}]
        assert (pod.get("runtimeClassName") == "nvidia") == (part in ("learner", "actors"))
        if part != "replay":
            assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "my-keys"}}]
            assert {"name": "NCCL_SOCKET_IFNAME", "value": "eth0"} in pod["containers"][0]["env"]
            assert {"name": "work", "persistentVolumeClaim": {"claimName": "everyones-work"}} in pod["volumes"]
            assert {"name": "cache", "persistentVolumeClaim": {"claimName": "kernels"}} in pod["volumes"]
    assert not [each for each in manifests if each["kind"] in ("PersistentVolumeClaim", "PrometheusRule")]
    assert one(manifests, "NetworkPolicy", "exp-1-egress")["spec"]["egress"][0]["ports"] == [{"port": 8000}]
    for kind in ("ScrapeConfig", "PodMonitor"):
        assert one(manifests, kind)["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_network_begins_closed_for_the_pods_of_the_run(manifests):
    deny = one(manifests, "NetworkPolicy", "exp-1-deny")["spec"]
    assert deny.keys() == {"podSelector", "policyTypes"} and deny["policyTypes"] == ["Ingress", "Egress"]
    for template in templates(manifests):
        assert deny["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_whoever_looks_for_a_model_in_a_cache_of_its_own_may_fetch_it(manifests):
    """With the chart's defaults head, learner and actors have an empty /cache each."""
    opened = one(manifests, "NetworkPolicy", "exp-1-hub")["spec"]
    assert opened["egress"] == [{"ports": [{"port": 443}]}] and opened["policyTypes"] == ["Egress"]
    assert opened["podSelector"] == one(manifests, "NetworkPolicy", "exp-1-cluster")["spec"]["podSelector"]
    closed = render(CHART, {"network": {"hub": False}})
    assert not [each for each in closed if each["metadata"]["name"] == "exp-1-hub"]


def test_names_are_asked_of_the_clusters_own_server_and_of_the_one_on_the_node(manifests):
    [rule] = one(manifests, "NetworkPolicy", "exp-1-names")["spec"]["egress"]
    assert {(port["port"], port["protocol"]) for port in rule["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in rule["to"], "where NodeLocal DNSCache listens"
    [rule] = one(render(CHART, {"network": {"nodeLocalDNS": ""}}), "NetworkPolicy", "exp-1-names")["spec"]["egress"]
    assert [where.keys() for where in rule["to"]] == [{"namespaceSelector"}]


def test_alerts_link_to_the_page_where_a_cluster_has_it():
    page = "https://docs.example.com/operations/"
    rules = one(render(CHART, {"monitoring": {"runbook": page}}), "PrometheusRule", "exp-1-alerts")["spec"]["groups"]
    told = {rule["alert"]: rule["annotations"] for group in rules for rule in group["rules"]}
    assert len(told) > 10
    for alert, said in told.items():
        assert said["runbook_url"] == f"{page}#{alert.lower()}" and "runbook" not in said


def test_all_dashboards_reach_grafana_and_all_rules_prometheus():
    manifests = render(CHART, {})
    shipped = {
        name: text
        for each in manifests
        if each["metadata"].get("labels", {}).get("grafana_dashboard")
        for name, text in each["data"].items()
    }
    written = (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")
    assert {name: text.strip() for name, text in shipped.items()} == {f.name: f.read_text().strip() for f in written}
    for kind in ("recording", "alerts"):
        rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / f"{kind}.yml").read_text())
        assert one(manifests, "PrometheusRule", f"exp-1-{kind}")["spec"] == rules
