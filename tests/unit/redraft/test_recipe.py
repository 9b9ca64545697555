"""A recipe is right as a whole, or refused in one line that names the key and the cure."""

import pickle

import pytest
import yaml
from support.places import ROOT

from actors.rollout_config import NOT_STATED
from learner.credit_config import CreditFacts
from protocols.errors import SettingError
from redraft import recipe

RECIPES = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if path.parent.name != "profiles"]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
SLEEPS = ["actors.sleep=true", "learner.gpus=0.5", "actors.gpus=0.5", "learner.max_staleness=0"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid_and_named_after_its_file(path):
    found = recipe.load(path)
    assert found.name == path.stem
    assert recipe.build(yaml.safe_load(found.dump())) == found


MIXED = {"environments": [{"name": "signs", "weight": 2, "feedback": "residual"}, {"name": "countdown"}]}


def mixed(**changed) -> recipe.Recipe:
    return recipe.build({"name": "mixed", "steps": 0, "model": {"make": {}}} | MIXED | changed)


def test_a_recipe_of_several_environments_says_them_in_its_dump_and_reads_as_it_was():
    found = mixed()
    assert [(one.label, one.weight) for one in found.mixture] == [("signs", 2), ("countdown", 1)]
    assert (found.played, found.feedback) == ("signs and countdown", "residual, binary")
    dumped = yaml.safe_load(found.dump())
    assert "environment" not in dumped and recipe.build(dumped) == found


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"environment": {"name": "words"}}, "environment: has no effect beside environments"),
        ({"environments": [{"name": "signs"}]}, "environments: one is no mixture"),
        ({"environments": [{"name": "signs"}, {"name": "signs"}]}, "two of them are called 'signs'"),
        ({"environments": [{"name": "signs"}, {"weight": 0}]}, "environments.1.weight"),
        ({"environments": [{"nme": "signs"}, {"name": "words"}]}, "Did you mean name"),
        ({"environments": [{"name": "signs"}, {"name": "words", "data": {"failures": "f"}}]}, "cannot be mixed"),
        ({"data": {"train_size": 3}}, "data: has no effect beside environments"),
        ({"curriculum": {}}, "curriculum: levels of several environments cannot be compared"),
        ({"evaluation": {"feedbacks": ["residual"]}}, "evaluation.feedbacks: name kinds other than"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_in_words(changed, words):
    with pytest.raises(SettingError) as refused:
        mixed(**changed)
    assert words in str(refused.value) and "'?'" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("learner.nonsense=1", "learner.nonsense", "batch_groups"),
        ("nonsense=1", "nonsense", "environment"),
        ("learner.objective.nonsense=1", "learner.objective.nonsense", "temperature"),
        ("actors.engine.name=gpt", "actors.engine.name", "'vllm' or 'scripted'"),
        ("steps=many", "steps", "integer"),
        ("steps=-1", "steps", "greater than or equal to 0"),
        ("rollout.name=attempt", "rollout.turns", "Allowed here: system, name, episodes"),
        ("rollout.turn=3", "rollout.turn", "Did you mean turns?"),
        ("rollout={name: mine.rollouts:play, option: 1}", "rollout.option", "Did you mean options?"),
        ("learner.credit.basline=group", "learner.credit.basline", "Did you mean baseline? Allowed here: mask_"),
        ("learner.credit.keep=best", "learner.credit.keep", "Allowed here: mask_truncated, too_long, name, baseline"),
        ("learner.credit={name: group, overlong: {limits: 3}}", "learner.credit.overlong.limit", "missing"),
        (
            "learner.credit={name: group, overlong: {limit: 3, cache: 1, max: 1}}",
            "learner.credit.overlong.max",
            "Allowed here: limit, cache, penalty",
        ),
        ("learner.credit={name: grup}", "learner.credit", "group, turnwise, raw, reflection, trajectory"),
        ("learner.objective={name: mine.losses:Loss, kl: 1}", "learner.objective.kl", "Allowed here: name, options"),
        ("learner.objective={name: grpo, correction: none, tis_cap: 3}", "learner.objective", "correction: tis"),
        ("learner.objective={name: grpo, clip_high: 0.28}", "learner", "objective.clip_high: does nothing"),
        ("learner.updates.minibatches=129", "learner", "updates.minibatches (129) is more than the groups"),
        ("learner.rounds={steps: 9}", "learner", "Set max_staleness to 8"),
        ("learner.row_tokens=32", "recipe", "actors.engine.max_length"),
        ("sampling.temperature=0", "recipe", "sampling.temperature"),
        ("learner.credit={name: group}", "recipe", "rollout.episodes"),
        ("learner.roles={action: 1}", "recipe", "rollout retry writes turns of role attempt, reflection,"),
        ("data.failures=some.jsonl", "recipe", "data.failures"),
        ("name=../escape", "name", "pattern"),
        ("model.path=x", "model", "exactly one"),
        ("model.lora.ranks=8", "model.lora.ranks", "Did you mean rank? Allowed here: rank, alpha, targets"),
        ("model.lora.targets=[]", "model.lora.targets", "[] is neither auto nor a list of names"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(override, key, words):
    with pytest.raises(SettingError) as refused:
        recipe.load(QUICKSTART, [override])
    assert refused.value.setting == key
    mistakes = getattr(refused.value, "mistakes", (refused.value,))
    assert words in str(refused.value) and not any("\n" in str(one) for one in mistakes)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        (
            "signs-reflect",
            ["learner.credit={name: group}"],
            "credit.name: group .* set it to turnwise, reflection or improvement",
        ),
        ("signs-reflect", ["learner.roles={action: 1}"], "role attempt, reflection, retry, and none has a weight"),
        (
            "signs-star",
            ["learner.objective={name: grpo}"],
            "never trains answers after a hint; set it to awr or sft",
        ),
        ("quickstart", ["learner.roles={musing: 1}"], "learner.roles: musing cannot be trained. Choose from attempt"),
        ("quickstart", ["learner.roles={error: 1}"], "learner.roles: error cannot be trained. Choose from attempt"),
        ("signs-agent", ["learner.roles={planner: 1}"], "planner cannot be trained.* or name it in rollout.roles"),
        ("signs-agent", ["rollout.roles=[action]"], "rollout.roles: action is there already; leave it out"),
        ("signs-agent", ["rollout.limit_s=600"], "limit_s: one episode may take 600 s, and its whole group"),
        ("signs-agent", ["rollout.roles=[a, a]"], "rollout.roles: a is there already; leave it out"),
        ("signs-agent", ["rollout.roles=[Planner]"], "rollout.roles"),
        ("quickstart", ["sampling.agent=true"], "sampling.agent: no program asks .* set rollout.name to agent"),
        (
            "signs-agent",
            ["sampling.agent=true", "learner.objective={name: grpo}"],
            "sampling.agent: true .* ratios of grpo are wrong; set it to temperature, or .* to awr or sft",
        ),
        ("signs-agent", ["sampling.agent=temperature", "actors.engine.speculate=ngram"], "speculate: with sampling.a"),
        ("signs-agent", ["sampling.temperature=0.005"], "sampling.temperature: 0.005 cannot .* Set it to 0.01 or more"),
        ("signs-star", ["learner.roles={reflection: 1}"], "learner.roles: rollout hint"),
        ("signs-rise-distill", ["learner.objective={name: grpo}"], "grpo never trains what a teacher writes"),
        ("signs-grpo", ["learner.roles={reflection: 1}"], "rollout attempt writes turns of role attempt, and none"),
        ("minicraft-agent-r", ["learner.roles={attempt: 1}"], "learner.roles: rollout search"),
        ("signs-star", ["steps=61"], "steps: .* whole rounds of 20 steps, and 61 is not; set it to 80"),
        ("signs-star", ["steps=20"], "set it to 40, or from_base to false"),
        ("signs-star", ["steps=5"], "set it to 40"),
        ("quickstart", ["actors.engine.speculate=ngram", "sampling.top_p=0.9"], "set it to off, or those to 1"),
        ("quickstart", ["actors.engine.speculate=ngram", "actors.engine.name=scripted"], "only vLLM"),
        (
            "signs-grpo",
            ["learner.credit={name: group, overlong: {limit: 500, cache: 100}}"],
            "no answer is longer than sampling.max_tokens=9, and punishment begins after 400",
        ),
        (
            "signs-grpo",
            ["learner.credit={name: group, baseline: batch, std: batch}", "replay.drop_flat=true"],
            "replay.drop_flat: learner.credit.name=group compares groups with each other",
        ),
        (
            "signs-grpo",
            ["learner.credit={name: turnwise, baseline: others}", "replay.drop_flat=true"],
            "replay.drop_flat: learner.credit.name=turnwise compares groups with each other",
        ),
        *(
            (
                "signs-score",
                [f"learner.credit={{name: {name}}}", "replay.drop_flat=true"],
                f"learner.credit.name={name} tells turns apart",
            )
            for name in ("turnwise", "improvement", "anchor_state")
        ),
        (
            "signs-grpo",
            ["rollout.episodes=1", "learner.credit={name: raw}", "replay.drop_flat=true"],
            "replay.drop_flat: one answer a group",
        ),
        ("quickstart", ["model.lora.rank=8", "steps=0"], "model.lora: a run of 0 steps trains no adapter"),
        ("quickstart", ["actors.sleep=true"], "learner.gpus=0 and actors.gpus=0 no actor is on a GPU of the learner"),
        ("quickstart", [*SLEEPS, "actors.gpus=0.6"], "actors.sleep: .* which would get nothing"),
        ("quickstart", [*SLEEPS, "actors.gpus=1"], "actors.sleep: .* fractions that fit on one, such as 0.5"),
        ("quickstart", [*SLEEPS, "learner.max_staleness=1"], "actors play on while the learner trains; set that to 0"),
        ("signs-grpo", [*SLEEPS[:-1], "learner.max_staleness=auto"], "learner.max_staleness=auto actors play on while"),
        ("signs-grpo", ["replay.max_uses=3", "learner.max_staleness=auto"], "set it to 2 or more, or max_uses to 1"),
        ("quickstart", ["learner.max_staleness=auto"], "objective awr does not weigh its samples"),
        ("quickstart", [*SLEEPS, "actors.engine.process=in_process"], "only vLLM in processes of its own"),
        ("quickstart", [*SLEEPS, "actors.engine.name=scripted"], "only vLLM in processes of its own"),
        ("quickstart", [*SLEEPS, "steps=0"], "actors.sleep: a run of 0 steps has no learner"),
        ("quickstart", ["learner.keep_best=true"], "learner.keep_best: .* set evaluation.every, too"),
        ("quickstart", ["evaluation.stop={patience: 2}"], "evaluation.stop: .* set evaluation.every, too"),
        ("quickstart", ["evaluation.every=5", "evaluation.stop={}"], "evaluation.stop.*give patience"),
        ("quickstart", ["sampled_tokens=9", "steps=0"], "sampled_tokens: a run of 0 steps samples none"),
        ("quickstart", ["evaluation.every=160"], "evaluation.every: none comes within 160 steps"),
        ("quickstart", ["evaluation.every=5", "steps=0"], "evaluation.every: none comes within 0 steps"),
        (
            "quickstart",
            ["evaluation.every=25", "learner.checkpoint_every=10", "learner.keep_best=true"],
            "learner.keep_best: evaluation.every=25 is no multiple of learner.checkpoint_every=10",
        ),
        ("signs-star", ["evaluation.every=30"], "evaluation.every: weights are published every 20 steps"),
        (
            "signs-grpo",
            ["learner.zero=3", "learner.objective.kl=0.1"],
            "set learner.zero to 2, train an adapter .model.lora., or set learner.objective.kl to 0",
        ),
        (
            "signs-grpo",
            ["learner.zero=3", "learner.objective={name: grpo, kl: 0, anchor: 1}"],
            "or set learner.objective.anchor to 0",
        ),
        (
            "signs-grpo",
            ["learner.zero=3", "learner.objective={name: grpo, kl_reward: 1}"],
            "or set learner.objective.kl_reward to 0",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused_with_the_cure(name, overrides, words):
    with pytest.raises(SettingError, match=words):
        recipe.load(QUICKSTART.with_name(f"{name}.yaml"), overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("signs-reflect", ["data.failures=some.jsonl"]),
        ("quickstart", SLEEPS),
        ("signs-star", ["steps=40"]),
        ("signs-star", ["steps=61", "learner.rounds.from_base=false"]),
        ("quickstart", ["learner.roles={reflection: 1}"]),
        ("signs-grpo", ["learner.zero=3", "learner.objective.kl=0.1", "model.lora.rank=8"]),
        ("quickstart", ["steps=0", "learner.roles={action: 1}"]),
        ("quickstart", ["rollout={name: mine:play}", "learner.roles={action: 1}", "data.failures=some.jsonl"]),
    ],
)
def test_what_has_an_effect_or_cannot_be_known_is_accepted(name, overrides):
    assert recipe.load(QUICKSTART.with_name(f"{name}.yaml"), overrides)


@pytest.mark.parametrize("text", ["learner", "=1", "name.first=1"])
def test_an_override_that_is_none_is_refused(text):
    with pytest.raises(SettingError):
        recipe.load(QUICKSTART, [text])


def test_all_mistakes_of_a_file_are_told_at_once_each_with_its_line_and_what_was_meant(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        BASE + "learner:\n  lr: 1.0e-4\n  batch_groups: -1\nsampling: {max_token: 5}\nactors: {groups: x}\n"
    )
    with pytest.raises(SettingError) as refused:
        recipe.load(path, ["actors.groups=many"])
    first, *others = str(refused.value).splitlines()
    assert first == "4 mistakes in the recipe:" and refused.value.setting in first + others[0]
    told = {line.strip().partition(":")[0]: line for line in others}
    assert "(line 7). Did you mean learner.optimizer.lr?" in told["learner.lr"]
    assert "(line 8)" in told["learner.batch_groups"]
    assert "(line 9). Did you mean max_tokens?" in told["sampling.max_token"]
    assert "'many'" in told["actors.groups"] and "line" not in told["actors.groups"], "it was not written in the file"
    again = pickle.loads(pickle.dumps(refused.value))
    assert str(again) == str(refused.value) and again.setting == refused.value.setting


@pytest.mark.parametrize(
    "override",
    [
        "learner.optimizer.lr=.inf",
        "sampling.temperature=.inf",
        "sampling.temperature=.nan",
        "actors.lease_s=.inf",
        "learner.optimizer.betas=[1.5, 2]",
    ],
)
def test_a_number_that_is_none_or_out_of_reach_is_refused(override):
    with pytest.raises(SettingError, match=override.partition("=")[0]):
        recipe.load(QUICKSTART, [override])


def test_a_warm_up_as_long_as_the_run_is_told():
    assert not any("warmup_steps" in said for said in recipe.load(QUICKSTART).warnings())
    long = recipe.load(QUICKSTART, ["steps=3", "learner.optimizer.warmup_steps=50"])
    assert any("warmup_steps" in said for said in long.warnings())


def test_overrides_take_yaml_values():
    found = recipe.load(QUICKSTART, ["steps=3", "learner.objective={name: sft}", "data.path=some/where"])
    assert (found.steps, found.learner.objective.name, found.data.path) == (3, "sft", "some/where")


BASE = "name: a\nsteps: 1\nmodel: {make: {}}\nenvironment: {name: signs}\nrollout: {name: attempt, episodes: 2}\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "not YAML"),
        ("7", "no settings"),
        (None, "cannot be read"),
        (BASE + "steps: 900\n", "line 6 has the key steps of line 2 again"),
        (BASE + "learner: {batch_groups: 7}\nlearner: {max_staleness: 2}\n", "line 7 has the key learner of line 6"),
        ((BASE + "# f\u00fcr\n").encode("latin-1"), "not UTF-8: byte 0xfc in line 6"),
        (BASE + "learner: &own {optimizer: *own}\n", "learner.optimizer"),  # within itself
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, words):
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingError, match=words):
        recipe.load(path)


def test_reading_a_recipe_holds_parts_of_a_users_own_to_nothing_but_its_settings():
    credit = "learner.credit={name: 'mine:credit'}"
    own = recipe.load(QUICKSTART, ["rollout={name: 'mine:play', turns: 3, episodes: 4}", credit])
    assert own.rollout.facts == NOT_STATED and own.learner.credit.facts == CreditFacts()
    for name in ("group", "turnwise", "reflection", "trajectory"):
        recipe.load(QUICKSTART, ["rollout={name: 'mine:play', episodes: 2}", f"learner.credit={{name: {name}}}"])
    with pytest.raises(SettingError, match=r"rollout\.episodes: .* compares episodes of a task; set 2 or more"):
        recipe.load(QUICKSTART, ["rollout={name: 'mine:play'}", "learner.credit={name: group}"])
