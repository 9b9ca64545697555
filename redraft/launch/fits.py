"""Whether a model can be played and trained as the recipe says, found out before anything starts."""

from __future__ import annotations

from pathlib import Path

from actors.config import EnvironmentSettings
from protocols.errors import SettingError
from redraft.evaluation import failures
from redraft.evaluation.measures import plays
from redraft.recipe import Recipe

LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Names under which configs say how many positions a model has."""
STRETCHED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of rotary scaling after which a config's length is already the stretched one."""


def check(model: Path, recipe: Recipe) -> None:
    """Raises SettingError for a tokenizer that cannot be used, lacks something, has ids that the model does not know,
    or cannot spell what the rollout says; for prompts longer than the model's positions; for a chat template that the
    rollout cannot be played with; for failures of another tokenizer; and where it cannot have the recipe's adapter."""
    from actors import mixture, rendering

    renderer = rendering.load(model, recipe.model.on_rewrite, recipe.rollout.system)
    for key, text in recipe.rollout.texts.items():
        try:
            renderer.answer(text)
        except SettingError as error:
            raise SettingError(f"rollout.{key}", str(error), "Write it in what the tokenizer knows") from None
    config = _config(model)
    _check_ids(renderer, config)
    _check_length(config, recipe)
    _check_turns(renderer, recipe)
    if recipe.data.failures:
        failures.check(mixture.tasks(recipe.mixture, "train"), model)
    if recipe.model.lora is not None:
        from learner.model import lora

        lora.check(model, recipe.model.lora)


def positions(config) -> float:
    """How many tokens the model of a transformers config takes, as vLLM counts them; infinite where it has no limit."""
    text = config.get_text_config()
    length = min((getattr(text, key, None) or float("inf") for key in LENGTHS), default=float("inf"))
    length = getattr(text, "model_max_length", None) or length  # Cohere's, above its max_position_embeddings
    rope = getattr(config, "rope_parameters", None) or getattr(text, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    if "gemma3" in config.model_type:
        return length
    factors = [kind.get("factor") for kind in kinds if kind.get("rope_type") not in STRETCHED]
    return length * (factors[-1] if factors and factors[-1] else 1)


def _config(model: Path):
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(model), trust_remote_code=False)
    except Exception as error:  # of an unknown type, or broken: every kind raises its own
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError("model.path", f"its config.json cannot be used: {said}", "Name another model") from error


def _check_ids(renderer, config) -> None:
    """Raises SettingError where a text can hold an id that has no embedding.

    Control tokens beyond the embeddings harm nothing (a pad token that was added, say) unless something writes them.
    """
    size, tokenizer = getattr(config.get_text_config(), "vocab_size", None), renderer.tokenizer
    if size is None:
        return
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    harmless = control - renderer.written
    beyond = [(number, text) for text, number in tokenizer.get_vocab().items() if number >= size]
    found = sorted(pair for pair in beyond if pair[0] not in harmless)
    if found:
        number, text = found[0]
        problem = f"its tokenizer has {text!r} as id {number}, and the model embeds ids below {size} only"
        cure = "Use the tokenizer that the model was trained with, or resize the model's embeddings"
        raise SettingError("model.path", problem, cure)


def _check_length(config, recipe: Recipe) -> None:
    """Raises SettingError where a prompt with its response may be longer than the model's positions.

    `learner.row_tokens` may be: rows hold several sequences, whose positions each begin at 0.
    """
    longest, limit = recipe.actors.engine.max_length, positions(config)
    if longest > limit:
        problem = f"{longest} is more than the {limit:.0f} positions of the model"
        raise SettingError("actors.engine.max_length", problem, f"Set it to {limit:.0f} or less")


def _check_turns(renderer, recipe: Recipe) -> None:
    """Raises SettingError where later prompts can or may not be made, or where `model.on_rewrite` does nothing."""
    tested = [one.rollout for one in plays(recipe.evaluation, recipe.rollout, recipe.sampling)]
    played = [*([recipe.rollout] if recipe.steps else []), *tested]
    again = next((rollout.name for rollout in played if rollout.several), None)
    by_tools_alone = [_check_tools(renderer, one) for one in recipe.mixture]
    if again is not None and not all(by_tools_alone):  # says why not
        renderer.anew("")
    if recipe.model.on_rewrite == "new_root" and again is None:
        raise _does_nothing("no rollout here prompts the model again")
    if recipe.model.on_rewrite == "new_root" and not renderer.may_rewrite:
        raise _does_nothing("the model's chat template rewrites nothing")


def _check_tools(renderer, played: EnvironmentSettings) -> bool:
    """Whether prompts go on with what tools answer alone. Raises SettingError where a template cannot tell of tools, or
    of what they answer."""
    from actors import environments, messages, templates

    made = environments.make(played)
    if not (played.tools or made.own_tools):
        return False
    renderer.first(templates.QUESTION, tools=templates.PROBED)
    renderer.anew("", messages.results([""]), templates.PROBED)
    return not made.many_actions


def _does_nothing(why: str) -> SettingError:
    return SettingError("model.on_rewrite", f"new_root does nothing: {why}", "Leave it out")
