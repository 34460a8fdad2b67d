"""The HTTP scorer against a real server that misbehaves in many ways."""

import asyncio
import email.utils
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.errors import ConfigError, EngineError, RequestError
from ensemblehub.schema import Chat, Message, Price, Request, TokenIds
from ensemblehub.scorers.api import APIOptions, APIScorer

pytest.importorskip("httpx2")
CHAT = Request(Chat((Message("system", "Be brief."), Message("user", "1 + 1?"))), prefix="It is")
TEXTS = [" 2", " 3"]
GOOD = {"scores": [0.5, -1]}


class Server(ThreadingHTTPServer):
    """Answers from a list: (status, headers, body); a dict is its JSON, None hangs up, a number waits first."""

    daemon_threads = True

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = list(answers), []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((json.loads(body), self.headers.get("authorization"), time.monotonic()))
        answer = self.server.answers.pop(0)
        if isinstance(answer, float):
            time.sleep(answer)
            answer = GOOD
        if answer is None:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serving(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(*answers):
        server = Server(answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def scored(url, request=CHAT, ledger=None, **options):
    async def ask():
        scorer = APIScorer("judge", APIOptions(url, **({"backoff": 0.01} | options)))
        await scorer.load()
        try:
            return await scorer.score(request, TEXTS, (ledger or UsageLedger()).meter("score"))
        finally:
            await scorer.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "answer",
    [GOOD, {"results": [0.5, -1.0]}, {"results": [{"score": 0.5}, {"score": -1, "text": "x"}]}],
)
def test_scores_in_every_form(serving, answer):
    assert scored(serving(answer).url) == [0.5, -1.0]


def test_what_is_posted(serving):
    replies = ["It is 2", "It is 3"]
    server = serving(GOOD, GOOD, GOOD)
    scored(server.url)
    scored(server.url, form="messages", model="rm")
    scored(server.url, form="strings", model="rm")
    head = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    assert [body for body, _, _ in server.asked] == [
        {"prompt": "Be brief.\n\n1 + 1?", "completions": replies},
        {"model": "rm", "messages": [[*head, {"role": "assistant", "content": reply}] for reply in replies]},
        {"model": "rm", "messages": [f"Be brief.\n\n1 + 1?\n{reply}" for reply in replies]},
    ]


@pytest.mark.parametrize("fault", [(500, {}, b"oops"), (503, {}, b""), (429, {}, b"slow down"), None])
def test_what_may_pass_is_tried_again(serving, fault):
    server = serving(fault, fault, GOOD)
    assert scored(server.url) == [0.5, -1.0]
    first, second, third = (at for *_, at in server.asked)
    assert second - first >= 0.005  # half of the backoff at least
    assert third - second >= 0.01


def test_a_timeout_is_tried_again(serving):
    server = serving(1.0, GOOD)
    assert scored(server.url, timeout=0.2) == [0.5, -1.0]
    assert len(server.asked) == 2


def test_three_tries_and_no_more(serving):
    server = serving(*[(503, {}, b"still\nstarting")] * 4)
    with pytest.raises(EngineError, match=f"'judge' failed at {server.url}: HTTP 503 still starting$"):
        scored(server.url)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((400, {}, b"bad request"), "HTTP 400 bad request"),
        ((401, {}, b"who are you?"), "HTTP 401"),
        ((302, {"location": "/login"}, b""), "HTTP 302"),
        ((200, {"content-type": "text/html"}, b"<html>\nlog in</html>"), "not JSON but text/html"),
        ((200, {}, b"\xff\xfe\x00"), "not JSON"),
        ((200, {"content-encoding": "gzip"}, b"no gzip"), "DecodingError"),
        ([0.5, 1.0], "no JSON object"),
        ({"error": "model not loaded"}, "an error in the answer: model not loaded"),
        ({"scores": 0.5}, "no list of `scores`"),
        ({"scores": [0.5]}, "1 scores for 2 texts"),
        ({"scores": [0.5, 1, 2]}, "3 scores for 2 texts"),
        ({"scores": [0.5, None]}, "None, not a finite number"),
        ({"scores": [0.5, "0.7"]}, "'0.7', not a finite number"),
        ({"scores": [0.5, True]}, "True, not a finite number"),
        ({"results": [{"score": 1}, {"value": 1}]}, "None, not a finite number"),
        ({"scores": [0.5, float("nan")]}, "nan, not a finite number"),
        ({"scores": [0.5, float("inf")]}, "inf, not a finite number"),
        ((200, {}, b'{"scores": [0.5, 1' + b"0" * 400 + b"]}"), "not a finite number"),
    ],
)
def test_anything_else_is_an_error_at_once(serving, answer, reason):
    server = serving(answer, GOOD)
    with pytest.raises(EngineError, match=reason) as raised:
        scored(server.url)
    assert server.url in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(server.asked) == 1


def test_retry_after_is_kept(serving):
    server = serving((429, {"retry-after": "1"}, b""), GOOD)
    scored(server.url)
    assert server.asked[1][2] - server.asked[0][2] >= 1
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    for wait in ("3600", date):
        server = serving((429, {"retry-after": wait}, b"quota"), GOOD)
        with pytest.raises(EngineError, match="HTTP 429 quota"):
            scored(server.url)
        assert len(server.asked) == 1
    server = serving((503, {"retry-after": "soon"}, b""), GOOD)
    assert scored(server.url) == [0.5, -1.0]


def test_no_server_is_an_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/score"
    with pytest.raises(EngineError, match=f"{url}: ConnectError"):
        scored(url)


def test_the_key_is_sent_and_in_no_error(serving, monkeypatch):
    monkeypatch.setenv("RM_KEY", "s3cret\n")
    server = serving(
        (403, {}, b"no access for s3cret or abc=1"), GOOD
    )  # some servers say what they were sent
    with pytest.raises(EngineError, match=r"HTTP 403 no access for \*\*\* or \*\*\*$"):
        scored(f"{server.url}?abc=1", api_key_env="RM_KEY")
    scored(server.url, api_key_env="RM_KEY")
    assert [key for _, key, _ in server.asked] == ["Bearer s3cret"] * 2
    for key, reason in (("", "RM_KEY is not set"), ("s3\ncret", "RM_KEY holds"), ("s3crét", "RM_KEY holds")):
        monkeypatch.setenv("RM_KEY", key)
        with pytest.raises(ConfigError, match=reason) as raised:
            scored(server.url, api_key_env="RM_KEY")
        assert "s3" not in str(raised.value)


def test_failed_calls_are_recorded_too(serving):
    ledger, price = UsageLedger(), Price(2.0, 0.0)
    server = serving(GOOD | {"usage": {"prompt_tokens": 500_000}}, GOOD, (400, {}, b""))
    scored(server.url, ledger=ledger, price=price)
    scored(server.url, ledger=ledger, price=price)
    with pytest.raises(EngineError):
        scored(server.url, ledger=ledger, price=price)
    costs = [call.cost for call in ledger.calls]
    assert [(cost.prompt_tokens, cost.usd, cost.estimated) for cost in costs] == [
        (500_000, 1.0, False),
        (0, 0.0, True),
        (0, 0.0, True),
    ]


def test_the_model_that_judges():
    assert APIScorer("a", APIOptions("http://h/score?key=1", model="rm")).model == "rm"
    assert APIScorer("a", APIOptions("http://h/score?key=1")).model == "http://h/score"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h/x", "http://", "", "http://user:pw@h/x"])
def test_a_url_that_cannot_be_is_refused(url):
    with pytest.raises(ConfigError, match="path") as raised:
        APIOptions(url)
    assert "pw" not in str(raised.value)


def test_token_ids_cannot_be_posted(serving):
    server = serving(GOOD)
    with pytest.raises(RequestError, match="token ids"):
        scored(server.url, Request(TokenIds((1,))))
    assert not server.asked
