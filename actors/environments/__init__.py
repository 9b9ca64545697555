"""Environments by name: `environment.name` is one of NAMES, or `FILE.py:Class` of your own TextEnvironment."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

from actors import door, synthetic
from actors.config import DataSettings, EnvironmentSettings
from actors.environments.base import TextEnvironment
from protocols import named
from protocols.errors import SettingError

NAMES = {
    "signs": "actors.environments.signs:Signs",
    "countdown": "actors.environments.countdown:Countdown",
    "gsm8k": "actors.environments.gsm8k:GSM8K",
    "math": "actors.environments.math:Math",
    "words": "actors.environments.words:Words",
    "functions": "actors.environments.functions:Functions",
    "minicraft": "actors.environments.minicraft:Minicraft",
    "textcraft": "actors.environments.textcraft:Textcraft",
    "webshop": "actors.environments.webshop.environment:Webshop",
    "scienceworld": "actors.environments.scienceworld:ScienceWorld",
    "agentgym": "actors.environments.agentgym:AgentGym",
    "openenv": "actors.environments.openenv:OpenEnv",
    "reasoning-gym": "actors.environments.reasoning:ReasoningGym",
    "textarena": "actors.environments.arena:TextArena",
    "trl": "actors.environments.trl:TRL",
    "rows": "actors.environments.rows:Rows",
}

FAILURES_CURE = "Name a file that `redraft failures` wrote"


def find(name: str) -> type[TextEnvironment]:
    """The class behind `environment.name`. Raises SettingError listing the known names."""
    found = named.load("environment.name", name, NAMES)
    cure = f"Use {', '.join(NAMES)}, or FILE.py:Class of your own"
    if not (isinstance(found, type) and issubclass(found, TextEnvironment)):
        raise SettingError("environment.name", f"{name!r} is not a TextEnvironment", cure)
    if found.__abstractmethods__:
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise SettingError(
            "environment.name", f"{name!r} lacks {lacking}", "Define them, see actors/environments/base.py"
        )
    return found


def make(settings: EnvironmentSettings) -> TextEnvironment:
    """A fresh environment. Raises SettingError for an unknown name, feedback or option."""
    found = find(settings.name)
    known = inspect.signature(found).parameters
    if unknown := sorted(set(settings.options) - set(known)):
        allowed = ", ".join(key for key in known if key != "feedback") or "none"
        raise SettingError(f"environment.options.{unknown[0]}", "there is no such option", f"Allowed: {allowed}")
    made = found(feedback=settings.feedback, **settings.options)
    longest = getattr(made, "longest_s", 0.0)
    if longest >= settings.time_limit_s:
        made.close()
        problem = f"{settings.time_limit_s:g} is too short: one answer may take {longest:g} s to be judged"
        raise SettingError("environment.time_limit_s", problem, f"Set it to {int(longest * 1.2) + 1} or more")
    return made


def instances(settings: EnvironmentSettings) -> int | None:
    """How many may be alive at once in one actor; None: as many as play."""
    return find(settings.name).instances if settings.instances is None else settings.instances


def threads(settings: EnvironmentSettings) -> int:
    """How many steps may be under way at once in one actor. Calls of tools are steps as well: with tools as many as the
    recipe says."""
    most = None if settings.tools else find(settings.name).at_once(settings.options)
    return settings.threads if most is None else min(most, settings.threads)


def tasks(settings: EnvironmentSettings, data: DataSettings, split: str) -> Sequence[dict]:
    """The tasks of split "train" or "test", at most `data.<split>_size`. Raises SettingError where there are none, or
    they are not what tasks are."""
    kind = find(settings.name)
    failures = data.failures if split == "train" else None
    for key in {"test", "config"}.difference(kind.reads):
        if getattr(data, key) is not None:
            cure = "Leave it out, or have a class of your own name it in `reads`"
            raise SettingError(f"data.{key}", f"{settings.name} does not read it", cure)
    if failures is None:
        source = door.TaskSource("environment.name", f"{settings.name}.tasks({split!r})")
        found = door.tasks(source, _own(kind, settings, data, split))
    else:
        found = door.tasks(door.TaskSource("data.failures", failures, FAILURES_CURE), _failures(failures))
    size = data.train_size if split == "train" else data.test_size
    if split == "train" and data.synthetic is not None:
        source = door.TaskSource("data.synthetic", data.synthetic.path, synthetic.CURE)
        found, size = door.tasks(source, synthetic.mixed(found[:size], data.synthetic)), None
    if not len(found):
        where = repr(data.path) if data.path else "without a path"
        raise SettingError("data.path", f"{settings.name} has no {split} tasks ({where})", "Name data that holds some")
    return found if size is None else found[:size]


def _own(kind: type[TextEnvironment], settings: EnvironmentSettings, data: DataSettings, split: str) -> Sequence[dict]:
    try:
        return kind.tasks_with(settings.options, data, split)
    except SettingError:
        raise
    except Exception as error:
        problem = f"{kind.__name__}.tasks({split!r}) raised {type(error).__name__}: {error}"
        raise SettingError("environment.name", problem, "Cure it there, or give it the data that it needs") from error


def _failures(path: str) -> list[dict]:
    try:
        found = [json.loads(line) for line in Path(path).read_text("utf-8-sig").split("\n") if line.strip()]
        broken = next((n for n, task in enumerate(found, 1) if not {"id", "attempt"} <= set(task)), None)
    except (OSError, ValueError, TypeError) as error:
        raise SettingError("data.failures", f"{path} cannot be read: {error}", FAILURES_CURE) from None
    if broken is not None:
        raise SettingError("data.failures", f"line {broken} of {path} has no failed answer", FAILURES_CURE)
    return found
