"""Marks tests of environments whose package is an extra, which `make setup` does not install."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def brings(extra: str) -> pytest.MarkDecorator:
    """Skips a test where the extra is not installed, also with CI=true: a long proof plays it there, see
    tests/integration/test_extras.py."""
    missing = find_spec(extra.replace("-", "_")) is None
    return pytest.mark.skipif(missing, reason=f"an extra: pip install 'redraft[{extra}]', or make prove")
