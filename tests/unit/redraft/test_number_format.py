"""What a model computes with where the recipe does not say it."""

import pytest
import yaml
from support.places import ROOT

from redraft import machine, recipe


@pytest.fixture
def processor(monkeypatch):
    def one(multiplies: bool) -> None:
        monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: multiplies)

    return one


def loaded(*overrides: str) -> recipe.Recipe:
    return recipe.load(ROOT / "recipes" / "smollm2-words-rise.yaml", overrides)


@pytest.mark.parametrize(
    ("multiplies", "overrides", "dtype"),
    [
        (False, (), "float32"),
        (True, (), "bfloat16"),
        (False, ("learner.gpus=1", "actors.gpus=1"), "bfloat16"),
        (False, ("model.dtype=bfloat16",), "bfloat16"),
        (True, ("model.dtype=float32",), "float32"),
    ],
)
def test_it_is_bfloat16_where_that_is_multiplied_and_float32_elsewhere_unless_the_recipe_says(
    processor, multiplies, overrides, dtype
):
    processor(multiplies)
    assert loaded(*overrides).model.dtype == dtype


def test_the_recipe_that_a_run_keeps_says_which_it_was_so_that_another_machine_goes_on_with_it(processor):
    processor(False)
    kept = yaml.safe_load(loaded().dump())
    processor(True)
    assert recipe.build(kept).model.dtype == "float32"


def test_bfloat16_that_the_processor_is_slow_at_is_warned_of_where_no_gpu_computes(processor):
    processor(False)
    assert any("model.dtype" in warning for warning in loaded("model.dtype=bfloat16").warnings())
    for fine in (("model.dtype=float32",), ("model.dtype=bfloat16", "learner.gpus=1", "actors.gpus=1"), ()):
        assert not any("model.dtype" in warning for warning in loaded(*fine).warnings())
