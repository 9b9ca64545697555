"""An adapter's file, and the formula by which all who need merged weights merge it."""

import pytest
import torch
from safetensors.torch import save_file

from protocols.adapter import DOWN, UP, adapted_name, layers_of, merged, metadata, scale_of, weight_files

SHAPE, RANK, SCALE = (160, 96), 4, 2.0


def matrices(size: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W with elements of deviation .05, A, and a B such that B A is `size` times as large as W."""
    random = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(SHAPE, generator=random)
    down = torch.randn(RANK, SHAPE[1], generator=random)
    up = torch.randn(SHAPE[0], RANK, generator=random) * (0.05 * size / SCALE / RANK**0.5)
    return weight, down, up


def test_in_float32_the_product_is_added():
    weight, down, up = matrices(0.1)
    torch.testing.assert_close(merged(weight, down, up, SCALE), weight + SCALE * up @ down)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_of_zeros_changes_no_bit(dtype):
    weight, down, up = (part.to(dtype) for part in matrices(0.1))
    assert torch.equal(merged(weight, down, 0 * up, SCALE), weight)


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2])
def test_bfloat16_keeps_what_is_far_below_its_last_digit(size):
    weight, down, up = (part.bfloat16() for part in matrices(size))
    wanted = SCALE * up.float() @ down.float()
    kept = merged(weight, down, up, SCALE).float() - weight.float()
    nearest = (weight.float() + wanted).bfloat16().float() - weight.float()

    def share(found: torch.Tensor) -> float:
        """How much of the change an input that it was made for sees: one along the rows of A."""
        inputs = down.float().T
        return float(((found @ inputs) * (wanted @ inputs)).sum() / (wanted @ inputs).square().sum())

    print(f"{size:g}: {share(kept):.2f} of the change arrives, {share(nearest):.2f} where it is rounded to the nearest")
    assert abs(share(kept) - 1) < 0.15


def test_the_layout_of_a_file_is_that_of_peft(tmp_path):
    file = {"base_model.model.a.b.lora_A.weight": 1, "base_model.model.a.b.lora_B.weight": 2}
    assert list(layers_of(file)) == [("a.b.weight", 1, 2)]
    assert {adapted_name("a.b.weight", part) for part in (DOWN, UP)} == file.keys()


def test_a_file_says_itself_whether_it_is_an_adapter():
    assert scale_of(metadata(1 / 3)) == 1 / 3
    assert scale_of({"format": "pt"}) is None and scale_of(None) is None


def test_every_tensor_of_a_folder_is_found_in_its_file(tmp_path):
    save_file({"a": torch.ones(1), "b": torch.ones(2)}, tmp_path / "one.safetensors", {"format": "pt"})
    save_file({"c": torch.ones(3)}, tmp_path / "two.safetensors")
    found = {name: path.name for name, path in weight_files(tmp_path).items()}
    assert found == {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
