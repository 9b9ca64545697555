"""What a model, its template and a recipe cannot do together is refused before the start, and what they can is not."""

from __future__ import annotations

import pytest
from safetensors.numpy import save_file
from support.tokenizers import CHATML, CONTROLS, THINKER, family, hermes, tiny
from transformers import AutoTokenizer, LlamaConfig

from actors import rendering
from protocols.errors import SettingError
from redraft import recipe
from redraft.config import ModelSettings
from redraft.launch import fits, preflight
from redraft.models import make as models

SIGNS = {"name": "signs"}


def folder(path, tokenizer, vocabulary: int | None = None, **config):
    """A model's folder, whose weights are left out."""
    path.mkdir(exist_ok=True)
    save_file({}, path / "model.safetensors")
    tokenizer.save_pretrained(path)
    size = len(tokenizer) if vocabulary is None else vocabulary
    config = {"eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 2048} | config
    LlamaConfig(vocab_size=size, **config).save_pretrained(path)
    return path


def written(model, rollout=None, on_rewrite="refuse", max_length=1024, **values) -> recipe.Recipe:
    values = {"rollout": rollout or {"name": "attempt"}, "evaluation": {"turns": 1}} | values
    model = {"path": str(model), "on_rewrite": on_rewrite}
    engine = {"engine": {"max_length": max_length}}
    learner = {"row_tokens": 8192, "micro_tokens": 8192, "credit": {"name": "turnwise", "baseline": "batch"}}
    fixed = {"name": "x", "steps": 1, "model": model, "environment": SIGNS, "actors": engine, "learner": learner}
    return recipe.build(fixed | values)


RETRY = {"rollout": {"name": "retry"}, "evaluation": {}}
SFT = {"row_tokens": 8192, "micro_tokens": 8192, "credit": {"name": "raw"}, "objective": {"name": "sft"}}
HINT = {"rollout": {"name": "hint"}, "learner": SFT}


def test_a_thinking_model_plays_one_turn_as_it_is_and_several_where_each_prompt_is_a_root(tmp_path):
    model = folder(tmp_path, family("qwen3"))
    fits.check(model, written(model))
    fits.check(model, written(model, on_rewrite="new_root", **RETRY))
    for several in (RETRY, HINT, {"evaluation": {"turns": 2}}):
        with pytest.raises(SettingError, match=r"^model\.on_rewrite: .*rewrites.*new_root"):
            fits.check(model, written(model, **several))


def test_new_roots_that_nothing_needs_are_refused(tmp_path):
    model = folder(tmp_path / "thinks", family("qwen3"))
    with pytest.raises(SettingError, match=r"^model\.on_rewrite: .*no rollout"):
        fits.check(model, written(model, on_rewrite="new_root"))
    model = folder(tmp_path / "grows", family("chatml"))
    with pytest.raises(SettingError, match=r"^model\.on_rewrite: .*rewrites nothing"):
        fits.check(model, written(model, on_rewrite="new_root", **RETRY))


def test_new_roots_and_a_credit_that_follows_paths_are_refused():
    learner = {"credit": {"name": "trajectory"}, "objective": {"name": "sft"}, "row_tokens": 4096}
    with pytest.raises(SettingError, match="new_root makes each turn a root"):
        written("x", on_rewrite="new_root", rollout={"name": "search"}, learner=learner)


def test_ids_without_an_embedding_are_refused_only_where_a_text_can_hold_them(tmp_path):
    padded = family("chatml", pad_token="<pad>")
    padded.add_special_tokens({"additional_special_tokens": ["<|unused|>"]}, replace_extra_special_tokens=False)
    model = folder(tmp_path / "unused", padded, vocabulary=padded.convert_tokens_to_ids("<|unused|>"))
    fits.check(model, written(model))
    for name, tokenizer in (("word", tiny(words=["hello"])), ("end", tiny(CHATML, CONTROLS["chatml"]))):
        model = folder(tmp_path / name, tokenizer, vocabulary=len(tokenizer) - 1)
        with pytest.raises(SettingError, match=r"^model\.path: .*embeds ids below") as refused:
            fits.check(model, written(model))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 2048),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, 4096),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024, "rope_theta": 1e4}, 2048),
    ],
)
def test_prompts_beyond_the_positions_of_the_model_are_refused_as_vllm_would(tmp_path, rope, longest):
    model = folder(tmp_path, family("chatml"), rope_parameters=rope)
    fits.check(model, written(model, max_length=longest))
    with pytest.raises(SettingError, match=rf"^actors\.engine\.max_length: .*{longest} positions"):
        fits.check(model, written(model, max_length=longest + 1))


def test_a_model_without_a_tokenizer_is_refused_in_one_line(tmp_path):
    LlamaConfig(vocab_size=8).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"^model\.path: .*no tokenizer") as refused:
        fits.check(tmp_path, written(tmp_path))
    assert "\n" not in str(refused.value)


def prepared(model, template: dict, cache):
    settings = ModelSettings(path=str(model), template=template)
    return models.prepare(settings, recipe.build(recipe_values()).environment, cache)


def recipe_values() -> dict:
    return {"name": "x", "steps": 0, "model": {"path": "x"}, "environment": SIGNS}


def test_what_a_template_is_given_becomes_part_of_the_models_folder_and_may_still_be_given_otherwise(tmp_path):
    model = folder(tmp_path / "model", family("qwen3"))
    dressed = prepared(model, {"kwargs": {"enable_thinking": False}}, tmp_path / "cache")
    assert prepared(model, {"kwargs": {"enable_thinking": False}}, tmp_path / "cache") == dressed
    renderer = rendering.load(dressed)
    asked = [{"role": "user", "content": "q"}]
    expected = renderer.tokenizer.decode(renderer.first("q"))
    assert expected.endswith("<think>\n\n</think>\n\n")
    theirs = family("qwen3").apply_chat_template(
        asked, add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    assert expected == theirs
    thinking = AutoTokenizer.from_pretrained(dressed).apply_chat_template(
        asked, add_generation_prompt=True, tokenize=False, enable_thinking=True
    )
    assert not thinking.endswith("</think>\n\n")
    assert {file.name for file in dressed.iterdir()} == {file.name for file in model.iterdir()}


def test_a_template_of_ones_own_takes_the_place_of_the_tokenizers(tmp_path):
    model = folder(tmp_path / "model", tiny(None, CONTROLS["chatml"]))
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    renderer = rendering.load(prepared(model, {"path": str(file)}, tmp_path / "cache"))
    assert renderer.tokenizer.decode(renderer.first("q")).startswith("<|im_start|>user\nq<|im_end|>")


@pytest.mark.parametrize(
    ("template", "setting"),
    [
        ({"path": "/nowhere.jinja"}, r"model\.template\.path"),
        ({"kwargs": {"enable_thinkin": False}}, r"model\.template\.kwargs\.enable_thinkin"),
        ({"kwargs": {"messages": []}}, r"model\.template\.kwargs\.messages"),
    ],
)
def test_a_template_setting_that_does_nothing_is_refused(tmp_path, template, setting):
    model = folder(tmp_path / "model", family("qwen3"))
    with pytest.raises(SettingError, match=f"^{setting}: "):
        prepared(model, template, tmp_path / "cache")


ACT = {"rollout": {"name": "act", "turns": 3, "episodes": 2}, "evaluation": {}}
ADD = {"environment": {"name": "support.sums:Sums", "tools": ["support.sums:add"]}}


def test_tools_need_a_template_that_knows_them(tmp_path):
    able, unable = folder(tmp_path / "able", hermes()), folder(tmp_path / "unable", family("chatml"))
    fits.check(able, written(able, **ACT, **ADD))
    for offered in (ADD, {"environment": {"name": "support.sums:Counter"}}):
        with pytest.raises(SettingError, match=r"^environment\.tools: .*does not show tools"):
            fits.check(unable, written(unable, **ACT, **offered))


def test_a_template_that_strips_thoughts_at_the_users_words_alone_is_played_with_tools_alone(tmp_path):
    model = folder(tmp_path, hermes(THINKER))
    fits.check(model, written(model, **ACT, **ADD))
    with pytest.raises(SettingError, match=r"^model\.on_rewrite: .*rewrites.*new_root"):
        fits.check(model, written(model, **ACT, environment={"name": "support.sums:Counter"}))


def checked(**values) -> None:
    actors = {"engine": {"name": "scripted", "max_length": 1024}}
    preflight.check_environment(written("nowhere", actors=actors, **{"evaluation": {}} | values))


def test_tools_are_for_rollouts_of_actions_and_let_them_ask_for_one_answer():
    checked(**ACT, **ADD)
    with pytest.raises(
        SettingError, match=r"^environment\.tools: rollout retry .*no tool is called.*act, rollback or search"
    ):
        checked(rollout={"name": "retry"}, **ADD)
    with pytest.raises(SettingError, match=r"^rollout\.name: act plays many actions"):
        checked(**ACT, environment={"name": "support.sums:Sums"})


@pytest.mark.parametrize(
    ("tool", "problem"),
    [
        ({}, "tools come from a `function` or from `mcp`"),
        ({"function": "a:b", "mcp": {"url": "http://x"}}, "tools come from a `function` or from `mcp`"),
        ({"mcp": {}}, "reached by `command` or by `url`"),
        ({"mcp": {"url": "http://x", "inherit": ["KEY"]}}, "`inherit` is for a server that is started"),
        ({"mcp": {"url": "http://x"}, "openai": {"name": "x"}}, "`openai` describes a `function`"),
        ({"mcp": {"url": "x"}}, "'x' is no address"),
        ({"functions": "a:b"}, "there is no such key. Did you mean function"),
        (7, "valid dictionary"),
    ],
)
def test_a_source_of_tools_that_is_none_is_refused_by_its_key(tool, problem):
    with pytest.raises(SettingError, match=rf"^environment\.tools\.0.*: .*{problem}"):
        written("nowhere", environment={"name": "signs", "tools": [tool]})
