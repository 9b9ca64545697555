"""All methods at equal numbers of sampled tokens, on three tasks: `signs`, `minicraft`, and `words` with a real model.

    python -m benchmarks.zoo [--quick] [METHOD...]

It is benchmarks.methods with a budget: each recipe's run ends with the step by which so many tokens were sampled for
it (`sampled_tokens`), whatever a step costs. A method that starts from another one has three quarters of the budget,
and that one a quarter. Not counted are the tokens of a teacher's training and of what is made before (experience,
tasks). Rows are those of benchmarks/results/methods.jsonl; a method and seed that has one is not trained again. At the
end the tables and the picture of docs/results.md are written from all rows (zoo_page.py). With --quick rows stay in the
folder.

Controls: what tells nothing (`blank` feedback, while training and while evaluating), no reflection and a fixed one
(played beside `reflect`), GRPO on the first answer, and the best and the majority of K independent answers, which cost
at least as many tokens as a dialogue.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml

from benchmarks.methods import LONG, METHODS, ROOT, Bench, Method, results, run, train

FOLDER = Path("runs/zoo")
STEPS = "steps=2000"  # more than any budget takes
BUDGETS = {"signs": 400_000, "minicraft": 600_000, "words": 24_000}
QUICK_BUDGETS = {"signs": 100_000, "minicraft": 150_000, "words": 6_000}
K = {"signs": 7, "minicraft": 5, "words": 5}
EVERY = {"signs": 20, "minicraft": 40, "words": 6}  # steps between points of a curve; of a multiple of learner.rounds
CONTROLS = ("rise-turnwise-blank",)  # of those that benchmarks.methods leaves out with --quick
START_SHARE = 0.25
WORDS = "smollm2-words-rise"
PROMPTS = 'reflect_prompt: " Say in one sentence what to change.", retry_prompt: "Now write the sentence."'
REFLECT = f"reflect: true, {PROMPTS}"
VERIFY = r'verify_prompt: "Is that right? Answer yes or no.", right: "(?i)^yes", revise_prompt: "Write another one."'
GROUP = ("learner.batch_groups=12", "learner.credit={name: group}", "learner.objective={name: grpo, correction: none}")
BOTH = "learner.roles={attempt: 1.0, reflection: 1.0}"
ON_WORDS = (
    Method("words-rise-turnwise", WORDS),
    Method("words-rise-turnwise-blank", WORDS, ("environment.feedback=blank", "evaluation.feedbacks=[]")),
    Method("words-reflecting", WORDS, (f"rollout={{name: retry, turns: 3, {REFLECT}}}", BOTH)),
    Method(
        "words-grpo",
        WORDS,
        ("rollout={name: attempt, episodes: 6}", *GROUP, "evaluation.turns=3"),
    ),
    Method(
        "words-ufo",
        WORDS,
        (
            "environment.feedback=blank",
            "evaluation.feedbacks=[]",
            "rollout={name: retry, turns: 3, episodes: 4}",
            *GROUP,
        ),
    ),
    Method(
        "words-critique-grpo",
        WORDS,
        (f"rollout={{name: retry, turns: 2, episodes: 4, {REFLECT}}}", *GROUP, BOTH),
    ),
    Method(
        "words-reflect",
        WORDS,
        (
            f"rollout={{name: reflect, episodes: 4, {PROMPTS}}}",
            *("learner.credit={name: reflection}", "learner.batch_groups=12", "learner.roles={reflection: 1.0}"),
            "learner.objective={name: grpo, kl: 0.005, correction: none}",
        ),
    ),
    Method(
        "words-pag",
        WORDS,
        (
            "environment.feedback=blank",
            "evaluation.feedbacks=[]",
            f"rollout={{name: verify, turns: 2, episodes: 4, {VERIFY}}}",
            "learner.batch_groups=12",
            "learner.credit={name: turnwise}",
            "learner.objective={name: grpo, correction: none}",
            "learner.roles={attempt: 1.0, verification: 1.0}",
        ),
    ),
    Method(
        "words-introspect",
        WORDS,
        (
            f"rollout={{name: retry, turns: 2, {REFLECT}}}",
            *("learner.credit={name: raw, keep: success}", "learner.objective={name: sft}"),
            "learner.roles={attempt: 1.0, reflection: 2.0}",
        ),
    ),
    Method("words-reflexion", WORDS, ("steps=0", f"rollout={{name: retry, turns: 3, context: 3, {REFLECT}}}")),
    Method("words-best-of-n", WORDS, ("steps=0", "rollout={name: attempt}", "evaluation.feedbacks=[]")),
)
QUICK_WORDS = ("words-rise-turnwise", "words-grpo", "words-best-of-n")


def task_of(method: Method) -> str:
    """The environment of its recipe."""
    return _settings(method)["environment"]["name"]


def _settings(method: Method) -> dict:
    return yaml.safe_load((ROOT / "recipes" / f"{method.recipe}.yaml").read_text())


def _trains(method: Method) -> bool:
    steps = [change for change in method.changes if change.startswith("steps=")]
    return bool(_settings(method)["steps"] if not steps else int(steps[-1].removeprefix("steps=")))


def zoo() -> tuple[Method, ...]:
    """Those of benchmarks.methods on each task, and those on words, with their budgets."""
    return tuple(_equal())


def _equal() -> Iterator[Method]:
    on_tasks = [method for method in METHODS if method.name not in LONG or method.name in CONTROLS]
    starts = {method.start for method in on_tasks if method.start}
    for method in on_tasks:
        task = task_of(method)
        share = START_SHARE if method.name in starts else 1 - START_SHARE if method.start else 1.0
        named = {key: f"{task}-{other}" if (other := getattr(method, key)) else None for key in ("start", "teacher")}
        yield _budgeted(replace(method, name=f"{task}-{method.name}", quick=(), **named), task, share)
    for method in ON_WORDS:
        yield _budgeted(replace(method, seeds=1), "words", 1.0)


def _budgeted(method: Method, task: str, share: float) -> Method:
    told: tuple[str, ...] = (f"evaluation.independent={K[task]}", "evaluation.greedy=false")
    quick: tuple[str, ...] = ()
    if _trains(method):
        told += (STEPS, f"sampled_tokens={round(share * BUDGETS[task])}", f"evaluation.every={EVERY[task]}")
        quick += (f"sampled_tokens={round(share * QUICK_BUDGETS[task])}", "evaluation.every=null")
    if task == "words":
        quick += ("evaluation.n=60",)
    if task == "signs" and "environment.feedback=blank" not in method.changes and _heard(method):
        told += ("evaluation.feedbacks=[blank]",)
    return replace(method, changes=(*method.changes, *told), quick=quick)


def _heard(method: Method) -> bool:
    """Whether its recipe has several turns, and feedback that is not blank already."""
    settings = _settings(method)
    turns = settings["evaluation"].get("turns") or settings["rollout"].get("turns", 1)
    return turns > 1 and settings["environment"]["feedback"] != "blank"


def main() -> None:
    methods = zoo()
    names = [method.name for method in methods]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one seed and a quarter of the tokens; under an hour")
    parser.add_argument("--seeds", type=int, default=None, help="most seeds (default 3, 1 with --quick)")
    parser.add_argument("--again", action="store_true", help="train anew what was trained with older settings")
    parser.add_argument("--write", action="store_true", help="train nothing: write the page anew from the rows")
    parser.add_argument("--folder", type=Path, default=None, help=f"where runs are kept (default {FOLDER})")
    options = parser.parse_args()
    if unknown := [name for name in options.methods if name not in names]:
        parser.error(f"there is no method {', '.join(unknown)}; choose from {', '.join(names)}")
    bench = Bench(
        options.folder or (FOLDER.with_name("zoo-quick") if options.quick else FOLDER), options.quick, methods
    )
    chosen = options.methods or [
        name
        for name in names
        if not (options.quick and task_of(bench.find(name)) == "words" and name not in QUICK_WORDS)
    ]
    if not options.write:
        train(bench, chosen, options.seeds or (1 if options.quick else 3), options.again)
    from benchmarks import zoo_page as page

    found = results(bench)
    print(page.tables(found, bench))
    if not options.quick:
        page.write(found, bench, ROOT / "docs")


if __name__ == "__main__":
    run(main)
