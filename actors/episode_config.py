"""What a recipe says about single episodes, whichever rollout plays them: who flags their steps, and what they are told
of earlier ones. Light to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, PositiveInt, field_validator

from actors.teacher_config import TeacherSettings
from protocols.settings import Settings

EXPERIENCE = "{experience}"


def _holds_it(template: str) -> str:
    if template.count(EXPERIENCE) != 1:
        raise ValueError(f"template must hold {EXPERIENCE} once")
    return template


Template = Annotated[str, AfterValidator(_holds_it)]
"""What stands before a question, around experience."""


class StepJudgeSettings(TeacherSettings):
    """A model behind a chat endpoint that says of each step of an episode whether it was good, in one answer."""

    place: ClassVar[str] = "rollout.step_judge"
    who: ClassVar[str] = "judge"

    temperature: float | None = Field(default=0.0, ge=0)
    """0 is greedy; null for models that take none."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest answer, thoughts included: it has a line a step."""


class ExperienceWriterSettings(TeacherSettings):
    """A model behind a chat endpoint that says what is to be learnt from episodes."""

    place: ClassVar[str] = "rollout.experience.writer"
    who: ClassVar[str] = "writer"

    max_tokens: int = Field(default=2048, ge=1)
    """Longest answer, thoughts included."""


class ExperienceSettings(Settings):
    """Some episodes are told what earlier ones have shown, and trained as if they had not been told (AgentEvolver,
    arXiv 2511.10395)."""

    path: str = Field(min_length=1)
    """A file that `redraft experience` wrote, on every node that plays."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Share of a group's episodes that are told, rounded, chosen at random. Evaluations never are."""
    top: PositiveInt = 3
    """Most experiences that one episode is told."""
    writer: ExperienceWriterSettings | None = None
    """Who makes experience of episodes for `redraft experience` (None: the environment itself, by `lesson`)."""
    template: Template = "Some experience from earlier tasks that may help:\n{experience}\n\n"
    """What stands before the question; the experiences take the place of {experience}."""

    @field_validator("path")
    @classmethod
    def _anywhere(cls, path: str) -> str:
        return str(Path(path).expanduser().absolute())  # processes of a run do not share a working directory
