"""Loading: the model of a folder as it is trained, without what would make a pass random."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learner.model.attention import VARLEN, register
from protocols.errors import SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANDOM = re.compile("drop|jitter")  # in the name of what makes a training pass random: dropout, pdrop, router jitter


def load_model(
    path: str, dtype: torch.dtype, attention: str, state: dict[str, Tensor] | None = None
) -> PreTrainedModel:
    """The model of a folder, in `dtype`, without dropout or jitter, which the sampler does not have either.

    With `state` it has these weights, named as in a folder, in place of its own. Raises SettingError when the folder
    holds no model that can be loaded.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging

    if attention == VARLEN:
        register()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        for part in (config, *_parts_of(config)):
            _still(part)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        if kind is None:
            raise ValueError(f"a model of type {config.model_type} is not a causal language model")
        if kind.config_class is config.sub_configs.get("text_config"):  # a multimodal folder, of which text is trained
            config = config.get_text_config()
        source = path if state is None else None
        how = {"dtype": dtype, "attn_implementation": attention, "state_dict": state}
        model = kind.from_pretrained(source, config=config, **how)
    except Exception as error:  # transformers raises whatever a family's code happens to stumble over
        raise _not_loaded(path, attention, error) from error
    for module in model.modules():
        _still(module)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def _still(part: object) -> None:
    """Sets what makes a training pass random to 0, in a config or a module."""
    for name, value in list(vars(part).items()):
        if RANDOM.search(name) and isinstance(value, int | float) and not isinstance(value, bool) and value:
            setattr(part, name, type(value)(0))


def _parts_of(config) -> list:
    """The configs within a config, of whatever depth."""
    parts = [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]
    return [*parts, *(deeper for part in parts for deeper in _parts_of(part))]


def _not_loaded(path: str, attention: str, error: Exception) -> SettingError:
    said = " ".join(str(error).split()) or type(error).__name__
    if "attn_implementation" in said:
        cure = "Set it to eager" if attention != "eager" else ""
        return SettingError("learner.attention", f"the model of {path} does not know {attention}", cure)
    return SettingError("model.path", f"{path} cannot be loaded: {said}", "Fetch it again, or name another model")
