"""`words`: one short sentence that holds the given words. Easy to read, and within reach of a model of 135M parameters.

    Make one short and simple sentence with the words river and lamp.                               question
    The river flows through the valley.                                                             answer
    The word lamp is missing. Make one short and simple sentence with the words river and lamp.     feedback `residual`
    The lamp lit the river.                                                                         next answer
    That is right. Write the same sentence again.

Words count as they are given ("lamps" is not "lamp"), in any case of letters. Train and test have no word in common, so
that tests ask for words that no training task has named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from actors.config import DataSettings
from actors.environments.base import Cut, OneAnswer, Verdict
from actors.environments.files import held_out
from protocols.errors import SettingError

LONGEST = 25  # words of a sentence
MOST = 5  # words that a task holds, since tasks do not know the options; a question asks for the first few of them
PARTIAL = 0.3  # for all words, without being one short sentence; less for fewer
SIZES = {"train": 4000, "test": 500}
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
END = re.compile(r"[.!?…]+[\"'”’)]*(?=\s|$)")

KNOWN = """
apple apron arrow attic axe baby bag baker ball balloon banana band bank barn barrel basket bath beach bean bear beard
bed bee bell bench berry bicycle bird biscuit blanket boat bone book boot bottle bowl box boy branch bread brick bride
bridge broom brother brush bucket bus bush butcher butter button cabin cake camel camera camp candle canoe cap car
card carpet carrot cart castle cat cave ceiling chair chalk cheese cherry chest chicken child chimney church circle
city clock cloth cloud coat coffee coin comb cook corn corner cottage cow crab cream crowd crown cup curtain dancer
daughter desert desk diamond dinner dish doctor dog doll donkey door dragon dream dress driver drum duck eagle ear egg
elephant engine evening eye farm farmer father feather fence field finger fire fish flag floor flower flute fly forest
fork fox friend frog fruit garden gate ghost giant gift girl glass glove goat gold goose grandmother grape grass guest
guitar hammer hand harbor hat hen hill honey hook horse hotel house hunter ice island jacket jar jewel judge juice
kettle key king kitchen kite kitten knife ladder lake lamb lamp leaf leather lemon letter library lion lizard map
market mask meadow meal meat milk mill mirror money monkey moon morning mother mountain mouse mud museum mushroom
music nail neck needle nest net night nose nurse nut oak ocean onion orange orchard oven owl painter palace pan paper
parrot path peach pear pen pencil pepper piano picnic picture pie pig pillow pilot pirate plane plant plate pocket
poem pond pony pot potato prince puppy queen rabbit radio rain rat ribbon rice ring river road robe robot rock roof
room rope rose sailor salt sand school scissors seed shadow sheep shell ship shirt shoe shop shore shovel sister sky
smoke snail snake snow soap soldier song soup spider spoon spring star stone stool storm stove stranger straw street
string sugar suitcase summer sun swan table tailor tea teacher tent thief thread tiger tomato tower town toy train
tree truck tunnel turtle uncle valley village violin wagon wall watch water whale wheat wheel wind window wine winter
witch wolf wood wool yard
""".split()  # common nouns


@cache
def _made(split: str, size: int) -> tuple[dict, ...]:
    """Tasks whose first two words, in their order, are of no other task."""
    words = [word for word in KNOWN if held_out(f"words/{word}") == (split == "test")]
    rng = np.random.Generator(np.random.Philox(("train", "test").index(split)))
    found: dict[tuple[str, str], dict] = {}
    while len(found) < size:
        chosen = [words[n] for n in rng.choice(len(words), MOST, replace=False)]
        found.setdefault((chosen[0], chosen[1]), {"id": f"words/{split}/{len(found)}", "words": chosen})
    return tuple(found.values())


def is_one_sentence(text: str) -> bool:
    """Whether a text ends as a sentence does and nowhere before."""
    ends = [found.end() for found in END.finditer(text)]
    return ends == [len(text)] and "\n" not in text


class Words(OneAnswer):
    """Reward 1 for one sentence of at most 25 words that holds the `words` given ones, else .3 of the share of them
    that it holds, and -1 for no word at all. A sentence that was cut is not a whole one."""

    blocking = False

    feedbacks = ("residual", "binary", "blank")
    right = "That is right. Write the same sentence again."
    wrong = "That is not right."

    def __init__(self, feedback: str = "binary", words: int = 2):
        super().__init__(feedback)
        if not 1 <= words <= MOST:
            raise SettingError("environment.options.words", f"must be from 1 to {MOST}, got {words}")
        self._count = words

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> tuple[dict, ...]:
        size = data.train_size if split == "train" else data.test_size
        return _made(split, size or SIZES[split])

    def question(self, task: dict) -> str:
        given = task["words"][: self._count]
        return f"Make one short and simple sentence with the {_listed(given)}."

    def judge(self, task: dict, text: str) -> Verdict:
        said = [word.lower() for word in WORD.findall(text)]
        self._lacks = [word for word in task["words"][: self._count] if word not in said]
        self._problem = _problem(text, said)
        if not said:
            return Verdict(-1.0)
        share = 1 - len(self._lacks) / self._count
        right = not self._lacks and not self._problem
        return Verdict(1.0 if right else PARTIAL * share, " ".join(text.split()).lower())

    def say(self, verdict: Verdict) -> str:
        if self.feedback != "residual" or verdict.success:
            return super().say(verdict)
        problem = self._problem
        if self._lacks:
            problem = f"The {_listed(self._lacks)} {'is' if len(self._lacks) == 1 else 'are'} missing."
        return f"{problem} {self.question(self.task)}"


def _listed(words: Sequence[str]) -> str:
    """ "word a", "words a and b", "words a, b and c"."""
    *most, last = words
    return f"words {', '.join(most)} and {last}" if most else f"word {last}"


def _problem(text: str, said: list[str]) -> str:
    """What keeps a text from being one short sentence, as it is told to the model; empty where nothing does."""
    if isinstance(text, Cut) or len(said) > LONGEST:
        return "That is too long."
    return "" if is_one_sentence(text.strip()) else "That is not one sentence."
