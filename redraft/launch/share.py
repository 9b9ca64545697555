"""The share of a GPU that an engine takes beside a learner, where the recipe leaves that open
(`actors.engine.gpu_memory: auto`): what is left by the arithmetic of `redraft plan`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from protocols import nvml
from protocols.errors import SettingError
from redraft.launch.plan import GIB, beside, plan
from redraft.models import sizes
from redraft.recipe import Recipe

SETTING = "actors.engine.gpu_memory"


def chosen(recipe: Recipe, model: Path, tell: Callable[[str], object]) -> Recipe:
    """The recipe with a number there, which is told in one line. Raises SettingError where this machine does not say
    how large its GPUs are, or where learner and engine do not fit on one."""
    if recipe.actors.engine.gpu_memory != "auto" or not beside(recipe):
        return recipe
    size = _memory()
    found = plan(recipe, sizes.config_at(model), size)
    for part in found.parts:
        if not part.fits:
            raise SettingError(SETTING, f"auto finds no room: {part.name}: {part.problem}", _cure(part.cures))
    learner, _ = found.parts
    share = found.engine_share
    tell(
        f"{SETTING} is {share:g} (auto): by `redraft plan` the learner takes {learner.bytes / GIB:.1f} GiB of the "
        f"GPU's {size / GIB:.1f}"
    )
    engine = recipe.actors.engine.model_copy(update={"gpu_memory": share})
    return recipe.model_copy(update={"actors": recipe.actors.model_copy(update={"engine": engine})})


def _memory() -> int:
    """Bytes of the smallest GPU of this machine."""
    library, why = nvml.find()
    gpus = [] if library is None else library.gpus()
    if not gpus:
        problem = f"auto needs to know how large the GPU is: {why or 'there is none on this machine'}"
        raise SettingError(SETTING, problem, "Set it to a share, such as 0.4")
    return min(gpu.bytes for gpu in gpus)


def _cure(cures: tuple[str, ...]) -> str:
    return f"Set {'; or '.join(cures)}" if cures else ""
