"""Imports point one way, heavy ones happen late, and files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT
from support.waiting import deadline_s

PARTS = ("protocols", "actors", "replay", "learner", "redraft")
MAY_IMPORT = {
    "protocols": set(),
    "replay": {"protocols"},
    "actors": {"protocols", "replay"},
    "learner": {"protocols", "replay"},
    "redraft": {"protocols", "replay", "actors", "learner"},
}
ROOMS = {
    "": set(),  # the nouns beside the rooms: recipe, run, records, ...
    "models": {""},
    "evaluation": {""},
    "diagnosis": {""},
    "storage": {""},
    "tracking": {""},
    "check": {""},
    "report": {"", "evaluation"},
    "control": {"", "models", "storage", "evaluation", "diagnosis", "tracking"},
    "watch": {"", "control", "report"},
    "export": {"", "models", "report"},
    "launch": {"", "models", "storage", "evaluation", "tracking", "report", "control", "watch", "diagnosis"},
    "cli": {"", "models", "storage", "check", "report", "control", "watch", "export", "launch"},
}
"""What each room of redraft/ imports of the others: arrows point one way here, too."""
REPLAY_ROOMS = {
    "": set(),  # config and keys
    "disk": {""},
    "client": {""},
    "server": {"", "client", "disk"},
    "tools": {"", "client", "disk", "server"},
}
"""The same of replay/."""
LEARNER_ROOMS = {
    "": set(),  # settings, sequences, checkpoint
    "credits": {""},
    "objectives": {""},
    "model": {""},
    "transcripts": {""},
    "weights": {"", "model"},
    "batches": {"", "credits", "objectives", "transcripts"},
    "ranks": {"", "credits", "objectives", "model", "transcripts", "weights", "batches"},
}
"""The same of learner/."""
HOUSES = {"redraft": ROOMS, "replay": REPLAY_ROOMS, "learner": LEARNER_ROOMS}
ONLY_OF_REPLAY = {"replay.client", "replay.config"}  # what actors and learner may know of it
HEAVY = {"torch", "ray", "vllm", "deepspeed", "transformers"}
FILES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
LIMIT = 500
FUNCTION_LIMIT = 60


def imports(path: Path, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_part_imports_only_what_lies_before_it(path):
    part = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        other = name.split(".")[0]
        if other in PARTS and other != part:
            assert other in MAY_IMPORT[part], f"{path.relative_to(ROOT)} imports {name}"
            if part in ("actors", "learner") and other == "replay":
                assert module_of(name) in ONLY_OF_REPLAY, f"{path.relative_to(ROOT)} imports {name}"


def module_of(name: str) -> str:
    """The module that an imported name is, or is defined in."""
    place = ROOT / name.replace(".", "/")
    return name if place.is_dir() or place.with_suffix(".py").exists() else name.rpartition(".")[0]


def room(module: str) -> str:
    """The room of a module of redraft or replay, as a dotted name."""
    part, first = module.split(".")[:2]
    return first if (ROOT / part / first).is_dir() else ""


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.relative_to(ROOT).parts[0] in HOUSES],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_a_room_imports_only_rooms_that_lie_before_it(path):
    part = path.relative_to(ROOT).parts[0]
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if path.name == "__main__.py":
        own = "cli"
    for name in imports(path):
        if name.startswith(f"{part}.") and room(name) != own:
            assert room(name) in HOUSES[part][own], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("part", list(HOUSES))
def test_the_rooms_have_no_circle(part):
    left = dict(HOUSES[part])
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left
    folders = {folder.name for folder in (ROOT / part).iterdir() if (folder / "__init__.py").exists()}
    assert folders == HOUSES[part].keys() - {""}


@pytest.mark.parametrize("part", ["protocols", "replay"])
def test_the_contract_and_replay_need_no_heavy_library(part):
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == part:
            assert not HEAVY & {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("module", ["redraft.cli.main", "redraft.recipe", "redraft.launch.train"])
def test_the_command_line_answers_without_heavy_imports(module):
    program = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=deadline_s(60)
    )
    assert answer.stdout.strip() == "[]", answer.stdout + answer.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_small_and_says_what_it_does(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LIMIT
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring"
    for found in ast.walk(tree):
        if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
            assert found.end_lineno - found.lineno < FUNCTION_LIMIT, found.name


def compared(tree: ast.AST) -> set[str]:
    """Texts that are compared with something, or looked up in a literal mapping or collection."""
    found = set()
    for node in ast.walk(tree):
        inside = []
        if isinstance(node, ast.Compare):
            inside = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript | ast.Dict):
            inside = [node]
        elif isinstance(node, ast.match_case):
            inside = [node.pattern]
        for part in inside:
            found |= {one.value for one in ast.walk(part) if isinstance(one, ast.Constant)}
    return {value for value in found if isinstance(value, str)}


@pytest.mark.parametrize("path", sorted((ROOT / "redraft").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_redraft_knows_which_rollout_or_credit_runs(path):
    from actors import rollout_config
    from learner import credit_config
    from protocols.named import name_of

    words = {"group", "attempt"}  # also what replay serves, and a field of a dataset of failures
    names = {name_of(kind) for kind in (*rollout_config.KNOWN, *credit_config.KNOWN)} - words
    assert not names & compared(ast.parse(path.read_text()))
