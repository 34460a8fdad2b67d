"""The page's tabs in a real browser: comparing, the board, the history, and all of them for everybody."""

import json
import os
import re
import textwrap
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_steps import CONTRAST, ECHO, INSIGHT, LONG, SOUND, answer, ask, compare, ended, open_file, save, tab
from PIL import Image
from playwright.sync_api import expect
from starlette.testclient import TestClient

from ensemblehub.api.app import create_app
from ensemblehub.config import Config
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.bench import board as static_board

ROOT = Path(__file__).parents[2]
# What tries to be markup, script or a style wherever text of others is shown.
EVIL = "<img src=x onerror=alert(1)>\"'</script><style>*{display:none}</style>{{7*7}}"


def answered(question, right, text, **more):
    """A row as `ensemblehub bench` writes it, as far as a board reads it."""
    figures = {"written": 12, "cold_flops": 3e9, "usd": 0.002, "wall": 0.5, "finish": "stop", "sample": 0}
    unshown = {"asked": "", "prompted": "", "graded": "", "error": "", "leak": False, "read": 9, "flops": 3e9}
    of = {"subject": "even" if question == "q0" else "odd", "level": 1, "seconds": 0.5}
    row = {"id": question, "question": question, "correct": right, "reason": "", "text": text}
    return row | figures | unshown | of | more


def line(method, accuracy, tflops):
    interval = {"accuracy_low": accuracy - 0.1, "accuracy_high": min(1, accuracy + 0.1)}
    means = {"read": 80.5, "written": 12.0, "usd": 0.002, "seconds": 0.4, "wall": 0.5}
    return {"method": method, "n": 2, "accuracy": accuracy, "tflops": tflops} | interval | means


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A result folder in which every text tries to be markup."""
    folder = tmp_path_factory.mktemp("results")
    cells = {
        "base": [answered("q0", True, "It is 11."), answered("q1", False, EVIL, reason=EVIL)],
        "evil": [answered("q0", True, EVIL, insight=EVIL, choices=[{"about": EVIL, "chosen": [EVIL], "reason": EVIL}])],
    }  # fmt: skip
    (folder / "answers").mkdir()
    for name, rows in cells.items():
        about = {"task": "made", "split": EVIL, "prompt": EVIL}
        sampling = {"temperature": 0.0, "max_tokens": 9}
        head = {"settings": about | {"cell": EVIL if name == "evil" else name, "sampling": sampling}}
        text = "".join(json.dumps(entry) + "\n" for entry in (head, *rows))
        (folder / "answers" / f"{name}.jsonl").write_text(text)
    question = {"id": "q0", "text": EVIL, "answer": EVIL, "subject": "even", "level": 1}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    report = {
        "task": "made",
        "split": EVIL,
        "notes": [EVIL],
        "cells": list(cells),
        "lines": [line("base", 0.5, 0.001), line(EVIL, 0.9, 0.5)],
    }
    (folder / "summary.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(scope="module")
def echo(serve, results):
    return serve(ECHO, "--board", str(results), "--board", str(results))


def test_two_ensembles_answer_side_by_side(visit, echo):
    page = visit(echo)
    posted = []
    page.on("request", lambda request: posted.append(request) if request.method == "POST" else None)
    page.on("requestfinished", lambda request: posted.append("end") if request.method == "POST" else None)
    compare(page)
    ended(page)
    while len(posted) < 4:  # the browser tells of an end after the page has read it
        page.wait_for_event("requestfinished")
    assert posted[2:] == ["end", "end"]  # both were asked before either had answered
    assert [request.post_data_json["model"] for request in posted[:2]] == ["ensemble", "big"]
    sides = page.locator(".side")
    assert sides.locator("h2").all_text_contents() == ["A · ensemble", "B · big"]
    expect(sides.nth(0).locator(".boxed")).to_have_text("11")
    expect(sides.nth(1).locator(".answer .text")).to_have_text(INSIGHT)

    with page.expect_download() as download:
        page.get_by_role("button", name="Save", exact=True).click()
    assert re.fullmatch(r"comparison-[\dT-]+\.json", download.value.suggested_filename)
    saved = json.loads(download.value.path().read_text())
    costs = [entry["chunks"][-1]["chunk"]["usage"]["cost_details"] for entry in saved["runs"]]
    rows = page.get_by_role("table", name="Both runs in figures").locator("tbody tr").all()
    found = {row.locator("th").text_content(): row.locator("td").all_text_contents() for row in rows}
    read = [sum(entry["prompt_tokens"] for entry in cost["spent"]) for cost in costs]
    assert [text.split()[0] for text in found["Tokens read"]] == [f"{value:,}" for value in read]
    least = min(range(2), key=lambda side: costs[side]["cold_flops"])
    assert [text.endswith("✓") for text in found["Compute"]] == [least == 0, least == 1]
    share = costs[least]["cold_flops"] / costs[1 - least]["cold_flops"]
    names = ["A (ensemble)", "B (big)"]
    said = f"{names[least]} took {share * 100:.0f}\u00a0% of the compute and "
    expect(page.get_by_role("status")).to_contain_text(said)
    assert all(cost["explanation"][1:] in sides.nth(at).text_content() for at, cost in enumerate(costs))

    other = visit(echo)
    open_file(other, json.dumps(saved))
    ended(other)
    expect(other.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    assert other.locator("#run").text_content() == page.locator("#run").text_content()
    other.get_by_role("button", name="Replay").click()
    expect(other.get_by_role("button", name="Skip to the end")).to_be_visible()
    ended(other)
    assert other.locator("#sides").text_content() == page.locator("#sides").text_content()


def test_a_comparison_stops_and_fails_by_sides(visit, echo):
    page = visit(echo)
    compare(page, "ensemble", "small", LONG)
    expect(page.locator(".side").nth(1).locator(".text")).to_contain_text("so on")
    page.get_by_role("button", name="Stop").click()
    ended(page, "stopped")
    assert page.locator(".state").all_text_contents() == ["Stopped. What had arrived is kept."] * 2
    compare(page, "small", "weak")
    ended(page, "failed")
    states = page.locator(".state").all_text_contents()
    assert states[0].startswith("Done.")
    assert states[1].startswith("The run broke off: weak failed after 3 tokens")
    tab(page, "Ask")  # each tab keeps its own
    expect(page.locator("#run")).to_be_hidden()
    tab(page, "Compare")
    assert page.locator(".state").all_text_contents() == states


def test_a_conversation_goes_on(visit, echo):
    page = visit(echo)
    ask(page, "First?")
    ended(page)
    first = answer(page)
    page.get_by_role("button", name="Follow up").click()
    expect(page.get_by_label("Your question")).to_be_focused()
    expect(page.locator("#following")).to_contain_text("Follows “First?”")
    with page.expect_request("**/v1/chat/completions") as request:
        ask(page, "And then?")
    turns = [("user", "First?"), ("assistant", first), ("user", "And then?")]
    assert [(entry["role"], entry["content"]) for entry in request.value.post_data_json["messages"]] == turns
    ended(page)
    page.get_by_text("Earlier in this conversation (1)").click()
    expect(page.locator("#earlier")).to_contain_text("QuestionFirst?Answer" + first[:20])
    saved = save(page)
    other = visit(echo)
    open_file(other, json.dumps(saved))
    expect(other.locator("#earlier summary")).to_have_text("Earlier in this conversation (1)")
    open_file(other, json.dumps(saved | {"request": {"model": "elsewhere"}}))
    other.get_by_role("button", name="Follow up").click()
    expect(other.locator("#following")).to_contain_text("Follows “And then?”")
    expect(other.get_by_label("Ensemble")).to_have_value("ensemble")
    page.get_by_role("button", name="Begin anew").click()
    with page.expect_request("**/v1/chat/completions") as request:
        ask(page, "Anew?")
    assert len(request.value.post_data_json["messages"]) == 1
    ended(page)


def test_the_history_is_kept_here_bounded_and_cleared(visit, echo):
    page = visit(echo)
    ask(page, "Older?")
    ended(page)
    first = page.locator("#run").text_content()
    compare(page, question="Newer?")
    ended(page)
    page.reload()
    expect(page.get_by_label("Ensemble")).to_be_enabled()
    entries = tab(page, "History").locator("#entries li")
    expect(entries).to_have_count(2)
    expect(entries.nth(0)).to_contain_text("Newer?")
    expect(entries.nth(0)).to_contain_text("ensemble and big")
    entries.get_by_role("button", name="Older?", exact=True).click()
    expect(page.get_by_role("tab", name="Ask")).to_have_attribute("aria-selected", "true")
    assert page.locator("#run").text_content() == first
    tab(page, "History")
    page.get_by_role("button", name="Remove Newer?").click()
    expect(entries).to_have_count(1)

    page.get_by_label("Keep what is asked").uncheck()
    tab(page, "Ask")
    ask(page, "Secret?")
    ended(page)
    tab(page, "History")
    expect(entries).to_have_count(1)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear all").click()
    expect(entries).to_have_text("Nothing is kept yet.")
    assert page.evaluate("Object.keys(localStorage).sort()") == ["ensemblehub-keep", "ensemblehub-theme"]


FILL = """async (sizes) => {
    const { read, remember } = await import("/page/history.js");
    for (const [index, size] of sizes.entries())
        remember({ started: `${index}`, question: "x".repeat(size) });
    return [read().map(({ started }) => started), localStorage.getItem("ensemblehub-history").length];
}"""


def test_the_history_drops_the_oldest_when_it_is_full_or_damaged(visit, echo):
    page = visit(echo)
    kept, length = page.evaluate(FILL, [900_000, 900_000, 900_000, 3_000_000, 5])
    assert kept == ["4", "2", "1"]  # what is too long by itself does not push out the others
    assert length < 2_000_000
    page.evaluate("localStorage.clear()")
    kept, _ = page.evaluate(FILL, [5] * 70)
    assert kept == [str(number) for number in range(69, 19, -1)]
    for damage in ("{", '"text"', "null", "[1, null, {}]"):
        page.evaluate("(text) => localStorage.setItem('ensemblehub-history', text)", damage)
        tab(page, "Ask")
        expect(tab(page, "History")).to_contain_text("Nothing is kept yet.")
    page.evaluate("""localStorage.setItem("ensemblehub-history", '[{"started": "x", "runs": 3}]')""")
    tab(page, "Ask")
    tab(page, "History")
    page.get_by_role("button", name="undefined", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("This answer cannot be opened: it is not a saved run.")


def test_the_board_shows_results_that_the_operator_names(visit, echo):
    page = visit(echo)
    board = tab(page, "Board")
    methods = board.get_by_role("table", name="Accuracy and cost").locator("tbody th")
    expect(methods).to_have_text(["base", EVIL])
    board.get_by_role("button", name="accuracy, %").click()
    expect(methods).to_have_text([EVIL, "base"])
    expect(board.locator("th[aria-sort=descending]")).to_have_text("accuracy, %")
    expect(board.get_by_role("img", name="Accuracy against GFLOPs")).to_be_visible()
    board.get_by_role("combobox", name="Accuracy against").select_option("usd")
    expect(board.get_by_role("img", name="Accuracy against US dollars")).to_be_visible()
    questions = board.get_by_role("table", name="Questions", exact=True).locator("tbody tr")
    assert questions.nth(1).locator("td").all_text_contents() == ["✗", "–"]
    board.get_by_label("Show").select_option("right")
    expect(questions).to_have_count(1)
    board.get_by_label("Show").select_option("all")
    board.get_by_label("Text").fill("q1")
    expect(board.get_by_role("status")).to_have_text("1 of 2")
    board.get_by_label("Text").fill("")
    board.get_by_role("button", name="q0").click()
    dialog = page.get_by_role("dialog", name="q0")
    expect(dialog).to_contain_text(EVIL)
    expect(dialog).to_contain_text("12 tokens · 3.00 GFLOPs · $0.00200 · 0.5 s")
    dialog.get_by_role("button", name="Next").click()
    expect(page.get_by_role("dialog", name="q1")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(board.get_by_role("button", name="q0")).to_be_focused()
    board.get_by_role("button", name="made").nth(1).click()
    expect(methods).to_have_text(["base", EVIL])

    page.route("**/answers?*", lambda route: route.fulfill(body="torn"))
    board.get_by_role("button", name="q0").click()
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.unroute("**/answers?*")
    board.get_by_role("button", name="q0").click()
    expect(page.get_by_role("dialog", name="q0")).to_be_visible()
    page.keyboard.press("Escape")

    page.route("**/v1/ensemble/board", lambda route: route.fulfill(json={"results": []}))
    page.reload()
    expect(board).to_contain_text("Start the server with --board DIR")


def test_the_board_refuses_what_is_none_and_needs_the_key(results, tmp_path):
    (tmp_path / "echo.yaml").write_text(ECHO)
    config = Config.read(tmp_path / "echo.yaml")

    def app(folder):
        server = config.server.model_copy(update={"board": [folder]})
        return create_app(config.model_copy(update={"server": server}), ["s3cret-key"])

    with pytest.raises(ArtifactError, match=r"summary\.json is missing: it is no folder that"):
        app(tmp_path)
    (tmp_path / "summary.json").write_text('{"task": 1}')
    with pytest.raises(ArtifactError, match=r"summary\.json is damaged \('split'\)"):
        app(tmp_path)
    client = TestClient(app(results))
    assert client.get("/v1/ensemble/board").status_code == 401
    client.headers["Authorization"] = "Bearer s3cret-key"
    assert client.get("/v1/ensemble/board").json() == {"results": [{"title": f"made, {EVIL}: 2 questions"}]}
    assert client.get("/v1/ensemble/board/1").status_code == 404
    base, other = client.get("/v1/ensemble/board/0").json()["cells"]
    assert base["answers"] == [[{"sample": 0, "correct": True}], [{"sample": 0, "correct": False}]]
    assert other["answers"][1] is None
    cells = client.get("/v1/ensemble/board/0/answers?question=q1").json()["cells"]
    assert [cell["answers"] and cell["answers"][0]["text"] for cell in cells] == [EVIL, None]
    assert client.get("/v1/ensemble/board/0/answers?question=q").status_code == 404
    assert client.get("/v1/ensemble/board/1/answers?question=q1").status_code == 404
    assert client.get("/v1/ensemble/board/0/answers").status_code in (400, 422)
    (results / "answers" / "base.jsonl").rename(results / "answers" / "gone.jsonl")
    reply = client.get("/v1/ensemble/board/0")
    (results / "answers" / "gone.jsonl").rename(results / "answers" / "base.jsonl")
    assert reply.status_code == 500
    assert "is missing: it is no folder that" in reply.json()["error"]["message"]
    head, *rows = (results / "answers" / "evil.jsonl").read_text().splitlines()
    later = [*rows, json.dumps(answered("q1", True, "odd"))]
    (results / "answers" / "evil.jsonl").write_text("\n".join((head, *later, "")))
    kept = [client.get("/v1/ensemble/board/0").json()["cells"][1]["answers"] for _ in range(2)]
    (results / "answers" / "evil.jsonl").write_text("\n".join((head, *rows, "")))
    assert kept == [[[{"sample": 0, "correct": True}]] * 2] * 2


def hostile_run():
    """A file in which every text tries to be markup."""
    start = {
        "ensemble": {
            "start": {"method": "tandem", "members": [EVIL], "roles": {"mentor": EVIL, "intern": "i"}}
        }
    }
    scores = {"about": EVIL, "chosen": [EVIL], "scores": [[EVIL, 1]], "reason": EVIL}
    verdict = {"level": EVIL, "probability": 0.9, "threshold": 0.5, "sufficient": True, "mentor_tokens": 3}
    texts = [
        {"ensemble": {"engine": EVIL, "purpose": "insight"}, "choices": [{"delta": {"reasoning_content": EVIL}}]},
        {"ensemble": {"engine": EVIL, "purpose": "answer", "round": 1, "verdicts": [verdict], "choices": [scores]},
         "choices": [{"delta": {"content": f"\\boxed{{{EVIL}}}"}}]},
    ]  # fmt: skip
    spent = {
        "engine": EVIL,
        "purpose": EVIL,
        "calls": 1,
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "flops": 1,
    }
    cost = {"flops": 1, "cold_flops": 2, "usd": 0, "seconds": 1, "estimated": True, "spent": [spent]}
    end = {"choices": [], "usage": {"cost_details": cost | {"explanation": EVIL}}}
    chunks = [{"at": at, "chunk": chunk} for at, chunk in enumerate((start, *texts, end))]
    turns = [{"role": role, "content": EVIL} for role in ("user", "assistant", "user")]
    served = {"id": EVIL, "levels": [], "params": {}}
    return SOUND | {"question": EVIL, "request": {"model": EVIL, "messages": turns}, "served": served} | {
        "chunks": chunks, "members": [{"id": EVIL, "token_flops": 1}], "started": EVIL
    }  # fmt: skip


def test_nothing_that_is_shown_becomes_markup(visit, echo):
    page = visit(echo)
    counts = "['img', 'style', 'script'].map((tag) => document.querySelectorAll(tag).length)"
    before = page.evaluate(counts)
    run = hostile_run()
    config = page.evaluate("fetch('/v1/ensemble/config').then((reply) => reply.json())")
    config["ensembles"][0] |= {"id": EVIL, "method": EVIL, "members": [EVIL]}
    config["members"][0]["id"] = config["version"] = EVIL
    page.route("**/v1/ensemble/config", lambda route: route.fulfill(json=config))
    page.reload()
    expect(page.get_by_label("Ensemble")).to_be_enabled()
    page.evaluate("(run) => localStorage.setItem('ensemblehub-history', JSON.stringify([run]))", run)
    for content, name in (
        (run, "Ask"),
        ({"format": "ensemblehub-comparison", "version": 1, "runs": [run] * 2}, "Compare"),
    ):
        open_file(page, json.dumps(content))
        ended(page)
        expect(page.get_by_role("tabpanel", name=name).locator("#asked")).to_have_text(EVIL)
        assert page.locator("#run").text_content().count(EVIL) > 12
        assert page.evaluate(counts) == before
    assert EVIL in tab(page, "History").text_content()
    open_file(page, "{}", EVIL)
    expect(page.get_by_role("alert")).to_contain_text(EVIL)
    board = tab(page, "Board")
    board.get_by_role("button", name="q0").click()
    expect(page.get_by_role("dialog")).to_contain_text(EVIL)
    assert board.text_content().count(EVIL) > 10
    assert page.evaluate(counts) == before


def test_tabs_go_by_keyboard_and_by_address(visit, echo):
    page = visit(echo)
    tabs = page.get_by_role("tab")
    assert [entry.get_attribute("tabindex") for entry in tabs.all()] == ["0", "-1", "-1", "-1"]
    tabs.first.focus()
    for key, name in (
        ("ArrowRight", "Compare"),
        ("End", "History"),
        ("ArrowRight", "Ask"),
        ("ArrowLeft", "History"),
    ):
        page.keyboard.press(key)
        expect(page.get_by_role("tab", name=name, selected=True)).to_be_focused()
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
        expect(page.get_by_role("tabpanel")).to_have_count(1)
    assert page.url.endswith("/#history")
    page.reload()
    expect(page.get_by_role("tab", selected=True)).to_have_text("History")
    tab(page, "Ask")
    page.get_by_label("Your question").fill("Kept?")
    tab(page, "Compare")
    expect(page.get_by_label("Your question")).to_have_value("Kept?")


def tour(page):
    """Every view of the page in turn, by name."""
    yield "start"
    ask(page)
    ended(page)
    yield "ask"
    page.get_by_role("button", name="Follow up").click()
    ask(page)
    ended(page)
    page.locator("#earlier summary").click()
    yield "conversation"
    compare(page, "ensemble", "turns")
    ended(page)
    page.locator("details.lines summary").first.click()
    yield "compare"
    board = tab(page, "Board")
    expect(board.get_by_role("table").first).to_be_visible()
    yield "board"
    board.get_by_role("button", name="q0").click()
    yield "question"
    page.keyboard.press("Escape")
    tab(page, "History")
    yield "history"


def violations(page):
    """What axe finds, by rule, with the elements; all of its rules, best practices too."""
    found = Axe().run(page).response
    assert len(found["passes"]) > 10
    return {entry["id"]: [node["html"][:120] for node in entry["nodes"]] for entry in found["violations"]}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_axe_finds_nothing_on_any_tab(visit, echo, width, scheme):
    page = visit(echo, color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    for view in tour(page):
        assert (view, violations(page)) == (view, {})
        assert (view, page.evaluate(CONTRAST)) == (view, [])
        assert (view, page.evaluate("document.documentElement.scrollWidth")) == (view, width)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_file_of_a_board(chromium, results, tmp_path, scheme):
    static_board.write([results, results], tmp_path / "board.html")
    context = chromium.new_context(
        color_scheme=scheme, viewport={"width": 360, "height": 800}, bypass_csp=True
    )
    page = context.new_page()
    page.goto((tmp_path / "board.html").as_uri())
    assert violations(page) == {}
    page.get_by_role("button", name="q0").click()
    assert violations(page) == {}
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    context.close()


STRUCTURE = {  # what the pictures in the documentation show, as a screen reader tells it
    "ask": """
        - heading "Ask, and watch the run" [level=1]
        - region "The run":
          - button "Follow up"
          - button "Save"
          - button "Replay"
          - status: /Done. Stopped at \\d+ mentor tokens, p\\(sufficient\\)/
          - blockquote "The question"
          - heading "Mentor" [level=3]
          - heading "Intern" [level=3]
          - heading "The judge" [level=3]
          - table "Verdicts of the judge"
          - heading "The cost" [level=3]
    """,
    "compare": """
        - heading "Ask two, and compare" [level=1]
        - form "Ask":
          - combobox "Ensemble"
          - paragraph:
            - combobox "Compared with"
          - button "Ask both"
        - region "Side by side":
          - status: /A \\(ensemble\\) took \\d+\\s% of the compute/
          - heading "What each of them took" [level=3]
          - table "Both runs in figures"
          - heading "A · ensemble" [level=2]
          - heading "B · mentor" [level=2]
    """,
    "board": """
        - heading "Accuracy and cost" [level=1]
        - 'heading "builtin_math, test: 1000 questions" [level=2]'
        - img /Accuracy against GFLOPs/
        - group "Results":
          - table "Accuracy and cost":
            - rowgroup:
              - row /intern 1,?000/
              - row /mentor 1,?000/
        - heading "Questions" [level=2]
        - group "Questions":
          - table "Questions"
    """,
}


@pytest.fixture(scope="module")
def pair(serve):
    """The built-in pair, with Tandem and its rivals on its board."""
    return serve(None, "--board", str(ROOT / "results" / "rivals" / "builtin_math"))


@pytest.mark.parametrize(
    ("view", "scheme", "width", "height"),
    [
        ("ask", "light", 1280, 1500),
        ("ask", "dark", 360, 1500),
        ("compare", "dark", 1280, 1300),
        ("board", "light", 1280, 1150),
    ],
)
def test_the_page_is_as_in_the_pictures_of_its_documentation(
    visit, pair, tmp_path, view, scheme, width, height
):
    """`make pictures` takes them anew: these tests, with the folder in ENSEMBLEHUB_PICTURES."""
    page = visit(pair, color_scheme=scheme, viewport={"width": width, "height": height})
    tab(page, view.capitalize())
    if view == "board":
        expect(page.get_by_role("table").first).to_be_visible(timeout=30_000)  # 73,000 answers are read first
    else:
        page.get_by_role("button", name="Six steps").click()
        page.locator("#start").click()
        ended(page)
    expect(page.locator("main")).to_match_aria_snapshot(textwrap.dedent(STRUCTURE[view]))
    page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
    name = f"page-{view}-{width}.png"
    taken = Path(os.environ.get("ENSEMBLEHUB_PICTURES") or tmp_path) / name
    page.screenshot(path=taken)
    Image.open(taken).quantize(128).save(taken, optimize=True)  # few colours do, at a third of the size
    documented = ROOT / "docs" / "images" / name
    assert Image.open(documented).size == (width, height)
    assert documented.stat().st_size < 150_000
    assert f"(images/{name})" in (ROOT / "docs" / "server.md").read_text()
