"""While a run starts it says for which parts it waits, and what each actor among them lacks."""

from support.places import RECIPES

from actors.actor import Report
from redraft import recipe
from redraft.control.fleet import Member
from redraft.control.status import Status
from redraft.run import Run


def test_an_actor_lacks_one_thing_after_the_other_until_it_is_ready():
    member = Member("actor-0", None, 0.0, 0.0, waiting=True)
    found = [member.lacks]
    member.waiting = False
    found.append(member.lacks)
    starting = Report("starting", pid=7), Report("starting", pid=7, phase="compiling")
    for report in (*starting, Report("ready", pid=7), Report("ready", pid=7, version=0)):
        member.report = report
        found.append(member.lacks)
    assert found == ["resources", "process", "engine", "engine (compiling)", "weights", ""]


def test_the_first_few_of_many_missing_parts_are_named_and_the_rest_counted(tmp_path):
    status = Status(Run(tmp_path, "id", "model"), recipe.load(RECIPES / "quickstart.yaml"))
    status.missing(["learner rank 0", "actor-0: engine"])
    assert status.snapshot().detail == "waiting for learner rank 0, actor-0: engine"
    status.missing([f"actor-{n}: engine" for n in range(64)])
    assert status.snapshot().detail.endswith("actor-3: engine and 60 more")
    status.missing([])
    assert status.snapshot().detail == ""
