"""The contract of controller and actors: what an actor is made of, what it is told, and what it says.

They speak through one call, `exchange(orders) -> report`, a few times a second; that call is also the heartbeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from actors.config import ActorSettings, MixedEnvironment, SamplingSettings
from actors.rendering import OnRewrite
from actors.rollout_config import Rollout
from actors.tally import Tally
from protocols.metrics_page import Listen
from protocols.nvml import Gpu
from protocols.turns import Lease
from protocols.weights import WeightRef
from replay.config import ClientKeys


@dataclass(frozen=True, slots=True)
class Spec:
    """All that an actor needs to be made again elsewhere."""

    run_id: str
    model: str
    dtype: str
    seed: int
    environments: tuple[MixedEnvironment, ...]
    """One, or those of a mixture."""
    rollout: Rollout
    sampling: SamplingSettings
    actors: ActorSettings
    keys: ClientKeys | None
    version: int | None = None
    """Of the weights in `model`, where no learner will announce any: an evaluation."""
    listen: Listen = Listen()
    """Where it serves its metrics."""
    on_rewrite: OnRewrite = "refuse"
    code: Mapping[str, str] = field(default_factory=dict)
    """Sources of the user's own parts, see protocols/own_code.py."""


@dataclass(frozen=True, slots=True)
class Orders:
    """From the controller. `trial` is the perturbed version that an engine must follow before it may play."""

    leases: tuple[Lease, ...] = ()
    weights: WeightRef | None = None
    trial: WeightRef | None = None
    sleep: bool = False
    """Its engine is to sleep as soon as nothing needs it; the learner waits for that."""
    wait_s: float = 0.0
    """The report may wait so long for something to say: a play that has ended, other weights, another state."""


@dataclass(slots=True)
class Report:
    """To the controller. `state`: starting, ready, failed (with `error`). `closed` were acknowledged by replay."""

    state: str
    version: int | None = None
    probe_difference: float = 0.0
    probe_limit: float = 0.0
    closed: list[tuple[bytes, int, float | None]] = field(default_factory=list)  # group, fencing token, success rate
    abandoned: list[tuple[bytes, int, str]] = field(default_factory=list)
    playing: int = 0
    running: int = 0
    turns: int = 0
    tokens: int = 0
    generations: int = 0
    """Responses that were sampled, those that no turn keeps included."""
    attempts: int = 0
    """Those of them that were no reflections."""
    generated_tokens: int = 0
    """Tokens of all those responses."""
    tally: Tally = field(default_factory=Tally)
    """Of what it played since the last report."""
    untemplated: str = ""
    """Why the model looks like a chat model whose template is missing."""
    share: int = -1
    """The share of an evaluation that it plays or played last, as `evaluate` was told."""
    tested: int = 0
    """Tasks of that share that have ended."""
    tested_tokens: int = 0
    """Tokens that were sampled for that share."""
    phase: str = ""
    """What the start of its engine is at, where that is known."""
    error: str = ""
    fatal: bool = False
    """Failed for a cause that a new actor would meet, too: the run has to end."""
    weights_refused: bool = False
    pid: int = 0
    node: str = ""
    node_id: str = ""
    """Ray's."""
    address: str = ""
    """Of the node, for others."""
    metrics_port: int = 0
    asleep: bool = False
    """Its engine has given the memory of its cache away."""
    gpus: tuple[Gpu, ...] = ()
    """Those that it was given, as NVML sees them; none where there are none, or no NVML."""
