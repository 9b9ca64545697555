"""Agents that are programs: what they say is continued on the tokens that were sampled, scored, and ends with them."""

import asyncio
import json
import os
import sys
import textwrap

import numpy as np
import psutil
import pytest
from support import processes
from support.coins import Coins
from support.places import PYTHONPATH
from support.rollout_house import House, Speaker
from support.tokenizers import hermes
from support.waiting import until

from actors.config import SamplingSettings
from actors.engines import ABORTED
from actors.messages import LONGEST_TEXT
from actors.rollout_config import AgentSettings
from actors.rollouts import Aborted
from learner.credits import left_out
from protocols.errors import SettingError
from protocols.turns import TEMPERATURE, Role
from redraft.models.make import build_tokenizer

TASK = {"id": "t", "tails": 0, "number": 1, "n": 1}


@pytest.fixture
def played(tmp_path):
    """played(source of mine.py, says, **settings): the House of one group that the function `solve` there played."""

    def play(source, says=lambda prompt: "ok", *, environment=Coins, run=None, **settings):
        file = tmp_path / "mine.py"
        file.write_text(textwrap.dedent(source))
        named = {key: settings.pop(key) for key in ("tokenizer", "max_tokens", "sampling") if key in settings}
        chosen = AgentSettings(
            run=f"{file}:solve" if run is None else run, processes=settings.pop("processes", 2), **settings
        )
        return House(chosen, says, environment, TASK, **named)

    return play


DIALOGUE = """
    async def solve(task, client):
        said = [{"role": "user", "content": task["question"]}]
        for number in range(3):
            came = await client.chat.completions.create(model="redraft", messages=said)
            said += [{"role": "assistant", "content": came.choices[0].message.content},
                     {"role": "user", "content": f"again {number}"}]
        return 1
"""


def test_a_dialogue_continues_on_the_tokens_that_were_sampled(played):
    house = played(DIALOGUE, lambda prompt: f"said {prompt.count('again')}")
    assert [turn.parent for turn in house.turns] == [-1, 0, 1]
    assert [house.text(turn) for turn in house.turns] == ["said 0\n", "said 1\n", "said 2\n"]
    assert house.context(house.turns[2]) == house.prompts[2], "what the model read are the tokens of its path"
    assert [turn.reward for turn in house.turns] == [0.0, 0.0, 1.0]
    assert [turn.terminated for turn in house.turns] == [False, False, True]
    assert all(turn.role is Role.ACTION and turn.extra.get("new_root") is None for turn in house.turns)
    assert all(turn.versions == ((0, 4),) and (turn.logprobs == -1.0).all() for turn in house.turns)


def test_a_history_that_was_rewritten_is_a_root_of_the_same_group_and_says_what_differed(played):
    source = """
        async def solve(task, client):
            ask = client.chat.completions.create
            await ask(model="redraft", messages=[{"role": "user", "content": "one"}])
            said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "no"}]
            await ask(model="redraft", messages=[*said, {"role": "user", "content": "two"}])
            await ask(model="redraft", messages=[{"role": "user", "content": "summary"}])
            return {"reward": 0.5, "success": False, "style": 0.25}
    """
    house = played(source)
    assert [turn.parent for turn in house.turns] == [-1, -1, -1]
    assert [turn.after for turn in house.turns] == [-1, 0, 1], "in time they follow each other"
    whys = [turn.extra.get("new_root") for turn in house.turns]
    assert whys[0] is None and whys[1] == "message 2 differs at character 1: 'no', and was 'ok'"
    assert whys[2] == "message 1 differs at character 1: 'summary', and was 'one'"
    assert house.context(house.turns[1]) == house.prompts[1]
    assert house.turns[2].reward == 0.5 and house.turns[2].extra["parts"] == {"style": 0.25}


def test_answers_to_one_request_are_siblings_and_any_of_them_goes_on(played):
    source = """
        async def solve(task, client):
            said = [{"role": "user", "content": "one"}]
            came = await client.chat.completions.create(model="redraft", messages=said, n=2)
            texts = [choice.message.content for choice in came.choices]
            again = [*said, {"role": "assistant", "content": texts[0]}, {"role": "user", "content": "two"}]
            await client.chat.completions.create(model="redraft", messages=again)
            return 1
    """
    count = iter(range(100))
    house = played(source, lambda prompt: f"answer {next(count)}")
    assert [turn.parent for turn in house.turns] == [-1, -1, 0]


def test_rewards_in_between_score_the_answer_before_and_a_reflection_has_that_of_what_it_led_to(played):
    source = """
        import httpx
        async def solve(task, client):
            said = [{"role": "user", "content": "q"}]
            for number, model in enumerate(["redraft", "redraft/reflection", "redraft"]):
                came = await client.chat.completions.create(model=model, messages=said)
                said += [{"role": "assistant", "content": came.choices[0].message.content},
                         {"role": "user", "content": str(number)}]
                if model == "redraft":
                    await client.post("/reward", body={"reward": number, "success": number > 1}, cast_to=object)
    """
    house = played(source, kind="answers", turns=2)
    assert [(turn.role, turn.reward, turn.index) for turn in house.turns] == [
        (Role.ATTEMPT, 0.0, 0),
        (Role.REFLECTION, 2.0, 1),
        (Role.ATTEMPT, 2.0, 1),
    ]
    assert [turn.extra["success"] for turn in house.turns] == [False, True, True]


def test_an_episode_ends_where_it_asks_for_more_than_its_answers(played):
    house = played(DIALOGUE, turns=2)
    assert len(house.turns) == 2 and house.turns[-1].truncated and not house.failures


def test_a_program_that_ends_when_it_is_refused_more_keeps_its_process(played, tmp_path):
    source = f"""
        import os
        async def solve(task, client):
            with open({str(tmp_path / "pids")!r}, "a") as file:
                print(os.getpid(), file=file)
            while True:
                await client.chat.completions.create(model="m", messages=[{{"role": "user", "content": "q"}}])
    """
    house = played(source, turns=1, episodes=3, processes=1)
    assert [turn.truncated for turn in house.turns] == [True] * 3 and not house.failures
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 3 and len(set(pids)) == 1


def test_a_program_that_does_not_end_when_it_is_refused_more_is_ended_and_the_next_one_has_another_process(
    played, tmp_path
):
    source = f"""
        import os, threading
        async def solve(task, client):
            with open({str(tmp_path / "pids")!r}, "a") as file:
                print(os.getpid(), file=file)
            try:
                while True:
                    await client.chat.completions.create(model="m", messages=[{{"role": "user", "content": "q"}}])
            finally:
                threading.Event().wait()
    """
    house = played(source, turns=1, episodes=2, processes=1)
    assert [turn.truncated for turn in house.turns] == [True] * 2 and not house.failures
    assert len(set((tmp_path / "pids").read_text().split())) == 2


def test_tools_are_called_in_the_models_own_form_and_what_they_answer_continues_the_path(played):
    source = """
        async def solve(task, client):
            tools = [{"type": "function", "function": {"name": "add", "description": "adds",
                      "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}]
            said = [{"role": "user", "content": "how much"}]
            came = await client.chat.completions.create(model="gpt-4o", messages=said, tools=tools)
            called = came.choices[0].message
            assert came.choices[0].finish_reason == "tool_calls" and called.tool_calls[0].function.name == "add"
            said += [called.model_dump(), {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "5"}]
            await client.chat.completions.create(model="gpt-4o", messages=said, tools=tools)
            return 1
    """
    says = iter(['<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>', "5"])
    house = played(source, lambda prompt: next(says), tokenizer=hermes())
    assert [turn.parent for turn in house.turns] == [-1, 0] and not house.failures


def test_the_environment_judges_what_the_program_returns(played):
    source = """
        async def solve(task, client):
            asked = [{"role": "user", "content": task["question"]}]
            await client.chat.completions.create(model="redraft", messages=asked)
            return "b" if task["n"] else "c"
    """
    [turn] = played(source, judge="environment").turns
    assert (turn.reward, turn.extra["success"], turn.extra["answer"]) == (0.0, False, "b")


COMMAND = """
    import json, os, sys
    import openai
    task = json.loads(os.environ["REDRAFT_TASK"])
    client = openai.OpenAI()
    came = client.chat.completions.create(model="redraft", messages=[{"role": "user", "content": sys.argv[1]}])
    print("thinking", file=sys.stderr)
    print(json.dumps({"reward": 0.75, "answer": came.choices[0].message.content}))
"""


def test_a_command_is_an_agent_whose_last_line_is_its_reward(played, tmp_path):
    house = played(COMMAND, run=(sys.executable, str(tmp_path / "mine.py"), "task {task.id} of {task.n}"))
    assert house.prompts == ["task t of 1"]
    [turn] = house.turns
    assert (turn.reward, turn.extra["answer"]) == (0.75, "ok") and turn.extra["output"] == "thinking\n"


def test_all_that_a_command_prints_is_its_answer_up_to_the_longest_text(played, tmp_path):
    source = """
        import json, openai
        openai.OpenAI().chat.completions.create(model="redraft", messages=[{"role": "user", "content": "q"}])
        print(json.dumps({"reward": 0.75, "answer": "a" * %d}))
    """
    run = (sys.executable, str(tmp_path / "mine.py"))
    assert played(source % 10_000, run=run).turns[-1].reward == 0.75
    house = played(source % LONGEST_TEXT, run=run)
    assert "it printed more than 1,000,000 characters" in str(house.failures[0])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def solve(task): raise ValueError('no')", "the agent failed: ValueError: no"),
        ("import os\ndef solve(task): os._exit(3)", "the agent ended its process"),
        ("import os\ndef solve(task): os.kill(os.getpid(), 9)", "the agent ended its process"),
        ("def solve(task): return 'text'", "the agent returned a reward 'text' (str), which is no number"),
        ("def solve(task): return 1", "the agent has asked for nothing"),
        ("def solve(task):\n    while True: pass", "the agent did not end within rollout.limit_s=1.5"),
        ("import asyncio\nasync def solve(task): await asyncio.sleep(60)", "within rollout.limit_s=1.5"),
    ],
)
def test_an_agent_that_fails_breaks_its_episode_off(played, source, said):
    house = played(source, limit_s=1.5, processes=1)
    assert said in str(house.failures[0]) and house.turns[-1].role is Role.ERROR


def test_an_agent_that_fails_after_answers_is_left_out_of_every_mean(played):
    source = """
        async def solve(task, client):
            await client.chat.completions.create(model="redraft", messages=[{"role": "user", "content": "q"}])
            await client.post("/reward", body={"reward": -3.0}, cast_to=object)
            raise ValueError("no")
    """
    house = played(source)
    assert house.success is None and [turn.role for turn in house.turns] == [Role.ACTION, Role.ERROR]
    assert left_out(house.turns) == {0, 1}


def test_a_process_that_dies_at_its_start_once_others_have_begun_costs_its_episode_alone(played, tmp_path):
    source = f"""
        import os, pathlib
        begun = pathlib.Path({str(tmp_path / "begun")!r})
        if begun.exists():
            os._exit(1)
        def solve(task):
            begun.touch()
            os._exit(1)
    """
    house = played(source, episodes=2, processes=1)
    assert sorted(map(str, house.failures)) == ["the agent ended its process", "the agent's process: it died"]


def test_nothing_that_an_agent_started_outlives_its_limit(played, tmp_path):
    mark = f"sleep 6{os.getpid()}"
    source = f"import subprocess\nsubprocess.Popen({mark.split()!r}).wait()"
    house = played(source, run=(sys.executable, str(tmp_path / "mine.py")), limit_s=3.0)
    assert "rollout.limit_s=3" in str(house.failures[0])
    until(
        lambda: not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == mark.split()], "gone", 30
    )


PLAYS = """
    import asyncio, sys
    from actors.agents.programs import Programs
    async def main():
        programs = Programs([sys.executable, sys.argv[1]], 1)
        await programs.play({"id": "t"}, "http://127.0.0.1:9/v1", "sk-none", 600.0)
    asyncio.run(main())
"""


def test_what_an_agent_started_ends_with_an_actor_that_is_killed(tmp_path):
    mark = f"sleep 7{os.getpid()}".split()
    (tmp_path / "mine.py").write_text(f"import subprocess\nsubprocess.Popen({mark!r}).wait()")
    (tmp_path / "actor.py").write_text(textwrap.dedent(PLAYS))

    def sleeping() -> list[int]:
        return [one.pid for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == mark]

    actor = processes.start(
        [sys.executable, tmp_path / "actor.py", tmp_path / "mine.py"],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )
    until(sleeping, "the agent runs", 60)
    actor.kill()
    until(lambda: not sleeping(), "nothing is left", 30)


REFUSED = """
    import openai
    async def solve(task, client):
        asked = [{"role": "user", "content": "q"}]
        found = []
        async def say(client=client, **more):
            try:
                await client.chat.completions.create(**({"model": "redraft", "messages": asked} | more))
                found.append("fine")
            except openai.APIStatusError as error:
                found.append(f"{error.status_code} {error.param} {error.code}")
        await say(temperature=0.3, user="me", seed=3)
        await say(response_format={"type": "json_object"})
        await say(frequency_penalty=1.0)
        await say(model="redraft/nobody")
        await say(messages=[{"role": "nobody", "content": "q"}])
        await say(messages=[])
        await say(extra_body={"beams": 3})
        await say(client=client.with_options(api_key="sk-another"))
        raise RuntimeError("; ".join(found))
"""


def test_what_cannot_be_followed_is_refused_as_openai_refuses_it(played):
    house = played(REFUSED)
    assert str(house.failures[0]).removeprefix("the agent failed: RuntimeError: ").split("; ") == [
        "fine",
        "400 response_format unsupported_value",
        "400 frequency_penalty unsupported_value",
        "404 model model_not_found",
        "400 messages.0.role None",
        "400 messages None",
        "400 beams unknown_parameter",
        "401 None invalid_api_key",
    ]
    assert house.turns[0].extra["overruled"] == {"temperature": 0.3}, "the recipe's temperature is the policy's"


@pytest.mark.parametrize(("agent", "top_p"), [(True, 0.5), ("temperature", 0.9)])
def test_with_sampling_agent_a_request_is_sampled_as_it_says_and_its_turn_tells_at_what(played, agent, top_p):
    source = """
        import openai
        async def solve(task, client):
            asked = [{"role": "user", "content": "q"}]
            ask = client.chat.completions.create
            await ask(model="m", messages=asked, temperature=0.25, top_p=0.5)
            await ask(model="m", messages=asked)
            try:
                await ask(model="m", messages=asked, temperature=0)
            except openai.BadRequestError as error:
                return {"reward": 1.0, "answer": f"{error.param}: {error.message}"}
    """
    sampled = []

    class Listening(Speaker):
        async def generate(self, prompt_ids, sampling):
            sampled.append((sampling.temperature, sampling.top_p))
            return await super().generate(prompt_ids, sampling)

    engine = Listening(build_tokenizer("characters", 4096), lambda prompt: "ok")
    own, plain = played(source, engine, sampling=SamplingSettings(temperature=0.5, top_p=0.9, agent=agent)).turns
    assert sampled == [(0.25, top_p), (0.5, 0.9)]
    assert own.extra[TEMPERATURE] == 0.25 and TEMPERATURE not in plain.extra and "overruled" not in plain.extra
    assert own.extra.get("overruled") == (None if agent is True else {"top_p": 0.5})
    assert "temperature: " in plain.extra["answer"] and "leave out the recipe's sampling.agent" in plain.extra["answer"]


def test_a_stream_says_the_same(played):
    source = """
        async def solve(task, client):
            asked = [{"role": "user", "content": "q"}]
            more = {"stream": True, "stream_options": {"include_usage": True}}
            pieces = [piece async for piece in await client.chat.completions.create(model="m", messages=asked, **more)]
            text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
            return {"reward": 1.0, "answer": f"{text} {pieces[-1].usage.completion_tokens}"}
    """
    [turn] = played(source).turns
    assert turn.extra["answer"] == "ok 3"


def test_a_request_that_is_made_again_has_the_same_answer_and_is_one_turn(played):
    source = """
        import asyncio
        async def solve(task, client):
            async def ask(retries):
                head = {"x-stainless-retry-count": retries}
                asked = [{"role": "user", "content": "q"}]
                return await client.chat.completions.create(model="m", messages=asked, extra_headers=head)
            first = await ask("0")
            again = await asyncio.gather(ask("1"), ask("2"))
            return {"reward": 1.0, "answer": str({first.id, *(one.id for one in again)} == {first.id})}
    """
    [turn] = played(source).turns
    assert turn.extra["answer"] == "True"


def test_a_key_dies_with_its_episode(played):
    source = """
        import openai
        old = []
        async def solve(task, client):
            asked = [{"role": "user", "content": "q"}]
            await client.chat.completions.create(model="m", messages=asked)
            old.append(client.api_key)
            try:
                await client.with_options(api_key=old[0]).chat.completions.create(model="m", messages=asked)
            except openai.AuthenticationError:
                return {"reward": 1.0, "answer": "refused"}
            return {"reward": 1.0, "answer": "taken"}
    """
    house = played(source, processes=1, episodes=2)
    ends = [turn.extra["answer"] for turn in house.turns if turn.terminated]
    assert ends == ["taken", "refused"], "one process plays one episode after the other"


def test_a_group_is_given_up_with_the_engines_request(played):
    class GivesUp:
        version, running, error = 0, 0, None

        async def generate(self, prompt_ids: np.ndarray, sampling):
            return ABORTED

    class Engine(GivesUp):
        prompts: list[str] = []

    with pytest.raises(Aborted):
        played(DIALOGUE, Engine())


def test_a_prompt_that_leaves_no_room_is_refused_and_an_agent_that_ends_of_it_has_been_wrong(played):
    engine = Speaker(build_tokenizer("characters", 4096), lambda prompt: "ok", longest=8)
    house = played(DIALOGUE, engine)
    assert [failure.kind for failure in house.failures] == ["too_long"]
    assert house.turns[0].role is Role.ACTION and house.turns[-1].extra["kind"] == "too_long"


def test_a_request_that_was_refused_is_none_of_an_episodes_answers(played):
    source = """
        import openai
        async def solve(task, client):
            said = [{"role": "user", "content": "a question that is too long"}]
            for text in said[0]["content"], "short":
                try:
                    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
                except openai.BadRequestError as error:
                    assert error.code == "context_length_exceeded"
            return 1.0
    """
    engine = Speaker(build_tokenizer("characters", 4096), lambda prompt: "ok", longest=8)
    [turn] = played(source, engine, turns=1).turns
    assert (turn.reward, turn.terminated) == (1.0, True)


def test_an_answer_that_the_client_no_longer_waits_for_is_no_turn_and_takes_no_reward(played):
    source = """
        import asyncio, contextlib
        async def solve(task, client):
            def ask(text):
                return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ask("slow"), 0.2)
            await ask("quick")
            await ask("quick, too")
            return 1.0
    """
    quick = asyncio.Event()

    class Slow(Speaker):
        async def generate(self, prompt_ids, sampling):
            found = await super().generate(prompt_ids, sampling)
            await quick.wait() if self.prompts[-1] == "slow" else quick.set()
            return found

    house = played(source, Slow(build_tokenizer("characters", 4096), lambda prompt: "ok"))
    told = [(house.context(turn), turn.reward, turn.terminated) for turn in house.turns]
    assert told == [("quick", 0.0, False), ("quick, too", 1.0, True)]


@pytest.mark.parametrize("run", ["solve", [], "nobody.py:solve"])
def test_what_cannot_be_run_is_named(played, run):
    with pytest.raises((SettingError, ValueError), match=r"rollout\.run"):
        played(DIALOGUE, run=run)


def test_bodies_that_are_no_json_are_refused(played):
    source = """
        import httpx
        async def solve(task, client):
            head = {"Authorization": f"Bearer {client.api_key}"}
            async with httpx.AsyncClient(headers=head) as other:
                found = {(await other.post(f"{client.base_url}chat/completions", content=body)).status_code
                         for body in [b"{", b"[]", b"[" * 10000, b"\\xff", b"1", b"null", b'{"messages": 1}']}
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "q"}])
            return {"reward": 1.0, "answer": str(found)}
    """
    [turn] = played(source).turns
    assert json.loads(turn.extra["answer"].replace("{", "[").replace("}", "]")) == [400]
