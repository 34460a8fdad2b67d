import base64
import http.client
import json
import re
import socket
import time
from urllib.parse import quote, urlsplit

import httpx2 as httpx
import pytest

from ensemblehub.config.sections import ServerSection

ECHO = """
model_specs:
  - {name: one, engine: echo, replies: {"": "It is 4."}}
ensembles:
  again: {output_aggregation_method: loop, output_aggregation_params: {max_new_tokens_per_round: 2}}
"""
ASK = {"messages": [{"role": "user", "content": "2 + 2?"}]}
KEY = {"Authorization": "Bearer sesame"}
GETS = [
    "/v1/models",
    "/v1/models/one",
    "/v1/ensemble/config",
    "/status",
    "/metrics",
    "/tokenizer_info",
    "/openapi.json",
]
GETS += ["/docs", "/docs/swagger-ui.css"]
POSTS = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"]


@pytest.fixture(scope="module")
def guarded(serve):
    return serve(ECHO, "--api-key", "sesame", env={"ENSEMBLEHUB_API_KEY": "also"})


@pytest.fixture(scope="module")
def open_one(serve):
    return serve(
        ECHO + "server: {host: 0.0.0.0, max_body_bytes: 3000, cors_origins: ['https://page.example']}"
    )


@pytest.mark.parametrize("path", GETS)
def test_every_route_that_shows_something_needs_the_key(guarded, path):
    refused = guarded.get(path)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert guarded.get(path, headers={"Authorization": "Bearer sesam"}).status_code == 401
    assert guarded.get(path, headers={"Authorization": "Bearer also"}).status_code != 401
    assert guarded.get(path, headers=KEY).status_code == (400 if path == "/tokenizer_info" else 200)


@pytest.mark.parametrize("path", POSTS)
def test_every_route_that_does_something_needs_the_key(guarded, path):
    assert guarded.post(path, ASK).status_code == 401
    assert guarded.post(path, ASK, headers=KEY).status_code in (200, 400)


def test_health_and_the_page_need_no_key_and_show_nothing(guarded):
    assert guarded.get("/health").json() == {"status": "ready"}
    page = guarded.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for part in re.findall(r'(?:href|src)="(/[^"]+)"', page.text):
        assert guarded.get(part).status_code == 200
    assert "sesame" not in page.text


def test_a_browser_opens_the_docs_with_the_key_as_password(guarded):
    assert guarded.get("/docs").headers["www-authenticate"].startswith("Basic")
    assert guarded.get("/v1/models").headers["www-authenticate"] == "Bearer"
    basic = {"Authorization": "Basic " + base64.b64encode(b"me:sesame").decode()}
    assert "swagger" in guarded.get("/docs", headers=basic).text
    assert guarded.post("/v1/completions", {"prompt": "x"}, headers=basic).status_code == 401
    assert guarded.get("/docs", headers={"Authorization": "Basic !"}).status_code == 401


def test_without_a_key_only_loopback_is_served(open_one):
    assert "only loopback is served: 127.0.0.1 instead of 0.0.0.0" in open_one.said()
    assert open_one.get("/v1/models").status_code == 200
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        refused = open_one.get("/v1/models", headers={"Host": host})
        assert refused.status_code == 403
        assert "only loopback" in refused.json()["error"]["message"]


def test_a_page_elsewhere_cannot_post_without_being_asked_first(open_one):
    plain = httpx.post(
        open_one.url + "/v1/completions", content=b'{"prompt": "x"}', headers={"Content-Type": "text/plain"}
    )
    assert plain.status_code == 415
    asked = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    assert (
        "access-control-allow-origin"
        not in httpx.options(open_one.url + "/v1/completions", headers=asked).headers
    )
    asked["Origin"] = "https://page.example"
    allowed = httpx.options(open_one.url + "/v1/completions", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"


def test_cors_is_off_unless_configured(guarded):
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(guarded.url + "/v1/completions", headers=asked | KEY)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(open_one, chunked):
    body = b'{"prompt": "' + b"x" * 4000 + b'"}'
    content = iter([body[:2000], body[2000:]]) if chunked else body
    headers = {"Content-Type": "application/json"}
    refused = httpx.post(open_one.url + "/v1/completions", content=content, headers=headers)
    assert refused.status_code == 413
    assert "3000 bytes" in refused.json()["error"]["message"]
    assert open_one.post("/v1/completions", {"prompt": "x" * 2000}).status_code == 200


def test_a_request_id_is_taken_up_or_made_and_logged(open_one):
    given = open_one.post("/v1/chat/completions", ASK, headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = open_one.post("/v1/chat/completions", ASK, headers={"X-Request-Id": "no good\tid"}).headers[
        "x-request-id"
    ]
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    open_one.said("request_id=mine-1")
    open_one.said(made)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--api-key", ""], "an API key is empty"),
        (["--api-key-file", "no-such-file"], "no-such-file"),
        (["--port", "99999"], "99999"),
        (["--host", "203.0.113.7", "--api-key", "x"], "cannot listen on 203.0.113.7"),
        (["--set", "server.max_runing=3"], "did you mean 'max_running'"),
        (["--set", "ensembles.again.models=[two]"], "unknown model 'two'"),
        (["--set", "ensembles.one={}"], "'one' is the name of a model"),
        (["--set", "ensembles.again.request_params.speed.maximum=3"], "has no option 'speed'"),
        (["--set", "model_specs.0.name=ensemble"], "is called 'ensemble'"),
    ],
)
def test_what_cannot_be_served_is_one_line(serve, flags, says):
    server = serve(ECHO, *flags, ready=False)
    assert server.process.wait(60) == 2
    said = server.said().strip().splitlines()
    assert says in said[-1]
    assert "Traceback" not in server.said()


@pytest.mark.parametrize("name", ["api-key", "x-api-key", "X-API-Key"])
def test_a_key_may_come_in_a_header_of_its_own(guarded, name):
    assert guarded.get("/v1/models", headers={name: "sesame"}).status_code == 200
    assert guarded.post("/v1/chat/completions", ASK, headers={name: "sesame"}).status_code == 200
    assert guarded.get("/v1/models", headers={name: "sesam"}).status_code == 401
    both = {name: "of another service", **KEY}
    assert guarded.get("/v1/models", headers=both).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/one", "/metrics", "/docs"])
def test_head_is_get_without_its_body(open_one, path):
    got, head = open_one.get(path), httpx.head(open_one.url + path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == got.headers["content-length"]


def test_head_needs_the_key_where_get_does(guarded):
    assert httpx.head(guarded.url + "/health").status_code == 200
    assert httpx.head(guarded.url + "/v1/models").status_code == 401
    assert httpx.head(guarded.url + "/v1/models", headers=KEY).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "says"),
    [
        ("POST", "/chat/completions", 404, "not_found", "did you mean '/v1/chat/completions'"),
        ("POST", "/v1/v1/chat/completions", 404, "not_found", "did you mean '/v1/chat/completions'"),
        ("GET", "/v1/model", 404, "not_found", "did you mean '/v1/models'"),
        ("POST", "/v1/embeddings", 404, "not_found", "/v1/"),
        ("GET", "/" + "x" * 5000, 404, "not_found", "there is: "),
        ("GET", "/v1/models/onne", 404, "model_not_found", "did you mean 'one'"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed", "use POST"),
        ("DELETE", "/health", 405, "method_not_allowed", "use GET"),
    ],
)
def test_a_wrong_path_or_method_has_a_code_and_a_hint(open_one, method, path, status, code, says):
    answer = httpx.request(method, open_one.url + path, json={} if method == "POST" else None)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], says in error["message"]) == (code, True)
    assert len(answer.content) < 1500


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Content-Encoding": "gzip"}, "Content-Encoding: gzip"),
        ({"Content-Encoding": "br, gzip"}, "br, gzip"),
        ({"Content-Type": "application/json; charset=iso-8859-1"}, "not iso-8859-1"),
        ({"Content-Type": "application/json; charset=latin1"}, "not latin1"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "send Content-Type: application/json"),
        ({"Content-Type": ""}, "send Content-Type: application/json"),
    ],
)
def test_a_body_in_another_coding_is_refused_by_name(open_one, headers, says):
    headers = {"Content-Type": "application/json", **headers}
    refused = httpx.post(open_one.url + "/v1/completions", content=b'{"prompt": "caf\xe9"}', headers=headers)
    assert refused.status_code == 415
    assert says in refused.json()["error"]["message"]
    assert refused.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", 'application/json;charset="UTF-8"', "Application/JSON"]
)
def test_json_in_utf8_is_taken_however_it_is_called(open_one, kind):
    body = '{"prompt": "café"}'.encode()
    answer = httpx.post(open_one.url + "/v1/completions", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_gets_no_chunks(open_one, stream):
    body = json.dumps({**ASK, "stream": stream}).encode()
    with socket.create_connection(
        (urlsplit(open_one.url).hostname, urlsplit(open_one.url).port), 20
    ) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, text = said.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    if stream:
        assert text.startswith(b"data: {")
        assert text.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(text)["choices"][0]["message"]["content"] == "It is 4."


def test_a_connection_is_kept_for_longer_than_clients_keep_theirs(open_one):
    assert ServerSection().idle_timeout > 90  # Go's and hyper's; proxies' are 60
    client = http.client.HTTPConnection(urlsplit(open_one.url).netloc, timeout=20)
    ports = set()
    for wait in (6, 0):  # uvicorn's default is 5
        client.request("GET", "/health")
        assert client.getresponse().read()
        ports.add(client.sock.getsockname()[1])
        time.sleep(wait)
    assert len(ports) == 1
    client.close()


FORGED = "12:00:00 info: POST /v1/chat/completions 200 request_id=forged"
SIGNS = [
    "\n",
    "\r",
    "\x1b[2K\x1b[1A",
    "\x85",
    "\u2028",
    "\u2029",
    "\x0b",
    "\x0c",
    "\x00",
    "\u202e",
    "\x9b31m",
    "\x7f",
]


@pytest.mark.parametrize("sign", SIGNS)
def test_nothing_from_outside_makes_a_line_of_the_log_or_hides_one(open_one, sign):
    forged = sign + FORGED
    path = "/v1/models/x" + quote(forged)
    answer = httpx.get(open_one.url + path)
    assert answer.status_code == 404
    raw = (" " if ord(sign[0]) < 32 or sign == "\x7f" else sign) + FORGED  # control characters are no HTTP
    headers = {"X-Request-Id": raw.strip().encode(), "User-Agent": raw.strip().encode()}
    again = open_one.post("/v1/chat/completions", {**ASK, "model": forged, "user": forged}, headers=headers)
    assert again.status_code == 404
    assert re.fullmatch(r"[0-9a-f]{32}", again.headers["x-request-id"])
    log = open_one.said(again.headers["x-request-id"])
    assert all(character.isprintable() or character == "\n" for character in log)
    for line in log.splitlines():
        assert not line.startswith("12:00:00")
        assert "request_id=forged" not in line.replace(quote("request_id=forged"), "")


def test_a_path_cannot_look_like_a_detail(open_one):
    answer = open_one.get("/v1/models/x%20200%20request_id=mine%20model=other")
    line = next(
        line for line in open_one.said(answer.headers["x-request-id"]).splitlines() if "model%3Dother" in line
    )
    assert line.split(" request_id=")[1].startswith(answer.headers["x-request-id"])
