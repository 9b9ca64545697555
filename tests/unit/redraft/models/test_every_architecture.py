"""Every causal type that transformers knows computes its own forward pass here, packed or alone, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_models import NOT_MADE, build
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from learner.model.load import load_model
from learner.model.policy import Policy
from learner.model.saved import as_saved, saved_buffers
from learner.model.selftest import examine, judge
from protocols.errors import SettingError

KINDS = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - NOT_MADE)


def loaded(folder: Path, dtype: torch.dtype, state: dict | None = None) -> torch.nn.Module:
    """As a run does, and with the cure that its refusal names."""
    try:
        return load_model(str(folder), dtype, "sdpa", state)
    except SettingError as error:
        if "Set it to eager" not in str(error):
            raise
        return load_model(str(folder), dtype, "eager", state)


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return as_saved(model, named | {name: buffer.clone() for name, buffer in saved_buffers(model).items()})


def rows(policy: Policy, tokens: list[torch.Tensor]) -> torch.Tensor:
    """Log-probs of all but the first token of each sequence, out of one row."""
    row = torch.cat(tokens)
    places = torch.cat([torch.arange(len(part)) for part in tokens])
    picks = torch.nonzero(places).squeeze(-1) - 1
    return policy(row[None], places[None], picks, row[picks + 1])[0]


@pytest.mark.prove
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_type_equals_its_own_forward_pass_or_is_refused_in_one_line(kind, dtype, tmp_path):
    build(kind, tmp_path)
    try:
        policy = Policy(loaded(tmp_path, dtype))
        found = examine(policy, lambda: loaded(tmp_path, dtype, state_of(policy.model)), 0, packing=True, rows=2)
        policy.packed = judge(policy, found)
    except SettingError as refused:
        assert "\n" not in str(refused)
        print(f"{kind}: {refused}")
        return
    random = torch.Generator().manual_seed(7)
    tokens = [torch.randint(3, 96, (length,), generator=random) for length in (21, 30, 9)]
    with torch.no_grad():
        ours = rows(policy.eval(), tokens)
        logits = [policy.model(part[None], use_cache=False).logits[0, :-1].float() for part in tokens]
    own = torch.cat([one.log_softmax(-1)[range(len(one)), part[1:]] for one, part in zip(logits, tokens, strict=True)])
    explained = found[:, 1].max()
    assert (ours - own).abs().median() <= 4 * explained, f"{kind}, {'packed' if policy.packed else 'alone'}"
    print(f"{kind}: {'packed' if policy.packed else 'one sequence a row'}")
