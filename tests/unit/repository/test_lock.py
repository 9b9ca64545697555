"""`make lock` writes what pip would install, and leaves out what comes from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.places import ROOT

from tools import lock

SPOKEN = """
import json, sys
arguments = sys.argv[1:]
report = arguments[arguments.index("--report") + 1]
within = open(arguments[arguments.index("--constraint") + 1]).read()
extras = arguments[-1].partition("[")[2].rstrip("]")
names = {"cpu,s3,test": CPU, "gpu,s3,test": GPU, "docs": DOCS}[extras]
items = [{"metadata": {"name": n, "version": v}} for n, v in names.items()]
json.dump({"install": items, "within": within}, open(report, "w"))
open(FOLDER + "/" + extras + ".within", "w").write(within)
"""


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A Python whose pip resolves to these sets, and keeps what it was held to in `<extras>.within`."""

    def speaks(cpu: dict, gpu: dict, docs: dict) -> None:
        sets = "".join(
            f"{name} = {json.dumps(found)}\n" for name, found in (("CPU", cpu), ("GPU", gpu), ("DOCS", docs))
        )
        (tmp_path / "pip.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{sets}{SPOKEN}")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return speaks


def test_each_list_holds_what_is_installed_from_it_and_the_others_follow_the_tested_one(pip, tmp_path):
    base = {"redraft": "1", "Ray_x": "2.1", "rich": "15.0"}
    pip(
        cpu=base | {"torch": "2.13.0+cpu", "torchvision": "0.28"},
        gpu=base | {"torch": "2.13.0", "nvidia-thing": "3"},
        docs=base | {"mkdocs": "1.6.1", "torch": "2.13.0", "nvidia-thing": "3"},
    )
    for kind in ("cpu", "gpu", "docs"):
        lock.write(kind, tmp_path)
    assert lock.pinned(tmp_path / "cpu.txt") == {"ray-x": "2.1", "rich": "15.0"}
    assert lock.pinned(tmp_path / "gpu.txt") == {"ray-x": "2.1", "rich": "15.0", "torch": "2.13.0", "nvidia-thing": "3"}
    assert lock.pinned(tmp_path / "docs.txt") == {"mkdocs": "1.6.1"}
    assert (tmp_path / "gpu,s3,test.within").read_text() == "rich==15.0\n", "what pyproject names, as it was tested"
    assert (tmp_path / "docs.within").read_text() == "ray-x==2.1\nrich==15.0\n"


def test_a_cpu_build_of_torch_never_becomes_a_pin_for_gpus(pip, tmp_path):
    pip(cpu={}, gpu={"torch": "2.13.0+cpu"}, docs={})
    (tmp_path / "cpu.txt").write_text("")
    with pytest.raises(SystemExit, match="CPU build of torch"):
        lock.write("gpu", tmp_path)
    assert not (tmp_path / "gpu.txt").exists()


def test_the_lists_begin_as_they_would_be_written():
    for kind, head in lock.HEADS.items():
        assert (ROOT / "requirements" / f"{kind}.txt").read_text().startswith(head)
