"""Writes docs/recipe.schema.json and docs/reference.md from the settings: `python -m tools.reference [--check]`.

Both follow from `redraft.recipe.Recipe`: names, types, ranges, defaults, and the string under each field. The schema is
what an editor completes and checks recipes with; the page is the same for people.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from redraft.recipe import Recipe

DOCS = Path(__file__).resolve().parent.parent / "docs"
OWN = "FILE.py:Name"
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
HEAD = """\
# Every setting of a recipe

<!-- Written by `python -m tools.reference`, also in `make docs`: change the text under the field in the code. -->

A recipe is one YAML file. Unknown keys are refused, and values that cannot work are refused with the cure, before
anything starts. On the command line a key is written with dots: `learner.batch_groups=64`. *required*: there is no
default. Editors complete and check recipes by [recipe.schema.json](recipe.schema.json), which the first line of each
recipe names: with VS Code install the extension *YAML*, other editors have the same language server.
"""


def schema() -> dict:
    """The JSON schema of a recipe. Of the kinds of a part only the first may leave out its `name`, as in a recipe."""
    found = Recipe.model_json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "Redraft recipe"
    found["required"].remove("environment")
    found["anyOf"] = [{"required": ["environment"]}, {"required": ["environments"]}]
    for part in [*found["$defs"].values(), *_parts(found)]:
        part.pop("title", None)
        if "description" in part:
            part["description"] = re.sub(r"\bNone\b", "null", part["description"])  # as YAML writes it
        for kind in part.get("oneOf", ())[1:]:
            model = _model(found, kind)
            model["required"] = sorted({"name", *model.get("required", ())})
    return {"$schema": found.pop("$schema")} | found


def _parts(value) -> Iterator[dict]:
    """All schemas of fields within a schema."""
    if isinstance(value, dict):
        yield from value.get("properties", {}).values()
        for inner in value.values():
            yield from _parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner)


def _model(whole: dict, field: dict) -> dict:
    return whole["$defs"][field["$ref"].rpartition("/")[2]]


def page() -> str:
    """The Markdown of docs/reference.md: a table for each section."""
    whole = schema()
    return "\n".join([HEAD, *_section(whole, "", whole, set())])


def _section(whole: dict, key: str, model: dict, told: set[str]) -> Iterator[str]:
    """The table of one section, then its subsections. `told` are those that are on the page already."""
    title, kind = key or "The recipe", model["properties"].get("name", {}).get("const")
    if kind or OWN in model["properties"].get("name", {}).get("description", ""):
        title = f"{key}: {kind or 'of your own'}"
    if title in told:
        return
    told.add(title)
    yield f"{'##' if '.' not in key else '###'} {title}\n"
    if model.get("description") and key:
        yield _line(model["description"]) + "\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    inner = []
    for name, field in model["properties"].items():
        place = f"{key}.{name}" if key else name
        models = [_model(whole, ref) for ref in _references(field)]
        models = [found for found in models if "properties" in found]
        inner += [(place, found) for found in models]
        yield _row(whole, place, name, field, models, name in model.get("required", ()))
    yield ""
    for place, found in inner:
        yield from _section(whole, place, found, told)


def _references(field: dict) -> list[dict]:
    """The sections that a field may be, or hold."""
    items = field.get("items", {})
    choices = [choice for one in (field, items) for choice in (one, *one.get("anyOf", ()), *one.get("oneOf", ()))]
    return [choice for choice in choices if "$ref" in choice]


def _row(whole: dict, place: str, name: str, field: dict, models: list[dict], required: bool) -> str:
    value, default = _value(whole, place, field), "*required*" if required else _default(field, models)
    if "const" in field:
        default = ""
    meaning = field.get("description") or (models[0].get("description", "") if len(models) == 1 else "")
    return f"| `{name}` | {value} | {default} | {_cell(meaning)} |"


def _value(whole: dict, place: str, field: dict) -> str:
    """What a field takes, in words: integer ≥ 1, `a` or `b`, [section](#section)."""
    if "$ref" in field:
        model = _model(whole, field)
        kind = model.get("properties", {}).get("name", {}).get("const")
        anchor = _anchor(place, kind, model)
        return f"[{kind or ('own' if anchor.endswith('-of-your-own') else 'section')}](#{anchor})"
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(dict.fromkeys(_value(whole, place, choice) for choice in field[key]))
    if "const" in field or "enum" in field:
        return " or ".join(f"`{_text(choice)}`" for choice in field.get("enum", [field.get("const")]))
    kind = field.get("type", "anything")
    if kind == "array":
        several = field.get("prefixItems")
        if several:
            return "[" + ", ".join(_value(whole, place, item) for item in several) + "]"
        return "list of " + _value(whole, place, field.get("items", {}))
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"map to {_value(whole, place, inner)}" if isinstance(inner, dict) else "map"
    limits = [f"{SIGNS[key]} {json.dumps(field[key])}" for key in SIGNS if key in field]
    limits += ["not empty"] * ("minLength" in field) + [
        f"like `{_cell(field[key])}`" for key in ("pattern",) if key in field
    ]
    return " ".join([kind, ", ".join(limits)]).strip()


def _anchor(place: str, kind: str | None, model: dict) -> str:
    own = OWN in model.get("properties", {}).get("name", {}).get("description", "")
    return place.replace(".", "") + (f"-{kind}" if kind else "-of-your-own" if own else "")


def _default(field: dict, models: list[dict]) -> str:
    default = field.get("default")
    if default is None:
        return "`null`" if "default" in field else ""
    if models and isinstance(default, dict):
        return f"`{default['name']}`" if "oneOf" in field else ""
    return f"`{_cell(_text(default))}`"


def _text(value) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def main() -> int:
    written = {
        DOCS / "recipe.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
        DOCS / "reference.md": page(),
    }
    old = [path for path, text in written.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in old:
            print(f"docs/{path.name} is not what the settings say: run python -m tools.reference", file=sys.stderr)
        return bool(old)
    for path in old:
        path.write_text(written[path], encoding="utf-8")
        print(f"wrote docs/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
