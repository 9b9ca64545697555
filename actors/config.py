"""What a recipe says about playing: data, environment, rollout, sampling, engines. Light to import."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from actors.question_config import QuestionerSettings
from actors.tool_config import Source
from protocols.settings import NO_STANDBY, Settings

ALONE = 0.85
"""Share of a GPU for an engine that has it alone; the rest is for what vLLM does not count."""
LEAST_TEMPERATURE = 0.01
"""Beside 0, the lowest that vLLM samples at: what is lower, it raises to this."""
Feedback = Literal["residual", "binary", "blank"]


class SyntheticSettings(Settings):
    """Training tasks that `redraft question` made."""

    path: str = Field(min_length=1)
    """The file that it wrote."""
    ratio: float = Field(default=1.0, gt=0)
    """So many of them for each original task: the first ones of the file, at most all."""
    original: bool = True
    """Play the original training tasks, too."""
    questioner: QuestionerSettings | None = None
    """Who finds tasks for `redraft question` (None: the environment itself, by `explore` and `propose`)."""


class DataSettings(Settings):
    """Which tasks are played, of those that the environment has."""

    path: str | None = None
    """Hugging Face hub name, local folder, or for rows a file, for environments that read data."""
    test: str | None = None
    """rows: the file of the test tasks (None: what `path` holds of them, else a fifth of its rows is held out)."""
    config: str | None = None
    """rows: which configuration of a hub data set, where it has several."""
    train_size: int | None = Field(default=None, ge=1)
    """Use only so many training tasks (None = all)."""
    test_size: int | None = Field(default=None, ge=1)
    """Use only so many test tasks (None = all)."""
    failures: str | None = None
    """A file that `redraft failures` wrote: its tasks, with their failed answers, are the training tasks."""
    synthetic: SyntheticSettings | None = None
    """Training tasks that the environment has shown to be possible, beside its own or in their place."""

    @model_validator(mode="after")
    def _one_source(self):
        if self.failures is not None and self.synthetic is not None:
            raise ValueError("synthetic has no effect beside failures, which is all that is played; leave one out")
        return self


class EnvironmentSettings(Settings):
    """What is played, and what it says to an answer."""

    name: str
    """signs, words, minicraft, textcraft, webshop, scienceworld, countdown, gsm8k, math, functions, rows, agentgym,
    reasoning-gym, textarena, trl, openenv, or FILE.py:Class of your own."""
    feedback: Feedback = "binary"
    """What the environment says to an answer: how far off, right or wrong, or the same sentence always."""
    time_limit_s: float = Field(default=30.0, gt=0)
    """A step that takes longer ends its episode with role `error`."""
    threads: int = Field(default=32, ge=1)
    """Steps of blocking environments that one actor waits for at once; give it more where they sleep or are remote."""
    instances: int | None = Field(default=None, ge=1)
    """Environments that are alive at once in one actor; more episodes wait (None: as the environment says, 8 of
    scienceworld and of textarena, else one for each that is played)."""
    recycle_after: int | None = Field(default=None, ge=1)
    """Episodes after which an environment is closed and another one made (None: never)."""
    options: dict[str, Any] = {}
    """The environment's own settings, see its class."""
    tools: list[Source] = []
    """What a model may call in rollouts `act` and `search`: FILE.py:name of a typed function with a docstring, or an
    MCP server, {mcp: {command: [...]}} or {mcp: {url: ...}}."""


class MixedEnvironment(EnvironmentSettings):
    """One of several environments of a run, with its own data."""

    label: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,62}$")
    """What its figures are told under (empty: its name)."""
    weight: int = Field(default=1, ge=1)
    """Groups that are played of it, beside so many of each other one."""
    data: DataSettings = DataSettings()
    """Which of its tasks are played."""

    def alone(self) -> EnvironmentSettings:
        """The same outside of a mixture."""
        return EnvironmentSettings(**self.model_dump(include=set(EnvironmentSettings.model_fields)))

    @model_validator(mode="before")
    @classmethod
    def _labelled(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("label") and isinstance(values.get("name"), str):
            return values | {"label": re.sub(r"[^A-Za-z0-9._-]+", "-", values["name"])[:62]}
        return values


class SamplingSettings(Settings):
    """How responses are drawn."""

    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Below 1 the ratios of importance corrections are biased."""
    max_tokens: int = Field(default=16, ge=1)
    """Longest response of one turn."""
    agent: bool | Literal["temperature"] = False
    """Requests of rollout `agent` are sampled at their own temperature and top_p (`temperature`: at their own
    temperature alone), where they name one, and learned from at that temperature. false: at those above, always."""

    def greedy(self) -> SamplingSettings:
        """The same at temperature 0, whatever a request names."""
        return self.model_copy(update={"temperature": 0.0, "agent": False})


class EngineSettings(Settings):
    """The engine of an actor."""

    name: Literal["vllm", "scripted"] = "vllm"
    """scripted answers from a script with a latency model: simulation and tests only."""
    process: Literal["auto", "in_process", "separate"] = "auto"
    """Where vLLM's core runs: in the actor (auto on CPU), or in processes of its own (auto on GPU)."""
    max_running: int = Field(default=256, ge=1)
    """Most requests in the engine's batch at once."""
    max_length: int = Field(default=1024, ge=16)
    """Longest prompt with its response, in tokens."""
    kv_cache_gb: PositiveFloat | Literal["auto"] = "auto"
    """Key-value cache on a CPU, in GiB. auto: as much as max_running requests of max_length take, 1 at most."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """Share of a GPU's memory for weights and cache. auto: 0.85, and beside a learner on the same GPU what that leaves,
    as `redraft plan` counts."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of one engine."""
    threads: int = Field(default=1, ge=1)
    """Compute threads on a CPU."""
    speculate: Literal["off", "ngram"] = "off"
    """ngram: what followed the last two to four tokens where they stood before is proposed as the next, so that a retry
    which copies its attempt takes fewer steps. Distribution and log-probs stay those of the model, so it needs
    sampling.temperature 1 and top_p 1. It gains where a wider step costs little, which a CPU's does not."""
    stats: bool | None = None
    """Export vLLM's own metrics (`vllm:...`), too. None: where its core runs in processes of its own; in process they
    take time from generation."""
    token_s: float = Field(default=0.0, ge=0)
    """scripted: seconds a token."""
    first_token_s: float = Field(default=0.0, ge=0)
    """scripted: seconds to the first token."""

    @property
    def share(self) -> float:
        """Of a GPU's memory, where it is alone there or the recipe says."""
        return ALONE if self.gpu_memory == "auto" else self.gpu_memory


class AutoscaleSettings(Settings):
    """Bounds and aim of the number of actors, where the run chooses it."""

    min: int = Field(default=1, ge=1)
    """Fewest actors."""
    max: int = Field(ge=1)
    """Most actors."""
    target_learner_wait: float = Field(default=0.1, gt=0, lt=1)
    """Share of its time that the learner may wait for groups before more actors are asked for."""


class ActorSettings(Settings):
    """How many actors play, with what, and for how long they are waited for."""

    count: int = Field(default=1, ge=1)
    """Actors, one engine each; `redraft scale` changes it while a run goes on."""
    autoscale: AutoscaleSettings | None = None
    """Have the run itself ask for more actors, or fewer, by what the learner waits for; `count` is where it begins."""
    groups: int = Field(default=192, ge=1)
    """Groups that one actor plays at once."""
    engine: EngineSettings = EngineSettings()
    cpus: float = Field(default=1.0, ge=0)
    """Ray CPUs of one actor."""
    gpus: float = Field(default=0.0, ge=0)
    """Ray GPUs of one actor."""
    sleep: bool = False
    """Have the engine give the memory of its cache to the learner on the same GPU while that trains (vLLM's sleep
    mode), for models that would not fit otherwise. Learner and actors take turns, so it needs learner.max_staleness
    0, and each waits for the other."""
    standby: bool = False
    """On each node with actors, keep a process that has imported vLLM (0.6 GB) and waits to take the place of one that
    dies, or of one that is added. Not with gpus."""
    resources: dict[str, PositiveFloat] = {}
    """Ray resources of one actor that only some nodes have, so that actors land there: {actor: 1}."""
    lease_s: float = Field(default=600.0, gt=0)
    """A group that is not closed so long after its lease is abandoned and leased again."""
    silence_s: float = Field(default=60.0, gt=0)
    """An actor that does not answer for so long is replaced, or that does not have new weights so long after they were
    announced, and a second for each 50 MB of them."""
    drain_s: float = Field(default=60.0, ge=0)
    """An actor that is to go may finish its groups for so long; then others play them anew."""
    probe_tolerance: float | None = Field(default=None, gt=0)
    """Largest median difference of the probe's log-probs, of every version (None: each version brings its own limit,
    from the noise that the learner measures on its weights)."""
    failures: int = Field(default=3, ge=1)
    """Failed weight checks in all, or failed starts in a row, of actors before the run stops."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Prometheus port of actor 0; actor n takes the port n above (0 = any free one). No number is given twice."""

    @model_validator(mode="after")
    def _stands_by(self):
        if self.standby and self.gpus:
            raise ValueError(f"standby: true cannot be had with gpus={self.gpus:g}: {NO_STANDBY}")
        return self

    @model_validator(mode="after")
    def _within_autoscale(self):
        scale = self.autoscale
        if scale is not None and not scale.min <= self.count <= scale.max:
            raise ValueError(
                f"count={self.count} is not within autoscale.min={scale.min} and autoscale.max={scale.max}; set it so"
            )
        return self


class CurriculumSettings(Settings):
    """Tasks of a level are played once the one below is mastered."""

    threshold: float = Field(default=0.6, gt=0, le=1)
    """The level rises when its mean success reaches this."""
    window: int = Field(default=256, ge=1)
    """Over so many of its last groups, and not before there are so many."""
    only_newest: bool = False
    """Play only tasks of the newest level (false: of all levels up to it)."""
