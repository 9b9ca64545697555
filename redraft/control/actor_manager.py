"""RLlib's FaultTolerantActorManager, without the rest of RLlib.

Its package imports torch, pandas and Ray Tune, of which the manager needs nothing: seconds, and hundreds of megabytes,
of each controller that starts, also of one that takes the place of another.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

PACKAGES = ("ray.rllib", "ray.rllib.utils")


def manager_class() -> type[FaultTolerantActorManager]:
    """The class, out of its own file; where RLlib is imported already, its own."""
    missing = [package for package in PACKAGES if package not in sys.modules]
    for package in missing:
        empty = ModuleType(package)
        empty.__path__ = [str(Path(ray.__file__).parents[1].joinpath(*package.split(".")))]
        sys.modules[package] = empty
    try:
        return importlib.import_module("ray.rllib.utils.actor_manager").FaultTolerantActorManager
    finally:
        for package in missing:  # who imports RLlib later gets all of it
            del sys.modules[package]
