"""Environments for tests of runs that cannot learn."""

from actors.environments.base import OneAnswer, Verdict


class Wall(OneAnswer):
    """Whatever is said is no answer."""

    right, wrong = "yes!", "no."

    @classmethod
    def tasks(cls, data, split):
        return [{"id": f"{split}/{n}", "question": f"{split} {n}"} for n in range({"train": 64, "test": 8}[split])]

    def question(self, task):
        return f"{task['question']}\n"

    def judge(self, task, text):
        return Verdict(0.0)

    def demonstrations(self, rng, count, turns):
        return [[("train 0123456789 test\n", False), ("a", True)]] * count


class Judged(Wall):
    """Its judge is down."""

    def judge(self, task, text):
        raise ConnectionError("the judge at 10.0.0.7 refuses connections")
