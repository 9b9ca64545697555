"""Pages: one HTML file each that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path


def write(path: Path, title: str, parts: Sequence[str]) -> None:
    """Writes the page whole or not at all. `parts` are HTML; empty ones are left out."""
    aside = path.with_name(f".{path.name}.tmp")
    body = "\n".join(part for part in parts if part)
    aside.write_text(PAGE.format(title=escape(title), style=CSS, body=body), encoding="utf-8")
    aside.rename(path)


def plots(drawn: Sequence[tuple[str, str, str]]) -> str:
    """Plots side by side: (title, SVG, how to read it)."""
    cards = "".join(
        f'<figure><h3>{escape(title)}</h3>{svg}<figcaption class="how">{escape(how)}</figcaption></figure>'
        for title, svg, how in drawn
    )
    return f'<div class="plots">{cards}</div>'


CSS = """
:root { --ink: #0f172a; --soft: #64748b; --line: #e2e8f0; --blue: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: #f8fafc; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 48px; }
header { overflow-wrap: anywhere; }
header, section { background: #fff; border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 24px; margin-bottom: 20px; overflow-x: auto; }
h1 { margin: 0 0 8px; font-size: 26px; }
h2 { margin: 0 0 10px; font-size: 18px; }
h3 { margin: 0 0 4px; font-size: 15px; }
.state { font-size: 13px; font-weight: 600; vertical-align: middle; margin-left: 8px;
  padding: 3px 10px; border-radius: 999px; background: #e2e8f0; color: #475569; }
.state.done { background: #dcfce7; color: #166534; } .state.failed { background: #fee2e2; color: #991b1b; }
.headline { margin: 0 0 8px; font-size: 20px; font-weight: 600; }
.lead { margin: 0 0 16px; color: var(--soft); max-width: 850px; }
.error { color: #991b1b; font-weight: 600; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(175px, 1fr)); gap: 10px 18px; margin: 0; }
dt { color: var(--soft); font-size: 12px; } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; font-weight: 600; }
thead th { color: var(--soft); font-size: 12px; font-weight: 600; }
td.meaning, thead th:last-child { text-align: left; color: var(--soft); white-space: normal; width: 40%; }
.plain thead th:last-child { text-align: right; width: auto; }
td.clear { font-weight: 700; } td.unclear { color: var(--soft); }
tr.part th { padding-top: 16px; color: var(--soft); font-size: 12px; text-align: left; }
.remark { margin: 12px 0 0; padding: 8px 14px; border-left: 3px solid #f59e0b; background: #fffbeb; }
.how { color: var(--soft); font-size: 13px; margin: 4px 0 10px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 26px 32px; }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
.compare table { margin-bottom: 24px; }
.compare thead th:nth-child(2) { text-align: left; } .compare thead th:last-child { text-align: right; width: auto; }
.compare th.run { vertical-align: top; white-space: normal; width: 30%; } .compare th .how { font-weight: 400; }
.compare td.figure { text-align: left; } .compare tr.first > * { border-top: 2px solid var(--line); }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 24px; margin-bottom: 18px; }
.sides h4 { margin: 0 0 4px; color: var(--soft); font-size: 12px; }
.sides p { margin: 0 0 6px; padding: 6px 12px; border-left: 3px solid var(--line); white-space: pre-wrap;
  overflow-wrap: anywhere; }
.sides .right { border-color: #16a34a; background: #f0fdf4; }
.sides .wrong { border-color: #dc2626; background: #fef2f2; }
.sides .heard { color: var(--soft); font-size: 13px; border-color: transparent; }
details summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: #f8fafc; border: 1px solid var(--line); border-radius: 8px;
  padding: 14px; font-size: 13px; }
@media (max-width: 640px) {
  main { padding: 12px 8px 24px; }
  header, section { padding: 14px 12px; }
  dl { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
  th, td { padding: 5px 8px; }
  td.meaning { white-space: nowrap; }
  .sides { grid-template-columns: 1fr; }
}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Redraft</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""
