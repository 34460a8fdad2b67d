"""The site: links, code blocks, and the pages that its hook writes; `make site` builds it with MkDocs."""

import ast
import importlib.util
import inspect
import json
import re
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from ensemblehub import registry
from ensemblehub.ensemble_methods.base import EnsembleMethod

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
EXECUTED = ("index.md",)


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "docs/hooks/site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated(site):
    return site.generated()


def slug(title):
    """The address of a heading, as MkDocs makes it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(text):
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {slug(title) for title in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}


@pytest.mark.parametrize("path", [*PAGES, *ROOT.glob("*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(path, generated):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        there = path if not file else (path.parent / file).resolve()
        address = str(there.relative_to(ROOT / "docs")) if there.is_relative_to(ROOT / "docs") else ""
        content = generated.get(address) or (
            there.read_text() if there.suffix == ".md" and there.exists() else ""
        )
        assert there.exists() or address in generated, f"{path.name}: {target}"
        assert not anchor or anchor in anchors(content), f"{path.name}: {target}"


@pytest.mark.parametrize("path", [*PAGES, *ROOT.glob("*.md")], ids=lambda path: path.name)
def test_addresses_of_other_sites_are_well_formed(path):
    for address in re.findall(r"https?://[^\s)>\"'`|,]+", path.read_text()):
        parts = urlsplit(address)
        public = "." in (parts.hostname or "") and not parts.hostname.startswith("127.")
        assert parts.hostname, address
        assert not public or parts.scheme == "https", address
        assert "//" not in parts.path, address


def test_a_dead_link_fails_the_build_of_the_site():
    (build,) = re.findall(r"^\t.*mkdocs (build.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "--strict" in build.split()
    assert not {"-q", "--quiet"} & set(build.split())  # which also keeps --strict from seeing warnings
    checks = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["validation"]
    assert {level for kinds in checks.values() for level in kinds.values()} == {"warn"}
    assert checks["links"]["anchors"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_blocks_are_code(path):
    for language, block in re.findall(r"```(\w+)\n(.*?)```", path.read_text(), re.DOTALL):
        if language == "python":
            ast.parse(f"async def page():\n{textwrap.indent(block, '    ')}")
        elif language == "yaml":
            yaml.safe_load(block)
        elif language == "json":
            json.loads(block)


@pytest.mark.parametrize("name", EXECUTED)
def test_the_examples_of_a_page_run(name):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)
    names = {"print": lambda *_, **__: None}
    exec(compile(block, name, "exec"), names)
    assert names["result"].text.endswith("\\boxed{11}")


def test_every_strategy_has_a_card(site, generated):
    for kind, table in (("selection", registry.SELECTIONS), ("aggregation", registry.AGGREGATIONS)):
        for name in table:
            page = generated[f"strategies/{kind}_{name}.md"]
            assert page.startswith(f"# {name}\n\n*{kind};")
            assert "## Example\n\n`examples/" in page
            assert f"[{name}]({kind}_{name}.md)" in generated["strategies/index.md"]
            assert site.says(kind, name), f"docs/toolkit.md has no row for {name}"


def test_a_card_has_options_and_measurements(site, generated):
    page = generated["strategies/aggregation_vote.md"]
    assert "| `samples` | `1` | candidates per engine" in page
    assert re.search(r"\| all, vote \| 300 \| 82\.3% \(77\.6% to 86\.2%\)", page)
    assert site.sections("What.\n\nAttributes:\n    a, b: one\n        line.\n\nRaises:\n    c: no.") == (
        "What.",
        {"a": "one line.", "b": "one line."},
    )


STRATEGIES = [
    (kind, name)
    for kind, table in (("selection", registry.SELECTIONS), ("aggregation", registry.AGGREGATIONS))
    for name in table
]


@pytest.fixture(scope="module")
def results():
    """What the results say that the docstrings of strategies quote."""
    paths = [*ROOT.glob("results/rivals/**/*.md"), ROOT / "results/toolkit/grid.md"]
    paths += [*ROOT.glob("results/qwen_coder/**/*.md"), ROOT / "results/benchmarks/safe_tokens.txt"]
    text = "\n".join(path.read_text() for path in paths)
    return {f"{float(number):.1f}" for number in re.findall(r"\d+\.\d+", text)}


@pytest.mark.parametrize(("kind", "name"), STRATEGIES)
def test_every_strategy_says_when_to_use_it_and_when_not(site, generated, results, kind, name):
    use = site.told(site.class_of(kind, name))["Use when"]
    assert re.fullmatch(r"Use when .+\.\s+Not when\s.+\.", use, re.DOTALL), use
    shares = re.findall(r"(\d+\.\d)(?: %| and \d+\.\d %| to \d+\.\d %)", use)
    assert [share for share in shares if share not in results] == []
    assert "\n\nUse when " in generated[f"strategies/{kind}_{name}.md"]


@pytest.mark.parametrize(("kind", "name"), STRATEGIES)
def test_a_card_is_true_to_the_checks_and_whole(site, generated, kind, name):
    cls, page = site.class_of(kind, name), generated[f"strategies/{kind}_{name}.md"]
    bases = [base for base in cls.__mro__ if base is not EnsembleMethod and "check" in vars(base)]
    checks = "".join(inspect.getsource(base.check) for base in bases)
    if re.search(r"require\(|criterion\.check\(|criterion :=", checks):
        assert "\n\nRequires " in page, "its `check` requires more than its class variables say"
    assert "at least 1 models" not in page
    table = page.partition("## Options")[2].partition("## Example")[0]
    assert not re.search(r"\| +\|$", table, re.MULTILINE), "an option has no text"
    for title in ("intern", "mentor", "mentor (no thinking)"):
        assert "Not measured yet." in page or f"| to compare: {title} | 1000 |" in page


def test_defaults_are_cut_between_words(site):
    assert site.shortened("short") == "short"
    assert site.shortened("word " * 20) == " ".join(["word"] * 12) + " …"


def test_the_board_names_compute_by_what_its_cells_hold(generated):
    assert "tflops" not in generated["board.md"]
    assert "| compute |" in generated["board.md"]


def test_the_table_of_clients_is_that_of_the_last_run():
    from benchmarks import client_cells

    found = json.loads((ROOT / client_cells.RESULT).read_text())
    page = (ROOT / client_cells.PAGE).read_text()
    assert client_cells.written(page, found) == page
    assert all(row["cells"] and all(row["cells"].values()) for row in found.values())
    python = {"openai", "anthropic", "LiteLLM", "LangChain", "LlamaIndex", "llm", "pydantic-ai", "inspect_ai"}
    assert python | {"AI SDK", "lm-evaluation-harness"} <= set(found)


def test_the_navigation_has_every_page(generated):
    class Loader(yaml.SafeLoader):
        pass

    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/]+\.md", text[text.index("\nnav:") :]))
    written = {str(path.relative_to(ROOT / "docs")) for path in PAGES}
    assert named == written | {address for address in generated if not address.startswith("strategies/")}


def test_the_first_answer_of_every_way_is_in_the_table(site):
    kept = (ROOT / "results/benchmarks/first_answer.txt").read_text().split("\n\n")[1].splitlines()
    _, _, *rows = site.first_answer().splitlines()
    assert [row.split("`")[1] for row in rows] == [re.split("  +", line)[0] for line in kept] + ["Dockerfile"]
    steps = (ROOT / "results/benchmarks/container_image.txt").read_text().split("\n\n")[1]
    assert all(number in steps for number in re.findall(r"[\d.]+", rows[-1]))
    assert "packages" in rows[-1]
    assert "wheels" in rows[-1]


def test_mentions_of_pages_and_results_become_links(site):
    text = "see `docs/bench.md`, [`docs/x.md`](x.md), `docs/no.md` and [t](../results/a.md)"
    expected = "see [`docs/bench.md`](bench.md), [`docs/x.md`](x.md), `docs/no.md` and [t](results/a.md)"
    assert site.linked(text, {"bench.md", "x.md"}) == expected


def test_the_options_of_every_engine_are_listed(site):
    """As text, so that a site needs no torch: here it is seen that the classes are there."""
    assert set(site.OPTIONS) == set(registry.ENGINES) - {"api"}
    for engine, target in site.OPTIONS.items():
        module, _, cls = f"ensemblehub.generators.{target}".rpartition(".")
        assert f"class {cls}:" in (ROOT / f"{module.replace('.', '/')}.py").read_text(), engine
