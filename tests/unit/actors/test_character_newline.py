"""The newline of a character tokenizer is its end token, and stays in a task's text whatever class loads it."""

from __future__ import annotations

from actors.rendering import Renderer, load
from redraft.models.make import build_tokenizer


def test_a_newline_stays_where_the_tokenizer_is_loaded_as_that_of_its_model(tmp_path):
    made = build_tokenizer("characters", 256)
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    loaded, text = load(tmp_path), "7>1\n\n?x\n"
    assert "Qwen2" in type(loaded.tokenizer).__name__
    assert list(loaded.first(text)) == list(Renderer(made).first(text)) == made.encode(text, add_special_tokens=False)
