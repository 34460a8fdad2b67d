"""`ensemblehub board`: one page that holds everything, lets no text escape, and works from a file."""

import json
import os
import re
import shutil

import made
import pytest

from ensemblehub import cli
from ensemblehub.board import kept_questions
from ensemblehub.errors import ArtifactError
from ensemblehub.lab.bench import board

EVIL = (
    "</script><script>window.escaped = 1</script><img src=x onerror='window.escaped = 1'> & \u2028 \\boxed{1}"
)
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def page(tmp_path):
    """A page of two folders; the answers to q0 of the first try to escape."""
    first, second = tmp_path / "first", tmp_path / "second"
    made.cell(first, "base", "0110", sampling={"temperature": 0.0, "max_tokens": 9})
    suites = {"suites": {"plus": True}}
    rows = [made.row(n, 1, text="fine" if n else EVIL, written=50, **suites) for n in range(4)]
    made.journal(first, EVIL[:20].replace("/", ""), [rows[0] | {"insight": EVIL, "reason": EVIL}, *rows[1:]])
    question = {"id": "q0", "text": EVIL, "answer": EVIL, "subject": "even", "level": 1}
    (first / "questions.jsonl").write_text(json.dumps(question) + "\n")
    made.cell(second, "drawn", "11", split="train")
    out = tmp_path / "board.html"
    cli.main(["board", str(first), str(second), "--out", str(out)])
    return out


def test_the_page_is_whole_and_nothing_in_it_can_end_its_script(page):
    text = page.read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert not re.search("[<>&]", data)
    first, second = json.loads(data)
    assert first["questions"][0]["text"] == EVIL
    assert [len(section["questions"]) for section in (first, second)] == [4, 2]
    assert all(len(cell["answers"]) == 4 for cell in first["cells"])
    assert second["title"] == "made, train: 2 questions"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_cells_without_an_answer_to_a_question_have_a_gap(tmp_path):
    made.cell(tmp_path, "long", "0101")
    made.cell(tmp_path, "short", "11")
    found = board.section(tmp_path)
    answers = {cell["name"]: [bool(samples) for samples in cell["answers"]] for cell in found["cells"]}
    assert answers == {"long": [True] * 4, "short": [True, True, False, False]}
    assert "difference" not in found["lines"][1]
    assert found["notes"][1] == "Not finished: short 2 of 4."


def test_a_folder_without_results_is_one_line(tmp_path):
    with pytest.raises(ArtifactError, match="holds no results of"):
        board.section(tmp_path)


@pytest.mark.skipif(not CHROMIUM and not os.environ.get("ENSEMBLEHUB_REQUIRE_BROWSER"), reason="no chromium")
def test_the_page_works_in_a_browser_from_a_file(page):
    from playwright import sync_api as sync  # of the extra `dev`

    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert "plus, %" in tab.inner_text("table >> nth=0 >> thead")
        names = tab.locator("table >> nth=0 >> tbody th")
        assert names.count() == 2
        tab.click("button[value=accuracy]")
        assert tab.locator("tbody tr").first.locator("td").all_inner_texts()[1].startswith("100.0 [")
        tab.click("button[value=accuracy]")
        assert names.first.inner_text() == "base"
        assert tab.locator("circle").count() == 2
        grid = tab.get_by_role("table", name="Questions").locator("tbody tr")
        tab.get_by_label("Show").select_option("differing")
        assert grid.count() == 2
        grid.get_by_role("button").first.click()
        cards = tab.locator("dialog article")
        assert cards.count() == 2
        assert EVIL in cards.all_inner_texts()[1] or EVIL in cards.all_inner_texts()[0]
        assert tab.locator("dialog .text").first.text_content() == EVIL
        tab.keyboard.press("Escape")
        grid.get_by_role("button").nth(1).click()
        assert tab.get_by_role("dialog", name="q3").count() == 1
        tab.keyboard.press("Escape")
        tab.click("button[name=section] >> nth=1")
        sync.expect(grid).to_have_count(2)
        tab.get_by_label("Show").select_option("differing")
        assert grid.count() == 0  # all of them are right
        assert tab.evaluate("window.escaped") is None
        assert (said, asked) == ([], [page.as_uri()])
        browser.close()


@pytest.mark.parametrize("text", ["[1]\n", '{"text": "no id"}\n'])
def test_damaged_questions_are_one_line(tmp_path, text):
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"questions\.jsonl is damaged .*: remove it"):
        kept_questions(path)
