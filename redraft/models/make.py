"""The model of a run: one that exists, a small pretrained one that is fetched, or a tiny one that is made.

The last two are kept, under the digest of what they are made from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from actors.config import EnvironmentSettings
from protocols import own_code
from protocols.errors import SettingError
from redraft import run as runs
from redraft.config import MakeSettings, ModelSettings
from redraft.models import hub, own_template, pretrained, start, weights
from redraft.recipe import Recipe, load
from redraft.run import UNKNOWN, Run, Start

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2Config

log = logging.getLogger("redraft.models")
CHARACTERS = "0123456789+-*/()>?=.,;:!@ abcdefghijklmnopqrstuvwxyz"
PRETRAINED = "pretraining teaches it the form of the dialogues, and not which correction helps"
RECIPE_OF_MAKING = 3
"""Raised when the same settings would make another model, so that older ones in a cache are not used."""
RECIPE_OF_FETCHING = 1
"""The same, where the same package would make another model."""


def prepare(
    settings: ModelSettings,
    environment: EnvironmentSettings,
    cache: Path,
    progress: Callable[[str], None] = print,
    revision: str = "",
    template: str | None = None,
) -> Path:
    """The folder of the model: config.json, model.safetensors, tokenizer, with the recipe's template. Raises
    SettingError where there is none.

    A made model is float32 and is kept in `cache` under the digest of everything that it depends on, a fetched one
    under that of the package that it comes from. From the Hub comes the `revision`, "" being the newest. `template` is
    the text of the recipe's template where that was read elsewhere.
    """
    model = _source(settings, environment, cache, progress, revision)
    if settings.template is None:
        return model
    text = own_template.text(model, settings.template) if template is None else template
    kept = cache / f"templated-{own_template.digest(model, text)}"
    return _once(kept, lambda aside: own_template.write(model, text, aside))


def begun(settings: ModelSettings, environment: EnvironmentSettings, model: Path, cache: Path) -> Start:
    """What a run that begins with `model`, as it was prepared, remembers of it."""
    source = model if settings.template is None else _source(settings, environment, cache, log.info, "")
    name = settings.path or settings.pretrained or "made"
    revision = source.name if source.parent.name == "snapshots" else ""  # a folder of the Hub's cache is named so
    return Start(name, revision, start.digest(model, cache))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The start model of a run for any node: which one it is, where it was, and by what it is prepared elsewhere.
    `template` is the text of the recipe's own where that is known; `limit_s` is for the wait for another process."""

    start: Start
    path: str
    settings: ModelSettings
    environment: EnvironmentSettings
    template: str | None
    limit_s: float

    def here(self, cache: Path) -> Path:
        """Its folder on this node; see `start.find`."""
        if self.start == UNKNOWN:  # it plays with what is there
            return Path(self.path)

        def prepared() -> Path:
            given = self.environment, cache, log.info, self.start.revision, self.template
            return prepare(self.settings, *given)

        return start.find(self.start, Path(self.path), prepared, cache, self.limit_s)


def wanted(run: Run, recipe: Recipe) -> Wanted:
    """That of a run, on the machine of its command."""
    file = Path(run.model) / own_template.FILE
    text = file.read_text() if recipe.model.template is not None and file.exists() else None
    return Wanted(run.start, run.model, recipe.model, recipe.environment, text, recipe.start_s)


def _source(
    settings: ModelSettings, environment: EnvironmentSettings, cache: Path, progress: Callable, revision: str
) -> Path:
    """The folder of the model as it comes."""
    if settings.path is not None:
        return _existing(settings.path, cache, revision)
    if settings.pretrained is not None:
        return fetch(settings.pretrained, None, cache, progress)
    make = settings.make
    assert make is not None  # one of the three is given: see ModelSettings
    folder = cache / f"made-{_digest(make, environment)}"
    return _once(folder, lambda aside: _make(make, environment, aside, progress))


def fetch(name: str, folder: Path | None, cache: Path, progress: Callable[[str], None] = print) -> Path:
    """The folder of a small pretrained model, see pretrained.py: `folder`, or one in `cache` where that is None.

    Raises SettingError for an unknown name, for a folder that exists, and where the model cannot be fetched.
    """
    source = pretrained.find(name)
    if folder is not None and folder.exists():
        raise SettingError("FOLDER", f"{folder} exists", "Name a folder that does not exist yet")
    kept = folder or cache / f"{source.model}-{source.sha256[:10]}-{RECIPE_OF_FETCHING}"
    return _once(kept, lambda aside: pretrained.write(name, aside, progress)).resolve()


def _once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, which `write` fills where there is no model in it yet. It appears by one rename, so that several
    processes may prepare at once, and others may read it."""
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
    try:
        write(aside)
        for file in (file for file in aside.iterdir() if not file.is_symlink()):
            file.chmod(0o644)  # safetensors keeps others out, but a run's user may differ from the cache's owner
        aside.chmod(0o755)  # as mkdtemp does
        aside.rename(folder)
    except OSError:
        if not (folder / "config.json").exists():  # else another process was first with the same model
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _existing(path: str, cache: Path, revision: str) -> Path:
    folder = Path(path).expanduser()
    if (folder / "run.json").exists():
        folder = trained(folder, cache)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise SettingError("model.path", f"{path!r} holds no config.json", "Name the folder of a model")
        weights.check(folder)
        return folder.resolve()
    if folder.parent.name == "runs":
        cure = "Train that run first (its recipe's first lines say how), or name another model"
        raise SettingError("model.path", f"there is no run {path!r} here", cure)
    model = hub.fetch(path, revision)
    weights.check(model)
    return model


def trained(run: Path, cache: Path) -> Path:
    """The folder of the model of a run's newest checkpoint, see `of_checkpoint`. Raises SettingError where it has
    none."""
    from learner import checkpoint

    newest = checkpoint.newest(run)
    if newest is None:
        raise SettingError("model.path", f"the run {run} has no checkpoint", "Name one that has, or a model")
    return of_checkpoint(newest, runs.find(str(run)), cache)


def start_of(run: Run, cache: Path) -> Path:
    """The folder of the model that a run began with, on this machine. Raises SettingError where it is not to be had."""
    model = Path(run.model)
    if run.start != UNKNOWN:
        model = wanted(run, load(run.folder / "recipe.yaml")).here(cache)
    if not (model / "config.json").exists():
        problem = f"the model that {run.folder} began with is not at {model}"
        raise SettingError("model.path", problem, "Put it there again, or write its place into the run's run.json")
    return model


def of_checkpoint(checkpoint: Path, run: Run, cache: Path) -> Path:
    """The folder of a checkpoint's model. That of an adapter is merged into the run's start model, once: it is
    kept in `cache` under the digest of both."""
    from learner.checkpoint import ADAPTER, MODEL

    adapter = checkpoint / ADAPTER
    if not adapter.exists():
        return checkpoint / MODEL
    base = start_of(run, cache)
    kept = cache / f"merged-{_digest_of_merged(base, adapter)}"
    return _once(kept, lambda aside: write_merged(base, adapter, aside))


def write_merged(base: Path, adapter: Path, folder: Path) -> None:
    """Makes `folder` a whole model: that of `base` with the PEFT folder `adapter` merged in, as engines do it."""
    from transformers import AutoConfig

    from learner.checkpoint import write_folder
    from learner.model.lora import merged_state

    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    write_folder(folder, base, config, merged_state(base, adapter))


def _digest_of_merged(base: Path, adapter: Path) -> str:
    """Of the adapter's bytes, and of where the model is and when it was written: to read it all would take long."""
    made = hashlib.blake2b(str(base.resolve()).encode(), digest_size=10)
    for file in sorted(base.glob("*.safetensors")):
        made.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    for file in sorted(adapter.iterdir()):
        made.update(file.read_bytes())
    return made.hexdigest()


def _digest(make: MakeSettings, environment: EnvironmentSettings) -> str:
    depends = {"recipe": RECIPE_OF_MAKING, "make": make.model_dump(mode="json", exclude={"pretrain": {"threads"}})}
    if make.pretrain is not None:
        options = [environment.options] if environment.options else []
        depends["environment"] = (environment.name, environment.feedback, *options)
        if own_code.is_file(environment.name):  # which shows the model what it learns from
            depends["code"] = own_code.needed(environment.name)
    return hashlib.blake2b(json.dumps(depends, sort_keys=True).encode(), digest_size=10).hexdigest()


def _make(make: MakeSettings, environment: EnvironmentSettings, folder: Path, progress: Callable[[str], None]) -> None:
    progress("the model: a tiny one is made here, once" + (f"; {PRETRAINED}" if make.pretrain else ""))
    import torch
    from transformers import Qwen2ForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    config, tokenizer = config_of(make)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(make.seed)
        model = Qwen2ForCausalLM(config).float()
    if make.pretrain is not None:
        from redraft.models.pretrain import pretrain

        pretrain(model, tokenizer, make.pretrain, environment, make.seed, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def config_of(make: MakeSettings) -> tuple[Qwen2Config, PreTrainedTokenizerFast]:
    """The config of a made model, and its tokenizer."""
    from transformers import Qwen2Config

    tokenizer = build_tokenizer(make.tokenizer, make.max_length)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=make.hidden,
        intermediate_size=make.feed_forward,
        num_hidden_layers=make.layers,
        num_attention_heads=make.heads,
        num_key_value_heads=make.heads,
        max_position_embeddings=make.max_length,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Flash attention's backward was half of a step at this size on a CPU.
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]  one of the base class's
    )
    return config, tokenizer


def build_tokenizer(kind: Literal["characters", "bytes"], max_length: int):
    """A transformers fast tokenizer with pad and eos and no chat template: one token for a character, or for a byte.

    For characters the newline is the eos, so that a dialogue reads as lines; a character that it lacks becomes <unk>.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if kind == "characters":
        words, special = list(CHARACTERS), {"eos_token": "\n", "pad_token": "<pad>", "unk_token": "<unk>"}
    else:
        words = sorted(pre_tokenizers.ByteLevel.alphabet())
        special = {"eos_token": "<eos>", "pad_token": "<pad>"}
    vocabulary = {word: n for n, word in enumerate([*words, *special.values()])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=special.get("unk_token")))
    if kind == "bytes":
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.decoder = decoders.ByteLevel()
    else:
        raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=max_length, **special)
