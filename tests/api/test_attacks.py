"""What hostile or broken clients send, over plain sockets: others are served meanwhile, and nothing is kept."""

import concurrent.futures
import contextlib
import json
import math
import socket
import threading
import time

import httpx2 as httpx
import pytest

ECHO = """
model_specs:
  - {name: one, engine: echo, replies: {"": "It is 4."}}
server: {head_timeout: 1, body_timeout: 2, idle_timeout: 30, max_connections: 200}
"""
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
MEBI = 2**20


@pytest.fixture(scope="module")
def server(serve):
    running = serve(ECHO)
    running.post(CHAT, {"messages": [{"role": "user", "content": "hi"}]})
    return running


def reach(server, timeout=20):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout)


def received(connection):
    """All that comes until the server closes; an aborted connection ends there."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            data += part
    return bytes(data)


def flood(connection, part, size=20 * MEBI):
    """Send `part` again and again until the other side has enough."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < size:
            connection.sendall(part)
            sent += len(part)
    return sent


@contextlib.contextmanager
def watched(server):
    """`/health` answers all the while; gives the longest that the server computed before an answer, in a list.

    In seconds of its CPU: on the clock a busy machine, and this client's own work, would count too.  Infinite
    where no answer comes in half a minute.  A client that is slow on a busy machine gets 408 and asks again.
    """
    worst, over = [0.0], threading.Event()

    def watch():
        begun, before, answered = time.monotonic(), server.cpu, False
        while not (answered and over.is_set()):
            try:
                answered = httpx.get(server.url + "/health", timeout=20).status_code == 200
            except httpx.TransportError:
                answered = False
            worst[0] = max(worst[0], server.cpu - before)
            if answered:
                over.wait(0.02)
                begun, before = time.monotonic(), server.cpu
            elif time.monotonic() > begun + 30:
                worst[0] = math.inf
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield worst
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"GET /health HTTP/1.1\r\nX-Long: ", b"a" * 65536),
        (b"GET /health HTTP/1.1\r\n", b"X-Many: of them\r\n" * 4096),
        (b"GET /health HTTP/1.1\r\n" + b"N" * 1000, b"n" * 65536),
        (b"GET /", b"path/" * 13000),
        (
            b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"X-Trailer: of them\r\n" * 4096,
        ),
    ],
    ids=["one line", "many lines", "one name", "URL", "trailers"],
)
def test_a_head_without_end_is_refused_and_not_kept(server, start, part):
    before = server.memory
    with watched(server) as worst, reach(server) as connection:
        connection.sendall(start)
        flood(connection, part)
        said = received(connection)
    if b"chunked" not in start:  # there the response to the request comes first
        assert said.startswith(b"HTTP/1.1 431 ") or not said  # or the reset overtook it
    assert worst[0] < 1
    assert server.memory < before + 20


def test_a_head_that_is_a_little_too_large_is_told_so(server):
    with reach(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n")
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in head
    error = json.loads(body)["error"]
    assert (error["code"], "65536 bytes" in error["message"]) == ("head_too_large", True)
    assert server.get("/health", headers={"X-Long": "a" * 60_000}).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nX-Slow: ", b"408"),
        (POST + b"Content-Length: 90\r\n\r\n{", b"408"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{", b"408"),
        (HEALTH + HEALTH[:20], b"200"),
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "half a second head"],
)
def test_who_stops_sending_is_told_and_left(server, sent, status):
    begun = time.monotonic()
    with reach(server) as connection:
        connection.sendall(sent)
        said = received(connection)
    assert said.startswith(b"HTTP/1.1 " + status if status else b"")
    assert time.monotonic() - begun < 15
    if status == b"200":
        assert b"HTTP/1.1 408 " in said


@pytest.mark.parametrize("what", ["head", "body", "refused body"])
def test_a_trickle_keeps_nothing_open(server, what):
    length = b"Content-Length: %d\r\n" % (1_000_000 if what == "body" else 10**9)
    start = POST + length + (what != "head") * b"\r\n"
    begun = time.monotonic()
    with reach(server) as connection:
        connection.sendall(start)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < begun + 30:
                connection.sendall(b"a")
                time.sleep(0.1)
    assert time.monotonic() - begun < 20


def test_a_body_without_end_is_refused(server):
    before = server.memory
    with watched(server) as worst, reach(server) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        flood(connection, b"10000\r\n" + b"a" * 65536 + b"\r\n")
        assert received(connection).startswith(b"HTTP/1.1 413 ")
    assert worst[0] < 1
    assert server.memory < before + 30


def test_requests_in_one_go_are_answered_in_order_and_so_many_at_most(server):
    with reach(server) as connection:
        connection.sendall(HEALTH + HEALTH.replace(b"/health", b"/nowhere") + HEALTH)
        time.sleep(0.5)
        said = connection.recv(65536)
        assert [part[:3] for part in said.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"]
    with reach(server) as connection:
        flood(connection, HEALTH * 1000, size=len(HEALTH) * 1000)
        said = received(connection)
    assert 1 <= said.count(b"HTTP/1.1 200 ") <= 20


def test_a_body_longer_than_it_says_costs_nothing_but_the_connection(server):
    body = b'{"prompt": "x", "max_tokens": 2}'
    with reach(server) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"and more\r\n\r\n")
        said = received(connection)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.count(b"HTTP/1.1 ") == 1
    assert json.loads(said.partition(b"\r\n\r\n")[2])["choices"]


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_http_is_told_so_as_an_error_object(server, junk):
    with reach(server) as connection:
        connection.sendall(junk)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize("head", [b"Connection: close\r\n", b""])
@pytest.mark.parametrize("refusal", [b"413", b"415", b"404"])
def test_an_early_refusal_reaches_a_client_that_sends_on(server, head, refusal):
    start = POST.replace(b"/v1/completions", b"/v1/nothing") if refusal == b"404" else POST
    start = start.replace(b"/json", b"/csv") if refusal == b"415" else start
    size = 3_000_000 if refusal == b"413" else 1_500_000
    with reach(server) as connection:
        connection.sendall(start + head + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size // 100_000):
            connection.sendall(b"a" * 100_000)
            time.sleep(0.005)
        said = connection.recv(65536)
    assert said.startswith(b"HTTP/1.1 " + refusal)


def test_a_client_that_waits_for_100_continue_is_asked_or_refused_first(server):
    body = b'{"prompt": "x", "max_tokens": 2}'
    for kind, first in ((b"application/json", b"HTTP/1.1 100 "), (b"text/csv", b"HTTP/1.1 415 ")):
        with reach(server) as connection:
            head = (
                POST.replace(b"application/json", kind)
                + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
            )
            connection.sendall(head % len(body))
            assert connection.recv(65536).startswith(first)
            if b"100" in first:
                connection.sendall(body)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_an_upgrade_that_is_offered_is_ignored(server):
    body = b'{"prompt": "x", "max_tokens": 2}'
    offer = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    )
    with reach(server) as connection:
        connection.sendall(POST + offer + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_reads_nothing_holds_up_nobody(server):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(reach(server))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(HEALTH.replace(b"/health", b"/docs/swagger-ui-bundle.js"))
        assert server.get("/health").status_code == 200


def test_idle_connections_make_room_where_there_are_few_descriptors(serve):
    few = serve(ECHO.replace("head_timeout: 1", "head_timeout: 60"), descriptors=80)
    with contextlib.ExitStack() as stack:
        for number in range(400):
            connection = stack.enter_context(reach(few))
            connection.sendall(
                HEALTH if number % 3 == 0 else b"GET / HTTP/1.1\r\nX-Slow: "[: 30 * (number % 3 - 1)]
            )
            if number % 50 == 0:
                assert few.get("/health").status_code == 200
        for _ in range(10):
            answer = few.post(CHAT, {"messages": [{"role": "user", "content": "2 + 2?"}]})
            assert answer.json()["choices"][0]["message"]["content"] == "It is 4."


def test_beyond_the_bound_idle_connections_are_closed_first_and_those_at_work_never(serve):
    words = " ".join(["w"] * 100)
    slow = (
        ECHO.replace("It is 4.", words)
        .replace("engine: echo", "engine: echo, delay: 0.05")
        .replace("200}", "4}")
    )
    small = serve(slow)
    body = json.dumps({"prompt": "x", "stream": True}).encode()
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(reach(small))
        idle.sendall(HEALTH)
        said = b""
        while b"ready" not in said:
            said += idle.recv(65536)
        at_work = [stack.enter_context(reach(small)) for _ in range(4)]
        for connection in at_work:
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert connection.recv(20).startswith(b"HTTP/1.1 200 ")
        assert received(idle) == b""  # it made room
        refused = small.get("/health")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_connections")
        assert refused.headers["retry-after"] == "1"
        for connection in at_work:
            data = b""
            while not data.endswith(b"0\r\n\r\n"):
                data += connection.recv(65536)
            assert data.count(b'"text":') >= 100
    assert small.get("/health").status_code == 200


def shapes():
    """Bodies of about 2 MB that are wrong in 300,000 places, or large in one."""
    many = 300_000
    return {
        "messages": {"messages": [1] * many},
        "conversations": {"messages": [[1]] * many},
        "empty messages": {"messages": [{}] * many},
        "roles": {"messages": [{"role": "x"}] * (many // 3)},
        "contents": {"messages": [{"role": "user", "content": [{}] * many}]},
        "prompt": {"prompt": [True] * many},
        "prompts": {"prompt": [["x"]] * many},
        "texts": {"prompt": ["x", *[1] * many]},
        "stop": {"prompt": "x", "stop": [1] * many},
        "stop_token_ids": {"prompt": "x", "stop_token_ids": ["a"] * many},
        "logit_bias": {"prompt": "x", "logit_bias": {str(key): "a" for key in range(many // 2)}},
        "metadata": {"prompt": "x", "metadata": {str(key): 1 for key in range(many // 2)}},
        "unknown": {str(key): 1 for key in range(many // 2)},
        "tools": {"messages": [{"role": "user", "content": "x"}], "tools": [1] * many},
        "model": {"prompt": "x", "model": "m" * 1_900_000},
        "name": {"prompt": "x", "p" * 1_900_000: 1},
        "role": {"messages": [{"role": "r" * 1_900_000, "content": "x"}]},
        "type": {"messages": [{"role": "user", "content": [{"type": "t" * 1_900_000}]}]},
        "token id": {"prompt": "x", "logit_bias": {"k" * 1_900_000: 1}},
        "method": {"prompt": "x", "ensemble": {"method": "m" * 1_900_000}},
        "option": {"prompt": "x", "ensemble": {"params": {"m" * 1_900_000: 1}}},
    }


@pytest.mark.parametrize("name", shapes())
def test_a_large_wrong_body_is_cheap_and_its_error_short(server, name):
    body = shapes()[name]
    path = CHAT if "messages" in body or name == "unknown" else TEXT
    with watched(server) as worst:
        before = server.cpu
        refused = server.post(path, body)
        took = server.cpu - before
    assert refused.status_code in (400, 404), refused.text[:200]
    assert len(refused.content) < 3000
    assert refused.json()["error"]["message"]
    assert took < 3
    assert worst[0] < 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[" * 900_000, "deep"),
        (b'{"a":' * 300_000, "deep"),
        (b'{"prompt": "x", "tools": ' + b"[" * 80 + b"]" * 80 + b"}", "deep"),
        (b'{"prompt": ' + b"9" * 1_000_000 + b"}", "not JSON"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b"", "empty"),
        (b"{", "not JSON"),
        (b'{"prompt": "caf\xe9"}', "byte 0xe9 at position 15"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "gzip"),
    ],
)
@pytest.mark.parametrize("path", [TEXT, "/tokenize"])
def test_a_body_that_is_no_json_object_in_utf8_says_what_is_wrong(server, body, says, path):
    refused = httpx.post(
        server.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert refused.status_code == 400
    assert says in refused.json()["error"]["message"]


def test_utf16_and_a_byte_order_mark_are_read(server):
    body = json.dumps({"prompt": "café", "max_tokens": 2})
    for raw in (body.encode("utf-16"), body.encode("utf-8-sig")):
        answer = httpx.post(server.url + TEXT, content=raw, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200


def test_after_all_this_the_server_holds_nothing(server):
    end = time.monotonic() + 20
    while server.get("/status").json()["queued"] or server.get("/status").json()["running"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "Traceback" not in server.said()


WORDS = {
    "words": "There are 8 bowls and 12 plates. ",
    "one letter": "a",
    "letters apart": "a b ",
    "white space": " \n",
    "no tokens of it": "\u0e01\u0e34\U0001f600",
    "digits": "1234567890",
}


@pytest.fixture(scope="module")
def real(serve):
    return serve(None)


def long_body(words, chat):
    text = words * (1_900_000 // (len(json.dumps(words)) - 2))
    return CHAT if chat else TEXT, {"messages": [{"role": "user", "content": text}]} if chat else {
        "prompt": text
    }


def test_prompts_that_are_refused_leave_nothing_in_memory(real):
    path, body = long_body(WORDS["words"], True)
    real.post(path, body)  # what is loaded with the first one
    before = real.memory
    with watched(real) as worst:
        for words in WORDS.values():
            for chat in (True, False):
                path, body = long_body(words, chat)
                refused = real.post(path, body)
                assert refused.status_code == 400
                assert refused.json()["error"]["code"] == "context_length_exceeded"
                assert len(refused.content) < 1000
    assert worst[0] < 1
    assert real.memory < before + 120
    with watched(real) as worst, concurrent.futures.ThreadPoolExecutor(8) as pool:
        path, body = long_body(WORDS["words"], True)
        assert {answer.status_code for answer in pool.map(lambda _: real.post(path, body), range(16))} == {
            400
        }
    assert worst[0] < 1
    assert real.memory < before + 200


def test_other_long_parts_of_a_request_are_no_way_around(real):
    before = real.memory
    text = WORDS["letters apart"] * 450_000
    ask = [{"role": "user", "content": "hi"}]
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": text})}}]
    for body in (
        {"messages": [*ask, {"role": "assistant", "content": text}], "continue_final_message": True},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": text[:1000]}] * 1000}]},
        {"messages": ask * 30_000},
        {"messages": [*ask, {"role": "assistant", "content": "", "tool_calls": calls}]},
        {"messages": [ask] * 30_000},
    ):
        assert real.post(CHAT, body).status_code == 400
    assert real.memory < before + 200
