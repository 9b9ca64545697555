"""The policy: log-probs of chosen tokens under a causal language model, in pieces of bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from protocols.errors import SettingError

SLICE = 1 << 22  # logits that are float32 at once
RESHAPES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class Policy(nn.Module):
    """A causal language model of transformers, asked only for log-probs.

    Log-probs are those of sampling at `temperature` from the whole vocabulary, as the engine reports them.
    Submodules are called as modules, so that the hooks by which ZeRO 3 gathers weights run.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0):
        super().__init__()
        for key in RESHAPES_LOGITS:
            if getattr(model.config, key, None):
                raise SettingError("model.path", f"{key} changes the logits after the head, which is not supported")
        self.model = model
        self.temperature = temperature

    def forward(
        self, tokens_BS: Tensor, positions_BS: Tensor, picks_N: Tensor, targets_N: Tensor, chunks: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Log-prob of each target at the output of flat place `picks`, and the entropy there: float32[N] each.

        The entropy carries no gradient. `chunks` pieces are computed one after the other, and again in the backward
        pass; under ZeRO 3 it must be the same on all ranks, for each piece gathers the head.
        """
        hidden_BSD = self.model.get_decoder()(
            input_ids=tokens_BS, position_ids=positions_BS, attention_mask=None, use_cache=False
        ).last_hidden_state
        hidden_ND = hidden_BSD.flatten(0, 1)[picks_N]
        pieces = zip(hidden_ND.tensor_split(chunks), targets_N.tensor_split(chunks), strict=True)
        if chunks == 1 or not torch.is_grad_enabled():
            results = [self._score(hidden, targets) for hidden, targets in pieces]
        else:
            results = [checkpoint(self._score, hidden, targets, use_reentrant=False) for hidden, targets in pieces]
        logprobs, entropies = zip(*results, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _score(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        return Chosen.apply(self.model.get_output_embeddings()(hidden_ND), targets_N, self.temperature)


class Chosen(torch.autograd.Function):
    """Log-probs of the targets and entropies, float32[N] each, from logits [N, V], of which nothing is copied whole.

    Float32 exists of a few rows at a time; the gradient is written over the logits, so that a second backward pass
    through them raises.
    """

    @staticmethod
    def forward(ctx, logits_NV: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for logits_nV, targets_n in _slices(logits_NV, targets_N):
            logprobs_nV = torch.log_softmax(logits_nV.float() / temperature, -1)
            logprobs.append(logprobs_nV.gather(-1, targets_n[:, None]).squeeze(-1))
            entropies.append(-(logprobs_nV.exp().mul_(logprobs_nV)).sum(-1))
        entropy_N = torch.cat(entropies)
        ctx.save_for_backward(logits_NV, targets_N)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(logprobs), entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_N: Tensor, _) -> tuple[Tensor, None, None]:
        logits_NV, targets_N = ctx.saved_tensors
        for logits_nV, targets_n, gradient_n in _slices(logits_NV, targets_N, gradient_N / ctx.temperature):
            slope_nV = torch.softmax(logits_nV.float() / ctx.temperature, -1).mul_(-gradient_n[:, None])
            logits_nV.copy_(slope_nV.scatter_add_(-1, targets_n[:, None], gradient_n[:, None]))
        return logits_NV, None, None


def _slices(logits_NV: Tensor, *others: Tensor):
    """Views of a few rows of each at a time."""
    rows = max(1, SLICE // logits_NV.shape[-1])
    return zip(*(tensor.split(rows) for tensor in (logits_NV, *others)), strict=True)


def load_model(path: str, dtype: torch.dtype, attention: str) -> nn.Module:
    """The model of a folder, in `dtype`. Raises SettingError when the folder holds none."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention)
    except (OSError, ValueError, ImportError) as error:
        raise SettingError("model.path", f"{path} cannot be loaded: {error}") from error
