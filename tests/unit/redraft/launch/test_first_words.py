"""A command speaks before it works, and says at its end how to go on."""

import json
import subprocess
import sys

from support.places import RECIPES, ROOT
from support.run_house import ENVIRONMENT
from support.waiting import deadline_s

from redraft.launch.train import next_commands
from redraft.run import Run

HEAVY = ("torch", "transformers", "ray", "vllm", "deepspeed", "matplotlib")
FIRST = """
import sys
from pathlib import Path
from rich.console import Console
from redraft import recipe
from redraft.launch.train import train

class Heard(Console):
    def print(self, *said, **how):
        import json
        print(json.dumps({"said": str(said[0]), "modules": sorted(sys.modules)}))
        raise SystemExit

train(recipe.load(Path(sys.argv[1])), None, False, False, Path("cache"), Heard())
"""


def test_the_first_word_comes_before_anything_that_takes_seconds_to_import(tmp_path):
    command = [sys.executable, "-c", FIRST, str(RECIPES / "quickstart.yaml")]
    answer = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=deadline_s(120), env=ENVIRONMENT
    )
    heard = json.loads(answer.stdout)
    assert "quickstart trains 160 steps on signs" in heard["said"]
    assert not set(HEAVY) & set(heard["modules"])
    assert not list(tmp_path.iterdir()), "and before anything is written"


def test_a_run_that_is_done_names_the_next_commands_as_they_are_typed_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path / "runs" / "mine", "id", "model")
    run.folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv" / "bin" / "redraft"), "train"])
    commands = [line.split("  ")[1] for line in next_commands(run)]
    assert commands == [".venv/bin/redraft view mine", ".venv/bin/redraft report mine"], "there is nothing to chat with"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "redraft" / "__main__.py"), "train"])
    assert next_commands(run)[0].split("  ")[1] == "python -m redraft view mine"
