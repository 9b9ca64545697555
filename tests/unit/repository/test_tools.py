"""The scripts in tools/ do what they say."""

import shutil
import subprocess

from support.places import ROOT
from support.waiting import deadline_s


def debian(*pairs: str, path: str) -> subprocess.CompletedProcess:
    bash = shutil.which("bash")
    command = [bash, "tools/debian.sh", *pairs]
    return subprocess.run(command, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, timeout=deadline_s(30))


def test_where_debian_packages_cannot_be_installed_the_tests_still_begin(tmp_path):
    answer = debian("promtool=prometheus", "chromium=chromium", path=str(tmp_path))
    assert answer.returncode == 0
    assert "prometheus chromium cannot be installed here (no apt-get)" in answer.stderr


def test_nothing_is_installed_for_a_command_that_is_there(tmp_path):
    (tmp_path / "promtool").write_text("")
    (tmp_path / "promtool").chmod(0o755)
    answer = debian("promtool=prometheus", path=str(tmp_path))
    assert answer.returncode == 0 and not answer.stdout + answer.stderr
