"""Settings of the sections of a recipe that are redraft's own: model, evaluation, metrics, logs, tracking."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from actors.config import Feedback
from learner.lora_config import LoraSettings
from protocols.metrics_page import LOOPBACK
from protocols.settings import Settings
from redraft.logs import LogFormat

PASSWORD = re.compile(r"//[^/@\s]+@")
"""A name or a password within a URI."""
HEAD_SIZES = (32, 64, 128)
"""Head sizes that vLLM's attention takes on a CPU and on a GPU."""


GIVEN = {"messages", "add_generation_prompt", "tools", "documents"}
"""What a template is always given."""


class PretrainSettings(Settings):
    """Supervised training on demonstrations of the environment."""

    steps: int = Field(default=450, ge=1)
    """Optimizer steps."""
    batch: tuple[tuple[int, int, float], ...] = ((1, 256, 0.5), (2, 128, 0.3), (5, 64, 0.2))
    """Kinds of batches: (turns of a dialogue, dialogues in the batch, how often)."""
    hidden_lr: float = Field(default=5e-3, gt=0)
    """Muon, for the matrices between the embeddings."""
    other_lr: float = Field(default=4e-3, gt=0)
    """AdamW, for embeddings, norms and biases."""
    warmup: int = Field(default=20, ge=1)
    """Steps of rising learning rate; it then falls linearly to a tenth."""
    threads: int | None = Field(default=None, ge=1)
    """Compute threads; none: what is fastest, up to the cores that the process may use, tried anew as other processes
    come and go. The same settings make the same bytes with a number only."""

    @model_validator(mode="after")
    def _batches_are_possible(self):
        if not self.batch or any(turns < 1 or size < 1 or share <= 0 for turns, size, share in self.batch):
            raise ValueError("batch must list (turns >= 1, dialogues >= 1, share > 0)")
        return self


class MakeSettings(Settings):
    """A small Qwen2-shaped model with random weights, or pretrained on demonstrations."""

    tokenizer: Literal["characters", "bytes"] = "characters"
    """characters: one token each for digits, signs and lower-case letters. bytes: any text."""
    hidden: int = Field(default=96, ge=1)
    """Width."""
    layers: int = Field(default=3, ge=1)
    """Blocks."""
    heads: int = Field(default=3, ge=1)
    """Attention heads; hidden / heads must be 32, 64 or 128."""
    feed_forward: int = Field(default=288, ge=1)
    """Width inside a block."""
    max_length: int = Field(default=256, ge=16)
    """Longest sequence, in tokens."""
    seed: int = 0
    """Of the initial weights and the demonstrations."""
    pretrain: PretrainSettings | None = None
    """Left out: random weights."""

    @model_validator(mode="after")
    def _attention_takes_the_head_size(self):
        if self.hidden % self.heads or self.hidden // self.heads not in HEAD_SIZES:
            raise ValueError(f"heads: hidden / heads is {self.hidden / self.heads:g}; vLLM needs one of {HEAD_SIZES}")
        return self


class TemplateSettings(Settings):
    """The chat template, where it is not to be the tokenizer's as it is."""

    path: str | None = None
    """A Jinja file in place of the tokenizer's chat template."""
    kwargs: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], Any] = {}
    """What the template is given beside the messages: {enable_thinking: false}, say."""

    @model_validator(mode="after")
    def _says_something(self):
        if self.path is None and not self.kwargs:
            raise ValueError("give path (a Jinja file), kwargs (what the template is given), or both")
        return self


class ModelSettings(Settings):
    """Exactly one of `path`, `pretrained` and `make`."""

    path: str | None = None
    """Hugging Face hub name, local folder, or the folder of a run: the model of its newest checkpoint."""
    pretrained: Literal["smollm2"] | None = None
    """A small chat model that comes through pip and is kept: smollm2 is SmolLM2-135M-Instruct."""
    make: MakeSettings | None = None
    """Make a tiny one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers that engines and ranks compute with. auto: bfloat16 on GPUs and on processors that multiply it, else
    float32; the run's own recipe says which it was."""
    template: TemplateSettings | None = None
    """Another chat template than the tokenizer's, or what it is given (None: the tokenizer's as it is)."""
    on_rewrite: Literal["refuse", "new_root"] = "refuse"
    """Where the chat template rewrites what it has shown (strips thinking from earlier answers, say), so that prompts
    do not just grow: refuse rollouts that prompt the model again, or render the whole dialogue anew for each of their
    prompts, so that each turn is a sequence of its own."""
    lora: LoraSettings | None = None
    """Train a low-rank adapter, and leave the model's own weights as they are."""

    @model_validator(mode="after")
    def _one_source(self):
        if [self.path, self.pretrained, self.make].count(None) != 2:
            raise ValueError(
                "give exactly one of path (a model that exists), pretrained (a small one is fetched) and make (a tiny "
                "one is made); on the command line, say, 'model={path: NAME, dtype: bfloat16}' or model.make=null"
            )
        return self


class StopSettings(Settings):
    """Training ends before its steps are done, by what evaluations in its course have solved: the share of test tasks
    that are right at the last turn, or episodes of many actions that succeed."""

    patience: int | None = Field(default=None, ge=1)
    """Evaluations in a row, each of which solves no more than the best before them."""
    reach: float | None = Field(default=None, gt=0, le=1)
    """The share that is enough."""

    @model_validator(mode="after")
    def _says_something(self):
        if self.patience is None and self.reach is None:
            raise ValueError("give patience (evaluations that are no better), reach (a share that is enough), or both")
        return self


class EvaluationSettings(Settings):
    """How a run is measured before and after training, and in its course."""

    n: int = Field(default=500, ge=1)
    """Test tasks."""
    independent: int = Field(default=5, ge=1)
    """Independent first answers of a task, the k of pass@k and majority@k; whole episodes where one is many actions."""
    greedy: bool = True
    """Also play every task once at temperature 0."""
    turns: int | None = Field(default=None, ge=1)
    """Answers, or most actions, in an episode (None = as in rollout)."""
    feedbacks: tuple[Feedback, ...] = ()
    """Controls: play every task once more with each of these kinds of feedback in place of the environment's. With
    `blank` an answer is followed by the same sentence always, so that a gain over turns there owes nothing to it."""
    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations in the course of training (None: there are none). Actors keep the weights of that step
    until its test tasks are played, and play groups beside them as far as `learner.max_staleness` allows."""
    stop: StopSettings | None = None
    """End training early, by these evaluations."""


class MetricsSettings(Settings):
    """Where the controller serves its metrics and /sd, and whether others reach those of all processes."""

    port: int = Field(default=0, ge=0, le=65535)
    """0 = any free one; `redraft status` and run.json say which."""
    host: str | None = None
    """The name of this node for a Prometheus elsewhere. None: 127.0.0.1, and closed to others, where the run has one
    node; in a cluster the node's own address."""

    token: str | None = None
    """File with the token that all of them ask for where others reach them (`Authorization: Bearer TOKEN`). None: one
    is made, metrics.token in the run folder."""

    def opened(self, cluster: bool) -> bool:
        """Whether other machines reach them: in a cluster, or where `host` has opened a single node."""
        return cluster or self.host not in (None, LOOPBACK, "localhost")


class LogSettings(Settings):
    """How the processes of a run log."""

    format: LogFormat = "text"
    """text: for people, in logs/ of the run folder. json: each line also as JSON on the standard output of its process,
    with run, part, and where it is known group, lease and step, for what collects the logs of containers."""
    traces: bool = False
    """Each part sends spans of OpenTelemetry, by OTLP over HTTP: of leases, plays, turns, closed groups and steps.
    OpenTelemetry's own variables say where to and how many (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER). Needs
    `pip install redraft[traces]`."""


class StorageSettings(Settings):
    """Copies of the run in an object store, from which `--resume` goes on where there is no run folder."""

    url: str
    """Where runs are kept, as fsspec names it: s3://bucket/runs, gs://bucket/runs, file:///mnt/runs. This one is kept
    beneath it, under its name. s3 needs `pip install redraft[s3]`. Keys, and the address of a store that is not
    Amazon's (AWS_ENDPOINT_URL), come from the environment, never from here."""
    tries: int = Field(default=5, ge=1)
    """Of each object, with pauses that double from a second, before a copy has failed. A copy that has failed is made
    again with what is there then; training goes on meanwhile."""
    deadline_s: float = Field(default=1800.0, gt=0)
    """Longest time of one copy, and of the last one when the run ends; longest wait for one answer of the store, so for
    each object that is fetched."""

    @field_validator("url")
    @classmethod
    def _is_a_place_without_secrets(cls, url: str) -> str:
        if PASSWORD.search(url) or "?" in url:
            raise ValueError(
                "may hold no name, password or query; set keys in the environment (AWS_ACCESS_KEY_ID, say)"
            )
        if not re.fullmatch(r"[a-z][a-z0-9+]*://[^\s#]+", url):
            raise ValueError("is not PROTOCOL://PLACE; write s3://bucket/runs, or file:///mnt/runs for a folder")
        return url.rstrip("/")


class WandbSettings(Settings):
    """Weights & Biases. Its key comes from WANDB_API_KEY or `wandb login`, never from here."""

    project: str = Field(min_length=1)
    """Where the run is listed."""
    entity: str | None = None
    """The user or team that owns the project; None = that of the key."""


class MlflowSettings(Settings):
    """MLflow. Its credentials come from its own environment variables, never from here."""

    experiment: str = Field(min_length=1)
    """Where the run is listed; made when it is missing."""
    uri: str | None = None
    """Of the tracking server or database; None = MLFLOW_TRACKING_URI, or MLflow's default."""

    @field_validator("uri")
    @classmethod
    def _holds_no_password(cls, uri: str | None) -> str | None:
        if uri and PASSWORD.search(uri):
            raise ValueError("holds a name or a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        return uri


class TrackingSettings(Settings):
    """Trackers beside TensorBoard, whose files every run writes."""

    wandb: WandbSettings | None = None
    """Needs `pip install wandb`."""
    mlflow: MlflowSettings | None = None
    """Needs `pip install mlflow`."""

    @property
    def asked(self) -> list[str]:
        return [name for name in TrackingSettings.model_fields if getattr(self, name) is not None]
