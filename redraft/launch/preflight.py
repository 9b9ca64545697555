"""What a recipe names is looked at before anything starts: environment, rollout, tasks, credit, objective, trackers."""

from __future__ import annotations

from actors.config import EnvironmentSettings
from actors.experience import read
from protocols.errors import SettingError
from protocols.named import OwnSettings
from redraft.recipe import Recipe


def with_facts(recipe: Recipe) -> Recipe:
    """The recipe with what parts of the user's own state of themselves, and checked by that as for known parts. Raises
    SettingError."""
    from actors import rollouts
    from learner import credits

    learner = recipe.learner
    if recipe.steps:
        learner = learner.model_copy(update={"credit": credits.stated(learner.credit)})
    recipe = recipe.model_copy(update={"rollout": rollouts.stated(recipe.rollout), "learner": learner})
    try:
        recipe.check()
    except ValueError as error:
        raise SettingError("recipe", str(error)) from None
    return recipe


def check_environment(recipe: Recipe, only_tests: bool = False) -> None:
    """Raises SettingError for an environment or a rollout that cannot be made, or that do not fit, or without tasks,
    for a curriculum of tasks without levels, for tools that cannot be used, or for an engine that this machine cannot
    load. With `only_tests` none is trained."""
    from actors import mixture, rollouts
    from actors.engines import vllm_common

    if recipe.actors.engine.name == "vllm":
        vllm_common.check_libraries()

    rollouts.find(recipe.rollout.name)
    for asked in ("teacher", "step_judge"):
        if settings := getattr(recipe.rollout, asked, None):
            settings.key()
    if experience := getattr(recipe.rollout, "experience", None):
        read(experience.path)
    for one in recipe.mixture:
        _check_played(recipe, one)
    mixture.tasks(recipe.mixture, "test")
    if not only_tests:
        mixture.order(recipe.mixture, mixture.tasks(recipe.mixture, "train"), recipe.seed, recipe.curriculum)


def _check_played(recipe: Recipe, played: EnvironmentSettings) -> None:
    """Raises SettingError where the recipe's rollout or evaluation cannot play that environment."""
    from actors import environments, rollout_config
    from actors.tools import toolbox

    made = environments.make(played)
    tools = toolbox.check(played.tools, made.own_tools.values(), played.time_limit_s)
    acts = recipe.rollout.facts.acts
    if acts and (tools or recipe.evaluation.feedbacks):
        setting = "environment.tools" if tools else "evaluation.feedbacks"
        problem = f"rollout {recipe.rollout.name} has no use for it: the program says what the model is told"
        raise SettingError(setting, problem, "Leave it out")
    if tools and recipe.rollout.kind == "answers":
        problem = f"rollout {recipe.rollout.name} asks for whole answers, in which no tool is called"
        known = f"Use rollout {rollout_config.names(lambda one: one.kind == 'actions')}, or no tools"
        raise SettingError("environment.tools", problem, known)
    if recipe.rollout.kind == "actions" and not (made.many_actions or tools or acts):
        problem = f"{recipe.rollout.name} plays many actions, {played.name} asks for one answer"
        raise SettingError("rollout.name", problem, f"Use {rollout_config.names(lambda one: one.kind == 'answers')}")
    if lacking := [kind for kind in recipe.evaluation.feedbacks if kind not in made.feedbacks]:
        known = f"Use {', '.join(made.feedbacks)}"
        raise SettingError("evaluation.feedbacks", f"{played.name} has no {lacking[0]!r}", known)
    judged = getattr(recipe.rollout, "step_judge", None) is not None
    if recipe.steps and recipe.learner.credit.facts.reads_flags and not (judged or made.flags_steps):
        problem = f"{recipe.learner.credit.name} reads which steps were good, and nothing says so of {played.name}"
        raise SettingError("learner.credit.name", problem, "Set rollout.step_judge, or take another credit")
    if lacking := [hook for hook in recipe.rollout.facts.hooks if not hasattr(made, hook)]:
        problem = f"rollout {recipe.rollout.name} needs an environment with `{lacking[0]}`"
        raise SettingError("environment.name", problem, "Add it (actors/environments/base.py), or name another one")


def check_learner(recipe: Recipe) -> None:
    """Raises SettingError for a credit or an objective that cannot be found."""
    from learner import credits

    credits.find(recipe.learner.credit)
    if isinstance(recipe.learner.objective, OwnSettings):  # the known ones are there, and take long to import
        from learner import objectives

        objectives.make(recipe.learner.objective)
