"""A model of the Hugging Face Hub: fetched into its client's cache, or why that cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from protocols.errors import SettingError

log = logging.getLogger("redraft.models")
FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
ELSEWHERE = "or name a local folder"


def fetch(name: str, revision: str) -> Path:
    """The folder of the model in the client's cache. Raises SettingError saying why it cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=FILES))
    except Exception as error:  # the client raises many kinds; every one means that the model is not there
        log.info("the hub's client says: %s", error)
        problem, cure = _told(name, revision, error)
        raise SettingError("model.path", f"{name!r} is not a folder here, and {problem}", cure) from error


def _told(name: str, revision: str, error: Exception) -> tuple[str, str]:
    """What is wrong, and the cure."""
    from huggingface_hub import constants, errors, get_token

    kinds = [type(one) for one in _causes(error)]
    if issubclass(kinds[0], errors.HFValidationError):
        return "is no name of the hub", "Write ORGANISATION/MODEL, or the path of a folder that is there"
    if any(issubclass(kind, errors.OfflineModeIsEnabled) for kind in kinds) or constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE keeps the hub's client from fetching it", f"Unset HF_HUB_OFFLINE, {ELSEWHERE}"
    if issubclass(kinds[0], errors.GatedRepoError):
        asked = f"Ask for access on {constants.ENDPOINT}/{name}, then {LOG_IN}"
        return "the hub gives it only to those who were granted access", asked
    if issubclass(kinds[0], errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it", "Name one that it has"
    if issubclass(kinds[0], errors.RepositoryNotFoundError) or _status(error) == 401:
        known = "is private and not this token's to read" if get_token() else "is private, and there is no token"
        return (
            f"the hub has no such model, or it {known}",
            f"Correct its name, {ELSEWHERE}; where it is private, {LOG_IN}",
        )
    said = " ".join(str(error).split())
    if status := _status(error):
        return f"the hub answers with {status}: {said[:200]}", f"Try again later, {ELSEWHERE}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"it cannot be kept: {said[:200]}", "Set HF_HOME to a folder with room that this user may write"
    if any(issubclass(kind, errors.LocalEntryNotFoundError) for kind in kinds):
        return f"the hub cannot be reached ({constants.ENDPOINT})", f"See to the network or HTTPS_PROXY, {ELSEWHERE}"
    return f"cannot be fetched from the hub: {said[:200]}", f"Cure that, {ELSEWHERE}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """It, and what it was raised from."""
    known: BaseException | None = error
    while known is not None:
        yield known
        known = known.__cause__


def _status(error: BaseException) -> int | None:
    """The answer's, where there was one."""
    answers = (getattr(one, "response", None) for one in _causes(error))
    return next((answer.status_code for answer in answers if answer is not None), None)
