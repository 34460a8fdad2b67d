"""The page in a real browser, in front of a real server."""

import json

import pytest
from page_steps import (
    CONTRAST,
    ECHO,
    HOSTILE,
    INSIGHT,
    LONG,
    SOUND,
    answer,
    ask,
    ended,
    open_file,
    save,
)
from playwright.sync_api import expect

from ensemblehub import builtin
from ensemblehub.lab.paper.gpra import sections

BUILTIN = (
    builtin.CONFIG.read_text()
    + "\nensembles:\n  mixed: {output_aggregation_method: gac, generation: {max_tokens: 60}}\n"
)


@pytest.fixture(scope="module")
def echo(serve):
    return serve(ECHO)


def three_digits(value):
    return f"{value:#.3g}".rstrip(".")


def insight(page):
    """Its parts, without the marks of the judge, which are no text of the mentor."""
    page.locator(".insight .mark").evaluate_all("marks => marks.forEach((mark) => (mark.hidden = true))")
    parts = page.locator(".insight .part")
    return {part.locator("dt").text_content(): part.locator("dd").inner_text() for part in parts.all()}


def checkpoints(page):
    rows = page.locator(".judge tbody tr:has(.bar)").all()
    return [row.locator("th, td").all_text_contents() for row in rows]


WATCH = """() => {
    window.seen = [];
    const text = (query) => document.querySelector(query)?.textContent ?? "";
    const look = () => window.seen.push({
        parts: [...document.querySelectorAll(".insight dt")].map((one) => one.textContent).join(" "),
        insight: text(".insight dl").length, answer: text(".answer .text").length, status: text("#status"),
        verdicts: document.querySelectorAll(".judge .bar").length, handover: text(".handover"),
        total: text(".cost .total"), exact: document.querySelector(".lines") !== null,
        flops: Number(document.querySelector(".total data")?.value ?? 0),
    });
    new MutationObserver(look).observe(document.getElementById("run"), {
        childList: true, characterData: true, attributes: true, subtree: true,
    });
}"""
STOPPED = "Mentor stopped after 16 tokens: level medium suffices (1.00 ≥ 1.00)"


def test_a_run_can_be_watched(visit, echo):
    page = visit(echo)
    page.evaluate(WATCH)
    ask(page)
    ended(page)
    seen = page.evaluate("window.seen")

    def stages(key):
        """Its values in the order in which they were seen."""
        return list(dict.fromkeys(state[key] for state in seen))

    arriving = ["", "Goal", "Goal Planning", "Goal Planning Retrieval"]
    assert stages("parts") == [
        parts for parts in arriving if parts in stages("parts")
    ]  # a busy browser may skip one
    assert len(stages("parts")) > 2
    assert len(stages("insight")) > 2  # a busy machine draws several tokens at once
    assert len(stages("answer")) > 2
    assert stages("answer") == sorted(stages("answer"))
    assert stages("verdicts") == sorted(stages("verdicts"))
    assert len(stages("verdicts")) > 2
    assert stages("handover") == ["", f"✓{STOPPED}"]
    assert [state["answer"] for state in seen if not state["handover"]][
        -1
    ] == 0  # the mentor is stopped before the intern
    assert stages("flops") == sorted(stages("flops"))
    assert all(
        ("≈" in state["total"]) != state["exact"] for state in seen if state["total"]
    )  # the cost ends a stream
    told = stages("status")
    for sentence in ("The mentor is writing insights.", "The intern is answering.", "Done."):
        at = next(index for index, line in enumerate(told) if line.startswith(sentence))
        told = told[at:]

    assert answer(page) == "Facts: mugs = bowls + 3; bowls = 8\nAnswer: \\boxed{11} and no more"
    expect(page.locator(".answer .boxed")).to_have_text("11")
    assert insight(page) == {
        "Goal": "mugs",
        "Planning": "trace mugs, then add",
        "Retrieval": "mugs = bowls + 3; bowls = 8",
    }
    assert checkpoints(page) == [
        ["none", "0", "0.33 < 1.00", "not yet"],
        ["low", "7", "0.67 < 1.00", "not yet"],
        ["medium", "16", "1.00 ≥ 1.00", "sufficient"],
    ]
    assert page.locator(".judge .bar").count() == 3
    assert page.locator(".judge line").count() == 4  # and that of the level that was not needed


HANDOVER = """async (fallback) => {
    const {handover} = await import("/page/run.js");
    const verdict = (level, probability) => ({level, probability, threshold: 0.9, mentor_tokens: 9});
    const answer = [{engine: "small", purpose: "answer", text: "8"}];
    return handover(
        {verdicts: [verdict("low", 0.25), verdict("medium", 0.5), verdict("high", 0.375)], segments: answer,
         roles: {mentor: "large", intern: "small"}},
        {request: {}, served: {levels: [], params: {fallback}}},
    );
}"""


@pytest.mark.parametrize(("fallback", "level"), [("best", "medium (0.50)"), ("last", "high (0.38)")])
def test_where_no_level_suffices_the_page_names_the_one_that_is_used(visit, echo, fallback, level):
    sentence = "No level suffices: the intern answers with the insight at level "
    assert visit(echo).evaluate(HANDOVER, fallback) == sentence + level


def test_the_final_cost_is_the_servers(visit, serve):
    page = visit(serve(BUILTIN))
    ask(page)
    ended(page)
    usage = save(page)["chunks"][-1]["chunk"]["usage"]
    cost = usage["cost_details"]
    total = page.locator(".total data")
    assert float(total.get_attribute("value")) == cost["flops"]
    assert total.text_content() == three_digits(cost["flops"] / 1e6)
    assert "≈" not in page.locator(".cost .total").text_content()
    share = cost["cold_flops"] / cost["estimated_mentor_alone_flops"][0]
    assert cost["estimated_saving"] == 1 - share
    assert page.locator(".share strong").text_content() == f"{share * 100:.0f}\u00a0%"
    assert "estimated" in page.locator(".cost .share").text_content()
    assert "95 %" in page.locator(".cost").text_content()
    line = cost["explanation"]
    assert "p(sufficient)" in line
    assert f"estimated saving {100 * cost['estimated_saving']:.0f} % (" in line
    expect(page.get_by_role("status")).to_contain_text(line[1:])
    rows = [row.locator("th, td").all_text_contents() for row in page.locator(".lines tbody tr").all()]
    assert [row[:2] for row in rows] == [[line["engine"], line["purpose"]] for line in cost["spent"]]
    assert [row[-2] for row in rows] == [three_digits(line["flops"] / 1e6) for line in cost["spent"]]
    tokens = usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]
    assert page.locator(".insight .note").text_content() == f"{tokens[1]} tokens"
    assert page.locator(".answer .note").text_content() == f"{tokens[0] - tokens[1]} tokens"

    ask(page)  # caches make the cost smaller, but not what is compared
    ended(page)
    again = save(page)["chunks"][-1]["chunk"]["usage"]
    again = again.get("cost_details") or again["cost"]
    assert again["flops"] < 0.7 * cost["flops"]
    assert again["cold_flops"] == pytest.approx(cost["cold_flops"], rel=0.02)
    assert again["estimated_saving"] == pytest.approx(cost["estimated_saving"], abs=0.02)
    assert (
        page.locator(".share strong").text_content() == f"{(1 - again['estimated_saving']) * 100:.0f}\u00a0%"
    )
    expect(page.locator(".cost")).to_contain_text("both without caches")

    page.get_by_label("Ensemble").select_option("mixed")
    expect(page.get_by_text("token by token")).to_be_visible()
    expect(page.get_by_role("group", name="Effort level")).to_be_hidden()
    ask(page)
    ended(page)
    expect(page.locator(".judge")).to_be_hidden()
    assert page.locator(".answer .legend li").count() >= 1
    assert len(answer(page)) > 20


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_a_stopped_run_keeps_what_had_arrived(visit, echo, way):
    page = visit(echo)
    ask(page, LONG)
    expect(page.locator(".answer .text")).to_contain_text("so on")
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    ended(page, "stopped")
    expect(page.get_by_role("status")).to_have_text("Stopped. What had arrived is kept.")
    kept = answer(page)
    page.wait_for_timeout(300)
    assert answer(page) == kept
    assert len(kept) < 800
    expect(page.locator(".cost .total")).to_contain_text("≈")
    saved = save(page)
    assert saved["stopped"] is True
    assert not any(line["chunk"].get("usage") for line in saved["chunks"])
    written = sum(
        line["chunk"]["ensemble"].get("tokens", 0) * size
        for line in saved["chunks"]
        for size in [sizes(line)]
    )
    known = [
        line["chunk"]["ensemble"]["flops"]
        for line in saved["chunks"]
        if "verdicts" in line["chunk"]["ensemble"]
    ]
    assert float(page.locator(".total data").get_attribute("value")) == known[-1] + written


def sizes(line):
    return {"big": 4e6, "small": 8e5}.get(line["chunk"]["ensemble"].get("engine"), 0)


def test_a_saved_run_opens_again(visit, echo):
    page = visit(echo)
    ask(page, LONG)
    ended(page)
    saved = save(page)
    assert saved["format"] == "ensemblehub-run"
    assert saved["question"] == LONG
    assert saved["request"]["messages"] == [{"role": "user", "content": LONG}]
    assert [line["at"] for line in saved["chunks"]] == sorted(line["at"] for line in saved["chunks"])
    assert saved["stopped"] is False
    assert saved["error"] is None

    other = visit(echo)
    posted = []
    other.on("request", lambda request: posted.append(request.method) if request.method != "GET" else None)
    open_file(other, json.dumps(saved))
    ended(other)
    expect(other.get_by_role("heading", name="The run", exact=True)).to_be_focused()
    shown = page.locator("#run").text_content()
    assert LONG in shown
    assert other.locator("#run").text_content() == shown

    other.get_by_role("button", name="Replay").click()
    expect(other.get_by_role("button", name="Skip to the end")).to_be_visible()
    expect(other.locator(".answer .text")).to_contain_text("so on")
    other.get_by_role("button", name="Skip to the end").click()
    ended(other)
    assert other.locator("#run").text_content() == shown
    assert posted == []


def test_a_dropped_run_opens(visit, echo):
    page = visit(echo)
    drop = """(content) => {
        const files = new DataTransfer();
        files.items.add(new File([content], "dropped.json"));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, json.dumps({**SOUND, "question": "Dropped?"}))
    expect(page.locator("#asked")).to_have_text("Dropped?")


def test_a_file_of_an_earlier_version_opens(visit, echo):
    page = visit(echo)
    open_file(page, json.dumps({**SOUND, "format": "ensemblehub-ride", "question": "Earlier?"}))
    expect(page.locator("#asked")).to_have_text("Earlier?")


@pytest.mark.parametrize(
    ("flops", "shown"),
    [
        (1_484_076.8e6, "1.48 TFLOPs"),
        (999.6e9, "1.00 TFLOPs"),
        (717.6e6, "718 MFLOPs"),
        (5, "5.00 FLOPs"),
        (0, "0 FLOPs"),
    ],
)
def test_flops_have_three_digits_and_a_fitting_unit(visit, echo, flops, shown):
    start = {"ensemble": {"start": {"method": "single", "members": ["big"]}}}
    cost = {"flops": flops, "usd": 0, "seconds": 1, "estimated": False, "spent": []}
    end = {"choices": [], "usage": {"cost_details": cost}}
    page = visit(echo)
    open_file(page, json.dumps({**SOUND, "chunks": [{"at": 0, "chunk": start}, {"at": 1, "chunk": end}]}))
    expect(page.locator(".cost .total")).to_have_text(shown)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("no run at all", "it is not JSON"),
        ("[1, 2]", "it is not a saved run"),
        ("null", "it is not a saved run"),
        (json.dumps({**SOUND, "version": 2}), "version 2 is not known"),
        (json.dumps({**SOUND, "chunks": [{"at": "soon", "chunk": {}}]}), "parts of the run are missing"),
        (json.dumps({**SOUND, "question": 7}), "parts of the run are missing"),
    ],
    ids=["text", "list", "null", "version", "times", "question"],
)
def test_a_file_that_is_no_run_changes_nothing(visit, echo, content, says):
    page = visit(echo)
    open_file(page, json.dumps({**SOUND, "question": "The one before"}))
    expect(page.locator("#asked")).to_have_text("The one before")
    before = page.locator("#run").text_content()
    open_file(page, content, "holiday.json")
    expect(page.get_by_role("alert")).to_contain_text(f"holiday.json cannot be opened: {says}")
    assert page.locator("#run").text_content() == before


@pytest.mark.parametrize(
    "text",
    [
        "Goal: one\nPlanning: two\n\nRetrieval: N/A\nAction: x = 1",
        "**1. Goal:** one\n**Planning** two, in\nseveral lines\n> - Action： three",
        "- goal\n  the planning of it\nACTION",
        "Goals are no heading\nRetrieval:",
    ],
)
def test_headings_are_found_as_the_library_finds_them(visit, echo, text):
    start = {"ensemble": {"start": {"method": "tandem", "roles": {"mentor": "big"}}}}
    whole = {
        "ensemble": {"engine": "big", "purpose": "insight"},
        "choices": [{"delta": {"reasoning_content": text}}],
    }
    page = visit(echo)
    open_file(page, json.dumps({**SOUND, "chunks": [{"at": 0, "chunk": start}, {"at": 1, "chunk": whole}]}))
    expect(page.locator(".insight")).to_be_visible()
    found = insight(page)
    before = found.pop("Insight", "")
    assert found == sections(text)
    assert text.startswith(before)


def test_a_damaged_run_changes_nothing_or_opens_as_text(visit, echo):
    wild = [
        {"ensemble": {"start": {"method": "tandem", "members": 3, "roles": {"mentor": 1}}}},
        {
            "ensemble": {"engine": "big", "purpose": "insight", "tokens": "x"},
            "choices": [{"delta": {"content": 5}}],
        },
        {"ensemble": {"verdict": {"level": None, "probability": "high"}}},
        {"ensemble": {"choice": {"chosen": "a", "scores": [None, 1]}}},
        {"ensemble": {"verdicts": "none", "choices": {}, "flops": "many"}},
        {"ensemble": {"verdicts": [None, 3, {"level": 7}], "choices": [None, {"scores": 5}]}},
        {"choices": [], "usage": {"cost": {"spent": [{}], "estimated_mentor_alone_flops": ["a", 1, 2]}}},
    ]
    page = visit(echo)
    for chunk in wild:
        open_file(page, json.dumps({**SOUND, "question": "The one before"}))
        expect(page.locator("#asked")).to_have_text("The one before")
        open_file(page, json.dumps({**SOUND, "question": "The other", "chunks": [{"at": 0, "chunk": chunk}]}))
        said = "run.json cannot be opened: parts of the run are missing or damaged."
        expect(
            page.get_by_role("alert").filter(has_text=said).or_(page.get_by_text("The other"))
        ).to_be_visible()


def test_what_models_write_is_never_markup(visit, echo):
    page = visit(echo)
    ask(page, "a hostile <b>question</b>")
    ended(page)
    assert answer(page) == HOSTILE
    assert page.locator("#run img, #run b").count() == 0
    expect(page.locator("#asked")).to_have_text("a hostile <b>question</b>")


def test_a_key_is_asked_for_where_one_is_needed_and_never_saved(visit, serve):
    server = serve(ECHO, "--api_key", "s3cret-key")
    page = visit(server, ready=False)
    dialog = page.get_by_role("dialog", name="An API key is needed")
    expect(dialog).to_be_visible()
    page.get_by_label("API key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("The server does not know this key.")
    page.get_by_label("API key", exact=True).fill("s3cret-key")
    page.get_by_role("button", name="Use this key").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_label("Ensemble")).to_be_enabled()
    ask(page)
    ended(page)
    assert "s3cret-key" not in json.dumps(save(page))
    assert "s3cret-key" not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    page.reload()
    expect(page.get_by_label("Ensemble")).to_be_enabled()
    expect(dialog).to_be_hidden()

    other = visit(server, ready=False)  # another tab knows nothing of it
    other.get_by_role("button", name="Cancel").click()
    expect(other.get_by_role("alert")).to_have_text("The server wants an API key.")
    assert all("401" in line for line in visit.said)  # a browser's own word on a refused request
    visit.said.clear()


def test_other_ensembles_are_coloured_by_author(visit, echo):
    page = visit(echo)
    page.get_by_label("Ensemble").select_option("turns")
    expect(page.locator("#ask .lead")).to_contain_text("coloured by who wrote it")
    ask(page)
    ended(page)
    assert page.locator(".answer .turn").all_text_contents() == ["big", "small", "big", "small"]
    turns = page.locator(".answer .text .by")
    colours = turns.evaluate_all("all => all.map((one) => getComputedStyle(one).color)")
    lines = turns.evaluate_all("all => all.map((one) => getComputedStyle(one).textDecorationStyle)")
    assert colours[0] == colours[2] != colours[1] == colours[3]
    assert lines[0] == lines[2] != lines[1] == lines[3]  # not by colour alone
    assert page.locator(".answer .legend li").all_text_contents() == ["big 10 tokens", "small 10 tokens"]
    expect(page.get_by_role("status")).to_have_text(
        "Ended at the token limit. Written by big and small, by loop."
    )

    page.get_by_label("Ensemble").select_option("ballot")
    ask(page)
    ended(page)
    expect(page.locator(".choices")).to_contain_text("Which answer small")
    expect(page.locator(".choices")).to_contain_text("1 of 2 says 11")

    page.get_by_label("Ensemble").select_option("big")
    ask(page)
    ended(page)
    assert answer(page) == INSIGHT


def test_a_run_that_breaks_off_says_so_and_keeps_its_text(visit, echo):
    page = visit(echo)
    page.get_by_label("Ensemble").select_option("weak")
    ask(page)
    ended(page, "failed")
    expect(page.get_by_role("status")).to_contain_text("The run broke off: weak failed after 3 tokens")
    expect(page.get_by_role("status")).to_contain_text("Ask again, or choose another ensemble.")
    assert answer(page) == "this one breaks"
    assert "weak failed" in save(page)["error"]


def test_a_long_question_does_not_fill_the_page(visit, echo):
    page = visit(echo, viewport={"width": 320, "height": 700})
    question = (
        "\n".join(f"{number}. How many mugs are there, and how many bowls?" for number in range(200))
        + "x" * 400
    )
    ask(page, question)
    ended(page)
    assert page.locator("#asked").text_content() == question  # all of it can be read
    size = "one => [one.clientHeight, one.scrollHeight, one.scrollWidth - one.clientWidth]"
    height, whole, sideways = page.locator("#asked").evaluate(size)
    assert height < 200 < whole
    assert sideways == 0
    page.locator("#asked").focus()
    page.keyboard.press("End")
    for _ in range(100):  # the page may scroll a little later
        if page.locator("#asked").evaluate("one => one.scrollTop"):
            break
        page.wait_for_timeout(50)
    assert page.locator("#asked").evaluate("one => one.scrollTop") > 0
    ask(page, "How many?")
    ended(page)
    assert page.locator("#asked").evaluate("one => one.clientHeight") < 60


SHORT = """
model_specs:
  - {name: big, engine: echo, parameters: 2000000, context: 60, replies: {"": "Goal: mugs"}}
  - {name: small, engine: echo, parameters: 400000, context: 60, replies: {"": "It is 11."}}
ensemble:
  models: [big, small]
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 7, high: 16}, judge: "fixed:low"}
  request_params: {judge: {choices: ["fixed:low", "fixed:high"]}}
  generation: {max_tokens: 20}
server: {max_body_bytes: 3000}
"""


@pytest.mark.parametrize("question", ["many words " * 40, "word" * 1000], ids=["context", "body"])
def test_an_error_names_what_the_page_can_set(visit, serve, question):
    page = visit(serve(SHORT))
    ask(page, question)
    ended(page, "failed")
    status = page.get_by_role("status")
    expect(status).to_contain_text(
        "the question is too long: shorten it, or choose another ensemble, or a lower effort level"
    )
    assert "max_tokens" not in status.text_content()
    page.get_by_label("Ensemble").select_option("small")
    ask(page, question)
    ended(page, "failed")
    expect(status).not_to_contain_text("effort")
    assert all("status of 4" in line for line in visit.said)  # a browser's own word on a refused request
    visit.said.clear()


@pytest.mark.parametrize(
    ("status", "error", "headers", "says"),
    [
        (429, {"code": "overloaded", "message": "busy"}, {"retry-after": "7"}, "busy. Ask again in 7 s."),
        (503, {"code": "not_ready", "message": "draining"}, {}, "draining. Ask again later."),
        (
            404,
            {"code": "model_not_found", "message": "gone"},
            {},
            "gone. Reload the page and choose another ensemble.",
        ),
        (400, {"param": "ensemble.params.thresholds.low", "message": "no"}, {}, "no. Set another threshold."),
        (400, {"param": "ensemble.params.judge", "message": "no"}, {}, "no. Choose another effort level."),
        (400, {"param": "messages.0.content", "message": "odd"}, {}, "odd. Change the question."),
        (
            504,
            {"code": "timeout", "message": "late"},
            {},
            "late. Ask again, or choose another ensemble, or a lower",
        ),
        (
            500,
            {"code": "internal_error", "message": "the server's log has more"},
            {},
            "the server's log has more",
        ),
        (502, None, {}, "the server replied 502"),
    ],
)
def test_errors_say_what_can_be_done_about_them(visit, echo, status, error, headers, says):
    page = visit(echo)
    body = "<html>" if error is None else json.dumps({"error": error})
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=status, body=body, headers=headers)
    )
    ask(page)
    ended(page, "failed")
    expect(page.get_by_role("status")).to_contain_text(f"The run broke off: {says}")
    assert says in f"{save(page)['error']}."
    visit.said.clear()


def test_controls_set_what_the_operator_allows(visit, echo):
    page = visit(echo)

    def asked():
        with page.expect_request("**/v1/chat/completions") as request:
            ask(page, LONG)
        expect(page.locator(".judge .bar").first).to_be_attached()
        page.keyboard.press("Escape")
        ended(page, "stopped")
        return request.value.post_data_json.get("ensemble")

    assert asked() is None
    page.get_by_role("radio", name="low").check()
    assert asked() == {"params": {"judge": "fixed:low"}}
    ask(page)
    ended(page)
    expect(page.locator(".handover")).to_contain_text(
        "Mentor stopped after 7 tokens: level low was asked for"
    )
    slider = page.get_by_label("Threshold for all levels")
    expect(slider).to_be_disabled()
    page.get_by_role("radio", name="The judge decides").check()
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#threshold-value")).to_have_text("0.00")
    page.keyboard.press("ArrowRight")
    levels = dict.fromkeys(["none", "low", "medium", "high"], 0.01)
    assert asked() == {"params": {"thresholds": levels}}
    expect(page.locator(".handover")).to_contain_text(
        "No insight is needed: level none suffices (0.33 ≥ 0.01)"
    )
    page.get_by_role("button", name="Back to calibrated").click()
    expect(slider).to_have_attribute("aria-valuetext", "as calibrated")
    assert asked() is None


def test_a_keyboard_is_enough(visit, echo):
    page = visit(echo)
    focused = page.locator(":focus")
    page.keyboard.press("Tab")
    expect(focused).to_have_text("Skip to the content")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    if focused.get_attribute("id") != "question":  # the skip link moves focus, or where Tab goes on from
        page.keyboard.press("Shift+Tab")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type(LONG)
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(focused.get_attribute("id") or focused.get_attribute("name") or focused.text_content())
        assert focused.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    assert reached[-5:] == ["model", "level", "threshold", "calibrated", "start"]
    page.keyboard.press("Enter")
    expect(page.locator(".insight")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.keyboard.press("Enter")
    ended(page, "stopped")
    expect(page.get_by_role("button", name="Save")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Replay")).to_be_focused()


def test_a_screen_reader_is_told(visit, echo):
    page = visit(echo)
    ask(page)
    ended(page)
    status = page.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"
    assert page.locator("[aria-live] .flow, .flow [aria-live]").count() == 0  # no word for each token
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "textbox", "combobox", "slider", "radio", "group", "region", "form", "dialog", "table"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]
    ]
    assert {"button", "textbox", "combobox", "slider", "radio", "table"} <= {role for role, _ in found}
    assert [role for role, name in found if role in named and not name] == []
    headings = page.get_by_role("heading").evaluate_all("all => all.map((one) => one.tagName)")
    assert headings[:2] == ["H1", "H2"]
    assert set(headings[2:]) == {"H3"}


CUT = """() => [...document.querySelectorAll(".cost *, .lines *")].filter((one) => {
    const { left, right, width } = one.getBoundingClientRect();
    const shown = width > 0 && one.checkVisibility() && !one.closest("thead, .unseen");
    const clipped = one.scrollWidth > one.clientWidth + 1 && one.matches(".scroll, td, th");
    return shown && (left < 0 || right > innerWidth || clipped);
}).map((one) => one.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_it_is_readable_in_light_and_dark_on_wide_and_narrow_screens(visit, echo, scheme, width):
    page = visit(echo, color_scheme=scheme, viewport={"width": width, "height": 844})
    for name in ("turns", "ensemble"):
        page.get_by_label("Ensemble").select_option(name)
        ask(page)
        ended(page)
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == []
    dark = "getComputedStyle(document.body).backgroundColor"
    automatic = page.evaluate(dark)
    page.get_by_role("button", name="Theme: auto").click()
    light = page.evaluate(dark)
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate(dark) != light
    assert automatic in (light, page.evaluate(dark))
    page.reload()  # the choice is kept
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(dark) != light
