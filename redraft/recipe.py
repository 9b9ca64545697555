"""A recipe is everything that a run depends on: YAML, checked whole before anything starts."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from actors.config import ActorSettings, DataSettings, EnvironmentSettings, RolloutSettings, SamplingSettings
from learner.config import LearnerSettings
from protocols.errors import SettingError
from protocols.settings import Settings
from redraft.evaluation import EvaluationSettings
from redraft.models import ModelSettings
from replay.config import ReplaySettings


class Recipe(Settings):
    """One run. Each part owns its section."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Names the run folder, unless --run does."""
    seed: int = Field(0, ge=0)
    """Of everything that draws: tasks, sampling, the order of batches."""
    steps: int = Field(ge=1)
    """Optimizer steps of the whole run."""
    model: ModelSettings
    data: DataSettings = DataSettings()
    environment: EnvironmentSettings
    rollout: RolloutSettings = RolloutSettings()
    sampling: SamplingSettings = SamplingSettings()
    actors: ActorSettings = ActorSettings()
    replay: ReplaySettings = ReplaySettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    start_s: float = Field(300.0, gt=0)
    """Longest wait for all processes to be up before the run stops and says which is missing."""

    @model_validator(mode="after")
    def _fits_together(self):
        credit, episodes = self.learner.credit, self.rollout.episodes
        if credit.name == "group" and episodes < 2:
            raise ValueError("rollout.episodes: learner.credit.name=group compares episodes of a task; set 2 or more")
        if credit.name == "turnwise" and credit.baseline == "group" and episodes < 2:
            raise ValueError(
                "rollout.episodes: learner.credit.baseline=group needs 2 or more; or set baseline to batch"
            )
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature: 0 (greedy) cannot be trained on; set it above 0")
        if self.learner.row_tokens < self.actors.engine.max_length:
            raise ValueError(
                f"learner.row_tokens: {self.learner.row_tokens} would cut episodes of "
                f"actors.engine.max_length={self.actors.engine.max_length}; set at least that"
            )
        engine, uses = self.actors.engine, self.replay.max_uses
        if self.sampling.max_tokens >= engine.max_length:
            raise ValueError(
                f"sampling.max_tokens: {self.sampling.max_tokens} leaves no room for a prompt within "
                f"actors.engine.max_length={engine.max_length}; lower it, or raise that"
            )
        if self.learner.probe_tokens >= engine.max_length:
            raise ValueError(f"learner.probe_tokens: must be below actors.engine.max_length={engine.max_length}")
        if self.learner.max_staleness < uses - 1:
            raise ValueError(
                f"learner.max_staleness: replay.max_uses={uses} uses a group in {uses} steps; set at least {uses - 1}"
            )
        return self

    def warnings(self) -> list[str]:
        """What is allowed but rarely meant."""
        found = []
        if self.sampling.top_p < 1:
            found.append("sampling.top_p below 1 biases the ratio between trainer and sampler")
        return found

    def dump(self) -> str:
        """The resolved recipe as YAML: reading it gives the same recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `key=value` overrides. Raises SettingError naming the first key that cannot be."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise SettingError("recipe", f"{path} cannot be read: {error.strerror}", "Name a YAML file") from None
    except yaml.YAMLError as error:
        raise SettingError("recipe", f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise SettingError("recipe", f"{path} holds no settings", "See recipes/ for examples")
    for override in overrides:
        _override(values, override)
    return build(values)


def build(values: dict) -> Recipe:
    """The recipe of these values. Raises SettingError in one line."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _clear(error) from None


def _override(values: dict, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SettingError(text, "is not key=value", "Write, for example, learner.batch_groups=64")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SettingError(key, f"{section} is a value, not a section")
        values = inner
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        values[last] = value


def _clear(error: ValidationError) -> SettingError:
    """The first problem, in one line: which key, what is wrong with which value, what is allowed."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    key = ".".join(_without_tags(place))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        allowed = _allowed(place[:-1])
        close = difflib.get_close_matches(place[-1], allowed, 1)
        meant = f"Did you mean {close[0]}? " if close else ""
        return SettingError(key, "there is no such key", f"{meant}Allowed here: {', '.join(allowed)}")
    if first["type"] == "missing":
        return SettingError(key, "is missing")
    if first["type"] == "value_error":
        return SettingError(key or "recipe", message)
    return SettingError(key, f"{message} (found {first['input']!r})")


def _without_tags(place: list[str]) -> list[str]:
    """Leaves out the tag that pydantic adds for the chosen kind of `learner.objective`."""
    return [part for n, part in enumerate(place) if not (n == 2 and place[:2] == ["learner", "objective"])]


def _allowed(place: list[str]) -> list[str]:
    """The keys of the section at `place`."""
    model: object = Recipe
    for part in place:
        kinds = _models(model.model_fields[part].annotation) if part in getattr(model, "model_fields", {}) else [model]
        tagged = [kind for kind in kinds if _tag(kind) == place[-1]]
        model = (tagged or kinds or [model])[0]
    return list(model.model_fields)


def _models(annotation) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


def _tag(model: type[BaseModel]) -> str | None:
    name = model.model_fields.get("name")
    if name is not None and typing.get_origin(name.annotation) is Literal:
        return typing.get_args(name.annotation)[0]
    return None
