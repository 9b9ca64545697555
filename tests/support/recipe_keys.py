"""Every key that a recipe may have."""

from redraft.recipe import Recipe


def keys(schema: dict, model: dict, place: str = "") -> set[str]:
    """All dotted keys below a section, of each kind that a part may be."""
    found = set()
    for name, field in model.get("properties", {}).items():
        found.add(place + name)
        for choice in (field, *field.get("anyOf", ()), *field.get("oneOf", ())):
            if "$ref" in choice:
                found |= keys(schema, schema["$defs"][choice["$ref"].rpartition("/")[2]], f"{place}{name}.")
    return found


KEYS = keys(Recipe.model_json_schema(), Recipe.model_json_schema())
