"""What a visitor of the page does and sees: steps that its tests share."""

import json
import re

from playwright.sync_api import expect

QUESTION = "There are 3 more mugs than bowls. The kitchen has 8 bowls. How many mugs are there?"
LONG = "Something long, please"
SOUND = {"format": "ensemblehub-run", "version": 1, "question": "?", "request": {}, "chunks": []}
INSIGHT = (
    "Goal: mugs\nPlanning: trace mugs, then add\nRetrieval: mugs = bowls + "
    "3; bowls = 8\nAction: mugs = 8 + 3 = 11"
)
HOSTILE = "<img src=x onerror=alert(1)> is & stays text"
ECHO = f"""
model_specs:
  - {{name: big, engine: echo, delay: 0.02, parameters: 2000000, replies: {{"": {json.dumps(INSIGHT)}}}}}
  - {{name: small, engine: echo, delay: 0.02, parameters: 400000, replies: {{
      hostile: "{HOSTILE}", long: "{"and so on " * 80}",
      "": "Facts: mugs = bowls + 3; bowls = 8\\nAnswer: \\\\boxed{{11}} and no more"}}}}
  - {{name: weak, engine: echo, parameters: 1000, replies: {{"": "this one breaks off soon"}}, fail_after: 3}}
ensemble:
  models: [big, small]
  output_aggregation_method: tandem
  output_aggregation_params:
    {{levels: {{low: 7, medium: 16, high: 40}}, judge: "fixed:medium", start_with_intern: true}}
  request_params:
    judge: {{choices: ["fixed:low", "fixed:medium", "fixed:high"]}}
    thresholds: {{minimum: 0, maximum: 1}}
ensembles:
  turns:
    models: [big, small]
    output_aggregation_method: loop
    output_aggregation_params: {{max_new_tokens_per_round: 5}}
    generation: {{max_tokens: 20}}
  ballot: {{models: [big, small], output_aggregation_method: vote}}
"""


def ask(page, question=QUESTION):
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask").click()


def tab(page, name):
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel", name=name)


def compare(page, first="ensemble", other="big", question=QUESTION):
    tab(page, "Compare")
    page.get_by_label("Ensemble").select_option(first)
    page.get_by_label("Compared with").select_option(other)
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask both").click()


def ended(page, phase="done"):
    expect(page.locator("#run")).to_have_attribute("data-phase", phase, timeout=30_000)


def save(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save", exact=True).click()
    assert re.fullmatch(r"run-[\dT-]+\.json", download.value.suggested_filename)
    return json.loads(download.value.path().read_text())


def open_file(page, content, name="run.json"):
    page.get_by_label("Open a run").set_input_files(
        {"name": name, "mimeType": "application/json", "buffer": content.encode()}
    )


def answer(page):
    return "".join(page.locator(".answer .text .by").all_text_contents())


CONTRAST = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => numbers(colour).slice(0, 3).map((value) => value / 255)
        .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (element) => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if ((numbers(colour)[3] ?? 1) === 1) return colour;
        }
    };
    const low = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const element = node.parentElement;
        if (!node.data.trim() || !element.checkVisibility() || element.closest(".unseen, option, :disabled")) continue;
        const style = getComputedStyle(element);
        const [one, other] = [light(element.closest("svg") ? style.fill : style.color), light(ground(element))];
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < 4.5) low.push(`${node.data}: ${contrast.toFixed(2)}`);
    }
    return low;
}"""
