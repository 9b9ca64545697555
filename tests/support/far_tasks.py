"""An environment whose tasks are called as files elsewhere are."""

from benchmarks.chaos_environment import SlowCoins

NAME = "redraft-was-here"


class FarCoins(SlowCoins):
    """No task may be found under its name."""

    @classmethod
    def tasks(cls, data, split):
        ways = ("../../..", "..", "/tmp", "a/../../../../..")
        return [
            task | {"id": f"{ways[number % len(ways)]}/{NAME}/{task['id']}"}
            for number, task in enumerate(super().tasks(data, split))
        ]
