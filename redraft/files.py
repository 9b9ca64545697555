"""Files that stay where others may be removed: hard links, which cost nothing, and copies where there are none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link(source: str | Path, target: str | Path) -> None:
    """The file that `source` is or points to, also at `target`. Raises FileNotFoundError where there is none."""
    source = Path(source).resolve()
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def link_folder(source: Path, target: Path) -> None:
    """The same for all files of a folder that holds no others."""
    target.mkdir()
    for file in source.iterdir():
        if file.is_file():
            link(file, target / file.name)
