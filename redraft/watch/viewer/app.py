"""The viewer's service: two answers in JSON, and the page with its style and script. It changes nothing."""

from __future__ import annotations

import math
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from learner import checkpoint
from redraft.run import Run
from redraft.watch.viewer.guard import Guard
from redraft.watch.viewer.index import FILTERS, Entry, Index
from redraft.watch.viewer.words import Words

STATIC = Path(__file__).parent / "static"
PAGE = 50  # groups
LARGEST = 10**9  # of a number in an address


def application(run: Run, token: str | None, host: str = "localhost") -> Starlette:
    """The service of one run at `host`, for requests that Guard lets through."""
    newest = checkpoint.newest(run.folder)  # also where the run was copied from elsewhere
    words = Words([Path(run.model), *([newest / checkpoint.MODEL] if newest else [])])
    index = Index(run.folder)

    def groups(request: Request) -> JSONResponse:
        return JSONResponse(_groups(index, run.name, words.problem, request.query_params))

    def group(request: Request) -> JSONResponse:
        found = index.group(request.query_params.get("key", ""))
        if found is None:
            return JSONResponse({"problem": "This group is not kept any more."}, 404)
        for turn in found["turns"]:
            _spell(turn, words)
        return JSONResponse(found)

    def page(request: Request) -> FileResponse:
        return FileResponse(STATIC / "index.html")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/groups", groups),
            Route("/api/group", group),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, token=token, host=host)],
    )


def _groups(index: Index, name: str, problem: str, asked) -> dict:
    """One page of the groups that are asked for."""
    kind = asked.get("kind", "all")
    last = _number(asked.get("last"), LARGEST)
    found = index.find(
        kind if kind in FILTERS else "all",
        asked.get("label", ""),
        _number(asked.get("first"), 0),
        last,
        asked.get("task", ""),
    )
    pages = max(1, math.ceil(len(found) / PAGE))
    number = min(_number(asked.get("page"), 0), pages - 1)
    return {
        "run": name,
        "problem": problem,
        "labels": index.labels(),
        "kept": len(index.entries()),
        "total": len(found),
        "page": number,
        "pages": pages,
        "groups": [_listed(entry) for entry in found[number * PAGE : (number + 1) * PAGE]],
    }


def _listed(entry: Entry) -> dict:
    return {"key": entry.key} | entry.head


def _number(text: str | None, otherwise: int) -> int:
    """A number that a person typed into a filter; what is none counts as not given."""
    return min(int(text), LARGEST) if text and text.isascii() and text.isdigit() and len(text) < 10 else otherwise


def _spell(turn: dict, words: Words) -> None:
    """Adds the text of the tokens of a turn, and which of them are special."""
    for part in ("prompt", "response"):
        turn[f"{part}_words"] = words.spell(turn[part])
        turn[f"{part}_special"] = words.special(turn[part])
