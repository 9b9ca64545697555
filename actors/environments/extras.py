"""Packages that only some environments need: what is missing is said with the extra that brings it."""

from __future__ import annotations

from importlib.util import find_spec

from protocols.errors import SettingError


def need(environment: str, package: str) -> None:
    """Raises SettingError where `package`, which the extra called like the environment brings, is not installed."""
    if find_spec(package) is None:
        cure = f"pip install 'redraft[{environment}]', on every node"
        raise SettingError("environment.name", f"{environment} needs the package {package}", cure)
