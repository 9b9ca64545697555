"""The arithmetic of memory: what each GPU of a run holds, what will not fit, and which setting to change.

Everything follows from the recipe and the model's config; nothing is loaded, and no GPU is looked at. Bytes of a
trained parameter are those of DeepSpeed as learner/ranks/stages.py sets it up, at the end of a backward pass, over N
ranks; of one rank it is stage 1 in bfloat16 and 0 in float32:

    stage       weights    gradients                                  AdamW: master copy, two moments
    0 bfloat16  2          4 sums, 2 of the pass                      12
    1 bfloat16  2          4 sums                                     12/N
    2 bfloat16  2          4/N sums                                   12/N
    3 bfloat16  2/N        4/N sums, 4/N taken over by the optimizer  12/N
    0 float32   4          4                                          8, no master copy
    1 float32   4          4/N sums                                   12/N
    2 float32   4          4/N                                        12/N
    3 float32   4/N        8/N                                        12/N

With `learner.offload: optimizer` the GPU has no optimizer, and gradients in stage 2 bfloat16 only, 4/N. The host has

    2 bfloat16  18/N    2 float32  24/N    3  20/N

With `actors.sleep` an engine on the GPU keeps its weights and the work of a step while the learner trains, and has its
whole share again while it generates, beside what the learner keeps between two steps: weights, gradients, optimizer and
start model.

Buckets of communication come on top, the gradients of a pass where they are gone before the step, and of stage 3 the
layers that are whole for a moment.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from actors.engines import kv_cache
from actors.engines.kv_cache import BYTES
from learner.ranks.stages import LIVE, bucket_of, stage_of
from protocols.errors import SettingError
from redraft import recipe as recipes
from redraft.models import sizes as models
from redraft.models.sizes import Rows, Sizes
from redraft.recipe import Recipe

GIB = 2**30
RESERVE = 0.1
"""Share of a GPU that is left for what no formula knows: the CUDA context, NCCL, what the allocator cannot use."""
SLICE_BYTES = 3 * 4 * (1 << 22)
"""Float32 logits that exist at once, and what is made of them: see learner/model/policy.py."""
BATCHED = 2048
"""vLLM's `max_num_batched_tokens` for an engine that is not its server's."""
MOST_RANKS = 64
LEAST = 0.05
"""Share of a GPU below which no engine is tried."""
HOST = "in host memory"
KEPT = ("weights", "gradients", "optimizer", "start model")
"""Shares of a rank that stay between two steps."""

Measured = Callable[[Recipe], Sizes]
"""The sizes of the run's model as a recipe has it trained."""


@dataclass(frozen=True, slots=True)
class Share:
    """What takes memory of one GPU, and the formula with its numbers."""

    what: str
    bytes: int
    how: str


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of process. `shares` and `room` are of one of its GPUs; without GPUs there is no `room` to keep."""

    name: str
    processes: int
    gpus: float
    """Of one process, as Ray counts them."""
    shares: tuple[Share, ...]
    room: int | None
    problem: str = ""
    cures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(share.bytes for share in self.shares)

    @property
    def fits(self) -> bool:
        return not self.problem and (self.room is None or self.bytes <= self.room)


@dataclass(frozen=True, slots=True)
class Plan:
    """Of a whole run. `gpus` are those that Ray has to have; `engine_share` is that of an engine of its GPU."""

    model: str
    parameters: int
    trained: int
    gpus: int
    gpu_bytes: int
    parts: tuple[Part, ...]
    engine_share: float

    @property
    def fits(self) -> bool:
        return all(part.fits for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        parts = [
            {
                "name": part.name,
                "processes": part.processes,
                "gpus": part.gpus,
                "bytes": part.bytes,
                "room": part.room,
                "fits": part.fits,
                "problem": part.problem,
                "cures": list(part.cures),
                "notes": list(part.notes),
                "shares": [{"what": share.what, "bytes": share.bytes, "how": share.how} for share in part.shares],
            }
            for part in self.parts
        ]
        own = {name: getattr(self, name) for name in ("model", "parameters", "trained", "gpus", "gpu_bytes", "fits")}
        return own | {"parts": parts}


def plan(recipe: Recipe, config: Any, gpu_bytes: int) -> Plan:
    """The plan of a recipe with the model of a transformers config, on GPUs of so many bytes. Raises SettingError."""
    known: dict[tuple, Sizes] = {}

    def measured(recipe: Recipe) -> Sizes:
        key = recipe.model.dtype, _rows(recipe), recipe.model.lora
        if key not in known:
            known[key] = models.sizes(copy.deepcopy(config), *key)
        return known[key]

    found, recipe = measured(recipe), _settled(recipe, measured, gpu_bytes)
    parts = [_actor(recipe, measured, gpu_bytes)]
    if recipe.steps:
        parts.insert(0, _rank(recipe, measured, gpu_bytes, with_cures=True))
    learner = recipe.learner.ranks * bool(recipe.steps)
    gpus = _packed([recipe.learner.gpus] * learner + [recipe.actors.gpus] * recipe.actors.count)
    share = recipe.actors.engine.share
    return Plan(found.type, found.parameters, found.trained, gpus, gpu_bytes, tuple(parts), share)


def _settled(recipe: Recipe, measured: Measured, gpu_bytes: int) -> Recipe:
    """The recipe with a number where `actors.engine.gpu_memory` is auto, and an engine shares a GPU with others."""
    engine, gpus = recipe.actors.engine, recipe.actors.gpus
    if engine.gpu_memory != "auto" or not 0 < gpus < 1:
        return recipe
    left, together = engine.share, min(int(1 / gpus + 1e-9), recipe.actors.count)
    if ranks := beside(recipe):
        shares = tuple(_rank_shares(recipe, measured))
        kept = sum(share.bytes for share in shares if share.what in KEPT or not recipe.actors.sleep)
        left, together = min(left, 1 - RESERVE - kept / gpu_bytes), ranks
    share = max(LEAST, int(100 * left / together) / 100)
    return _changed(recipe, {"actors.engine.gpu_memory": share})


def _rows(recipe: Recipe) -> Rows:
    learner = recipe.learner
    kernel = "eager" if learner.attention == "eager" else models.KERNEL
    dense = learner.attention == "sdpa" or (learner.attention == "auto" and recipe.model.dtype == "float32")
    masked = dense and learner.packing is not False
    return Rows(learner.micro_tokens // learner.row_tokens, learner.row_tokens, kernel, masked)


def _packed(demands: list[float]) -> int:
    """GPUs on which these fit, whole ones and fractions, in this order."""
    left: list[float] = []
    for demand in filter(None, demands):
        place = next((n for n, free in enumerate(left) if demand <= free + 1e-9), None)
        if demand >= 1:
            left += [0.0] * round(demand)
        elif place is None:
            left.append(1 - demand)
        else:
            left[place] -= demand
    return len(left)


def beside(recipe: Recipe) -> int:
    """Engines on the GPU of a rank."""
    rank, actor = recipe.learner.gpus, recipe.actors.gpus
    if not recipe.steps or not 0 < rank < 1 or not 0 < actor < 1:
        return 0
    return min(int((1 - rank) / actor + 1e-9), recipe.actors.count)


# The learner.


def _rank(recipe: Recipe, measured: Measured, gpu_bytes: int, with_cures: bool = False) -> Part:
    learner = recipe.learner
    found, shares = measured(recipe), tuple(_rank_shares(recipe, measured))
    room = None
    if learner.gpus:
        room = int(gpu_bytes * (1 - RESERVE)) - beside(recipe) * _awake_or_not(recipe, found, gpu_bytes)
    notes = [] if found.kept else [f"activations are left out: a model of type {found.type} tells them on a GPU only"]
    if _offloads(recipe):
        size, how = _in_host(found.trained, BYTES[recipe.model.dtype], _stage(recipe), learner.ranks)
        notes.append(f"a rank keeps {size / GIB:.1f} GiB in host memory: {how}")
    if learner.gpus > 1:
        notes.append("a rank uses one GPU: set learner.gpus to 1, and learner.ranks to how many there are")
    part = Part("learner", learner.ranks, learner.gpus, shares, room, _crowded(recipe, shares, gpu_bytes))
    part = replace(part, notes=tuple(notes))
    if part.fits or not with_cures:
        return part
    cures = tuple(_cures(recipe, _rank_changes(recipe), lambda other: _rank(other, measured, gpu_bytes).fits))
    more = f"{part.bytes / GIB:.1f} GiB are more than the {max(0, part.room or 0) / GIB:.1f} GiB that a rank has"
    problem = part.problem or more
    return Part(part.name, part.processes, part.gpus, shares, room, problem, cures, part.notes)


def _awake_or_not(recipe: Recipe, found: Sizes, gpu_bytes: int) -> int:
    """Bytes that an engine has of the GPU while the learner trains beside it."""
    if recipe.actors.sleep:
        return sum(share.bytes for share in _engine_shares(recipe, found))
    return int(gpu_bytes * recipe.actors.engine.share)


def _crowded(recipe: Recipe, shares: tuple[Share, ...], gpu_bytes: int) -> str:
    """What is wrong where engines that have slept do not find their memory again; "" where they do."""
    if not recipe.actors.sleep:
        return ""
    kept = sum(share.bytes for share in shares if share.what in KEPT)
    room = int(gpu_bytes * (1 - RESERVE - beside(recipe) * recipe.actors.engine.share))
    if kept <= room:
        return ""
    return (
        f"{kept / GIB:.1f} GiB that a rank keeps between two steps are more than the {max(0, room) / GIB:.1f} GiB that "
        "engines leave it when they wake"
    )


def _rank_shares(recipe: Recipe, measured: Measured) -> Iterator[Share]:
    learner, dtype = recipe.learner, recipe.model.dtype
    found = measured(recipe)
    width, zero, ranks, trained = BYTES[dtype], _stage(recipe), learner.ranks, found.trained
    shard = ranks if zero == 3 else 1
    over = f" / {ranks} ranks" if ranks > 1 else ""
    weights = found.parameters + (trained if recipe.model.lora else 0)
    yield Share("weights", weights * width // shard, f"{weights:,} x {width} B" + (over if zero == 3 else ""))
    if _offloads(recipe):
        kept = zero == 2 and width == 2
        yield Share("gradients", *_gradients(trained, width, zero, ranks)) if kept else Share("gradients", 0, HOST)
        yield Share("optimizer", 0, HOST)
    else:
        yield Share("gradients", *_gradients(trained, width, zero, ranks))
        yield Share("optimizer", *_optimizer(trained, width, zero, ranks))
    if _refers(recipe):
        yield Share("start model", found.parameters * width, f"{found.parameters:,} x {width} B, for kl or anchor")
    yield Share("communication", *_communication(found, width, zero, ranks))
    yield _activations(recipe, found)
    yield _log_probs(recipe, found)


def _stage(recipe: Recipe) -> int:
    """Of DeepSpeed's, the one that runs."""
    learner = recipe.learner
    return stage_of(learner.zero, learner.ranks, recipe.model.dtype == "float32", _offloads(recipe))


def _offloads(recipe: Recipe) -> bool:
    return recipe.learner.offload == "optimizer"


def _in_host(trained: int, width: int, stage: int, ranks: int) -> tuple[int, str]:
    """Bytes and formula of what a rank keeps in host memory: see the table above."""
    each = {(2, 2): 18, (2, 4): 24}.get((stage, width), 20)
    return trained * each // ranks, f"{trained:,} x {each} B" + (f" / {ranks} ranks" if ranks > 1 else "")


def _gradients(trained: int, width: int, zero: int, ranks: int) -> tuple[int, str]:
    """Bytes and formula: see the table above."""
    whole = {(0, 2): 6, (1, 2): 4, (0, 4): 4}.get((zero, width), 0)
    shared = {(1, 4): 4, (2, 2): 4, (2, 4): 4, (3, 2): 8, (3, 4): 8}.get((zero, width), 0)
    said = [f"{trained:,} x {whole} B"] * bool(whole)
    said += [f"{trained:,} x {shared} B" + (f" / {ranks} ranks" if ranks > 1 else "")] * bool(shared)
    return trained * whole + trained * shared // ranks, " + ".join(said)


def _optimizer(trained: int, width: int, zero: int, ranks: int) -> tuple[int, str]:
    """Bytes and formula: see the table above."""
    state, made_of = (8, "moments") if zero == 0 and width == 4 else (12, "master copy, moments")
    said = f"{trained:,} x {state} B ({made_of})" + (f" / {ranks} ranks" if zero and ranks > 1 else "")
    return trained * state // (ranks if zero else 1), said


def _communication(found: Sizes, width: int, zero: int, ranks: int) -> tuple[int, str]:
    """Bytes and formula of what collectives take meanwhile."""
    bucket = bucket_of(found.trained)
    if zero == 0 or (zero == 1 and width == 2):
        return (4 * bucket, f"a bucket of {bucket:,} x 4 B") if ranks > 1 else (0, "one rank")
    if zero == 3:
        live = min(LIVE, found.parameters)
        said = f"buckets of {bucket:,} x 4 B and {bucket:,} x {width} B, {live:,} weights whole x {width} B"
        return 4 * bucket + width * (bucket + live), said
    passing = found.trained if zero == 1 else bucket
    beside = 2 if zero == 2 and ranks > 1 else 1  # one bucket fills while the other is reduced
    said = f"buckets of {beside} x {bucket:,} x {width} B and {bucket:,} x 4 B, gradients of {passing:,} x {width} B"
    return width * (beside * bucket + passing) + 4 * bucket, f"{said} in passing"


def _activations(recipe: Recipe, found: Sizes) -> Share:
    learner, kept = recipe.learner, found.kept
    tokens, width = learner.micro_tokens, BYTES[recipe.model.dtype]
    if kept is None:
        return Share("activations", 0, "not known")
    adapter = tokens * found.adapter_kept * width
    if not learner.gradient_checkpointing or not kept.layers:
        said = f"{tokens:,} tokens x {kept.all // tokens:,} B"
        return Share("activations", kept.all + adapter, said + (", and the adapter's" if adapter else ""))
    said = (
        f"{tokens:,} tokens x ({kept.inputs // tokens:,} B of {kept.layers} layers' inputs + {kept.layer // tokens:,} "
    )
    said += f"B of one + {kept.outside // tokens:,} B)"
    return Share("activations", kept.checkpointed + adapter // kept.layers, said)


def _log_probs(recipe: Recipe, found: Sizes) -> Share:
    learner, width = recipe.learner, BYTES[recipe.model.dtype]
    tokens = learner.micro_tokens
    piece = -(-tokens // -(-tokens // learner.logprob_chunk))
    logits = 4 if learner.head == "float32" else width
    said = f"{piece:,} tokens x {found.vocabulary:,} words x {logits} B, slices in float32"
    size = piece * found.vocabulary * logits + SLICE_BYTES
    if recipe.model.lora is None:
        size += found.vocabulary * found.hidden * width
        said += f", the head's gradient {found.vocabulary:,} x {found.hidden:,} x {width} B"
    return Share("log-probs", size, said)


def _refers(recipe: Recipe) -> bool:
    return recipe.model.lora is None and bool(recipe.learner.objective.held_to_start())


def _rank_changes(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Settings that would take less memory of a rank, what costs least first."""
    learner, engine = recipe.learner, recipe.actors.engine
    if beside(recipe):
        for share in (0.5, 0.4, 0.3, 0.2):
            if share < engine.share:
                yield {"actors.engine.gpu_memory": share}
    if recipe.model.dtype == "float32":
        yield {"model.dtype": "bfloat16"}
    if not learner.gradient_checkpointing:
        yield {"learner.gradient_checkpointing": True}
    if learner.micro_tokens > learner.row_tokens:
        yield {"learner.micro_tokens": learner.row_tokens}
    most = 2 if _refers(recipe) else 3
    for zero in range(learner.zero + 1, most + 1):
        if learner.ranks > 1:
            yield {"learner.zero": zero}
    turns: dict[str, Any] = {"actors.sleep": True, "learner.max_staleness": 0}
    if beside(recipe) and not recipe.actors.sleep and _fits(recipe, turns, lambda other: True):
        yield turns
    if not _offloads(recipe):
        yield {"learner.offload": "optimizer"}
    ranks = learner.ranks * 2
    while learner.gpus >= 1 and ranks <= MOST_RANKS:
        yield {"learner.ranks": ranks, "learner.zero": max(learner.zero, most)}
        ranks *= 2
    if recipe.model.lora is None:
        yield {"model.lora": {}}


def _cures(recipe: Recipe, changes: Iterator[dict], fits: Callable[[Recipe], bool]) -> Iterator[str]:
    """Each change that suffices alone, one value of a setting, and the first few that do together."""
    together: dict[str, Any] = {}
    alone: dict[str, str] = {}
    enough = ""
    for change in changes:
        key = next(iter(change))
        if key not in alone and _fits(recipe, change, fits):
            alone[key] = _said(change)
        together |= change
        if not enough and _fits(recipe, together, fits):
            enough = _said(together)
    yield from alone.values()
    if enough and enough not in alone.values():
        yield enough


def _fits(recipe: Recipe, change: dict[str, Any], fits: Callable[[Recipe], bool]) -> bool:
    try:
        return fits(_changed(recipe, change))
    except SettingError:  # the settings do not go together
        return False


def _changed(recipe: Recipe, change: dict[str, Any]) -> Recipe:
    values = recipe.model_dump(mode="json")
    for key, value in change.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
    return recipes.build(values)


def _said(change: dict[str, Any]) -> str:
    """As people type it."""
    words = {True: "true", False: "false"}
    return " ".join(
        f"{key}={words.get(value, value) if isinstance(value, bool) else value}" for key, value in change.items()
    )


# The actors.


def _actor(recipe: Recipe, measured: Measured, gpu_bytes: int, with_cures: bool = True) -> Part:
    actors, engine = recipe.actors, recipe.actors.engine
    found, width = measured(recipe), BYTES[recipe.model.dtype]
    shares = list(_engine_shares(recipe, found))
    token = found.cached * width // min(engine.tensor_parallel, found.cache_heads)
    room = int(gpu_bytes * engine.share) if actors.gpus else None
    own = kv_cache.cpu_bytes(engine, found.cached if found.only_attends else 0, recipe.model.dtype)
    budget = own if room is None else room - sum(share.bytes for share in shares)
    tokens = max(0, budget) // token if token else 0
    least = min(engine.max_length * token, max(0, budget)) if room is None else engine.max_length * token
    said = f"{tokens:,} tokens x {token:,} B: {tokens // engine.max_length:,} of actors.engine.max_length at once"
    shares.append(Share("cache", max(least, budget), said))
    notes = [] if actors.count == 1 else [f"the same on each of {actors.count} actors"]
    if token and tokens // engine.max_length < engine.max_running:
        notes.append(
            f"of actors.engine.max_running={engine.max_running} requests the longest wait for room in the cache"
        )
    part = Part("actors", actors.count, actors.gpus, tuple(shares), room, _misplaced(recipe), notes=tuple(notes))
    if part.fits or not with_cures:
        return part
    problem, cures = part.problem, ()
    if not problem:
        takes = f"{part.bytes / GIB:.1f} GiB of {(room or 0) / GIB:.1f}"
        problem = f"weights and one request of actors.engine.max_length take {takes}"
        cures = tuple(
            _cures(recipe, _actor_changes(recipe), lambda other: _actor(other, measured, gpu_bytes, False).fits)
        )
    return Part(part.name, part.processes, part.gpus, part.shares, room, problem, cures, part.notes)


def _engine_shares(recipe: Recipe, found: Sizes) -> Iterator[Share]:
    engine, width = recipe.actors.engine, BYTES[recipe.model.dtype]
    wide = engine.tensor_parallel
    over = f" / {wide} GPUs" if wide > 1 else ""
    yield Share("weights", found.parameters * width // wide, f"{found.parameters:,} x {width} B{over}")
    if recipe.actors.gpus:
        layer = BATCHED * (4 * found.hidden + 3 * found.inner // wide) * width
        logits = 2 * 4 * engine.max_running * found.vocabulary
        said = f"{BATCHED:,} tokens in a layer, 2 x {engine.max_running} x {found.vocabulary:,} x 4 B of log-probs"
        yield Share("work", layer + logits, said)


def _misplaced(recipe: Recipe) -> str:
    """What is wrong with the GPUs of an actor; "" where nothing is."""
    gpus, engine = recipe.actors.gpus, recipe.actors.engine
    if gpus and engine.tensor_parallel > 1 and gpus != engine.tensor_parallel:
        wide = engine.tensor_parallel
        return f"actors.gpus={gpus:g} does not give actors.engine.tensor_parallel={wide} its GPUs; set it to {wide}"
    together = min(int(1 / gpus + 1e-9), recipe.actors.count) if 0 < gpus < 1 else 1
    if together * engine.share > 1:
        most = int(100 / together) / 100
        return f"{together} actors share a GPU, each with actors.engine.gpu_memory={engine.share:g}; set {most:g}"
    return ""


def _actor_changes(recipe: Recipe) -> Iterator[dict[str, Any]]:
    engine = recipe.actors.engine
    for share in (0.5, 0.7, 0.9):
        if engine.share < share and not beside(recipe):
            yield {"actors.engine.gpu_memory": share}
    wide = engine.tensor_parallel * 2
    while wide <= 8:
        yield {"actors.engine.tensor_parallel": wide, "actors.gpus": wide}
        wide *= 2
