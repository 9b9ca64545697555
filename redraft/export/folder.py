"""`redraft export`: the model of a run as an ordinary Hugging Face folder that says how it was made."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from learner.checkpoint import ADAPTER
from protocols import cache, strict_json
from protocols.errors import RedraftError, SettingError
from redraft import records
from redraft import run as runs
from redraft.export import card
from redraft.models import make as models
from redraft.run import Run

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN"


def export(
    name: str,
    folder: Path,
    step: int | None,
    best: bool,
    merge: bool,
    push: str | None,
    say: Callable[[str], None],
) -> None:
    """Writes the model of a run's newest checkpoint, or of `step`, or of the `best`, into `folder`, which is whole or
    not there.

    Where a run trains an adapter, the folder is that adapter, or with `merge` the start model with it built in. With
    `push` the folder is then uploaded to that repository of the Hub. Raises SettingError for what cannot be, before
    anything is written, and RedraftError where the upload fails.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError("FOLDER", f"{folder} is not empty", "Name one that does not exist yet")
    if push is not None:
        _check_push(push)
    with runs.reading(name) as run:
        checkpoint = runs.checkpoint_at(run, step, best)
        if merge and not (checkpoint / ADAPTER).exists():
            raise SettingError("--merge", f"{run.name} trains whole weights: nothing to merge", "Leave it out")
        aside = folder.absolute().with_name(f".{folder.absolute().name}.{secrets.token_hex(4)}")
        aside.mkdir(parents=True)
        try:
            _write(run, checkpoint, aside, merge)
            aside.rename(folder.absolute())
        except FileNotFoundError as error:
            problem = f"{checkpoint.name} was removed meanwhile ({error.filename})"
            raise RedraftError(f"{problem}: the run goes on, and keeps its newest. Try again") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    say(f"{folder}: {run.name}, {checkpoint.name}")
    if push is not None:
        say(_push(folder, push))


def _write(run: Run, checkpoint: Path, folder: Path, merge: bool) -> None:
    """The folder's files: weights, config, tokenizer with its chat template, generation config, model card."""
    adapted = (checkpoint / ADAPTER).exists()
    if adapted:
        write_adapted(checkpoint, models.start_of(run, cache.folder("models")), folder, merge)
    else:
        _copy(checkpoint / "model", folder)
    if not adapted or merge:
        _write_generation_config(folder)
    recipe = records.recipe(run.folder)
    text = card.write(run.folder, recipe, checkpoint, adapter=adapted and not merge, revision=run.start.revision)
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_adapted(checkpoint: Path, base: Path, folder: Path, merge: bool) -> None:
    """The adapter of a checkpoint with the tokenizer of its start model `base`; with `merge` the two as one model, by
    the formula by which the run's engines merged them."""
    from learner.checkpoint import WEIGHTS

    if merge:
        models.write_merged(base, checkpoint / ADAPTER, folder)
        return
    _copy(base, folder, but=WEIGHTS)
    (folder / "config.json").unlink()  # the base's: with it, the folder would be taken for a whole model
    _copy(checkpoint / ADAPTER, folder)


def _copy(source: Path, folder: Path, but: re.Pattern | None = None) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and not (but and but.fullmatch(file.name)):
            shutil.copy(file, folder / file.name)
            (folder / file.name).chmod(0o644)


def _write_generation_config(folder: Path) -> None:
    """Has generation end where answers ended in training: at the chat template's end token, and what else ends one.

    What a start model's own file says of other things stays.
    """
    from actors import rendering

    file = folder / "generation_config.json"
    said = json.loads(file.read_text()) if file.exists() else {}
    renderer = rendering.load(folder)
    said["eos_token_id"] = list(renderer.ends) if len(renderer.ends) > 1 else renderer.end
    for key in ("bos_token_id", "pad_token_id"):
        if getattr(renderer.tokenizer, key) is not None:
            said.setdefault(key, getattr(renderer.tokenizer, key))
    file.write_text(strict_json.dumps(said, indent=2) + "\n")


def _check_push(repository: str) -> None:
    """Raises SettingError where an upload cannot work, before anything is written."""
    import huggingface_hub
    from huggingface_hub import constants

    if not REPOSITORY.fullmatch(repository):
        raise SettingError(
            "--push", f"must be ORG/NAME, got {repository!r}", "Name an organisation or user, and a model"
        )
    if constants.HF_HUB_OFFLINE:
        raise SettingError("--push", "HF_HUB_OFFLINE is set", "Unset it, or leave --push out and upload it later")
    if huggingface_hub.get_token() is None:
        raise SettingError("--push", "this user has no token for the Hub", LOG_IN)


def _push(folder: Path, repository: str) -> str:
    """Uploads the folder; returns the address. A repository that is made for it is private."""
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload from redraft export")
    except Exception as error:  # the hub's client raises many kinds; every one means that the upload failed
        why = " ".join(str(error).split()) or type(error).__name__
        cure = f"{folder} is whole: cure that and run `hf upload {repository} {folder}`"
        raise RedraftError(f"--push: {repository} was not uploaded: {why[:300]}. {cure}") from error
    return str(address)
