"""The policy: log-probs of chosen tokens under a causal language model, in pieces of bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from protocols.errors import SettingError

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
        logits_NV = self.model.get_output_embeddings()(hidden_ND).float() / self.temperature
        logprobs_NV = torch.log_softmax(logits_NV, -1)
        chosen_N = logprobs_NV.gather(-1, targets_N[:, None]).squeeze(-1)
        with torch.no_grad():
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        return chosen_N, entropy_N


def load_model(path: str, dtype: torch.dtype, attention: str) -> nn.Module:
    """The model of a folder, in `dtype`. Raises SettingError when the folder holds none."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention)
    except (OSError, ValueError, ImportError) as error:
        raise SettingError("model.path", f"{path} cannot be loaded: {error}") from error
