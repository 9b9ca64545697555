"""`redraft k8s`: a run on Kubernetes, by `helm` and `kubectl` as they are set up here. RUN is the name of a release."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from protocols.errors import RedraftError, SettingError

CHART = Path(__file__).parents[2] / "deploy" / "chart"
SECRETS = {
    "replay-keys": ("server.key_secret", "client.key", "metrics.token"),
    "peer-keys": ("server.key", "client.key_secret", "metrics.token"),
}
"""The secrets of a release, and which files of `redraft keys new` each holds."""
FOLDER = "/srv/redraft"

Release = Annotated[str, typer.Argument(metavar="RUN", help="The release: the first argument of `redraft k8s start`.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="It has to be there.")]
IN = "redraft"

app = typer.Typer(help="A run on Kubernetes: helm and kubectl do it.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """A run on Kubernetes: helm and kubectl do it."""


@app.command()
def start(
    run: Release,
    values: Annotated[list[Path], typer.Argument(metavar="VALUES...", help="Value files, see deploy/chart.")],
    namespace: Namespace = IN,
) -> None:
    """Make the keys of replay, where there are none, and install or upgrade the release."""
    if not CHART.is_dir():
        raise SettingError("redraft k8s", f"{CHART} is missing", "Run it from a copy of the repository")
    for missing in (file for file in values if not file.is_file()):
        raise SettingError("VALUES", f"there is no file {missing}", "Name value files; deploy/chart/examples has some")
    kinds = [kind for kind in SECRETS if not _has_secret(f"{run}-{kind}", namespace)]
    if len(kinds) == 1:
        kept = f"{run}-{next(kind for kind in SECRETS if kind not in kinds)}"
        raise SettingError("RUN", f"of its two secrets only {kept} is there", "Delete it, or make the other one")
    if kinds:
        _make_secrets(run, namespace)
    files = [word for file in values for word in ("--values", str(file))]
    _call("helm", "upgrade", "--install", run, str(CHART), "--namespace", namespace, *files)


@app.command()
def status(run: Release, namespace: Namespace = IN) -> None:
    """The pods of a run, and what it is doing."""
    _call("kubectl", "--namespace", namespace, "get", "pods", "--selector", f"app.kubernetes.io/instance={run}")
    _redraft(run, namespace, "status")


@app.command()
def logs(
    run: Release,
    part: Annotated[str, typer.Argument(help="controller, learner-0, actor-3, ...")] = "controller",
    namespace: Namespace = IN,
) -> None:
    """Follow the log of a part of a run."""
    pod, name = _head(run, namespace)
    _in_head(pod, namespace, "tail", "-n", "200", "-F", f"{FOLDER}/runs/{name}/logs/{part}.log")


@app.command()
def stop(run: Release, namespace: Namespace = IN) -> None:
    """Have a run finish its step, write a checkpoint and end."""
    _redraft(run, namespace, "stop")


@app.command()
def scale(
    run: Release, count: Annotated[int, typer.Argument(metavar="N", help="Actors.")], namespace: Namespace = IN
) -> None:
    """Change how many actors a run has while it goes on."""
    _redraft(run, namespace, "scale", str(count))


def _redraft(run: str, namespace: str, command: str, *arguments: str) -> None:
    pod, name = _head(run, namespace)
    _in_head(pod, namespace, "redraft", command, name, *arguments)


def _in_head(pod: str, namespace: str, *command: str) -> None:
    _call("kubectl", "--namespace", namespace, "exec", pod, "--container", "ray-head", "--", *command)


def _head(run: str, namespace: str) -> tuple[str, str]:
    """The head's pod, and the name of the run that it is of. Raises RedraftError where there is none."""
    selector = f"app.kubernetes.io/instance={run},app.kubernetes.io/component=head"
    wanted = "jsonpath={range .items[*]}{.metadata.name} {.metadata.labels.redraft/run}{'\\n'}{end}"
    found = _call(
        "kubectl", "--namespace", namespace, "get", "pods", "--selector", selector, "--output", wanted, quiet=True
    )
    if not found.split():
        raise RedraftError(f"{run} has no head in the namespace {namespace}: its run has ended, or waits for a node")
    pod, name = found.splitlines()[-1].split()
    return pod, name


def _has_secret(name: str, namespace: str) -> bool:
    found = _call(
        "kubectl", "--namespace", namespace, "get", "secret", name, "--ignore-not-found", "--output=name", quiet=True
    )
    return bool(found.strip())


def _make_secrets(run: str, namespace: str) -> None:
    """Makes keys and gives them to the cluster; no copy stays here."""
    from replay import keys

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "keys"
        keys.new(made)
        for kind, files in SECRETS.items():
            given = [f"--from-file={made / file}" for file in files]
            _call("kubectl", "--namespace", namespace, "create", "secret", "generic", f"{run}-{kind}", *given)


def _call(program: str, *arguments: str, quiet: bool = False) -> str:
    """Runs a program as if it were typed here; returns what it said if `quiet`. Raises RedraftError where it fails."""
    if shutil.which(program) is None:
        raise SettingError("redraft k8s", f"there is no {program} on the PATH", f"Install {program}")
    ended = subprocess.run([program, *arguments], text=True, stdout=subprocess.PIPE if quiet else None, check=False)
    if ended.returncode:
        raise RedraftError(f"{program} {arguments[0]} ... ended with exit code {ended.returncode}")
    return ended.stdout or ""
