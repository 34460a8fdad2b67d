"""What the page keeps, and what follows from it: a key, choices, and what another window changes."""

import pytest
from page_steps import ECHO, LONG, ask, compare, ended, tab
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def echo(serve):
    return serve(ECHO)


@pytest.fixture(scope="module")
def locked(serve):
    return serve(ECHO, "--api_key", "s3cret-key", "--api_key", "schlüssel-ключ")


def give(page, key):
    page.get_by_label("API key", exact=True).fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_a_key_of_any_letters_is_sent_as_utf_8(visit, locked):
    page = visit(locked, ready=False)
    dialog = page.get_by_role("dialog", name="An API key is needed")
    for wrong in ("ключ", "clé", "🔑"):
        give(page, wrong)
        expect(dialog).to_contain_text("The server does not know this key.")
        expect(page.get_by_label("API key", exact=True)).to_have_value("")  # it asks anew
    give(page, "schlüssel-ключ")
    expect(page.get_by_label("Ensemble")).to_be_enabled()
    page.reload()
    expect(page.get_by_label("Ensemble")).to_be_enabled()
    assert all("401" in line for line in visit.said)  # a browser's own word on a refused request
    visit.said.clear()


@pytest.mark.parametrize("wrong", ["x" * 100_000, "x" * 300_000], ids=["server", "browser"])
def test_a_key_that_no_header_can_hold_is_asked_for_again(visit, locked, wrong):
    page = visit(locked, ready=False)
    give(page, wrong)
    expect(page.get_by_role("alert")).not_to_be_empty()
    page.reload()
    expect(page.get_by_role("dialog", name="An API key is needed")).to_contain_text(
        "The server asks for one."
    )
    give(page, "s3cret-key")
    expect(page.get_by_label("Ensemble")).to_be_enabled()
    visit.said.clear()


def test_what_is_chosen_stays_chosen(visit, echo):
    page = visit(echo)
    level = page.get_by_role("radio", name="low")
    level.check()
    tab(page, "History")
    tab(page, "Ask")
    expect(level).to_be_checked()
    expect(page.get_by_label("Threshold for all levels")).to_be_disabled()
    ask(page)
    ended(page)
    page.get_by_role("button", name="Follow up").click()
    expect(level).to_be_checked()
    page.get_by_label("Ensemble").select_option("turns")
    page.get_by_label("Ensemble").select_option("ensemble")
    with page.expect_request("**/v1/chat/completions") as request:
        ask(page)
    assert request.value.post_data_json["ensemble"] == {"params": {"judge": "fixed:low"}}
    ended(page)

    page.get_by_role("radio", name="The judge decides").check()
    page.get_by_label("Threshold for all levels").focus()
    page.keyboard.press("Home")
    tab(page, "Compare")
    tab(page, "Ask")
    expect(page.locator("#threshold-value")).to_have_text("0.00")
    assert page.get_by_label("Threshold for all levels").input_value() == "0"


def test_ask_and_compare_have_an_ensemble_each(visit, echo):
    page = visit(echo)
    name, other = page.get_by_label("Ensemble"), page.get_by_label("Compared with")
    tab(page, "Compare")
    name.select_option("turns")
    other.select_option("small")
    tab(page, "Ask")
    expect(name).to_have_value("ensemble")
    name.select_option("ballot")
    tab(page, "Compare")
    expect(name).to_have_value("turns")
    expect(other).to_have_value("small")
    tab(page, "Ask")
    expect(name).to_have_value("ballot")


def test_a_comparison_does_not_claim_to_follow_a_conversation(visit, echo):
    page = visit(echo)
    ask(page, "First?")
    ended(page)
    page.get_by_role("button", name="Follow up").click()
    following = page.get_by_text("Follows “First?”")
    expect(following).to_be_visible()
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.post_data else None)
    compare(page)
    expect(following).to_be_hidden()
    ended(page)
    assert [len(body["messages"]) for body in bodies] == [1, 1]
    tab(page, "Ask")
    expect(following).to_be_visible()


def test_a_run_in_one_tab_does_not_keep_the_other_from_asking(visit, echo):
    page = visit(echo)
    ask(page, LONG)
    expect(page.locator("#run")).to_have_attribute("data-phase", "running")
    compare(page, "small", "big")
    expect(page.locator(".side")).to_have_count(2)
    ended(page)
    tab(page, "Ask")
    ended(page)
    expect(page.locator(".side")).to_have_count(1)


def test_a_run_that_ends_while_the_history_is_shown_is_listed(visit, echo):
    page = visit(echo)
    ask(page, LONG)
    expect(page.locator("#run")).to_have_attribute("data-phase", "running")
    entries = tab(page, "History").locator("#entries li")
    expect(entries).to_have_text("Nothing is kept yet.")
    expect(entries).to_contain_text(LONG, timeout=30_000)
    expect(page.get_by_role("button", name="Clear all")).to_be_enabled()


def test_windows_show_what_another_of_them_changes(visit, echo):
    page = visit(echo)
    other = page.context.new_page()
    other.goto(f"{echo.url}/#history")
    entries = other.locator("#entries li")
    expect(entries).to_have_text("Nothing is kept yet.")
    ask(page, "Here?")
    expect(entries).to_contain_text("Here?", timeout=30_000)
    tab(page, "History")
    page.get_by_label("Keep what is asked").uncheck()
    expect(other.get_by_label("Keep what is asked")).not_to_be_checked()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear all").click()
    expect(entries).to_have_text("Nothing is kept yet.")
    page.get_by_role("button", name="Theme: auto").click()
    expect(other.get_by_role("button", name="Theme: light")).to_be_visible()
    expect(other.locator("html")).to_have_attribute("data-theme", "light")


def test_an_address_that_changes_opens_its_tab(visit, echo):
    page = visit(echo)
    selected = page.get_by_role("tab", selected=True)
    for address, name in (("main", "Ask"), ("board", "Board"), ("history", "History"), ("", "Ask")):
        page.evaluate("(address) => (location.hash = address)", address)
        expect(page).to_have_url(f"{echo.url}/{f'#{address}' if address else ''}")
        expect(selected).to_have_text(name)
        expect(page.get_by_role("tabpanel", name=name)).to_be_visible()
    page.go_back()
    expect(selected).to_have_text("History")
