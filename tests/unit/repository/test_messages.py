"""What people read when something is wrong: every message of the source, and every class of error, read and checked."""

from __future__ import annotations

import ast
import importlib
import pickle
from collections.abc import Iterator

import pytest
from support.places import ROOT

from actors.engines.teacher import TeacherBudget
from protocols.errors import DeadlineError, RedraftError, SettingError, in_a_line
from redraft.control import cluster  # noqa: F401  sets what Ray reads when it is imported
from redraft.control.faults import of_a_call
from redraft.recipe_errors import RecipeError

from ray.exceptions import ActorDiedError, RayTaskError  # isort: skip

PACKAGES = ("actors", "learner", "protocols", "redraft", "replay")
WORDED = "\N{BULLET}"  # stands where a message takes in a value
SAYS_WHAT_MAY_BE = ("must be", "should be", "(found ")
"""In the place of a cure. Pydantic's own words are followed by what was found."""


def classes() -> set[type[RedraftError]]:
    """All kinds of error that the packages define at their modules' tops."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if "Error)" in file.read_text() or "Budget(" in file.read_text():
                importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    found: set[type[RedraftError]] = set()
    waiting: list[type[RedraftError]] = [RedraftError]
    while waiting:
        found.add(one := waiting.pop())
        waiting += one.__subclasses__()
    return {kind for kind in found if kind.__module__.partition(".")[0] in PACKAGES}  # Ray derives some, too


def messages() -> Iterator[tuple[str, str, list[str | None]]]:
    """Where each error is made, of which kind, and its texts; None for one that is worded elsewhere."""
    kinds = {kind.__name__ for kind in classes()}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for call in ast.walk(ast.parse(file.read_text())):
                name = getattr(call.func, "id", getattr(call.func, "attr", "")) if isinstance(call, ast.Call) else ""
                if isinstance(call, ast.Call) and name in kinds:
                    yield f"{file.relative_to(ROOT)}:{call.lineno}", name, [_text(one) for one in call.args]


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else WORDED for one in node.values)
    if isinstance(node, ast.BinOp):
        return (_text(node.left) or WORDED) + (_text(node.right) or WORDED)
    return None


ALL = list(messages())


def test_every_mistake_of_a_person_has_a_setting_a_problem_and_a_cure():
    without = []
    for place, kind, texts in ALL:
        if kind != "SettingError" or len(texts) < 2:  # a tuple that a function has worded
            continue
        problem = texts[1]
        says = problem is None or not any(sign.isalpha() for sign in problem)
        if len(texts) < 3 and not says and not any(words in str(problem) for words in SAYS_WHAT_MAY_BE):
            without.append((place, problem))
    assert len(ALL) > 300 and not without


def test_messages_are_one_line_of_plain_grammar():
    wrong = []
    for place, kind, texts in ALL:
        for number, text in enumerate(texts):
            if text is None or (kind == "SettingError" and number == 0):
                continue
            ends = kind != "SettingError" or number == 2
            odd = "\n" in text or "  " in text or text != text.strip() or text.endswith((":", ",", ".."))
            dot = text.endswith(".") and not (ends and kind != "SettingError")
            first = text.split()[0]
            upper = kind == "SettingError" and number == 1 and first[0].isupper() and not first.isupper()
            upper = upper and "_" not in first and first not in ("Ray", "Java")
            lower = kind == "SettingError" and number == 2 and not (first[0].isupper() or first[0] in f"`{WORDED}")
            if odd or dot or upper or lower:
                wrong.append((place, text))
    assert not wrong


def test_every_class_of_error_is_one_line_and_crosses_processes_whole():
    given = {
        SettingError: ("learner.batch_groups", "is too large", "Set it to 8"),
        DeadlineError: ("the learner", "replay", 30.0, "it is silent"),
        TeacherBudget: (7, 7),
        RecipeError: ((SettingError("steps", "is missing", "Add it"),),),
    }
    for kind in classes():
        arguments = next((given[base] for base in kind.__mro__ if base in given), ("what is wrong. What to do",))
        error = kind(*arguments)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error) and str(error).strip()
        if kind is not RecipeError:  # a line for each mistake
            assert "\n" not in str(error)
    said = str(SettingError("learner.batch_groups", "is too large", "Set it to 8"))
    assert said == "learner.batch_groups: is too large. Set it to 8"


def failed(cause: BaseException | None, text: str = "") -> Exception:
    try:
        raise TimeoutError(text) from cause
    except TimeoutError as error:
        return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (failed(None), "TimeoutError"),
        (failed(KeyError("turns")), "TimeoutError, caused by KeyError: 'turns'"),
        (failed(failed(ValueError())), "TimeoutError, caused by TimeoutError, caused by ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (AssertionError("a\n  b"), "a b"),
        (SettingError("steps", "is 0", "Set it"), "steps: is 0. Set it"),
        (FileNotFoundError(2, "No such file or directory", "x"), "[Errno 2] No such file or directory: 'x'"),
    ],
)
def test_an_error_keeps_its_cause_where_it_says_nothing_itself(error, said):
    assert in_a_line(error) == said


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (SettingError("steps", "is 0", "Set it"), "steps: is 0. Set it"),
        (TimeoutError(), "TimeoutError"),
        (SystemExit(), "SystemExit"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_why_a_call_of_a_part_failed_is_never_nothing(cause, said):
    assert of_a_call(RayTaskError("f", "Traceback\nlast", cause)) == said
    trace = f"Traceback\n  File\n{type(cause).__module__}.{said}"
    died = of_a_call(ActorDiedError(RayTaskError("f", trace, cause)))
    assert died.endswith(said) and "\n" not in died
    assert of_a_call(ActorDiedError()) == "The actor died unexpectedly before finishing this task."
