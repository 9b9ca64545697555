"""A model with a chat template of the recipe's choosing: a folder of links to the model's files, and that template.

It is as if the model had come with the template, so that engines, checkpoints and whatever is exported from them all
have it: a model is served with the template that it was trained with.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from protocols.errors import SettingError
from redraft.config import GIVEN, TemplateSettings

FILE = "chat_template.jinja"


def text(model: Path, settings: TemplateSettings) -> str:
    """The template for a model's folder. Raises SettingError where there is none, or where a setting does nothing."""
    template = _own(model) if settings.path is None else _read(settings.path)
    for key in settings.kwargs:
        if key in GIVEN or not re.search(rf"\b{key}\b", template):
            problem = "the renderer gives it already" if key in GIVEN else "the template does not use it"
            raise SettingError(f"model.template.kwargs.{key}", problem, "Leave it out")
    return "".join(_default(key, value) for key, value in settings.kwargs.items()) + template


def digest(model: Path, text: str) -> str:
    """Of all that a folder with the model's files and that template depends on."""
    depends = "\n".join([*(str(file.resolve()) for file in _files(model)), text])
    return hashlib.blake2b(depends.encode(), digest_size=10).hexdigest()


def write(model: Path, text: str, folder: Path) -> None:
    """Links the model's files into an empty folder, and writes the template beside them."""
    for file in _files(model):
        (folder / file.name).symlink_to(file.resolve())
    (folder / FILE).write_text(text)


def _files(model: Path) -> list[Path]:
    return sorted(file for file in model.iterdir() if file.is_file() and file.name != FILE)


def _own(model: Path) -> str:
    from actors import rendering

    tokenizer = rendering.tokenizer_of(model)
    if not tokenizer.chat_template:
        cure = "Name one: model.template.path"
        raise SettingError("model.template.kwargs", "the model's tokenizer has no chat template", cure)
    return tokenizer.get_chat_template()


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}"
        raise SettingError("model.template.path", problem, "Name a Jinja file") from None


def _default(key: str, value: Any) -> str:
    """Jinja for the value of a name that whoever renders the template does not give; whoever serves the model may."""
    return f"{{%- if {key} is not defined %}}{{%- set {key} = {value!r} %}}{{%- endif %}}"
