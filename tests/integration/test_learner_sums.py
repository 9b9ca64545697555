"""In bfloat16 the learner adds up gradients in float32, whatever is sharded, over micro-batches and over ranks."""

import numpy as np
import pytest
import ray
import torch
from support.places import PYTHONPATH
from support.ports import free_port
from support.summing_house import Summing
from support.waiting import deadline_s
from transformers import Qwen2Config, Qwen2ForCausalLM

pytestmark = pytest.mark.ray

MICROS = 512


@pytest.fixture(scope="module", autouse=True)
def cluster():
    env = {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": env}, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    """A model whose float32 weights are bfloat16 numbers, so that both types begin with the same."""
    path = str(tmp_path_factory.mktemp("model"))
    torch.manual_seed(3)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=40, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    Qwen2ForCausalLM(config).bfloat16().float().save_pretrained(path)
    return path


class Ranks:
    """Ranks in processes of their own; a call is one to all of them, in order."""

    def __init__(self, world: int, model_path: str):
        master = ("127.0.0.1", free_port())
        part = ray.remote(num_cpus=0)(Summing)
        self._ranks = [part.remote(rank, world, master, model_path) for rank in range(world)]

    def call(self, method: str, *arguments) -> list:
        return ray.get([getattr(rank, method).remote(*arguments) for rank in self._ranks], timeout=deadline_s(120))

    def close(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)


@pytest.fixture(scope="module", params=[1, 2])
def ranks(request, model_path):
    made = Ranks(request.param, model_path)
    yield request.param, made
    made.close()


@pytest.fixture(scope="module")
def exact(ranks) -> tuple[float, np.ndarray]:
    """The gradient's norm and the gradient in float32, from plain torch's optimizer."""
    return ranks[1].call("step", 0, "float32", MICROS)[0]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_512_micro_batches_in_bfloat16_add_up_to_the_gradient_of_float32(ranks, exact, zero):
    world, parts = ranks
    found = parts.call("step", zero, "bfloat16", MICROS)
    norm, gradient = exact
    off = abs(found[0][0] / norm - 1)
    print(f"{world} ranks, stage {zero}: norm off by {off:.2%}")
    assert off < 5e-3
    if world == 1 or zero < 3:  # stage 3 on several ranks deals out pieces of each parameter
        whole = found[0][1] if zero == 0 else np.concatenate([part for _, part in found])
        difference = np.linalg.norm(whole[: len(gradient)] - gradient) / np.linalg.norm(gradient)
        print(f"gradient off by {difference:.2%}")
        assert difference < 5e-3


@pytest.mark.parametrize("zero", [0, 1])
def test_a_step_in_bfloat16_survives_a_gradient_that_is_not_finite_and_a_resume_changes_no_bit(ranks, tmp_path, zero):
    assert ranks[1].call("lives", zero, str(tmp_path)) == [(True, True, True)] * ranks[0]
