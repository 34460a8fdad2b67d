"""What the page keeps, and what follows from it: a key."""

import pytest
from page_steps import ECHO
from playwright.sync_api import expect


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
