"""Reads a recipe's YAML: strictly, with the line of every key, so that a mistake is found where it was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from protocols.errors import SettingError

MERGE = "tag:yaml.org,2002:merge"


class Written(NamedTuple):
    """What a file holds: its values, and the line of each dotted key."""

    values: dict[str, Any]
    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: the last one would count, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != MERGE and seen.setdefault(key.value, line) != line:
                problem = f"line {line} has the key {key.value} of line {seen[key.value]} again"
                raise SettingError("recipe", problem, "Leave one of them")
        return super().construct_mapping(node, deep)


def read(path: Path) -> Written:
    """Raises SettingError where the file cannot be read, is no YAML, or has a key twice."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        loader = _Loader(text)
        root = loader.get_single_node()
        lines = dict(_lines(root, set()))
        values = None if root is None else loader.construct_document(root)
    except OSError as error:
        raise SettingError("recipe", f"{path} cannot be read: {error.strerror}", "Name a YAML file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise SettingError(
            "recipe", f"{path} is not UTF-8: byte {byte:#x} in line {line}", "Save it as UTF-8"
        ) from None
    except SettingError as error:
        raise SettingError("recipe", f"{path}: {str(error).removeprefix('recipe: ')}") from None
    except yaml.YAMLError as error:
        raise SettingError(
            "recipe", f"{path} is not YAML: {' '.join(str(error).split())}", "Correct that place"
        ) from None
    if not isinstance(values, dict):
        raise SettingError("recipe", f"{path} holds no settings", "See recipes/ for examples")
    return Written(values, lines)


def _lines(node: yaml.Node | None, seen: set[int], above: str = "") -> Iterator[tuple[str, int]]:
    """Of each key; a part that is used again, or within itself, has those of its first use."""
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return
    seen.add(id(node))
    for key, value in node.value:
        dotted = f"{above}{key.value}"
        yield dotted, key.start_mark.line + 1
        yield from _lines(value, seen, f"{dotted}.")
