"""Our Muon moves a model as torch's does, without torch's rounding to bfloat16."""

from __future__ import annotations

import pytest
import torch

from redraft.models.muon import Muon, orthogonal


def trained(make, shapes=((24, 24), (24, 72), (72, 24), (24, 24)), steps=4) -> list[torch.Tensor]:
    """Matrices after steps whose gradients are the same for each optimizer."""
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = make(matrices)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape)
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


def test_it_moves_as_torchs_but_for_the_rounding():
    begun = trained(lambda matrices: Muon(matrices, lr=0.01), steps=0)
    own = trained(lambda matrices: Muon(matrices, lr=0.01))
    theirs = trained(
        lambda matrices: torch.optim.Muon(
            matrices, lr=0.01, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
    )
    for before, mine, other in zip(begun, own, theirs, strict=True):
        assert (mine - other).norm() < 0.02 * (other - before).norm()


@pytest.mark.parametrize("shape", [(2, 16, 48), (2, 48, 16), (1, 32, 32)])
def test_singular_values_are_brought_near_one_and_directions_kept(shape):
    torch.manual_seed(1)
    steps = torch.randn(shape)
    found = orthogonal(steps)
    assert found.shape == shape
    for step, move in zip(steps, found, strict=True):
        left, _, right = torch.linalg.svd(step, full_matrices=False)
        turned = left.mT @ move @ right.mT
        values = torch.diag(turned)
        assert (values > 0.65).all() and (values < 1.2).all()
        assert (turned - torch.diag(values)).abs().max() < 1e-4


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="closure"):
        Muon([torch.nn.Parameter(torch.ones(4, 4))], lr=1.0).step(lambda: 0.0)


def test_a_matrix_without_a_gradient_stays():
    still = torch.nn.Parameter(torch.ones(4, 4))
    Muon([still], lr=1.0).step()
    assert torch.equal(still, torch.ones(4, 4))
