"""The tasks of `scienceworld`: how many variations each has, and which are for what, without starting Java."""

from __future__ import annotations

from collections.abc import Iterable

from actors.environments.files import shuffled
from protocols.errors import SettingError

VARIATIONS = {
    "boil": 30,
    "melt": 30,
    "freeze": 30,
    "change-the-state-of-matter-of": 30,
    "use-thermometer": 540,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "find-animal": 300,
    "grow-plant": 126,
    "grow-fruit": 126,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "lifespan-longest-lived": 125,
    "lifespan-shortest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162,
    "mendelian-genetics-known-plant": 120,
    "mendelian-genetics-unknown-plant": 480,
}
"""Task -> how many variations it has."""
LEFT_OUT = ("grow-", "inclined-plane-", "mendelian-genetics-")
"""Beginnings of the seven tasks that AgentGym (arXiv 2406.04151), and so Agent-R, does not play."""


def variations(task: str, split: str) -> range:
    """The official split: half are for training ("train"), a quarter for choosing ("dev"), the rest are for testing."""
    total = VARIATIONS[task]
    quarter = total // 4
    first, last = {"train": (0, 2 * quarter), "dev": (2 * quarter, 3 * quarter), "test": (3 * quarter, total)}[split]
    return range(first, last)


def read(path: str | None, split: str) -> list[dict]:
    """The tasks of a split, so ordered that the first n hold every kind equally often while it has variations left.

    `path` says which kinds: None is all 30, "agentgym" the 23 of AgentGym, else names with commas between. Raises
    SettingError for an unknown one.
    """
    found = [(rank, task, variation) for task in _named(path) for rank, variation in enumerate(_mixed(task, split))]
    found.sort(key=lambda each: (each[0], shuffled(each[1])))
    return [{"id": f"scienceworld/{task}/{n}", "task": task, "variation": n} for _, task, n in found]


def _mixed(task: str, split: str) -> list[int]:
    return sorted(variations(task, split), key=lambda n: shuffled(f"{task}/{n}"))


def _named(path: str | None) -> Iterable[str]:
    if path is None:
        return VARIATIONS
    if path == "agentgym":
        return [task for task in VARIATIONS if not task.startswith(LEFT_OUT)]
    names = [name.strip() for name in path.split(",")]
    unknown = next((name for name in names if name not in VARIATIONS), None)
    if unknown is not None:
        cure = f"Use agentgym, or some of {', '.join(VARIATIONS)}, with commas between"
        raise SettingError("data.path", f"scienceworld has no task {unknown!r}", cure)
    return dict.fromkeys(names)
