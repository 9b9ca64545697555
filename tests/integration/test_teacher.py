"""A teacher answers within its deadline, is paid for only so far, and shows its key to nobody.

Against a vLLM server, and against an endpoint of the test's own that misbehaves as it is told.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import REGISTRY
from pydantic import ValidationError
from support.waiting import deadline_s

from actors.config import EnvironmentSettings
from actors.door import EpisodeFailure
from actors.engines.teacher import LOST, Teacher, TeacherBudget
from actors.teacher_config import TeacherSettings
from benchmarks.teacher_server import started
from protocols.errors import SettingError
from redraft.config import MakeSettings, ModelSettings, PretrainSettings
from redraft.models.make import prepare

pytestmark = pytest.mark.vllm

DIALOGUE = [
    {"role": "user", "content": "1234>10\n"},
    {"role": "assistant", "content": "1+2+3+4"},
    {"role": "user", "content": "?+3\n"},
]
PROMPT_TOKENS = 8 + 7 + 1 + 4  # the bytes of the contents, and the end token of the answer
MOST = 64  # tokens of an answer: several times what one of this model has
SLACK_S = 1.0
KEY = "sk-the-secret-of-this-test"


def asked(settings: TeacherSettings, work: Callable):
    """What `work(teacher)` returns, on a loop of its own."""

    async def whole():
        teacher = Teacher(settings)
        try:
            return await work(teacher)
        finally:
            await teacher.close()

    return asyncio.run(whole())


def once(teacher: Teacher):
    return teacher.write(DIALOGUE)


def metric(name: str, **labels) -> float:
    return REGISTRY.get_sample_value(f"redraft_teacher_{name}", labels) or 0.0


# --- a vLLM server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    learned = PretrainSettings(steps=200)  # to end its answers
    make = MakeSettings(tokenizer="bytes", max_length=256, pretrain=learned)
    cache = tmp_path_factory.mktemp("models")
    folder = prepare(ModelSettings(make=make, dtype="float32"), EnvironmentSettings(name="signs"), cache, print)
    began = time.monotonic()
    with started(folder) as server:
        print(f"the server was up after {time.monotonic() - began:.1f} s")
        yield server


def served(server, **changes) -> TeacherSettings:
    return TeacherSettings(**{"url": server.url, "model": server.model, "max_tokens": MOST} | changes)


@pytest.mark.prove
def test_a_served_model_answers_and_its_tokens_are_counted(server):
    before = {kind: metric("tokens_total", kind=kind) for kind in ("prompt", "completion")}
    requests, seconds = metric("requests_total"), metric("answer_seconds_sum")

    async def twice(teacher):
        return await once(teacher), teacher.used, await once(teacher)

    text, used, again = asked(served(server, temperature=0), twice)
    assert text == again and 0 < len(text) <= MOST, "greedy"
    prompt, completion = (metric("tokens_total", kind=kind) - before[kind] for kind in ("prompt", "completion"))
    assert prompt == 2 * PROMPT_TOKENS and 2 <= completion <= 2 * MOST
    assert used == PROMPT_TOKENS + completion / 2
    assert metric("requests_total") == requests + 2 and metric("answer_seconds_sum") > seconds


@pytest.mark.prove
def test_the_budget_ends_it_with_an_error_that_names_the_setting(server):
    async def until_refused(teacher):
        for answers in range(100):
            used = teacher.used
            try:
                await once(teacher)
            except TeacherBudget as error:
                return answers, used, error
        return None

    answers, used, error = asked(served(server, budget_tokens=60, temperature=0), until_refused)
    assert 60 <= used < 60 + PROMPT_TOKENS + MOST and answers <= 3, "what began within the budget was answered"
    assert "teacher.budget_tokens" in str(error) and f"{used} of 60" in str(error)


@pytest.mark.prove
def test_a_model_that_is_not_served_is_refused_by_the_name_of_the_setting(server):
    with pytest.raises(SettingError, match=r"teacher\.model: .*'another'") as caught:
        asked(served(server, model="another"), once)
    assert caught.value.setting == "rollout.teacher.model"


@pytest.mark.prove
def test_a_prompt_that_is_too_long_ends_only_its_episode(server):
    with pytest.raises(EpisodeFailure, match="status 400") as caught:
        asked(served(server), lambda teacher: teacher.write([{"role": "user", "content": "1" * 300}]))
    assert caught.value.kind == "teacher"


@pytest.mark.prove
def test_a_server_that_is_killed_ends_episodes_within_the_deadline(server):  # the last one that needs it
    settings = served(server, timeout_s=5, retries=1, concurrency=8)

    async def episode(teacher, answered):
        while True:
            try:
                await once(teacher)
            except EpisodeFailure as failure:
                return failure
            answered.set()

    async def killed(teacher):
        answered = asyncio.Event()
        episodes = [asyncio.ensure_future(episode(teacher, answered)) for _ in range(16)]
        await asyncio.wait_for(answered.wait(), deadline_s(20))
        await asyncio.to_thread(server.kill)
        began = time.monotonic()
        return await asyncio.gather(*episodes), time.monotonic() - began

    failures, seconds = asked(settings, killed)
    assert len(failures) == 16 and {failure.kind for failure in failures} == {"teacher"}
    assert seconds < settings.deadline_s + deadline_s(SLACK_S)


# --- an endpoint of the test's own


class Endpoint(ThreadingHTTPServer):
    """Answers each request as `reply(number of the request, handler)` says; None says that the handler has answered."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, reply: Callable):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.times, self.lock = reply, [], threading.Lock()
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self):
        self.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number = len(self.server.times)
            self.server.times.append(time.monotonic())
        answer = self.server.reply(number, self)
        if answer is not None:
            status, headers, body = answer
            self.begin(status, {"content-length": str(len(body)), "content-type": "application/json"} | headers)
            self.wfile.write(body)

    def begin(self, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@contextmanager
def endpoint(reply: Callable) -> Iterator[Endpoint]:
    with Endpoint(reply) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


def at(server: Endpoint, **changes) -> TeacherSettings:
    return TeacherSettings(**{"url": server.url, "model": "any", "timeout_s": 5, "retries": 0} | changes)


def completion(text="4+3+2+1", usage=True, finish="stop") -> tuple[int, dict, bytes]:
    said = {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]}
    counted = {"usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}} if usage else {}
    return 200, {}, json.dumps(said | counted).encode()


def error(status: int, message: str, param: str | None = None, **headers) -> tuple[int, dict, bytes]:
    return status, headers, json.dumps({"error": {"message": message, "param": param}}).encode()


def test_too_many_requests_are_tried_again_when_the_endpoint_says_so():
    def reply(number, handler):
        return completion() if number else error(429, "slow down", **{"retry-after": "1"})

    with endpoint(reply) as server:
        assert asked(at(server, retries=1), once) == "4+3+2+1"
    first, second = server.times
    assert second - first >= 1.0, "its own first wait is half a second at most"


def test_a_try_that_gets_no_answer_is_made_again():
    def reply(number, handler):
        return completion() if number else handler.server.ended.wait(deadline_s(30)) and None

    with endpoint(reply) as server:
        assert asked(at(server, timeout_s=0.5, retries=1), once) == "4+3+2+1"


def test_an_endpoint_that_goes_on_failing_ends_only_the_episode():
    failures = metric("failures_total", reason="503")
    with endpoint(lambda number, handler: error(503, "busy")) as server:
        with pytest.raises(EpisodeFailure, match="status 503") as caught:
            asked(at(server, retries=1), once)
    assert caught.value.kind == "teacher" and len(server.times) == 2
    assert metric("failures_total", reason="503") == failures + 1


def test_a_teacher_that_fails_again_and_again_ends_the_run_but_not_one_that_answers_between():
    answered = LOST - 2  # the only request that is: the count begins anew after it

    async def ask(teacher: Teacher) -> list[type]:
        ended = []
        for _ in range(2 * LOST):
            try:
                ended.append(type(await teacher.write(DIALOGUE)))
            except (EpisodeFailure, SettingError) as error:
                ended.append(type(error))
        return ended

    with endpoint(lambda n, handler: completion() if n == answered else error(400, "no")) as server:
        ended = asked(at(server, retries=0), ask)
    assert ended[:answered] == [EpisodeFailure] * answered and ended[answered] is str
    assert ended.index(SettingError) == answered + LOST


def test_a_model_that_calls_the_longest_answer_otherwise_is_asked_by_that_name():
    asked_with = []

    def reply(number, handler):
        asked_with.append({key for key in handler.asked if "tokens" in key or key == "temperature"})
        refused = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return completion() if number else error(400, refused, param="max_tokens")

    async def twice(teacher):
        return await once(teacher), await once(teacher)

    with endpoint(reply) as server:
        assert asked(at(server, temperature=None), twice) == ("4+3+2+1",) * 2
    assert asked_with == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]


def test_requests_at_once_that_were_all_asked_by_the_older_name_are_all_asked_again():
    together = threading.Barrier(8)

    def reply(number, handler):
        if "max_tokens" not in handler.asked:
            return completion()
        together.wait(deadline_s(20))
        return error(400, "Use 'max_completion_tokens' instead.", param="max_tokens")

    async def at_once(teacher):
        return await asyncio.gather(*(once(teacher) for _ in range(8)))

    with endpoint(reply) as server:
        assert asked(at(server, concurrency=8, timeout_s=30), at_once) == ["4+3+2+1"] * 8


def test_who_waits_for_a_slot_until_the_deadline_is_told_so_and_the_endpoint_does_not_count_as_gone():
    async def at_once(teacher):
        return await asyncio.gather(*(once(teacher) for _ in range(LOST + 2)), return_exceptions=True)

    with endpoint(lambda number, handler: server.ended.wait(deadline_s(20)) and completion()) as server:
        came = asked(at(server, concurrency=1, timeout_s=0.5), at_once)
    assert all(isinstance(one, EpisodeFailure) for one in came)
    assert any("slot of rollout.teacher.concurrency=1 too late" in str(one) for one in came)


def test_a_model_that_takes_no_temperature_is_told_by_the_setting():
    with endpoint(lambda number, handler: error(400, "Unsupported value", param="temperature")) as server:
        with pytest.raises(SettingError, match="Set it to null") as caught:
            asked(at(server), once)
    assert caught.value.setting == "rollout.teacher.temperature"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (completion("4+3", finish="length"), r"that was cut at rollout\.teacher\.max_tokens"),
        (completion(""), "empty answer"),
        (completion("4+\ud800"), "half of a character"),
        (completion("<think>4 or 3</think>\n"), "empty answer"),
    ],
    ids=["cut", "empty", "half a character", "thoughts alone"],
)
def test_an_answer_that_was_cut_is_empty_or_is_no_text_is_not_trained_on(answer, said):
    with endpoint(lambda number, handler: answer) as server:
        with pytest.raises(EpisodeFailure, match=said) as caught:
            asked(at(server), once)
    assert caught.value.kind in ("teacher", "returned")


def test_what_a_teacher_thought_is_not_part_of_its_answer():
    with endpoint(lambda number, handler: completion("<think>4-3?</think>\n\n4+3+2+1")) as server:
        assert asked(at(server), once) == "4+3+2+1"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_a_setting_error_that_shows_no_key(status, monkeypatch, caplog):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    sent = []

    def reply(number, handler):
        sent.append(handler.headers["authorization"])
        return error(status, f"the key {KEY} is wrong")

    with endpoint(reply) as server:
        settings = at(server, key_env="TEACHER_KEY", retries=3)
        with pytest.raises(SettingError, match="TEACHER_KEY") as caught:
            asked(settings, once)
    assert sent == [f"Bearer {KEY}"] and caught.value.setting == "rollout.teacher.key_env"
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(settings)
    assert KEY not in shown


def test_what_the_endpoint_says_of_a_bad_request_is_logged_once_without_the_key(monkeypatch, caplog):
    monkeypatch.setenv("TEACHER_KEY", f" {KEY}\n")

    async def twice(teacher):
        return await asyncio.gather(once(teacher), once(teacher), return_exceptions=True)

    with endpoint(lambda number, handler: error(400, f"{KEY} asks for too much")) as server:
        failures = asked(at(server, key_env="TEACHER_KEY"), twice)
    assert [type(failure) for failure in failures] == [EpisodeFailure] * 2
    assert caplog.text.count("asks for too much") == 1
    assert KEY not in caplog.text + "".join(map(str, failures))


def test_an_endpoint_that_never_answers_ends_episodes_within_the_deadline_those_that_queue_too():
    with endpoint(lambda number, handler: handler.server.ended.wait(deadline_s(30)) and None) as server:
        settings = at(server, timeout_s=0.3, retries=1, concurrency=2)

        async def many(teacher):
            began = time.monotonic()
            failures = await asyncio.gather(*(once(teacher) for _ in range(6)), return_exceptions=True)
            return failures, time.monotonic() - began

        failures, seconds = asked(settings, many)
    assert [(type(failure), failure.kind) for failure in failures] == [(EpisodeFailure, "teacher")] * 6
    assert settings.deadline_s == pytest.approx(0.3 * 2 + 0.5)
    assert seconds < settings.deadline_s + deadline_s(SLACK_S)


def test_an_endpoint_that_answers_a_byte_at_a_time_is_given_up_at_the_deadline():
    def reply(number, handler):
        handler.begin(200, {"content-type": "application/json"})
        try:
            while not handler.server.ended.wait(0.05):
                handler.wfile.write(b" ")
                handler.wfile.flush()
        except OSError:
            pass  # the client has left

    with endpoint(reply) as server:
        began = time.monotonic()
        with pytest.raises(EpisodeFailure, match="no answer within 0.5 s"):
            asked(at(server, timeout_s=0.5), once)
        assert time.monotonic() - began < 0.5 + deadline_s(SLACK_S)


@pytest.mark.parametrize(
    "body",
    [b"{", b"<html>", b"", b"null", b"[]", b'"text"', b"\xff\xfe", b"{}", b'{"choices": []}', b'{"choices": [7]}']
    + [b'{"choices": [{"message": {"content": null}}]}', b'{"choices": [{"message": {"content": [1]}}]}']
    + [b'{"choices": {"0": 1}, "usage": 3}', b'{"error": "none left"}'],
)
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_an_answer_that_is_no_chat_completion_ends_only_the_episode(body, kind):
    with endpoint(lambda number, handler: (200, {"content-type": kind}, body)) as server:
        with pytest.raises(EpisodeFailure) as caught:
            asked(at(server), once)
    assert caught.value.kind == "teacher"


def test_no_more_requests_are_under_way_than_the_recipe_allows():
    three, free, under_way = threading.Event(), threading.Event(), []

    def reply(number, handler):
        if "beside" not in handler.path:
            under_way.append(number)
            if len(under_way) == 3:
                three.set()
            free.wait(deadline_s(20))
        return completion()

    with endpoint(reply) as server:
        beside = Teacher(at(server, url=f"{server.url}/beside"))

        async def nine(teacher):
            asking = [asyncio.ensure_future(once(teacher)) for _ in range(9)]
            assert await asyncio.to_thread(three.wait, 10), "three at once"
            for _ in range(5):  # time in which a fourth would have come
                await once(beside)
            held = len(under_way)
            free.set()
            await beside.close()
            return held, await asyncio.gather(*asking)

        held, texts = asked(at(server, concurrency=3, timeout_s=20), nine)
    assert held == 3 and texts == ["4+3+2+1"] * 9


def test_a_budget_needs_an_endpoint_that_counts():
    with endpoint(lambda number, handler: completion(usage=False)) as server:
        assert asked(at(server), once) == "4+3+2+1"
        with pytest.raises(SettingError, match=r"teacher\.budget_tokens"):
            asked(at(server, budget_tokens=100), once)


def test_an_endpoint_on_another_machine_needs_a_key_before_work_starts(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    elsewhere = TeacherSettings(url="https://teacher.example/v1", model="any", key_env="NO_SUCH_KEY")
    with pytest.raises(SettingError, match=r"teacher\.key_env: NO_SUCH_KEY is not set"):
        Teacher(elsewhere)
    monkeypatch.setenv("NO_SUCH_KEY", KEY)
    assert elsewhere.key() == KEY


@pytest.mark.parametrize(
    "url",
    ["", "host:8000/v1", "ftp://host/v1", "http:///v1", "https://me:secret@host/v1", "https://host/v1?key=secret"],
)
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(ValidationError, match="url must"):
        TeacherSettings(url=url, model="any")


def test_settings_and_the_module_import_without_the_client():
    program = "import sys, actors.teacher_config, actors.engines.teacher; print('openai' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=deadline_s(60))
    assert answer.stdout.strip() == "False", answer.stdout + answer.stderr
