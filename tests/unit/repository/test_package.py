"""The package says what is so: one version, a licence, ranges that hold the pins, all files, all imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.places import ROOT

import redraft
from tools.lock import pinned

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("protocols", "actors", "replay", "learner", "redraft")
HEAVY = {"torch", "ray", "vllm", "deepspeed", "transformers", "numpy", "pydantic"}
ON_REQUEST = {"mlflow", "wandb"}
"""Trackers that a recipe may ask for, and that people install themselves."""


def required(*extras: str) -> dict[str, Requirement]:
    wanted = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(one.name): one for one in map(Requirement, wanted)}


def tracked(*paths: str) -> list[str]:
    answer = subprocess.run(["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if answer.returncode:
        pytest.skip("this is no clone: git does not know which files belong to it")
    return answer.stdout.splitlines()


def test_the_command_says_its_version_and_loads_nothing_heavy_for_it():
    program = "import sys; sys.argv = ['redraft', '--version']; from redraft.cli.main import main\n"
    program += f"try: main()\nexcept SystemExit as end: print(end.code, sorted({HEAVY!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.stdout.splitlines() == [f"redraft {redraft.__version__}", "0 []"], answer.stderr


def test_every_place_that_names_the_version_names_the_same():
    assert "version" in PROJECT["dynamic"], "packaging reads it from redraft/__init__.py"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == redraft.__version__ and citation["repository-code"] == PROJECT["urls"]["Source"]
    assert f"\n## {redraft.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    places = (ROOT / "docs" / "operations.md", *(ROOT / "deploy").rglob("*.yaml"))
    images = {tag for path in places for tag in re.findall(r"(\d+\.\d+\.\d+)-[cg]pu", path.read_text())}
    assert images == {redraft.__version__}


def test_the_licence_is_the_one_that_is_named():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and len(text) > 11_000
    assert PROJECT["license"] == "Apache-2.0" == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"]


@pytest.mark.parametrize(("kind", "extras"), [("cpu", ("cpu", "test")), ("gpu", ("gpu", "test"))])
def test_the_pins_hold_everything_that_is_asked_for_within_its_range(kind: str, extras: tuple[str, ...]):
    pins, wanted = pinned(ROOT / "requirements" / f"{kind}.txt"), required(*extras)
    if kind == "cpu":  # the set-up installs it by itself, from an index of CPU builds
        pins["torch"] = re.search(r"^torch=(\S+)$", (ROOT / "tools" / "venv.sh").read_text(), re.MULTILINE)[1]
    assert not wanted.keys() - pins.keys()
    outside = {name: pins[name] for name, one in wanted.items() if not one.specifier.contains(pins[name])}
    assert not outside


def test_what_builds_the_site_is_pinned_within_its_range():
    pins = pinned(ROOT / "requirements" / "docs.txt")
    wanted = [Requirement(one) for one in PROJECT["optional-dependencies"]["docs"]]
    assert all(one.specifier.contains(pins[canonicalize_name(one.name)]) for one in wanted)
    assert not pins.keys() & pinned(ROOT / "requirements" / "cpu.txt").keys(), "each package is pinned in one place"


def test_the_page_of_dependencies_says_why_each_is_there():
    page = (ROOT / "docs" / "dependencies.md").read_text()
    told = {
        canonicalize_name(word)
        for row in re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
        for word in re.findall(r"[\w-]+", row)
    }
    assert not required("cpu", "gpu", "test", "docs").keys() - told


def test_every_package_that_is_imported_is_asked_for():
    extras = ("cpu", "gpu", "scienceworld", "reasoning-gym", "textarena", "traces")
    known, asked = packages_distributions(), required(*extras).keys()
    missing = {}
    for path in (path for part in PACKAGES for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - ON_REQUEST:
                found = {canonicalize_name(one) for one in known.get(name, [name])}
                if name not in PACKAGES and not found & asked:
                    missing[name] = str(path.relative_to(ROOT))
    assert not missing


def test_a_wheel_holds_every_file_of_the_packages(tmp_path):
    files = tracked(*PACKAGES)
    for name in (*files, "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, "."]
    built = subprocess.run(command, cwd=tmp_path / "tree", capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = tmp_path.glob(f"redraft-{redraft.__version__}-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert not set(files) - held
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_the_image_gets_what_building_the_package_reads():
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE", "requirements", "tools")} <= {
        *let_in
    }


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("github-workflows", ".github/workflows/test.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/feature.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
    ids=lambda value: value.rpartition("/")[2],
)
def test_what_others_read_has_the_form_that_they_read(schema: str, path: str):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", path]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_workflow_runs_what_ci_runs():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    assert [step["run"] for step in jobs["test"]["steps"] if step.get("name") == ".ci/run"] == [".ci/run"]


def test_each_hook_before_a_commit_calls_what_is_in_the_environment():
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "a hook of another version would not agree with make lint"
    assert all(hook["entry"].startswith(".venv/bin/python -m ") for hook in repository["hooks"])
