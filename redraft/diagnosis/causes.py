"""Why a run cannot learn: watches the figures that go past, and names causes, each with its cure.

It is told what actors and the learner report, which weights were announced, how evaluations went, and which tasks there
are; it looks at no clock and no file. What it finds is shown by `redraft status` and `top`, the live view, the report,
the metric `redraft_finding` and an alert.

    cause                    what is seen                                              not before
    -----------------------  --------------------------------------------------------  ------------------------------
    test_tasks_in_training   a test task's content is that of a training task          -
    template_missing         no chat template, and a chat model by its tokens or name  -
                             answers hold control tokens that the template lacks       10 answers
    answers_cut              responses of a role stopped at sampling.max_tokens        31 responses
    answers_unparsed         the environment found no answer in responses, or in none  31 answers
                             of those after an episode's first
    episodes_broken          episodes ended with an error                              10 episodes
    endpoint_down            they did because a teacher or judge did not answer        10 episodes
    reward_constant          all scores are the same                                   a batch, and 135 scores
    groups_flat              groups have no variance, and what learns needs one        31 groups
    nothing_trained          no token of a step was trained, or nearly all are masked  a step
    weights_frozen           a step trained, and the weights or the gradient say no    a step
    weights_not_arriving     an actor keeps old weights, refuses or ignores new ones   30 s, or a version
    entropy_collapsed        entropy fell to a tenth while answers are wrong           a batch, and recent play

No limit is a property of some model or task. A share that is "nearly all" is one that is above MOST beyond chance (see
evidence.beyond); the counts on the right follow from that. What is certain from one case (a step that trained nothing,
a version equal to the one before, bit for bit) is told at once. A finding ends when it was not seen for HOLD_S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from actors.contract import Report
from actors.tally import Tally
from protocols.reports import Finding, StepReport
from redraft.diagnosis.evidence import ALPHA, RecentPlay, Weights, beyond, in_play, overlap
from redraft.recipe import Recipe

MOST = 0.8  # of answers, groups, tokens: what is left cannot carry a run
HALF = 0.5  # of episodes: those that break say nothing of the model, so half of them is too many
SOLVED = 0.95  # of groups: flat ones that are right cost time only, so they may be many
RARE = 0.05  # share of other scores that a run of equal ones excludes
EQUAL_SCORES = math.ceil(math.log(ALPHA) / math.log1p(-RARE))
STUCK_S = 30.0  # that an actor may keep old weights, or three times as long as the longest first load took
FOLLOWS = 4.0  # times the noise that log-probs of the probe must have moved before an actor is judged by them
ROUNDING = 1e-5  # nats: of float32 log-probs, where engine and learner happen to agree better
COLLAPSED = 0.1  # of the entropy of the first batch
HOLD_S = 10.0

Told = tuple[str, str]
"""What is wrong with the number, and how to cure it: a sentence each."""


class Diagnosis:
    """The findings of one incarnation of a run. Times are seconds since the run began."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        groups = max(2 * in_play(recipe), 2 * recipe.learner.batch_groups, EQUAL_SCORES)
        self._play, self._weights = RecentPlay(groups), Weights()
        self._last = StepReport()
        self._first_entropy: float | None = None
        self._frozen: Told | None = None
        self._version_before: int | None = None
        self._untemplated, self._tests = "", 0
        self._common: list[str] = []
        self._seen: dict[str, float] = {}  # by cause, when it was last seen
        self.kept = False
        """Whether actors keep their weights on purpose: those are evaluated."""
        self.findings: dict[str, Finding] = {}
        """Those that last, by cause."""

    # What it is told.

    def tasks(self, training: Sequence[dict], tests: Sequence[dict]) -> None:
        self._common, self._tests = overlap(training, tests), len(tests)

    def played(self, name: str, report: Report) -> None:
        """What an actor reports since its last report."""
        self._play.add(report.tally)
        if self._first_entropy is None and self._play.total.groups >= self._recipe.learner.batch_groups:
            self._first_entropy = self._play.total.entropy
        self._untemplated = report.untemplated or self._untemplated
        if report.weights_refused:
            self._weights.refuse(name, report.error)

    def fleet(self, reports: Mapping[str, Report], at_s: float) -> None:
        """The newest reports of all actors, by name."""
        living = {name: report for name, report in reports.items() if report.pid and report.state != "failed"}
        self._weights.stay(living, reports)
        if self.kept:
            self._weights.wait(at_s)
        for name, report in living.items():
            ready = report.state == "ready"
            self._weights.arrive(name, ready, report.version, report.probe_difference, at_s)

    def published(self, version: int, digest: str, logprobs: Sequence[float], at_s: float) -> None:
        """A version as the learner announces it, with its log-probs of the probe."""
        self._weights.publish(version, digest, logprobs, at_s)

    def stepped(self, report: StepReport) -> None:
        """The learner's report of a step."""
        self._last = report
        self._frozen = self._unmoved(report)

    def restarted(self) -> None:
        """The learner goes on from a checkpoint, whose weights may be those that it had published last."""
        self._weights, self._frozen, self._version_before = Weights(), None, None

    def evaluated(self, tally: Tally) -> None:
        """What broke in an evaluation counts like what breaks in training."""
        self._play.add(tally)

    def look(self, at_s: float) -> tuple[list[Finding], list[Finding]]:
        """Judges what is known at that time: the findings that begin, and those that end."""
        begun = []
        for cause, judge in CAUSES.items():
            told = judge(self, at_s)
            if told is None:
                continue
            self._seen[cause] = at_s
            old = self.findings.get(cause)
            since_s, step = (old.since_s, old.step) if old else (round(at_s, 3), self._last.step)
            self.findings[cause] = Finding(cause, *told, since_s, step)
            begun += [] if old else [self.findings[cause]]
        over = [cause for cause in self.findings if at_s - self._seen[cause] > HOLD_S]
        ended = [self._ended(self.findings.pop(cause)) for cause in over]
        return begun, ended

    def _ended(self, finding: Finding) -> Finding:
        return replace(finding, until_s=round(self._seen[finding.cause], 3))

    def _nearly(self, cause: str, count: int, total: int, share: float) -> bool:
        """Whether more than `share` of `total` are so; a finding that lasts goes on without another proof."""
        return count > share * total if cause in self.findings else beyond(count, total, share)

    # What it makes of that: a method a cause.

    def _test_tasks(self, at_s: float) -> Told | None:
        if not self._common:
            return None
        shown = ", ".join(self._common[:3]) + (" ..." if len(self._common) > 3 else "")
        return (
            f"{len(self._common)} of {self._tests} test tasks are also training tasks ({shown}), so the evaluation "
            "measures what was learned by heart.",
            "Take them out of the training part of data.path, or out of its test part.",
        )

    def _template(self, at_s: float) -> Told | None:
        cure = (
            "Put the template of the model's makers into its folder (chat_template.jinja, or chat_template in "
            "tokenizer_config.json), or name the checkpoint that has it in model.path."
        )
        if self._untemplated:
            return f"The model is asked without a chat template, but {self._untemplated}.", cure
        play = self._play.total
        responses = play.responses.total()
        if self._nearly("template_missing", play.foreign, responses, HALF):
            much = _share(play.foreign, responses, "responses")
            return f"{much} hold control tokens that the model's chat template does not know.", cure
        return None

    def _cut(self, at_s: float) -> Told | None:
        play, limit = self._play.total, self._recipe.sampling.max_tokens
        roles = [r for r, n in play.responses.items() if self._nearly("answers_cut", play.cut[r], n, MOST)]
        if not roles:
            return None
        told = ", ".join(_share(play.cut[role], play.responses[role], f"{role} responses") for role in roles)
        return (
            f"{told} were cut at sampling.max_tokens={limit} before they ended.",
            "Raise sampling.max_tokens (and actors.engine.max_length with it), ask for shorter answers, or use a model "
            "that has learned to end them: a base model has not.",
        )

    def _unparsed(self, at_s: float) -> Told | None:
        play = self._play.total
        every = play.unparsed.total(), play.unparsed.total() + play.parsed.total(), "answers"
        later = play.later_unparsed, play.later_unparsed + play.later_parsed, "answers after the first of their episode"
        much = [of for of in (every, later) if self._nearly("answers_unparsed", *of[:2], MOST)]
        if not much:
            return None
        if much[0] is later:
            return (
                f"In {_share(*later)} {self._recipe.played} could find nothing to judge, and in first ones it could.",
                "Read a dialogue (redraft view RUN): the model goes on in another form than the one it is asked for "
                "(a reflection where an answer is wanted, say). Have feedback say the form, set rollout.reflect as the "
                "model learned it, or use a model that was trained on dialogues like these.",
            )
        return (
            f"In {_share(*every)} {self._recipe.played} could find nothing to judge.",
            "Read what the model writes (redraft view RUN): have the question say the form, use a model that keeps to "
            "it, or raise sampling.max_tokens where answers are cut.",
        )

    def _broken(self, at_s: float) -> Told | None:
        play = self._play.total
        if not self._nearly("episodes_broken", play.broken, play.episodes, HALF):
            return None
        last = f", the last with: {play.failure}" if play.failure else ""
        return (
            f"{_share(play.broken, play.episodes, 'episodes')} ended with an error{last}.",
            "Correct the environment (environment.name, environment.options, its data); where it is only slow, raise "
            "environment.time_limit_s or environment.threads.",
        )

    def _endpoint(self, at_s: float) -> Told | None:
        play = self._play.total
        if not self._nearly("endpoint_down", play.unreached, play.episodes, HALF):
            return None
        teacher = getattr(self._recipe.rollout, "teacher", None)
        where = f"rollout.teacher.url ({teacher.url})" if teacher else "what the environment calls"
        return (
            f"{_share(play.unreached, play.episodes, 'episodes')} ended because an endpoint, a judge or a teacher, did "
            f"not answer, the last with: {play.failure}.",
            f"See that {where} runs, answers, and can be reached from the nodes of the actors.",
        )

    def _constant(self, at_s: float) -> Told | None:
        play = self._play.total
        enough = play.scores >= EQUAL_SCORES and play.groups >= self._recipe.learner.batch_groups
        if not enough or play.low != play.high:
            return None
        return (
            f"All {play.scores} scores of {play.groups} groups are the same ({play.low:g}), so there is nothing to "
            "prefer.",
            f"{_difficulty(0.0 if play.low <= 0 else 1.0)}, give partial credit, and see that the reward of "
            f"{self._recipe.played} depends on the answer.",
        )

    def _flat(self, at_s: float) -> Told | None:
        play, recipe = self._play.total, self._recipe
        right = play.flat_right / play.flat if play.flat else 0.0
        share = MOST if right < HALF else SOLVED
        if not _needs_variance(recipe) or not self._nearly("groups_flat", play.flat, play.groups, share):
            return None
        fate = "filtered" if recipe.replay.drop_flat else "worth nothing to the learner"
        cures = [_difficulty(right)]
        cures.append(f"a larger sampling.temperature or more {recipe.rollout.facts.variety}")
        cures += ["partial credit"]
        cures += ["replay.drop_flat: false, with a credit that needs no variance"] if recipe.replay.drop_flat else []
        return (
            f"{play.flat} of {play.groups} groups {fate}: all their answers scored the same "
            f"(right: {_percent(right)}).",
            f"{', '.join(cures)}.",
        )

    def _untrained(self, at_s: float) -> Told | None:
        step, fit = self._last.step, self._last.fit
        if step == 0:
            return None
        if fit.trained_tokens == 0:
            return (
                f"Step {step} trained nothing: no token of its {self._last.batch.groups} groups has a weight.",
                "See which turns learner.credit, learner.objective and learner.roles leave: some train successes "
                "only, so easier tasks or more rollout.episodes help.",
            )
        if fit.masked_share is None or fit.masked_share <= MOST:
            return None
        found = self._recipe.learner.max_staleness == "auto"
        bound = "Set learner.max_staleness to a small number" if found else "Lower learner.max_staleness"
        return (
            f"Step {step} masked {_percent(fit.masked_share)} of its {fit.trained_tokens} tokens: trainer and "
            "sampler disagree about them too much.",
            f"{bound} or lower learner.optimizer.lr, raise learner.objective.max_weight, and see whether "
            "mismatch_mean is large from the first step on: then the engine computes something else.",
        )

    def _unmoved(self, report: StepReport) -> Told | None:
        """Whether the step that is reported trained tokens and moved nothing."""
        step, tokens, norm = report.step, report.fit.trained_tokens, report.gradient_norm
        if not tokens:
            return None
        if norm == 0:
            return (
                f"Step {step} trained {tokens} tokens with a gradient of 0.",
                "Its advantages are all 0 (see learner.credit, and whether scores differ), or no parameter is trained.",
            )
        if report.lr == 0:
            return (
                f"Step {step} trained {tokens} tokens at a learning rate of 0.",
                "See learner.optimizer.schedule and warmup_steps.",
            )
        versions = {one.version: one for one in self._weights.published}
        new = versions.get(report.version)
        old = None if self._version_before is None else versions.get(self._version_before)
        self._version_before = report.version
        if norm is None or new is None or old is None or new is old or new.digest != old.digest:
            return None
        return (
            f"Version {new.version} is version {old.version} bit for bit, although step {step} trained {tokens} "
            f"tokens (gradient norm {norm:.3g}).",
            f"Raise learner.optimizer.lr ({self._recipe.learner.optimizer.lr:g}): its steps are lost in rounding, or "
            "no parameter is trained.",
        )

    def _unmoved_last(self, at_s: float) -> Told | None:
        return self._frozen

    def _arriving(self, at_s: float) -> Told | None:
        weights, cure = self._weights, "See logs/ of that actor; it is replaced when it is silent or refuses weights."
        if not weights.published:
            return None
        newest, patience_s = weights.published[-1], max(STUCK_S, 3 * weights.longest_load_s)
        changes = {one.version: one.change for one in weights.published}
        for name, arrival in sorted(weights.arrivals.items()):
            if arrival.refused:
                return f"{name} does not take over the learner's weights: {arrival.refused}.", cure
            if arrival.version is None:
                continue
            if arrival.behind_s is not None and at_s - arrival.behind_s > patience_s:
                problem = f"{name} still plays with version {arrival.version}, and version {newest.version} is out."
                return problem, f"{cure} Where loading only takes long, publish more rarely (learner.rounds)."
            change = changes.get(arrival.version, 0.0)
            moved = weights.noise is not None and change > FOLLOWS * max(weights.noise, ROUNDING)
            if moved and arrival.difference > change / 2:
                return (
                    f"{name} says that it has version {arrival.version}, but computes with older weights: its "
                    f"log-probs of the probe are {arrival.difference:.2g} off, and training has moved them by "
                    f"{change:.2g} in all.",
                    "Its engine does not apply what it is sent: an adapter that is not in force, or a head that is "
                    "kept. Lower actors.probe_tolerance so that such actors are replaced.",
                )
        return None

    def _entropy(self, at_s: float) -> Told | None:
        play = self._play.total
        first, now = self._first_entropy, play.entropy
        if not first or now is None or now >= COLLAPSED * first or not play.groups:
            return None
        right = play.right / play.groups
        if right > 1 - RARE:
            return None
        return (
            f"Entropy fell from {first:.3g} to {now:.3g} nats a token, and {_percent(1 - right)} of the answers are "
            "wrong: the model tries nothing new.",
            "Go back to an earlier checkpoint with a smaller learner.optimizer.lr, a larger sampling.temperature, or "
            "learner.objective.kl.",
        )


CAUSES: dict[str, Callable[[Diagnosis, float], Told | None]] = {
    "test_tasks_in_training": Diagnosis._test_tasks,
    "template_missing": Diagnosis._template,
    "answers_cut": Diagnosis._cut,
    "answers_unparsed": Diagnosis._unparsed,
    "episodes_broken": Diagnosis._broken,
    "endpoint_down": Diagnosis._endpoint,
    "reward_constant": Diagnosis._constant,
    "groups_flat": Diagnosis._flat,
    "nothing_trained": Diagnosis._untrained,
    "weights_frozen": Diagnosis._unmoved_last,
    "weights_not_arriving": Diagnosis._arriving,
    "entropy_collapsed": Diagnosis._entropy,
}
"""Roots before what follows from them: an answer that is cut is not parsed, and then all score the same."""


def _needs_variance(recipe: Recipe) -> bool:
    """Whether groups whose scores do not differ are of no use."""
    return recipe.replay.drop_flat or bool(recipe.learner.credit.facts.compares)


def _difficulty(right: float) -> str:
    return "Take easier tasks (curriculum, data.path)" if right < HALF else "Take harder tasks (curriculum, data.path)"


def _share(count: int, total: int, what: str) -> str:
    """ "all 212 answers", "205 of 212 answers (97 %)"."""
    return f"all {total} {what}" if count == total else f"{count} of {total} {what} ({_percent(count / total)})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
