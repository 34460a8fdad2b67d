import base64
import re

import httpx2 as httpx
import pytest

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
    return serve(ECHO + "server: {host: 0.0.0.0, max_body_bytes: 3000, cors_origins: ['https://page.example']}")


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
    assert "access-control-allow-origin" not in httpx.options(open_one.url + "/v1/completions", headers=asked).headers
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
    made = open_one.post("/v1/chat/completions", ASK, headers={"X-Request-Id": "no good\tid"}).headers["x-request-id"]
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
