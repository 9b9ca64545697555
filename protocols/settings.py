"""The base of everything that a person may set in a recipe."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of a recipe: unknown keys are refused, values are checked and cannot change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


NO_STANDBY = "a library that looks for GPUs while it is imported keeps to those that it saw. Leave standby out"
"""Why no process imports ahead of the GPUs that it is to have."""
