"""Links between files of the repository lead to pages of the site, and one that leads nowhere ends the build."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="the site needs mkdocs: make setup")

from mkdocs.exceptions import PluginError

from tools import site


def turned(markdown: str, page: str) -> str:
    return site.on_page_markdown(markdown, SimpleNamespace(file=SimpleNamespace(src_uri=page)), None, None)


@pytest.mark.parametrize(
    ("page", "link", "there"),
    [
        ("methods.md", "../README.md#write-an-environment", "index.md#write-an-environment"),
        ("methods.md", "../recipes/quickstart.yaml", "recipes/quickstart.yaml.md"),
        ("methods.md", "results.md", "results.md"),
        ("tutorials/one-gpu.md", "../operations.md#alerts", "../operations.md#alerts"),
        ("tutorials/first-run.md", "../../CONTRIBUTING.md", "../contributing.md"),
        ("index.md", "docs/images/quickstart.png", "images/quickstart.png"),
        ("contributing.md", "docs/tutorials/my-method.md", "tutorials/my-method.md"),
        ("index.md", "https://arxiv.org/abs/2402.03300", "https://arxiv.org/abs/2402.03300"),
        ("methods.md", "#environments", "#environments"),
    ],
)
def test_a_link_between_files_becomes_one_between_pages(page: str, link: str, there: str):
    assert turned(f"see [it]({link}), or not", page) == f"see [it]({there}), or not"


def test_code_is_left_as_it_is():
    code = "```markdown\n[a](nowhere.md)\n```\n"
    assert turned(code, "methods.md") == code


def test_a_link_to_what_is_not_there_ends_the_build_and_names_the_page():
    with pytest.raises(PluginError, match=r"docs/methods\.md links to nowhere\.md"):
        turned("[a](nowhere.md)", "methods.md")
