"""What a run remembers and logs stays bounded, however long it goes on and whatever goes wrong in it."""

import logging

from support.places import ROOT

from actors import actor
from actors.door import EpisodeFailure
from redraft import recipe
from redraft.control import status
from redraft.run import Run

QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


def test_an_environment_that_words_each_failure_differently_is_logged_so_often_and_no_more(caplog):
    playing = actor.Actor(None, "actor-0", None)
    with caplog.at_level(logging.WARNING):
        for number in range(actor.CAUSES + 50):
            word = "".join(chr(ord("a") + number // 26**place % 26) for place in range(3))
            playing._note(EpisodeFailure("raised", f"task {word} cannot be played"))
    assert len(caplog.records) == actor.CAUSES


def test_failures_that_differ_in_their_numbers_alone_are_of_one_cause(caplog):
    playing = actor.Actor(None, "actor-0", None)
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            playing._note(EpisodeFailure("raised", f"Refused: the id {number} is not valid"))
            playing._note(EpisodeFailure("hung", f"no answer within {number} s"))
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(": ")[2].partition(";")[0] for text in said] == [
        "Refused: the id 0 is not valid",
        "no answer within 0 s",
    ]


def test_groups_that_are_abandoned_for_ever_new_causes_are_told_so_often_and_no_more(tmp_path, caplog):
    known = status.Status(Run(tmp_path, "id", "model"), recipe.load(QUICKSTART))
    with caplog.at_level(logging.WARNING):
        for number in range(status.CAUSES + 50):
            known.event(f"group abandoned: {number}", once=str(number))
        known.event("this is always told")
    assert len(caplog.records) == status.CAUSES + 1
