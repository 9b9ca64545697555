"""The learner's ranks as real processes on a real replay service: the weights are those of plain torch, also after a
resume, and what is published can be checked."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load
from support.places import PYTHONPATH
from support.ports import free_port
from support.waiting import deadline_s, until
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from actors import weights as actor_weights
from actors.transports import Pinned
from learner.batches.batch import prepare
from learner.batches.prefetch import Prefetch
from learner.checkpoint import newest
from learner.config import LearnerSettings
from learner.model.load import load_model
from learner.model.policy import Policy
from learner.objectives import loss_of, make
from learner.ranks.rank import Rank, RankSpec
from protocols.checksum import summed, sums_of
from protocols.errors import DeadlineError
from protocols.reports import LearnerEnded, LearnerReady
from protocols.turns import Close, Group, Lease, Role, Turn
from protocols.weights import version_of
from replay.client import Client, Producer
from replay.config import Endpoints, ReplaySettings
from replay.server.service import Service

pytestmark = pytest.mark.ray

VOCABULARY, SEED, BATCH = 40, 3, 4


class Controller:
    """Notes what the learner tells its controller."""

    def __init__(self):
        self.weights, self.reports, self.trials = [], [], []

    def announce(self, ref):
        with Pinned(ref):  # as an actor of the learner's node does
            self.weights.append((ref, Path(ref.path).read_bytes()))

    def announce_trial(self, ref):
        self.trials.append(ref)

    def step_done(self, report):
        self.reports.append(report.to_json())

    def cursor(self):
        return {"task": 17}

    def noted(self):
        return self.weights, self.reports


@dataclass(frozen=True)
class Noting:
    """The controller's handle. An announcement returns once it is noted: later the learner may write there again."""

    handle: Any

    @property
    def announce(self):
        return SimpleNamespace(remote=self._announced)

    def _announced(self, ref):
        answer = self.handle.announce.remote(ref)
        ray.get(answer, timeout=deadline_s(60))
        return answer

    @property
    def announce_trial(self):
        return self.handle.announce_trial

    @property
    def step_done(self):
        return self.handle.step_done

    @property
    def cursor(self):
        return self.handle.cursor


@pytest.fixture(scope="module", autouse=True)
def cluster():
    paths = os.pathsep.join((PYTHONPATH, str(Path(__file__).parent)))  # this file holds an actor class
    env = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ray.init("local", num_cpus=4, include_dashboard=False, runtime_env={"env_vars": env}, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(SEED)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, tie_word_embeddings=True, **shape)
    Qwen2ForCausalLM(config).save_pretrained(path)
    (path / "tokenizer.json").write_text("{}")
    return str(path)


@contextmanager
def replay() -> Iterator[tuple[Endpoints, Path]]:
    """A replay service with a short ipc path, and a run folder."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        endpoints = Endpoints(f"ipc://{folder}/in", f"ipc://{folder}/out")
        with Service(Path(folder, "spool"), endpoints, ReplaySettings(), "run"):
            run = Path(folder, "run")
            run.mkdir()
            yield endpoints, run


@pytest.fixture
def place():
    with replay() as made:
        yield made


def groups(count: int) -> list[Group]:
    """Groups of three dialogues of two turns, of random lengths and rewards."""
    random = np.random.default_rng(SEED)
    made = []
    for number in range(count):
        name = number.to_bytes(16, "big")
        turns = []
        for turn in range(6):
            prompt, response = (random.integers(0, VOCABULARY, random.integers(2, 9)) for _ in range(2))
            logprobs = np.full(len(response), -np.log(VOCABULARY), np.float32)
            arrays = (prompt.astype(np.int32), response.astype(np.int32), logprobs)
            facts = {"episode": turn // 2, "index": turn % 2, "reward": float(random.integers(0, 2))}
            turns.append(Turn(name, 0, turn, turn - 1 if turn % 2 else -1, *arrays, ((0, 0),), Role.ATTEMPT, **facts))
        made.append(Group(name, 0, tuple(turns)))
    return made


def fill(endpoints: Endpoints, made: list[Group]) -> None:
    producer = Producer("test")
    for order, group in enumerate(made):
        lease = Lease(group.id, 0, order, {}, 0, endpoints.ingest)
        for turn in group.turns:
            producer.add(turn, lease)
        producer.add(Close(group.id, 0, len(group.turns)), lease, 1.0)
    producer.close(10)


def settings(**values) -> LearnerSettings:
    base = {
        "batch_groups": BATCH,
        "max_staleness": 9,
        "row_tokens": 32,
        "micro_tokens": 64,
        "optimizer": {"lr": 1e-2, "clip": 0.05, "schedule": "linear", "warmup_steps": 1, "weight_decay": 0.1},
        "objective": {"name": "grpo", "kl": 0.0},
        "claim_deadline_s": deadline_s(30),
        "checkpoint_every": 2,
    }
    return LearnerSettings(**(base | values))


RATES = (1e-2, 1e-2, 1e-2 * 2 / 3)  # of a run of four steps


def plain_torch(model_path: str, made: list[Group], steps: int) -> dict[str, torch.Tensor]:
    """The weights after one step on each of the first `steps` batches, by nothing but torch."""
    choice = settings(ranks=1, row_tokens=512, micro_tokens=4096)
    policy = Policy(load_model(model_path, torch.float32, "eager"))
    optimizer = torch.optim.AdamW(policy.parameters(), betas=(0.9, 0.999), weight_decay=0.1)
    for step, lr in zip(range(steps), RATES, strict=False):
        ((micro,),) = prepare(made[step * BATCH : (step + 1) * BATCH], step, choice).micros
        tensors = {name: torch.from_numpy(array) for name, array in micro.arrays().items()}
        logprobs, entropy = policy(*(tensors[name] for name in ("tokens", "positions", "picks", "targets")))
        loss, _ = loss_of(make(choice.objective), logprobs, entropy, tensors)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.05)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    return dict(policy.model.named_parameters())


class Learner:
    """The ranks of one incarnation of a run, and their controller."""

    def __init__(self, model_path: str, endpoints: Endpoints, run_dir: Path, choice, resume=False, **named):
        """`choice` are LearnerSettings, `named` what else a RankSpec says."""
        actor = ray.remote(num_cpus=0, max_concurrency=3)(Rank)
        common = (choice, model_path, run_dir, "run", SEED, (endpoints,), None)
        specs = [RankSpec(rank, choice.ranks, *common, steps=4, **named) for rank in range(choice.ranks)]
        self.ranks = [actor.remote(spec) for spec in specs]
        self.controller = ray.remote(num_cpus=0)(Controller).remote()
        port = free_port()
        self.ready = ray.get(
            [rank.setup.remote(("127.0.0.1", port), resume) for rank in self.ranks], timeout=deadline_s(60)
        )

    def start(self, until_step: int):
        noting = Noting(self.controller)
        ray.get([rank.announce.remote(noting) for rank in self.ranks], timeout=deadline_s(60))
        self.running = [rank.run.remote(noting, until_step) for rank in self.ranks]

    def finish(self) -> tuple[list[dict], list, list]:
        """What the ranks returned, the announced weights and the reports; the processes end."""
        returned = ray.get(self.running, timeout=deadline_s(60))
        weights, reports = self.noted()
        self._check_blobs(weights)
        for rank in self.ranks:
            ray.kill(rank)
        return returned, weights, reports

    def _check_blobs(self, weights: list):
        """Actors of other nodes get the same bytes of the newest version, and hear that older ones are replaced."""
        newest, older = ray.get([self.ranks[0].blob.remote(ref.version) for ref, _ in (weights[-1], weights[0])])
        assert ray.get(newest[0]).tobytes() == weights[-1][1]
        assert older == [] or len(weights) == 1

    def noted(self):
        return ray.get(self.controller.noted.remote())


def assert_close(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    worst = max((state[name] - expected[name]).abs().max().item() for name in state)
    print(f"largest difference from plain torch: {worst:.1e}")
    assert worst < 2e-5


def test_one_rank_trains_like_plain_torch_and_a_resume_changes_no_bit(model_path):
    made = groups(3 * BATCH)
    with replay() as (endpoints, run_dir):
        fill(endpoints, made)
        whole = Learner(model_path, endpoints, run_dir, settings())
        whole.start(4)  # more than there are groups for: it trains three steps, then waits
        until(lambda: len(whole.noted()[1]) >= 3, "three steps", 30)
        ray.get(whole.ranks[0].stop.remote())
        returned, weights, reports = whole.finish()
        assert returned == [LearnerEnded(3, "stopped")]
        assert newest(run_dir).name == "step-000003"
        assert [ref.version for ref, _ in weights] == [0, 1, 2, 3]
        for step in (0, 2, 3):
            assert_close(load(weights[step][1]), plain_torch(model_path, made, step))
        check_report(reports[0], made)
        check_publication(*weights[3], run_dir)

    with replay() as (endpoints, run_dir):
        fill(endpoints, made)
        first = Learner(model_path, endpoints, run_dir, settings())
        first.start(2)
        ended, _, told = first.finish()
        assert ended == [LearnerEnded(2, "done")]
        second = Learner(model_path, endpoints, run_dir, settings(), resume=True)
        trained = sum(weights.numel() for weights in load_model(model_path, torch.float32, "eager").parameters())
        [ready] = second.ready
        assert replace(ready, last=None) == LearnerReady(2, 1, trained, {"task": 17}, bound=9)
        assert ready.last.to_json() | {"seconds": {}} == told[-1] | {"seconds": {}}, "also where nobody heard it then"
        second.start(3)
        _, resumed, _ = second.finish()
        assert [ref.version for ref, _ in resumed] == [version_of(1, 2), version_of(1, 3)]
        assert same_bits(load(resumed[1][1]), load(weights[3][1]))


def check_report(report: dict, made: list[Group]) -> None:
    json.dumps(report)
    turns = [turn for group in made[:BATCH] for turn in group.turns]
    assert report["step"] == report["version"] == 1
    assert report["groups"] == BATCH and report["turns"] == len(turns)
    assert report["reward"] == pytest.approx(np.mean([turn.reward for turn in turns]))
    assert report["staleness_counts"] == {"0": BATCH}
    assert 0 < report["sequences"] <= 3 * BATCH and report["trained_turns"].keys() == {"attempt"}
    assert report["gradient_norm"] > 0 and report["lr"] == 1e-2 and report["skipped_updates"] == 0
    assert 0 < report["effective_samples"] <= 1
    assert report["seconds"].keys() == {"wait", "pack", "train", "commit", "gather", "publish", "checkpoint"}


def check_publication(ref, blob: bytes, run_dir: Path) -> None:
    """Sums and probe agree with the bytes, and with the model of the checkpoint in other hands."""
    state = load(blob)
    (run_dir / "published").write_bytes(blob)
    actor_weights.check(ref, run_dir / "published")
    assert ref.sums == summed(sums_of(tensor) for tensor in state.values())
    model = AutoModelForCausalLM.from_pretrained(newest(run_dir) / "model")
    assert all(torch.equal(parameter, state[name]) for name, parameter in model.named_parameters())
    assert (newest(run_dir) / "model" / "tokenizer.json").exists()
    tokens = torch.tensor([ref.probe.tokens])
    with torch.no_grad():
        logprobs = model(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)
    np.testing.assert_allclose(ref.probe.logprobs, logprobs, atol=1e-5)


@pytest.mark.parametrize("zero", [pytest.param(0, marks=pytest.mark.prove), 3])
def test_two_ranks_train_like_plain_torch_and_resume(model_path, place, zero):
    endpoints, run_dir = place
    made = groups(3 * BATCH)
    fill(endpoints, made)
    choice = settings(ranks=2, zero=zero, micro_tokens=32, logprob_chunk=16)
    first = Learner(model_path, endpoints, run_dir, choice)
    first.start(2)
    returned, weights, reports = first.finish()
    assert returned == [LearnerEnded(2, "done")] * 2
    assert_close(load(weights[2][1]), plain_torch(model_path, made, 2))
    second = Learner(model_path, endpoints, run_dir, choice, resume=True)
    assert {ready.step for ready in second.ready} == {2}
    second.start(3)
    _, weights, _ = second.finish()
    assert_close(load(weights[1][1]), plain_torch(model_path, made, 3))


@pytest.mark.prove
@pytest.mark.parametrize(("ranks", "zero"), [(1, 1), (2, 3)])
def test_rounds_begin_from_the_base_and_resume_amid_one_without_changing_a_bit(model_path, ranks, zero):
    made = groups(4 * BATCH)
    choice = settings(ranks=ranks, zero=zero, rounds={"steps": 2, "from_base": True}, checkpoint_every=9)
    with replay() as (endpoints, run_dir):
        fill(endpoints, made)
        whole = Learner(model_path, endpoints, run_dir, choice)
        whole.start(4)
        _, weights, reports = whole.finish()
    assert [ref.version for ref, _ in weights] == [0, 2, 4]
    assert [(report["step"], report["version"]) for report in reports] == [(1, 0), (2, 2), (3, 2), (4, 4)]
    assert [report["lr"] for report in reports] == [1e-2] * 4, "both rounds rise for a step, then begin to fall"
    assert_close(load(weights[1][1]), plain_torch(model_path, made, 2))
    assert_close(load(weights[2][1]), plain_torch(model_path, made[2 * BATCH :], 2))

    with replay() as (endpoints, run_dir):
        fill(endpoints, made)
        first = Learner(model_path, endpoints, run_dir, choice)
        first.start(3)
        assert first.finish()[0] == [LearnerEnded(3, "done")] * ranks
        second = Learner(model_path, endpoints, run_dir, choice, resume=True)
        assert {ready.step for ready in second.ready} == {3}
        second.start(4)
        _, resumed, reports = second.finish()
    assert [ref.version for ref, _ in resumed] == [version_of(1, 2), version_of(1, 4)]
    assert [report["version"] for report in reports] == [version_of(1, 4)]
    assert same_bits(load(resumed[0][1]), load(weights[1][1])), "actors go on with the weights of the round"
    assert same_bits(load(resumed[1][1]), load(weights[2][1]))
    np.testing.assert_allclose(resumed[0][0].probe.logprobs, weights[1][0].probe.logprobs, atol=1e-5)


def test_rounds_go_on_from_where_they_are_and_the_run_ends_with_a_publication(model_path, place):
    endpoints, run_dir = place
    made = groups(4 * BATCH)
    fill(endpoints, made[: 3 * BATCH])
    learner = Learner(model_path, endpoints, run_dir, settings(rounds={"steps": 3}))
    learner.start(3)
    _, weights, _ = learner.finish()
    assert [ref.version for ref, _ in weights] == [0, 3]
    assert_close(load(weights[1][1]), plain_torch(model_path, made, 3))
    fill(endpoints, made[3 * BATCH :])
    rest = Learner(model_path, endpoints, run_dir, settings(rounds={"steps": 3}), resume=True)
    rest.start(4)
    _, weights, reports = rest.finish()
    assert [ref.version for ref, _ in weights] == [version_of(1, 3), version_of(1, 4)]
    assert [report["version"] for report in reports] == [version_of(1, 4)]


def same_bits(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("ranks", "zero"), [(1, 1), *(pytest.param(2, n, marks=pytest.mark.prove) for n in range(4))])
def test_a_batch_that_trains_nothing_is_a_step_that_moves_no_weight(model_path, place, ranks, zero):
    endpoints, run_dir = place
    first, failed, last = (groups(3 * BATCH)[start : start + BATCH] for start in (0, BATCH, 2 * BATCH))
    failed = [replace(group, turns=tuple(replace(turn, reward=0.0) for turn in group.turns)) for group in failed]
    fill(endpoints, [*first, *failed, *last])
    successes = {"credit": {"name": "raw"}, "objective": {"name": "sft"}}
    learner = Learner(model_path, endpoints, run_dir, settings(ranks=ranks, zero=zero, **successes))
    learner.start(3)
    returned, weights, reports = learner.finish()
    assert returned == [LearnerEnded(3, "done")] * ranks
    assert [ref.version for ref, _ in weights] == [0, 1, 2, 3]
    moved = [not same_bits(load(weights[n][1]), load(weights[n + 1][1])) for n in range(3)]
    assert moved == [True, False, True], "neither momentum nor weight decay goes on without a token"
    assert [report["trained_tokens"] > 0 for report in reports] == moved
    nothing = (
        "loss",
        "entropy",
        "gradient_norm",
        "effective_samples",
        "mismatch_mean",
        "mismatch_max",
        "padding_share",
    )
    assert [reports[1][key] for key in nothing] == [None] * len(nothing)
    assert reports[1]["skipped_updates"] == 0 and reports[1]["reward"] == 0.0


def test_a_learner_without_groups_says_whom_it_waited_for(place):
    endpoints, _ = place
    prefetch = Prefetch(Client([endpoints], "learner"), settings(claim_deadline_s=0.2))
    prefetch.start(0, 9)
    with pytest.raises(
        DeadlineError,
        match=r"learner timed out after 0 s waiting for actors: too few groups are ready.*4 groups make a batch",
    ):
        prefetch.take()
    prefetch.close()


def test_a_batch_that_was_fetched_and_not_taken_is_given_back(place):
    endpoints, _ = place
    fill(endpoints, groups(BATCH))
    client = Client([endpoints], "test")
    prefetch = Prefetch(Client([endpoints], "learner"), settings())
    prefetch.start(0, 9)
    until(lambda: client.stats().claimed >= BATCH, "the batch is claimed")
    prefetch.close()
    assert client.stats().claimed == 0 and client.stats().ready == BATCH
    client.close()
