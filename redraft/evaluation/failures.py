"""A dataset of failures: for each training task, one wrong answer of the model, for reflections to begin from.

Each task is tried up to `attempts` times, until one answer is wrong (arXiv 2505.24726). The file has a line a failure:
the task, with the token ids of the wrong answer as `attempt`, and the digest of their tokenizer as `tokenizer`. Name it
as `data.failures` in a recipe whose rollout is `reflect`: its groups then are reflections on these very answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from actors.rollout_config import AttemptSettings
from protocols import strict_json
from protocols.errors import SettingError
from protocols.turns import Role, Turn
from redraft.evaluation.measures import Pass

Play = Callable[[Sequence[dict]], Sequence[Sequence[Turn]]]
LABEL = "attempts"


def passes(recipe) -> list[Pass]:
    """One answer a task, as the recipe samples them."""
    return [Pass(LABEL, AttemptSettings(system=recipe.rollout.system), recipe.sampling)]


def collect(tasks: Sequence[dict], attempts: int, play: Play) -> list[dict]:
    """The failures of `tasks` in their order; `play` answers each of the given tasks once."""
    failed: dict[str, dict] = {}
    left = list(tasks)
    for _ in range(attempts):
        answers = [(task, turns[0]) for task, turns in zip(left, play(left), strict=True)]
        wrong = [(task, turn) for task, turn in answers if turn.role is not Role.ERROR and not turn.extra["success"]]
        failed |= {task["id"]: task | {"attempt": turn.response.tolist()} for task, turn in wrong}
        left = [task for task in left if task["id"] not in failed]
        if not left:
            break
    return [failed[task["id"]] for task in tasks if task["id"] in failed]


def write(failures: Sequence[dict], model: Path, file: Path) -> None:
    """Writes the failures of the model in that folder."""
    named = {"tokenizer": tokenizer_digest(model)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(strict_json.dumps(failure | named) + "\n" for failure in failures), encoding="ascii")


def check(failures: Sequence[dict], model: Path) -> None:
    """Raises SettingError where the ids of the failures are not those of this model's tokenizer."""
    own = tokenizer_digest(model)
    if any(failure.get("tokenizer") != own for failure in failures):
        cure = "Collect them anew with this model: redraft failures RECIPE FILE"
        raise SettingError("data.failures", "their answers were written with another tokenizer", cure)


def tokenizer_digest(model: Path) -> str:
    """Differs where an id stands for another token."""
    from transformers import AutoTokenizer

    vocabulary = sorted(AutoTokenizer.from_pretrained(str(model), trust_remote_code=False).get_vocab().items())
    return hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=8).hexdigest()
