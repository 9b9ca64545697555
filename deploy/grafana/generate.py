"""Writes the dashboards: `python deploy/grafana/generate.py`; with --check only says whether they are up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import against
import hardware
import learning
import overview
import parts
from grafana_foundation_sdk.cog.encoder import JSONEncoder

FOLDER = Path(__file__).parent / "dashboards"
BOARDS = (
    overview.overview,
    overview.why_idle,
    learning.learning,
    hardware.hardware,
    parts.actors,
    parts.replay,
    parts.learner,
    against.against,
)


def generated() -> dict[Path, str]:
    """The text of each file."""
    boards = [make() for make in BOARDS]
    return {FOLDER / f"{made.uid}.json": json.dumps(made, cls=JSONEncoder, indent=1) + "\n" for made in boards}


def main() -> int:
    files = generated()
    if sys.argv[1:] != ["--check"]:
        for path, text in files.items():
            path.write_text(text)
        return 0
    found = {path: path.read_text() for path in FOLDER.glob("*.json")}
    stale = sorted(path.name for path in files.keys() | found.keys() if files.get(path) != found.get(path))
    if stale:
        print(f"not as generated: {', '.join(stale)}; run python deploy/grafana/generate.py", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
