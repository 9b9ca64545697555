"""What vLLM compiles is kept for the next start of the same model, and for no other."""

from __future__ import annotations

from pathlib import Path

from actors.engines import vllm_common


def kept(model: Path, **given: str) -> dict[str, str]:
    environment = dict(given)
    vllm_common.keep_compiled(model, environment)
    return environment


def model(folder: Path, config: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    return folder


def test_each_model_has_a_folder_of_its_own_in_the_cache_that_another_start_finds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, same, other = model(tmp_path / "a", "{}"), model(tmp_path / "b", "{}"), model(tmp_path / "c", '{"n": 1}')
    assert set(kept(one)) == {"VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"}
    assert kept(one) == kept(same) and not set(kept(one).values()) & set(kept(other).values())
    assert all(Path(place).is_relative_to(tmp_path / ".cache") for place in kept(one).values())


def test_a_folder_that_the_user_chose_stays(tmp_path):
    assert kept(tmp_path, TRITON_CACHE_DIR="/mine")["TRITON_CACHE_DIR"] == "/mine"
