"""Hooks of mkdocs: what lies outside docs/ becomes part of the site.

Pages are written for readers of the repository, so their links are paths in it. Here the README becomes the front page,
the other pages of the root their own, and each recipe or source file that a page links to a page that shows it. A link
to what does not exist ends the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
}
"""Pages of the repository's root, and where they are in the site."""
LINK = re.compile(
    r"^(?P<fence>`{3,})[^\n]*\n.*?^(?P=fence)[ ]*$|(?P<begin>\]\()(?P<to>[^)#\s]+)(?P<end>(?:#[^)\s]*)?\))",
    re.MULTILINE | re.DOTALL,
)
"""A link; or a block of code, which has none."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".toml": "toml"}


def on_files(files, config):
    """Adds the pages of the root, and one for each file that any page links to."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8")))
    shown = set()
    for file in list(files):
        if file.src_uri.endswith(".md"):
            links = (found["to"] for found in LINK.finditer(file.content_string) if found["to"])
            linked = [_resolved(link, file.src_uri) for link in links]
            shown |= {path for path in linked if path and path not in PAGES and not path.startswith("docs/")}
    for path in sorted(shown):
        files.append(File.generated(config, _uri(path), content=_listing(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages of the site."""

    def turned(found: re.Match) -> str:
        path = _resolved(found["to"], page.file.src_uri) if found["to"] else None
        if path is None:
            return found[0]
        relative = posixpath.relpath(_uri(path), posixpath.dirname(page.file.src_uri) or ".")
        return found["begin"] + relative + found["end"]

    return LINK.sub(turned, markdown)


def _resolved(link: str, uri: str) -> str | None:
    """The path in the repository that a link on a page leads to; None for an address elsewhere."""
    if "://" in link or link.startswith("mailto:"):
        return None
    own = next((path for path, at in PAGES.items() if at == uri), f"docs/{uri}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(own), link))
    if not (ROOT / path).is_file():
        raise PluginError(f"{own} links to {link}: there is no file {path}")
    return path


def _uri(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{path}.md"


def _listing(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text.rstrip()}\n````\n"
