"""CUDA's kernel for sequences end to end computes what the loop over sequences does."""

from __future__ import annotations

import pytest
import torch

from learner.model import attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here: run it where there is one"),
]


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("groups", [8, 2])
def test_the_kernel_agrees_with_the_loop_forwards_and_backwards(window, groups):
    lengths = torch.tensor([1, 300, 64, 777])
    bounds = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).to(torch.int32)]).cuda()
    random = torch.Generator("cuda").manual_seed(0)
    size = int(lengths.sum())
    drawn = [torch.randn(size, heads, 64, generator=random, device="cuda") for heads in (8, groups, groups)]
    found = {}
    for compute, dtype in ((attention._by_kernel, torch.bfloat16), (attention._by_sequence, torch.float32)):
        parts = [part.to(torch.bfloat16).to(dtype).requires_grad_() for part in drawn]
        output = compute(*parts, bounds, int(lengths.max()), None, window)
        output.square().sum().backward()
        found[dtype] = [output, *(part.grad for part in parts)]
    for ours, exact in zip(found[torch.bfloat16], found[torch.float32], strict=True):
        assert (ours.float() - exact).abs().max() < 0.02 * exact.abs().max()  # two to three digits: that is bfloat16
