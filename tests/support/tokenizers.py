"""Tiny tokenizers, and chat templates whose shapes are those of families of models."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from support.places import RECIPES

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"""
LLAMA3 = """{{- bos_token }}{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
GEMMA = """{{- bos_token }}{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{%- endif %}
{%- for m in messages %}{%- set role = 'model' if m.role == 'assistant' else m.role %}
{{- '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""
MISTRAL = """{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\n\n' %}
{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}{%- for m in messages %}
{%- if m.role == 'user' %}{{- '[INST] ' + (system if loop.last else '') + m.content + '[/INST]' }}
{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"""
LLAMA2 = """{%- for m in messages %}{%- if m.role == 'user' %}
{{- bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}
{%- else %}{{- ' ' + m.content | trim + ' ' + eos_token }}{%- endif %}{%- endfor %}"""
PHI = """{%- for m in messages %}{{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"""
QWEN3 = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- set text = m.content %}
{%- if m.role == 'assistant' and loop.index0 < ns.last %}
{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>' + m.role + '\n' + text + '<|im_end|>' + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""
R1 = """{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|User|>' + m.content }}
{%- else %}{{- '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\n' }}{%- endif %}"""
CHANNELS = """{%- for m in messages %}{{- '<|start|>' + m.role }}
{%- if m.role == 'assistant' %}{{- '<|channel|>final' }}{%- endif %}
{{- '<|message|>' + m.content + '<|end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
HERMES = (RECIPES / "chatml-tools.jinja").read_text(encoding="utf-8")
SAID = r"+ m.role + '\n' + m.content }}"
THINKER = """{%- set ns = namespace(last=-1) %}{%- for m in messages %}
{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}""" + HERMES.replace(
    SAID, r"+ m.role + '\n' + (m.content.split('</think>')[-1] if loop.index0 < ns.last else m.content) }}"
)
"""Strips thinking from answers before the user's last words, and keeps it while tools are called, as Qwen 3's does."""
OTHER_CALLS = HERMES.replace(r"""'<tool_call>\n{"name": "' +""", r"""'<call>\n{"name": "' +""")

CONTROLS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "mistral": ("[INST]", "[/INST]"),
    "llama2": (),
    "phi": ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "r1": ("<|User|>", "<|Assistant|>"),
    "channels": ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
}
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "llama2": LLAMA2,
    "phi": PHI,
    "qwen3": QWEN3,
    "r1": R1,
    "channels": CHANNELS,
}
GROWING = ("chatml", "llama3", "gemma", "mistral", "llama2", "phi")
"""Families whose prompts just grow."""
REWRITING = ("qwen3", "r1")
"""Families whose templates strip thinking from earlier answers."""


def tiny(template: str | None = None, controls=(), words=(), bos_first: bool = False, **special: str):
    """A transformers tokenizer with a token a byte and these special tokens; eos is <eos> and bos <bos>, unless said.

    `words` are added tokens that are not special, `bos_first` puts the bos before each text, as Llama's does.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={byte: n for n, byte in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = {"bos_token": "<bos>", "eos_token": "<eos>"} | special
    made = PreTrainedTokenizerFast(tokenizer_object=raw, **{key: text for key, text in special.items() if text})
    made.add_special_tokens({"additional_special_tokens": list(controls)})
    made.add_tokens(list(words))
    if bos_first:
        pair = (made.bos_token, made.bos_token_id)
        first = processors.TemplateProcessing(single=f"{made.bos_token} $A", special_tokens=[pair])
        made.backend_tokenizer.post_processor = first
    made.chat_template = template
    return made


def hermes(template: str = HERMES, **named):
    """A tiny tokenizer with tools in its template, as Qwen's: calls are added tokens that are not special."""
    words = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    return tiny(template, CONTROLS["chatml"], words, eos_token="<|im_end|>", **named)


def family(name: str, **named):
    """The tiny tokenizer of a family of TEMPLATES."""
    words = ("<think>", "</think>") if name in REWRITING else ()
    return tiny(TEMPLATES[name], CONTROLS[name], words, **named)


class Newlines:
    """A tokenizer of bytes whose end token reads as nothing, so that prompts are what was said."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def decode(self, ids, **named):
        return self._tokenizer.decode(ids, **named).replace("<eos>", "\n")
