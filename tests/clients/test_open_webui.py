"""Open WebUI's page in a browser, in front of the server (`make test-open-webui`)."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("open_webui")
from playwright.sync_api import expect, sync_playwright

from tests.clients.conftest import free_port

COMPOSE = Path(__file__).parents[2] / "compose.yaml"
ALONE = {  # no account, nothing fetched, none of the questions that it asks by itself
    "WEBUI_AUTH": "False",
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_MODEL": "",
    "ENABLE_OLLAMA_API": "false",
    "ENABLE_TITLE_GENERATION": "false",
    "ENABLE_TAGS_GENERATION": "false",
    "ENABLE_FOLLOW_UP_GENERATION": "false",
    "WEBUI_SECRET_KEY": "of a test",
}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def webui(start, url, tmp_path_factory):
    """`webui(**environment)`: where Open WebUI answers, by default as an operator finds it."""

    def begin(**environment):
        port, data = free_port(), tmp_path_factory.mktemp("open-webui")
        command = [str(Path(sys.executable).with_name("open-webui")), "serve", "--host", "127.0.0.1"]
        known = {"DATA_DIR": str(data), "OPENAI_API_BASE_URL": url, "OPENAI_API_KEY": "none", **ALONE}
        return start([*command, "--port", str(port)], port, **known, **environment)

    return begin


@pytest.fixture(scope="module")
def as_composed(webui):
    """Open WebUI with what `compose.yaml` sets for the models."""
    set_there = yaml.safe_load(COMPOSE.read_text())["services"]["open-webui"]["environment"]
    return webui(DEFAULT_MODEL_METADATA=set_there["DEFAULT_MODEL_METADATA"])


@pytest.fixture
def ask(browser):
    """`ask(address, model)` asks one question in a new browser, and gives its page."""
    contexts = []

    def asked(address, model):
        import httpx2 as httpx

        signed = httpx.post(f"{address}/api/v1/auths/signin", json={"email": "", "password": ""}).json()
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.goto(address)
        page.evaluate(
            "token => { localStorage.token = token; localStorage.locale = 'en-US'; }", signed["token"]
        )
        page.goto(f"{address}/?models={model}")
        box = page.locator("#chat-input")
        news = page.get_by_role(
            "button", name=re.compile("Okay")
        )  # what is new in this version, the first time
        news.or_(box).first.wait_for()
        page.wait_for_timeout(2000)
        if news.count():
            news.click()
        box.click()
        page.keyboard.type("What is 2 + 2?")
        page.keyboard.press("Enter")
        return page

    yield asked
    for context in contexts:
        context.close()


@pytest.mark.client("Open WebUI", "answers", "streams")
def test_an_ensemble_answers_with_its_insight_folded_away(as_composed, ask):
    page = ask(as_composed, "ensemble")
    expect(page.get_by_text("It is 4.")).to_be_visible(timeout=30_000)
    page.get_by_text(re.compile("Thought for")).click()
    expect(page.get_by_text("Goal: add. Planning: add.")).to_be_visible()


@pytest.mark.client("Open WebUI", "cancels")
def test_stop_stops_the_model(as_composed, ask, stopped):
    page = ask(as_composed, "slow")
    expect(page.get_by_text(re.compile("^1 2"))).to_be_visible(timeout=30_000)
    page.get_by_label("Stop").click()
    stopped()


@pytest.mark.client("Open WebUI", "errors")
def test_a_failure_is_told(as_composed, ask):
    page = ask(as_composed, "silent")
    expect(page.get_by_text(re.compile("silent"))).to_have_count(2, timeout=30_000)


@pytest.mark.client("Open WebUI", "tools")
def test_its_own_tools_are_called_by_a_model_that_can_and_refused_by_an_ensemble(webui, ask):
    address = webui()
    expect(ask(address, "caller").get_by_text("The tool says 4.")).to_be_visible(timeout=60_000)
    refused = "cannot honour tools: small lacks"
    expect(ask(address, "ensemble").get_by_text(re.compile(refused)).first).to_be_visible(timeout=30_000)
