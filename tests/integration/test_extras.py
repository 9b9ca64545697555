"""Environments whose packages are extras: installed beside the pins, in an environment of their own, and played."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from support.places import PYTHONPATH, ROOT
from support.waiting import deadline_s

EXTRAS = ("reasoning-gym", "textarena")
PLAYED = [ROOT / "tests/unit/actors" / f"test_{extra.replace('-', '_')}.py" for extra in EXTRAS]


@pytest.mark.prove
@pytest.mark.compiler
def test_the_extras_install_beside_the_pins_and_each_plays_its_episodes(tmp_path: Path):
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "own"], check=True)
    python = tmp_path / "own" / "bin" / "python"
    [packages] = (tmp_path / "own").glob("lib/python*/site-packages")
    (packages / "pinned.pth").write_text(sysconfig.get_path("purelib"))
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "requirements/cpu.txt"]
    subprocess.run([*install, *(one for extra in EXTRAS for one in wanted[extra])], check=True, timeout=deadline_s(300))
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *PLAYED]
    played = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=deadline_s(600),
    )
    assert played.returncode == 0 and "skipped" not in played.stdout, played.stdout[-3000:]
