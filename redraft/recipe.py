"""A recipe is everything that a run depends on: YAML, checked whole before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from actors import rollout_config as rollouts
from actors.config import (
    LEAST_TEMPERATURE,
    ActorSettings,
    CurriculumSettings,
    DataSettings,
    EnvironmentSettings,
    MixedEnvironment,
    SamplingSettings,
)
from actors.rollout_config import AttemptSettings, RolloutSettings
from learner import credit_config as credits
from learner import objective_config as objectives
from learner.config import TRAINED_ROLES, LearnerSettings
from protocols import own_code
from protocols.errors import SettingError
from protocols.settings import Settings
from protocols.weights import INCARNATION
from redraft import machine, recipe_errors, recipe_file
from redraft.config import (
    EvaluationSettings,
    LogSettings,
    MetricsSettings,
    ModelSettings,
    StorageSettings,
    TrackingSettings,
)
from replay.config import RunReplaySettings

COMPARED = {
    "episodes": "whole episodes",
    "turns": "turns of one number",
    "retries": "retries of one failure",
}


class Recipe(Settings):
    """One run. Each part owns its section."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Names the run folder, unless --run does."""
    seed: int = Field(default=0, ge=0)
    """Of everything that draws: tasks, sampling, the order of batches."""
    steps: int = Field(ge=0, lt=INCARNATION)
    """Steps of the whole run, a batch each; 0 only evaluates the model. Versions of weights count so far."""
    sampled_tokens: int | None = Field(default=None, ge=1)
    """Training ends before its steps are done, with the step by which so many tokens were sampled for it, so that
    methods can be compared at equal numbers. What is played meanwhile comes on top; evaluations do not count."""
    model: ModelSettings
    data: DataSettings = DataSettings()
    environment: EnvironmentSettings
    """In a run of several `environments` the first of them; then leave this out."""
    environments: tuple[MixedEnvironment, ...] = ()
    """Several environments in place of one, each with its own data, weight and figures."""
    curriculum: CurriculumSettings | None = None
    """Begin with the easiest tasks, and add harder ones as these are solved."""
    rollout: RolloutSettings = AttemptSettings()  # pyright: ignore[reportInvalidTypeForm]  made by one_of
    """How the episodes of a group are played."""
    sampling: SamplingSettings = SamplingSettings()
    actors: ActorSettings = ActorSettings()
    replay: RunReplaySettings = RunReplaySettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    metrics: MetricsSettings = MetricsSettings()
    logs: LogSettings = LogSettings()
    tracking: TrackingSettings = TrackingSettings()
    storage: StorageSettings | None = None
    """Copies of the run elsewhere (None: its folder is all there is)."""
    start_s: float = Field(default=300.0, gt=0)
    """Longest wait for all processes to be up before the run stops and says which is missing."""
    stop_s: float = Field(default=600.0, gt=0)
    """Longest wait for a step and its checkpoint when the run is told to stop, before it is killed. Where who takes a
    machine away gives less (30 s by Kubernetes' default), say so: a run whose checkpoints take longer tells it."""

    @model_validator(mode="before")
    @classmethod
    def _first_of_several(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("environments") or values.get("environment") is not None:
            return values
        try:
            first = MixedEnvironment.model_validate(values["environments"][0])
        except (ValidationError, TypeError, LookupError):
            first = MixedEnvironment(name="?")  # what is wrong with it is said of the list
        return values | {"environment": first.alone()}

    @property
    def mixture(self) -> tuple[MixedEnvironment, ...]:
        """What is played: the one environment, or several."""
        return self.environments or (MixedEnvironment(**self.environment.model_dump(), data=self.data),)

    @property
    def played(self) -> str:
        """What is played, in words."""
        return " and ".join(one.label if self.environments else one.name for one in self.mixture)

    @property
    def feedback(self) -> str:
        """What environments say to an answer, in words."""
        return ", ".join(dict.fromkeys(one.feedback for one in self.mixture))

    @model_validator(mode="after")
    def _fits_together(self):
        if self.model.dtype == "auto":
            dtype = "float32" if self._lacks_bfloat16() else "bfloat16"
            object.__setattr__(self, "model", self.model.model_copy(update={"dtype": dtype}))
        self.check()
        return self

    def _lacks_bfloat16(self) -> bool:
        return not (self.learner.gpus or self.actors.gpus or machine.multiplies_bfloat16())

    def check(self) -> None:
        """Raises ValueError, in one line, where its sections do not fit together."""
        engine = self.actors.engine
        if self.sampling.max_tokens >= engine.max_length:
            raise ValueError(
                f"sampling.max_tokens: {self.sampling.max_tokens} leaves no room for a prompt within "
                f"actors.engine.max_length={engine.max_length}; lower it, or raise that"
            )
        for key in ("teacher", "step_judge"):
            asked = getattr(self.rollout, key, None)
            if asked is not None and asked.deadline_s >= self.actors.lease_s:
                raise ValueError(
                    f"rollout.{key}: by timeout_s and retries one answer may take {asked.deadline_s:g} s, longer "
                    f"than actors.lease_s={self.actors.lease_s:g}; lower them, or raise that"
                )
        if (limit_s := getattr(self.rollout, "limit_s", 0.0)) >= self.actors.lease_s:
            raise ValueError(
                f"rollout.limit_s: one episode may take {limit_s:g} s, and its whole group only "
                f"actors.lease_s={self.actors.lease_s:g}; lower it, or raise that"
            )
        self._sampling_fits()
        self._mixture_fits()
        self._adapter_fits()
        self._helpers_fit()
        self._controls_fit()
        self._course_fits()
        if self.actors.sleep:
            self._sleep_fits()
        if self.sampled_tokens is not None and not self.steps:
            raise ValueError("sampled_tokens: a run of 0 steps samples none to train on; leave it out, or set steps")
        if self.steps:
            self._credit_fits()
            self._learner_fits()
            self._takes_effect()

    def _sampling_fits(self) -> None:
        sampling, engine, objective = self.sampling, self.actors.engine, self.learner.objective
        if engine.speculate != "off" and (engine.name != "vllm" or (sampling.temperature, sampling.top_p) != (1, 1)):
            raise ValueError(
                "actors.engine.speculate: only vLLM at sampling.temperature 1 and top_p 1 gives the model's log-probs; "
                "set it to off, or those to 1"
            )
        if not sampling.agent:
            return
        if not self.rollout.facts.requests:
            raise ValueError(
                f"sampling.agent: no program asks for the answers of rollout {self.rollout.name}; leave it out, or set "
                "rollout.name to agent"
            )
        if engine.speculate != "off":
            raise ValueError(
                "actors.engine.speculate: with sampling.agent a request may have another temperature than 1, where its "
                "log-probs are not the model's; set it to off, or leave sampling.agent out"
            )
        if self.steps and sampling.agent is True and objective.only_sampled:
            raise ValueError(
                f"sampling.agent: true lets a request set top_p, under which the ratios of {objective.name} are wrong; "
                f"set it to temperature, or learner.objective.name to {objectives.AUTHORED}"
            )

    def _mixture_fits(self) -> None:
        several = self.environments
        if not several:
            return
        if self.environment != several[0].alone():
            raise ValueError("environment: has no effect beside environments; leave it out, or name it among them")
        if len(several) == 1:
            raise ValueError("environments: one is no mixture; name it as environment, or name another one, too")
        if self.data != DataSettings():
            raise ValueError("data: has no effect beside environments; give each of them its own data")
        if self.curriculum is not None:
            raise ValueError("curriculum: levels of several environments cannot be compared; leave it out")
        labels = [one.label for one in several]
        if twice := [label for n, label in enumerate(labels) if label in labels[:n]]:
            raise ValueError(f"environments: two of them are called {twice[0]!r}; give one another label")
        if any(one.data.failures for one in several):
            raise ValueError("environments: data.failures cannot be mixed; train on failures in a run of their own")

    def _sleep_fits(self) -> None:
        actors, learner = self.actors, self.learner
        if not self.steps:
            raise ValueError("actors.sleep: a run of 0 steps has no learner to give memory to; leave it out")
        if actors.engine.name != "vllm" or actors.engine.process == "in_process":
            raise ValueError(
                "actors.sleep: only vLLM in processes of its own gives memory back; leave it out, or set "
                "actors.engine.name to vllm and actors.engine.process to auto"
            )
        if not (0 < learner.gpus < 1 and 0 < actors.gpus < 1 and learner.gpus + actors.gpus <= 1):
            raise ValueError(
                f"actors.sleep: with learner.gpus={learner.gpus:g} and actors.gpus={actors.gpus:g} no actor is on a "
                "GPU of the learner, which would get nothing; leave it out, or set both to fractions that fit on one, "
                "such as 0.5"
            )
        if learner.max_staleness:
            raise ValueError(
                f"actors.sleep: with learner.max_staleness={learner.max_staleness} actors play on while the learner "
                "trains; set that to 0, so that they stand still meanwhile, or leave sleep out"
            )

    def _controls_fit(self) -> None:
        kinds, turns = self.evaluation.feedbacks, self.evaluation.turns or self.rollout.turns
        own = {one.feedback for one in self.mixture}
        if own & set(kinds) or len(set(kinds)) < len(kinds):
            raise ValueError(
                f"evaluation.feedbacks: name kinds other than environment.feedback={self.feedback}, each once"
            )
        if kinds and turns == 1:
            raise ValueError("evaluation.feedbacks: no feedback is heard with one turn; leave it out, or raise turns")

    def _course_fits(self) -> None:
        """Evaluations in the course of training, and what hangs on them."""
        every, learner, rounds = self.evaluation.every, self.learner, self.learner.rounds
        if every is None:
            for key, given in (("evaluation.stop", self.evaluation.stop), ("learner.keep_best", learner.keep_best)):
                if given:
                    raise ValueError(f"{key}: goes by evaluations in the course of training; set evaluation.every, too")
            return
        if every >= self.steps:
            raise ValueError(
                f"evaluation.every: none comes within {self.steps} steps; set it below that, or leave it out"
            )
        if rounds is not None and every % rounds.steps:
            raise ValueError(
                f"evaluation.every: weights are published every {rounds.steps} steps (learner.rounds); set a multiple"
            )
        if learner.keep_best and every % learner.checkpoint_every:
            raise ValueError(
                f"learner.keep_best: evaluation.every={every} is no multiple of learner.checkpoint_every="
                f"{learner.checkpoint_every}, so that steps without a checkpoint are evaluated; make it one"
            )

    def _credit_fits(self) -> None:
        credit, rollout = self.learner.credit, self.rollout
        compared = credit.facts.compares
        if compared and compared not in rollout.facts.offers:
            raise ValueError(
                f"learner.credit.name: {credit.name} compares {COMPARED[compared]}, which rollout {rollout.name} does "
                f"not play; set it to {credits.comparing(rollout.facts.offers)}, or rollout.name to "
                f"{rollouts.names(lambda known: compared in known.facts.offers)}"
            )
        if compared and rollout.episodes < 2:
            raise ValueError(
                f"rollout.episodes: learner.credit.name={credit.name} compares episodes of a task; set 2 or more, or "
                f"{credit.facts.instead}"
            )

    def _learner_fits(self) -> None:
        learner, engine, uses = self.learner, self.actors.engine, self.replay.max_uses
        if self.sampling.temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"sampling.temperature: {self.sampling.temperature:g} cannot be trained on: 0 is greedy, and what is "
                f"below {LEAST_TEMPERATURE} is raised to that by vLLM. Set it to {LEAST_TEMPERATURE} or more"
            )
        if learner.row_tokens < engine.max_length:
            raise ValueError(
                f"learner.row_tokens: {learner.row_tokens} would cut episodes of "
                f"actors.engine.max_length={engine.max_length}; set at least that"
            )
        if learner.probe_tokens >= engine.max_length:
            raise ValueError(f"learner.probe_tokens: must be below actors.engine.max_length={engine.max_length}")
        if learner.max_staleness == "auto" and uses > 1:
            raise ValueError(
                f"learner.max_staleness: auto cannot be had with replay.max_uses={uses}, which lets groups grow old by "
                f"using them again; set it to {uses - 1} or more, or max_uses to 1"
            )
        if learner.max_staleness != "auto" and learner.max_staleness < uses - 1:
            raise ValueError(
                f"learner.max_staleness: replay.max_uses={uses} uses a group in {uses} steps; set at least {uses - 1}"
            )
        rounds = learner.rounds
        if rounds is not None and rounds.from_base and (self.steps % rounds.steps or self.steps == rounds.steps):
            whole = max(2, -(-self.steps // rounds.steps)) * rounds.steps
            raise ValueError(
                f"steps: with learner.rounds.from_base a run is two or more whole rounds of {rounds.steps} steps, and "
                f"{self.steps} is not; set it to {whole}, or from_base to false"
            )

    def _helpers_fit(self) -> None:
        """Whether what helps single episodes can: a judge of their steps, experience."""
        experience = getattr(self.rollout, "experience", None)
        if getattr(self.rollout, "step_judge", None) is not None and not (
            self.steps and self.learner.credit.facts.reads_flags
        ):
            raise ValueError(
                "rollout.step_judge: only a run that trains with learner.credit.name=attributing reads what it says; "
                "leave it out, or set that"
            )
        if experience is None:
            if getattr(self.learner.objective, "clip_high_navigated", None) is not None:
                raise ValueError(
                    "learner.objective.clip_high_navigated: no episode is told experience; leave it out, or set "
                    "rollout.experience"
                )
            return
        if not self.steps:
            raise ValueError("rollout.experience: evaluations play without it, so a run of 0 steps never reads it")
        if (self.sampling.temperature, self.sampling.top_p) != (1, 1):
            raise ValueError(
                "rollout.experience: the log-probs under the question alone are had at temperature 1 only; set "
                "sampling.temperature and top_p to 1"
            )
        if self.model.on_rewrite == "new_root":
            raise ValueError(
                "rollout.experience: model.on_rewrite=new_root renders the question anew in each turn; leave one out"
            )
        if not round(self.rollout.episodes * experience.share):
            raise ValueError(
                f"rollout.experience.share: {experience.share:g} of rollout.episodes={self.rollout.episodes} rounds to "
                "no episode; raise one of them"
            )

    def _adapter_fits(self) -> None:
        learner, lora = self.learner, self.model.lora
        if lora is not None and not self.steps:
            raise ValueError("model.lora: a run of 0 steps trains no adapter; leave it out, or set steps")
        for key in learner.objective.held_to_start():
            if learner.zero == 3 and lora is None:
                raise ValueError(
                    f"learner.objective.{key}: above 0 it puts a whole copy of the start model on every rank, which "
                    f"learner.zero=3 is there to avoid; set learner.zero to 2, train an adapter (model.lora), or set "
                    f"learner.objective.{key} to 0"
                )

    def _takes_effect(self) -> None:
        """Refuses what would do nothing."""
        learner, rollout = self.learner, self.rollout
        facts = rollout.facts
        trained = [*(role.name.lower() for role in TRAINED_ROLES), *facts.own_roles]
        if unknown := [role for role in learner.roles if role not in trained]:
            raise ValueError(
                f"learner.roles: {', '.join(unknown)} cannot be trained. Choose from {', '.join(trained)}"
                f"{', or name it in rollout.roles' if 'roles' in type(rollout).model_fields else ''}"
            )
        if facts.authored and learner.objective.only_sampled:
            problem = f"{learner.objective.name} never trains {facts.authored}"
            instead = (
                ", or learner.objective.imitate to true" if "imitate" in type(learner.objective).model_fields else ""
            )
            raise ValueError(f"learner.objective.name: {problem}; set it to {objectives.AUTHORED}{instead}")
        if learner.objective.taught and not rollout.several:
            raise ValueError(
                f"learner.objective.name: {learner.objective.name} trains turns that another one follows, and rollout "
                f"{rollout.name} writes one answer; set rollout.name to retry"
            )
        if getattr(learner.objective, "imitate", False) and facts.writes and not facts.authored:
            raise ValueError(
                f"learner.objective.imitate: rollout {rollout.name} writes nothing that the model did not sample; "
                "leave it out, or set rollout.internalise"
            )
        if facts.writes and not any(learner.role_weight(role) for role in facts.writes):
            known = ", ".join(role.name.lower() for role in sorted(facts.writes))
            raise ValueError(
                f"learner.roles: rollout {rollout.name} writes turns of role {known}, and none has a weight; give one"
            )
        overlong = getattr(learner.credit, "overlong", None)
        if overlong is not None and overlong.limit - overlong.cache >= self.sampling.max_tokens:
            raise ValueError(
                f"learner.credit.overlong: no answer is longer than sampling.max_tokens={self.sampling.max_tokens}, "
                f"and punishment begins after {overlong.limit - overlong.cache}; lower limit, or leave it out"
            )
        self._flat_fits()
        if self.model.on_rewrite == "new_root" and learner.credit.facts.follows_paths:
            raise ValueError(
                "model.on_rewrite: new_root makes each turn a root, and learner.credit.name="
                f"{learner.credit.name} follows the turns of an episode from its root; leave it out, or use another "
                "credit"
            )
        if self.data.failures and not facts.starts_from_failures:
            raise ValueError(
                f"data.failures: rollout {rollout.name} does not begin from failed answers; leave it out, or set "
                f"rollout.name to {rollouts.names(lambda known: known.facts.starts_from_failures)}"
            )

    def _flat_fits(self) -> None:
        rollout, credit = self.rollout, self.learner.credit
        if self.replay.drop_flat and rollout.episodes == 1 and rollout.turns == 1:
            raise ValueError(
                "replay.drop_flat: one answer a group never differs from itself, so that every group would be dropped; "
                "set rollout.episodes to 2 or more, or drop_flat to false"
            )
        if self.replay.drop_flat and credit.facts.compares_groups:
            raise ValueError(
                f"replay.drop_flat: learner.credit.name={credit.name} compares groups with each other, so that "
                "one whose scores do not differ teaches, too, and without it the mean of the others is another; set "
                "drop_flat to false, or have the credit compare within a group"
            )
        of_episodes = rollout.turns > 1 and "episodes" in rollout.facts.offers  # by which flat groups are told
        if self.replay.drop_flat and of_episodes and credit.facts.within_episodes:
            raise ValueError(
                f"replay.drop_flat: learner.credit.name={credit.name} tells turns apart also of episodes that "
                "are worth the same in all, whose groups would be dropped; set drop_flat to false, or "
                "learner.credit.name to group"
            )

    def warnings(self) -> list[str]:
        """What is allowed but rarely meant."""
        found = []
        if self.sampling.top_p < 1:
            found.append("sampling.top_p below 1 biases the ratio between trainer and sampler")
        if 0 < self.steps <= self.learner.optimizer.warmup_steps:
            found.append("learner.optimizer.warmup_steps is as long as the run: its learning rate is never reached")
        if self.model.dtype == "bfloat16" and self._lacks_bfloat16():
            found.append("model.dtype: this processor is many times slower in bfloat16 than in float32; auto avoids it")
        if self.steps and self.learner.claim_deadline_s <= self.actors.lease_s:
            found.append(
                f"learner.claim_deadline_s={self.learner.claim_deadline_s:g} is no longer than actors.lease_s="
                f"{self.actors.lease_s:g}: a group that hangs ends the run before others play it again"
            )
        return found

    def dump(self) -> str:
        """The resolved recipe as YAML: reading it gives the same recipe."""
        values = self.model_dump(mode="json", exclude={"environment" if self.environments else "environments"})
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `key=value` overrides. Raises SettingError naming each key that cannot be."""
    values, lines = recipe_file.read(Path(path))
    for override in overrides:
        _override(values, override)
        key = override.partition("=")[0].strip()
        lines = {known: line for known, line in lines.items() if known != key and not known.startswith(f"{key}.")}
    return build(values, lines)


def reload(run_dir: Path, overrides: Sequence[str], command: str, matters: Sequence[str]) -> Recipe:
    """The recipe of a run with overrides for a command that only plays with what the run has trained; the user's own
    parts are then those that the run keeps. `matters` are the sections and keys that it looks at. Raises SettingError
    for an override of another one, too."""
    recipe = load(run_dir / "recipe.yaml", overrides)
    for override in overrides:
        key = override.partition("=")[0]
        if not any(key == known or key.startswith(f"{known}.") for known in matters):
            raise SettingError(key, f"has no effect on `redraft {command}`", f"What has: {', '.join(matters)}")
    values = recipe.model_dump(mode="json")
    own_code.install(own_code.read(values) | own_code.kept(values, run_dir))
    return recipe


def build(values: dict, lines: Mapping[str, int] | None = None) -> Recipe:
    """The recipe of these values; `lines` are those of its keys in a file. Raises SettingError, a line a mistake."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise recipe_errors.clear(error, Recipe, lines or {}) from None


def _override(values: dict, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SettingError(text, "is not key=value", "Write, for example, learner.batch_groups=64")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SettingError(key, f"{section} is a value, not a section", f"Set {section} itself")
        values = inner
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        values[last] = value
