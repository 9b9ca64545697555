"""The base of everything that a person may set in a recipe."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of a recipe: unknown keys are refused, values are checked and cannot change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
