"""Code of the user's own, named by its file: `mine.py:Name`. It needs no place on sys.path, and hides nothing there.

    command     reads mine.py, and the files beside it that it imports, once     read, install
    run folder  keeps them, so that the run can be gone on with and looked at    keep, kept
    actors, ranks, controller, processes of rewards: told the sources            install, then load

A module of the user's is known to Python by a name that no other module has. What it imports is first looked for among
the files beside it, as where Python runs a file: these come along; packages of the user's own have to be installed.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import linecache
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

NAMED = re.compile(r"(?P<file>[^\n:]+\.py):(?P<name>\w+)")
FOLDER = "code"  # in the run folder
_sources: dict[str, str] = {}  # of this process, by path


def is_file(name: str) -> bool:
    """Whether `name` names something in a file: FILE.py:Name."""
    return NAMED.fullmatch(name) is not None


def read(values: Any) -> dict[str, str]:
    """The sources of all files that are named as FILE.py:Name anywhere in `values`, a recipe's, and of those beside
    them that they import, by path. A file that cannot be read is left out: who loads it says so."""
    found: dict[str, str] = {}
    for file in _named(values):
        _collect(Path(file), found)
    return found


def sources(name: str) -> dict[str, str]:
    """What `read` finds for one name, of what is installed where it is."""
    return dict(_sources) if str(Path(_file(name))) in _sources else read(name)


def needed(name: str) -> dict[str, str]:
    """Of `sources` those of the name's file and of the files beside it that it imports, by the files' names."""
    every, found, paths = sources(name), dict[str, str](), [Path(_file(name))]
    while paths:
        path = paths.pop()
        if (source := every.get(str(path))) is not None and path.name not in found:
            found[path.name] = source
            paths += [path.with_name(f"{beside}.py") for beside in _imports(ast.parse(source))]
    return found


def install(found: Mapping[str, str]) -> None:
    """From now on these are the sources that this process loads, in the place of all that were installed before."""
    _sources.clear()
    _sources.update(found)


def keep(found: Mapping[str, str], run: Path) -> None:
    """Writes sources into a run folder."""
    for path, source in found.items():
        file = _kept_at(path, run)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")


def kept(values: Any, run: Path) -> dict[str, str]:
    """What `read` found for these values, as the run folder keeps it."""
    found: dict[str, str] = {}
    for file in _named(values):
        folder = _kept_at(file, run).parent
        for beside in sorted(folder.glob("*.py")):
            found[str(Path(file).with_name(beside.name))] = beside.read_text(encoding="utf-8")
    return found


def load(name: str) -> Any:
    """What FILE.py:Name or package.module:Name names. Raises whatever the user's module raises, AttributeError where
    it holds no such name, and OSError where there is no such file."""
    where, _, attribute = name.rpartition(":")
    return getattr(_module(where) if is_file(name) else importlib.import_module(where), attribute)


def _file(name: str) -> str:
    return name.rpartition(":")[0]


def _named(values: Any) -> Iterator[str]:
    """The files in FILE.py:Name, wherever that stands."""
    if isinstance(values, str):
        if found := NAMED.fullmatch(values):
            yield found["file"]
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _named(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _named(value)


def _collect(path: Path, found: dict[str, str]) -> None:
    if str(path) in found:
        return
    try:
        source = path.read_text(encoding="utf-8-sig")
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return
    found[str(path)] = source
    for name in _imports(tree):
        if (beside := path.with_name(f"{name}.py")).is_file():
            _collect(beside, found)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if "." not in alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module and "." not in node.module:
            yield node.module


def _kept_at(path: str, run: Path) -> Path:
    """Where a run folder keeps a file: within it, whatever its path was."""
    parts = ["up" if part == ".." else part for part in Path(path).parts if part != Path(path).anchor]
    return run.joinpath(FOLDER, *parts)


def _module(path: str) -> ModuleType:
    """The module of a file, loaded once for each content of it."""
    source = _sources.get(str(Path(path)))
    if source is None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {Path(path).absolute()}")
        source = Path(path).read_text(encoding="utf-8-sig")
    file = str(Path(path).absolute())
    digest = hashlib.blake2b(f"{file}\0{source}".encode(), digest_size=6).hexdigest()
    name = f"own_{Path(path).stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = file
    module.__dict__["__builtins__"] = vars(builtins) | {"__import__": _importing(Path(path))}
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks, elsewhere too
    sys.modules[name] = module
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _importing(path: Path):
    """The `__import__` of a module of the user's: files beside it come first."""

    def imported(name: str, globals=None, locals=None, fromlist=(), level: int = 0):
        if level == 0 and "." not in name:
            beside = path.with_name(f"{name}.py")
            if str(beside) in _sources or (str(path) not in _sources and beside.is_file()):
                return _module(str(beside))
        return builtins.__import__(name, globals, locals, fromlist, level)

    return imported
