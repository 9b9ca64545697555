"""The pictures of Grafana's boards: drawn from the queries that the boards have, whatever is answered."""

from __future__ import annotations

import math

import pytest
from PIL import Image
from support.places import ROOT

from tools import boards

BOARDS = boards.load(ROOT / "deploy" / "grafana" / "dashboards")
LABELS = dict.fromkeys(("name", "state", "index", "phase"), "one")


@pytest.mark.parametrize("answers", [0, 9])
def test_a_board_is_drawn_from_its_own_queries_also_where_there_is_no_answer(tmp_path, answers):
    told = set()

    def asked(query: str, now: bool) -> list[boards.Series]:
        told.add((query, now))
        times = [100.0] if now else [float(second) for second in range(0, 100, 5)]
        return [(LABELS, [(at, math.sin(at + number)) for at in times]) for number in range(answers)]

    board = BOARDS["overview"]
    boards.Board(board, asked, 0.0, 100.0).save(tmp_path / "board.png")
    queries = {
        (target["expr"], panel["type"] == "stat") for panel in board["panels"] for target in panel.get("targets", ())
    }
    events = {(event["expr"], False) for event in board["annotations"]["list"]}
    assert told - events == queries and (events <= told or not answers)
    with Image.open(tmp_path / "board.png") as drawn:
        cells = [panel["gridPos"] for panel in board["panels"]]
        assert drawn.width == 24 * boards.CELL_PX
        assert drawn.height == max(cell["y"] + cell["h"] for cell in cells) * boards.ROW_PX
        assert (drawn.convert("L").getextrema()[1] > 150) and len(drawn.getcolors() or ()) <= boards.COLORS
    assert (tmp_path / "board.png").stat().st_size < 200_000


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.3456, "percentunit", "34.6%"),
        (1234.0, "none", "1.23k"),
        (2.5 * 2**30, "bytes", "2.5 GiB"),
        (0.012, "s", "12 ms"),
        (150.0, "s", "2.5 min"),
        (1.0e-6, "sci", "1e-06"),
        (0.0, "none", "0"),
    ],
)
def test_numbers_are_written_as_people_read_them(value, unit, text):
    assert boards.written(value, unit) == text


def test_every_board_has_its_picture_in_the_docs_and_the_page_shows_it():
    page = (ROOT / "docs" / "watching.md").read_text()
    for name in BOARDS:
        picture = ROOT / "docs" / "images" / f"board-{name}.png"
        assert picture.stat().st_size < 200_000 and f"images/{picture.name}" in page
