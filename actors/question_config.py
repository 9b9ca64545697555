"""Who finds tasks where the environment cannot, and what that is told of the environment. Light to import."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator

from actors.teacher_config import TeacherSettings
from protocols.errors import SettingError
from protocols.settings import Settings


class ExplorerSettings(TeacherSettings):
    """A model behind a chat endpoint that explores, such as the policy itself by `redraft serve`."""

    place: ClassVar[str] = "data.synthetic.questioner.explorer"
    who: ClassVar[str] = "explorer"

    temperature: float | None = Field(default=1.0, ge=0)
    """0 is greedy; null for models that take none."""


class QuestionerSettings(TeacherSettings):
    """A model behind a chat endpoint that explores the environment and makes tasks of what it saw (AgentEvolver,
    arXiv 2511.10395)."""

    place: ClassVar[str] = "data.synthetic.questioner"
    who: ClassVar[str] = "questioner"

    profile: str = Field(min_length=1)
    """A YAML file that says what the environment is, and which tasks are wanted (docs/methods.md)."""
    turns: PositiveInt = 30
    """Most steps of one exploration."""
    explorer: ExplorerSettings | None = None
    """Who explores (None: the model that makes the tasks)."""
    temperature: float | None = Field(default=1.0, ge=0)
    """0 is greedy; null for models that take none."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest answer, thoughts included: one holds several tasks."""

    @field_validator("profile")
    @classmethod
    def _anywhere(cls, path: str) -> str:
        return str(Path(path).expanduser().absolute())


class Option(Settings):
    """What can be done with something."""

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)


class Entity(Settings):
    """Something that the environment holds."""

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    attrs: dict[str, str] = {}
    """What it has, and what that means."""
    opts: list[Option] = []


class TaskPreference(Settings):
    """How difficult the wanted tasks are."""

    num_entities: PositiveInt = 2
    num_opts: PositiveInt = 3
    relation_difficulty: int = Field(default=3, ge=1, le=3)
    """1: one entity; 2: several, independent of each other; 3: several, one's result needed for the next."""


class Profile(Settings):
    """What a model is told of an environment."""

    name: str = Field(min_length=1)
    background: str = Field(min_length=1)
    """Who uses the environment, and what for."""
    entities: list[Entity] = Field(min_length=1)
    task_preference: TaskPreference = TaskPreference()
    rubrics: list[str] = []
    """Further sentences about the tasks that are wanted."""


def profile(path: str) -> Profile:
    """The profile in a YAML file. Raises SettingError, which says where it is wrong."""
    setting, cure = f"{QuestionerSettings.place}.profile", "docs/methods.md shows one"
    try:
        found = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingError(setting, f"{path} cannot be read: {' '.join(str(error).split())}", cure) from None
    try:
        return Profile.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise SettingError(setting, f"{where} of {path}: {first['msg']}", cure) from None
