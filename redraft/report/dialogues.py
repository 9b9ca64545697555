"""Dialogues for people: what the model answered to the same test tasks before and after training, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from learner.transcripts.store import FOLDER
from learner.transcripts.transcript import ERROR, RIGHT, WRONG
from protocols.evaluation import EvaluationLine
from redraft import records

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN = 8  # tasks on a page
TURNS = 8  # of an episode: many actions are not read to their end
LONGEST = 600  # characters of a message
SAYS = {RIGHT: "right", WRONG: "wrong", ERROR: "error"}
QUESTION, ANSWER, FOLLOWING = "Redraft asks this", "Redraft hears that", "Redraft says more"


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `who` is the role of the turn, or "" for the environment; `mark` is that of a transcript."""

    who: str
    text: str
    mark: str = ""
    reward: float | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """One test task: its question, and what followed it before and after training."""

    question: str
    before: Sequence[Message]
    after: Sequence[Message]

    def ended(self) -> tuple[str, str]:
        """The marks of the last answers, before and after."""
        before, after = ([m.mark for m in side if m.mark in (RIGHT, WRONG)] for side in (self.before, self.after))
        return (before or [""])[-1], (after or [""])[-1]


def pairs(run_dir: Path) -> list[Pair]:
    """The tasks that a run's evaluations before and after training keep, in their order; none where one is missing.

    Tasks are kept at a fixed stride, whatever was answered, so the first few are a fair sample.
    """
    evaluations = records.evaluations(run_dir)
    first, last = evaluations.first, evaluations.last
    if first is None or last is None:
        return []
    before, after = (_kept(run_dir, line) for line in (first, last))
    both = [task for task in before if task in after]
    speller = _speller(run_dir) if both else None
    return [_pair(speller, before[task], after[task]) for task in both] if speller else []


def _kept(run_dir: Path, evaluation: EvaluationLine) -> dict[str, list[dict]]:
    """The turns of each task that an evaluation keeps."""
    lines = records.lines(run_dir / FOLDER / f"{evaluation.label}-{evaluation.step:06d}.jsonl")
    return {line["task"]: line["turns"] for line in lines if line.get("turns")}


def _speller(run_dir: Path) -> Speller | None:
    from learner import checkpoint

    newest = checkpoint.newest(run_dir)
    folders = [Path(str(records.json_object(run_dir / "run.json").get("model", ""))), newest and newest / "model"]
    folder = next((folder for folder in folders if folder and (folder / "tokenizer.json").exists()), None)
    return Speller(folder) if folder else None


class Speller:
    """Reads messages out of token ids, by the tokenizer and the chat template of a model's folder."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._opening = self._between = self._end = ""
        if self._tokenizer.chat_template:
            told = [{"role": "user", "content": QUESTION}]
            self._opening, _, self._end = self._rendered(told).partition(QUESTION)
            told += [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": FOLLOWING}]
            self._between = self._rendered(told).partition(ANSWER)[2].partition(FOLLOWING)[0]

    def asked(self, prompt: Sequence[int], first: bool) -> str:
        """What the user's message of a prompt says; the whole prompt where another template made it."""
        text = self._decoded(prompt).removesuffix(self._end)
        around = self._opening if first else self._between
        starts = (
            around[n:] for n in range(len(around)) if text.startswith(around[n:])
        )  # the end token may be left out
        return text.removeprefix(next(starts, "")).strip()

    def answered(self, response: Sequence[int]) -> str:
        """What a response says, without its end token."""
        ends = {self._tokenizer.eos_token_id, *self._tokenizer.encode(self._between, add_special_tokens=False)[:1]}
        return self._decoded(response[:-1] if response and response[-1] in ends else response).strip()

    def _rendered(self, messages: list[dict]) -> str:
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _decoded(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _pair(speller: Speller, before: Sequence[dict], after: Sequence[dict]) -> Pair:
    question = speller.asked(before[0]["prompt"], first=True)
    return Pair(question, _messages(speller, before), _messages(speller, after))


def _messages(speller: Speller, turns: Sequence[dict]) -> list[Message]:
    """The messages after the question, of the first episode."""
    found: list[Message] = []
    for turn in [turn for turn in turns if turn["episode"] == turns[0]["episode"]][:TURNS]:
        if found and (said := speller.asked(turn["prompt"], first=turn["parent"] < 0)):
            found.append(Message("", said))
        answer, cut = speller.answered(turn["response"]), turn["stop"] == "length"
        found.append(Message(turn["role"], answer, turn["mark"], turn["reward"], cut))
    return found


def section(found: Sequence[Pair], after: str) -> str:
    """HTML of the first few pairs; "" where there are none. `after` is what the later evaluation is called."""
    if not found:
        return ""
    shown = "".join(_article(pair, after) for pair in found[:SHOWN])
    how = (
        f"{len(found[:SHOWN])} test tasks at a fixed stride, whatever came of them; <code>redraft view</code> has more."
    )
    return f'<section><h2>Answers</h2><p class="how">{how}</p>{shown}</section>'


def _article(pair: Pair, after: str) -> str:
    sides = "".join(
        f"<div><h4>{escape(name)}</h4>{''.join(_shown(message) for message in side)}</div>"
        for name, side in (("before", pair.before), (after, pair.after))
    )
    return f'<article><h3>{escape(_short(pair.question))}</h3><div class="sides">{sides}</div></article>'


def _shown(message: Message) -> str:
    kind = f"said {_said(message)}".strip() if message.who else "heard"
    return f'<p class="{kind}">{escape(_short(message.text) + _verdict(message))}</p>'


def _verdict(message: Message) -> str:
    told = [part for part in (_said(message), "cut" if message.cut else "") if part]
    return f" [{', '.join(told)}]" if told else ""


def _said(message: Message) -> str:
    """ "right" or "wrong", where the message is an answer that was scored."""
    return SAYS.get(message.mark, "")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def example(found: Sequence[Pair]) -> RenderableType | None:
    """One dialogue before and after, for the terminal: the first whose last answer came right, if any did."""
    if not found:
        return None
    from rich import box
    from rich.table import Table
    from rich.text import Text

    came = [pair for pair in found if pair.ended() == (WRONG, RIGHT)]
    went = sum(pair.ended() == (RIGHT, WRONG) for pair in found)
    told = (
        f"of {len(found)} test tasks that are kept the last answer came right in {len(came)} and went wrong in {went}"
    )
    pair = (came or found)[0]
    question = Text(_short(pair.question))  # a plain string would be read as markup
    drawn = Table(title=question, title_justify="left", box=box.SIMPLE_HEAD, caption=told, expand=True)
    drawn.caption_justify = "left"
    for name in ("before", "after"):
        drawn.add_column(name, ratio=1, overflow="fold")
    drawn.add_row(*(Text("\n").join(_line(message) for message in side) for side in (pair.before, pair.after)))
    return drawn


def _line(message: Message):
    from rich.text import Text

    style = {"right": "green", "wrong": "red"}.get(_said(message), "") if message.who else "dim"
    return Text(_short(message.text) + _verdict(message), style=style)
