"""Environments for tests of whole runs, in which a coin decides: any model is right about half of the time."""

from actors.environments.base import OneAnswer, TextEnvironment, Verdict

LEVELS = 2
HEADS, FLIPS = 2, 4  # of a purse


def heads(text):
    """Whether the characters add up to an odd number."""
    return sum(map(ord, text)) % 2 == 1


def tasks_of(split):
    """Half of them are of level 0, half of 1."""
    sizes = {"train": 64, "test": 8}
    return [{"id": f"{split}/{n}", "number": n, "level": n % LEVELS} for n in range(sizes[split])]


class Coins(OneAnswer):
    """Heads is right."""

    right, wrong = "yes!", "no."

    @classmethod
    def tasks(cls, data, split):
        return tasks_of(split)

    def question(self, task):
        return f"coin {task['number']}\n"

    def judge(self, task, text):
        return Verdict(float(heads(text)), text)


class Purse(TextEnvironment):
    """Many actions: tails is refused, HEADS times heads is a success, and FLIPS actions end the episode."""

    @classmethod
    def tasks(cls, data, split):
        return tasks_of(split)

    def start(self, task):
        self._heads = 0
        return f"purse {task['number']}\n"

    def act(self, text):
        done = heads(text)
        self._heads += done
        success = self._heads == HEADS
        info = {"success": success, "answer": text, "refused": not done}
        return ("yes!" if done else "no."), float(success), success or len(self._actions) == FLIPS, False, info

    def revision(self, good, rng):
        return "again"  # tails

    def demonstrations(self, rng, count, turns):
        return [[("purse 0\n", False), ("a", True), ("yes!", False), ("c", True)]] * count
