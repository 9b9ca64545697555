"""What the endpoint takes and answers: stop sequences, completions, and requests that nobody should make."""

import asyncio
import json
import random

import httpx
import openai
import pytest
from prometheus_client import REGISTRY
from support.certificates import certificate
from support.desk import NAME, desk
from support.tokenizers import hermes

from actors.engines import Completion
from actors.rendering import Renderer
from protocols.turns import LOGPROBS, TOKENS, Stop
from redraft.models.make import build_tokenizer

ASK = {"model": "m", "messages": [{"role": "user", "content": "q"}]}


def test_a_stop_sequence_ends_an_answer_on_the_token_that_completes_it():
    async def play():
        async with desk(lambda prompt: "think. so: made up") as found:
            came = await found.client.chat.completions.create(**ASK, stop=["nothing", "so:"], logprobs=True)
            said = [*ASK["messages"], {"role": "assistant", "content": came.choices[0].message.content}]
            await found.client.chat.completions.create(model="m", messages=[*said, {"role": "user", "content": "5"}])
            return came, found.prompts()

    came, prompts = asyncio.run(play())
    [choice] = came.choices
    assert (choice.message.content, choice.finish_reason) == ("think. ", "stop")
    assert "".join(one.token for one in choice.logprobs.content) == "think. so:"
    assert came.usage.completion_tokens == len("think. so:")
    assert prompts == ["q", "qthink. so:\n5"], "the model goes on from what it has written"


def test_a_character_of_several_tokens_stands_at_its_last_one():
    from actors.spelled import pieces

    tokenizer = build_tokenizer("bytes", 4096)
    ids = tokenizer.encode("a €!", add_special_tokens=False)
    assert len(ids) == 6
    found = pieces(ids, lambda some: tokenizer.decode(list(some)))
    assert found == ["a", " ", None, None, "€", "!"]


def test_a_tools_answer_in_a_dialogue_without_tools_is_refused_as_openai_refuses_it():
    async def play():
        async with desk(lambda prompt: "ok", tokenizer=hermes()) as found:
            came = await found.client.chat.completions.create(**ASK)
            said = [*ASK["messages"], {"role": "assistant", "content": came.choices[0].message.content}]
            said.append({"role": "tool", "tool_call_id": "1", "content": "3"})
            with pytest.raises(openai.BadRequestError, match="without tools"):
                await found.client.chat.completions.create(model="m", messages=said)

    asyncio.run(play())


def test_where_a_stop_lies_within_a_token_that_token_is_kept_and_versions_with_it():
    from actors.agents.answers import stopped

    tokenizer = hermes()
    ids = tokenizer.encode("one two three", add_special_tokens=False)
    renderer = Renderer(tokenizer)
    spans = tuple((place, 7 + place) for place in range(len(ids)))
    whole = Completion(TOKENS.type(0) + ids, LOGPROBS.type(0) - ids, spans, Stop.LENGTH, 1.0)
    kept, text = stopped(whole, ("wo",), renderer)
    assert text == "one t" and renderer.text(kept.ids).startswith("one two") and "three" not in renderer.text(kept.ids)
    assert kept.stop is Stop.END and len(kept.logprobs) == len(kept.ids) == len(kept.versions)
    assert stopped(whole, ("four",), renderer) == (whole, "one two three")


def test_a_text_goes_on_from_the_tokens_that_were_sampled():
    async def play():
        async with desk(lambda prompt: "abc") as found:
            ask = found.client.completions.create
            first = await ask(model="m", prompt="say: ", logprobs=0)
            assert (first.choices[0].text, first.choices[0].finish_reason) == ("abc", "stop")
            assert first.choices[0].logprobs.tokens == ["a", "b", "c", "\n"]
            await ask(model="m", prompt="say: abc\nmore: ")
            cut = await ask(model="m", prompt="another", max_tokens=2)
            assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("ab", "length")
            await ask(model="m", prompt=["anotherab"])
            await ask(model="m", prompt=[5, 6, 7])
            several = await ask(model="m", prompt="say: ", n=3)
            assert [choice.index for choice in several.choices] == [0, 1, 2]
            pieces = [piece async for piece in await ask(model="m", prompt="x", stream=True)]
            assert "".join(choice.text for piece in pieces for choice in piece.choices) == "abc"
            return found.prompts()

    prompts = asyncio.run(play())
    assert prompts[:4] == ["say: ", "say: abc\nmore: ", "another", "anotherab"]
    assert prompts[5:] == ["say: "] * 3 + ["x"]


def test_the_path_of_a_text_holds_its_end_token_and_its_own_ids():
    from actors.agents.paths import TEXT, Answer, Paths, Spoken
    from actors.agents.requests import Terms, read
    from actors.config import SamplingSettings
    from protocols.turns import Role
    from redraft.models.make import build_tokenizer

    renderer = Renderer(build_tokenizer("characters", 4096))
    paths, terms = Paths(renderer), Terms(SamplingSettings())
    asked = read({"prompt": "say: "}, terms, text=True)
    place = paths.text(asked.messages[0], None)
    ids = renderer.answer("abc")
    completion = Completion(ids, LOGPROBS.type(0) * ids, (), Stop.END, 0.0)
    answer = Answer(asked, place, completion, Spoken("assistant", "abc"), "abc", Role.ACTION)
    paths.add(answer)
    for text in ("say: abc\nmore", "say: abcmore"):
        on = paths.text(Spoken(TEXT, text), None)
        assert on.parent is answer and renderer.tokenizer.decode(on.prompt) == "more", "the end token is there once"
    by_ids = paths.text(Spoken(TEXT, "ids"), [*map(int, answer.ids), 9])
    assert by_ids.parent is answer and by_ids.prompt.tolist() == [9]
    assert paths.text(Spoken(TEXT, "said: abc"), None).why == "its text begins with none of the paths"


UNSUPPORTED = [
    ("chat/completions", {"response_format": {"type": "json_object"}}, 400, "response_format"),
    ("chat/completions", {"stop": ["a"] * 17}, 400, "stop"),
    ("chat/completions", {"stop": [""]}, 400, "stop"),
    ("chat/completions", {"n": 0}, 400, "n"),
    ("chat/completions", {"temperature": "hot"}, 400, "temperature"),
    ("chat/completions", {"temperature": -1}, 400, "temperature"),
    ("chat/completions", {"max_tokens": 1.5}, 400, "max_tokens"),
    ("chat/completions", {"model": "\ud800"}, 400, "model"),
    ("chat/completions", {"\ud800": 1}, 400, "\ud800"),
    ("chat/completions", {"tool_choice": "often"}, 400, "tool_choice"),
    ("chat/completions", {"tools": {"a": 1}}, 400, "tools"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages.0.content",
    ),
    ("completions", {"prompt": ["a", "b"]}, 400, "prompt"),
    ("completions", {"echo": True}, 400, "echo"),
    ("completions", {"suffix": "end"}, 400, "suffix"),
    ("completions", {"best_of": 2}, 400, "best_of"),
    ("completions", {"logprobs": 5}, 400, "logprobs"),
    ("responses", {"input": "hello"}, 404, None),
]


def test_what_is_not_supported_is_refused_in_openais_form():
    async def ask():
        async with desk(lambda prompt: "ok") as found, httpx.AsyncClient() as other:
            head = {"Authorization": f"Bearer {found.key}"}
            for path, more, *_ in UNSUPPORTED:
                body = (ASK if path.startswith("chat") else {"model": "m", "prompt": "q"}) | more
                yield await other.post(f"{found.url}/{path}", content=json.dumps(body), headers=head)

    async def whole():
        return [(one.status_code, one.json()["error"]) async for one in ask()]

    for (path, more, status, param), (came, error) in zip(UNSUPPORTED, asyncio.run(whole()), strict=True):
        assert (came, error["param"]) == (status, param), (path, more, error)
        assert set(error) == {"message", "type", "param", "code"}


def test_what_frameworks_send_beside_is_taken():
    more = {
        "store": False,
        "metadata": {},
        "parallel_tool_calls": False,
        "tool_choice": "required",
        "stream_options": None,
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
    }
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    said = [
        {"role": "developer", "content": "one"},
        {"role": "system", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": parts, "name": "me"},
    ]

    async def ask():
        async with desk(lambda prompt: "ok", hermes()) as found:
            await found.client.chat.completions.create(model="m", messages=said, **more)
            return found.prompts()

    [prompt] = asyncio.run(ask())
    assert "one\n\ntwo" in prompt and "ab" in prompt


def test_who_is_served_chooses_how_it_is_sampled_and_plays_as_in_training():
    async def play():
        async with desk(lambda prompt: "ok", roles=("planner",)) as found:
            models = [one.id async for one in found.client.models.list()]
            assert models[0] == NAME and {"redraft", "redraft/planner", "redraft/reflection"} < set(models)
            await found.client.chat.completions.create(**ASK | {"model": NAME}, temperature=0.25, max_tokens=500)
            await found.client.chat.completions.create(**ASK | {"model": "redraft/planner"}, top_p=0.5)
            await found.client.post("/reward", body={"reward": 1.0}, cast_to=object)
            with pytest.raises(openai.AuthenticationError):
                await found.client.with_options(api_key="sk-other").chat.completions.create(**ASK)
            return found.sampled

    one, two = asyncio.run(play())
    assert (one.temperature, one.top_p, one.max_tokens) == (0.25, 1.0, 500)
    assert (two.temperature, two.top_p, two.max_tokens) == (1.0, 0.5, 64)


def test_a_client_that_times_out_asks_again_by_itself_and_has_the_answer_of_its_first_request():
    async def play():
        released, sent = asyncio.Event(), []

        async def count(request: httpx.Request) -> None:
            sent.append(request.headers["x-stainless-retry-count"])
            if len(sent) > 2:  # one that gave up at once, one that asked, and asks again
                released.set()

        async with desk(lambda prompt: "ok") as found, httpx.AsyncClient(event_hooks={"request": [count]}) as http:
            whole = found.engine.generate

            async def held(*given):
                await released.wait()
                return await whole(*given)

            found.engine.generate = held
            client = found.client.with_options(http_client=http, timeout=0.5)
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(**ASK)
            again = client.with_options(max_retries=20)
            came = await again.chat.completions.create(**ASK | {"messages": [{"role": "user", "content": "another"}]})
            return came.choices[0].message.content, sent, found.prompts()

    said, sent, prompts = asyncio.run(play())
    assert said == "ok" and sent[:3] == ["0", "0", "1"]
    assert sorted(prompts) == ["another", "q"], "of what was asked again one answer was made"


def test_by_tls_only_who_knows_the_certificate_is_answered_and_plain_text_is_not(tmp_path):
    async def play():
        async with desk(lambda prompt: "ok", tls=certificate(tmp_path)) as found:
            assert found.url.startswith("https://")
            came = await found.client.chat.completions.create(**ASK)
            head = {"Authorization": f"Bearer {found.key}"}
            async with httpx.AsyncClient(headers=head) as stranger:
                for url in (found.url, found.url.replace("https", "http")):
                    with pytest.raises(httpx.TransportError):
                        await stranger.get(f"{url}/models")
            return came.choices[0].message.content, found.prompts()

    assert asyncio.run(play()) == ("ok", ["q"])


DEEP = json.loads("[" * 400 + "]" * 400)
VALUES = [
    DEEP,
    None,
    True,
    -1,
    0,
    1e308,
    1 << 70,
    "",
    "\ud800",
    [],
    {},
    [[]],
    {"a": {}},
    "x" * 1000,
    [None],
    float("nan"),
]


def spoilt(random: random.Random) -> bytes:
    """A request that was cut, bent, or filled with what does not belong there."""
    good = {
        "model": "m",
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "5"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
    raw = json.dumps(good).encode()
    kind = random.randrange(4)
    if kind == 0:
        return raw[: random.randrange(len(raw))]
    if kind == 1:
        return raw.translate(bytes.maketrans(b'{}[]":,', bytes(random.sample(b'{}[]":,', 7)))) + b"}"
    if kind == 2:
        return bytes([random.randrange(256) for _ in range(random.randrange(1, 200))]) + b"\xff"
    inner = random.choice([good, good["messages"][random.randrange(3)], good["messages"][1]["tool_calls"][0]])
    inner[random.choice([*inner, "messages", "n", "stop", "max_tokens", "unheard", "content"])] = random.choice(VALUES)
    return json.dumps(good).encode()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"


def test_a_thousand_broken_requests_are_counted_and_harm_nothing_else():
    found = random.Random(20)
    bodies = [spoilt(found) for _ in range(1000)]

    def counted() -> dict[str, float]:
        known = (200, 400, 401, 404, 500)
        value = REGISTRY.get_sample_value
        return {str(n): value("redraft_agent_requests_total", {"status": str(n)}) or 0.0 for n in known}

    async def play():
        async with desk(lambda prompt: f"said {prompt.count('again')}") as house:

            async def dialogue() -> list[str]:
                said, heard = list(ASK["messages"]), []
                for _ in range(20):
                    came = await house.client.chat.completions.create(model="m", messages=said)
                    heard.append(came.choices[0].message.content)
                    said += [{"role": "assistant", "content": heard[-1]}, {"role": "user", "content": "again"}]
                return heard

            async def broken(own: list[bytes]) -> list[tuple[int, bytes]]:
                reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.split(":")[2].split("/")[0]))
                found = []
                for body in own:
                    writer.write(HEAD % (house.key.encode(), len(body)) + body)
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    size = int(head.partition(b"content-length: ")[2].split()[0])
                    found.append((int(head.split()[1]), await reader.readexactly(size)))
                writer.close()
                return found

            before = counted()
            whole, *parts = await asyncio.gather(dialogue(), *(broken(bodies[n::4]) for n in range(4)))
            return before, whole, [one for part in parts for one in part]

    before, whole, came = asyncio.run(play())
    assert whole == [f"said {number}" for number in range(20)]
    refused = [(status, json.loads(body)) for status, body in came if status != 200]
    assert {status for status, _ in refused} <= {400, 404} and len(refused) > 700
    assert all(set(body["error"]) == {"message", "type", "param", "code"} for _, body in refused)
    more = {status: value - before[status] for status, value in counted().items()}
    assert more["400"] + more["404"] == len(refused) and more["200"] == 1000 - len(refused) + 20 and not more["500"]
