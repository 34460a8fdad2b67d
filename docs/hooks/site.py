"""What the site has beside the pages in `docs/`: cards, board and references, written from code and results.

`mkdocs.yml` names this file as a hook; `tests/test_site.py` checks what it writes without MkDocs.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import ensemblehub
from ensemblehub import cli, registry
from ensemblehub.config import Config
from ensemblehub.ensemble_methods.base import Aggregation, EnsembleMethod

ROOT = Path(__file__).parents[2]
TABLES = {"SELECTIONS": "selection", "AGGREGATIONS": "aggregation"}
SELECTS = "It selects"
ANSWERS = {  # what the second column of the guide's tables tells, as the beginning of a sentence
    "token": "The distribution of the next token is",
    "segment": "The next to write is",
    "response": "The answer is",
}
SHOWN = {("selection", "all"): "all_vote.yaml"}  # where the first example shows something else
LONGEST = 60  # characters of a default
ALONE = ("intern", "mentor", "mentor (no thinking)")  # lines of RIVALS to compare with
GRID, RIVALS = Path("results/toolkit/grid.json"), Path("results/rivals/builtin_math/summary.json")
BOARD = {
    "results/builtin_math/table.md": "Tandem on the built-in pair: 2,000 test questions",
    "results/rivals/builtin_math/table.md": "94 ways to use the built-in pair: 1,000 test questions",
    "results/rivals/builtin_code/table.md": "The same on 1,000 test questions of built-in code",
    "results/advise/builtin_math/advice.md": "What `ensemblehub advise` says of the built-in pair",
    "results/toolkit/grid.md": "Every selection with every aggregation: 300 test questions",
}


def strategies() -> dict[str, str]:
    """Kind of each strategy by the address of its page."""
    tables = ((name, kind) for name, kind in TABLES.items())
    return {f"{kind}_{name}": kind for table, kind in tables for name in getattr(registry, table)}


def sections(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and what its section `Attributes` says of each name."""
    text, _, attributes = inspect.cleandoc(docstring).partition("\nAttributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in attributes.split("\n\n")[0].splitlines():
        if match := re.match(r" {4}(\w[\w, ]*): (.*)", line):
            names = match[1].split(", ")
            found.update(dict.fromkeys(names, match[2]))
        elif line.startswith(" " * 8) and names:
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return text.strip(), found


def says(kind: str, name: str) -> str:
    """What the guide says of a method: the second cell of its row in the part about its kind."""
    page = (ROOT / "docs/toolkit.md").read_text(encoding="utf-8")
    start = page.index(f"## {kind.capitalize()} (")
    part = page[start : page.index("\n## ", start + 1)]
    row = re.search(rf"^\| `{name}` \| (.*?) \|", part, re.MULTILINE)
    return row[1] if row else ""


def class_of(kind: str, name: str) -> type[EnsembleMethod]:
    """The class of a strategy."""
    table = registry.SELECTIONS if kind == "selection" else registry.AGGREGATIONS
    found: type[EnsembleMethod] = registry.lookup(table, name, kind)
    return found


def sentence(kind: str, name: str) -> str:
    """What the guide says of a method, as a whole sentence."""
    cls = class_of(kind, name)
    begins = ANSWERS[cls.granularity] if issubclass(cls, Aggregation) else SELECTS
    return f"{begins} {says(kind, name)}."


def told(cls: type) -> dict[str, str]:
    """The paragraphs of a strategy's docstring: `what`, and those that begin with `Use when` and `Requires`."""
    found = {"what": ""}
    for paragraph in sections(cls.__doc__ or "")[0].split("\n\n"):
        (key,) = [word for word in ("Use when", "Requires") if paragraph.startswith(f"{word} ")] or ["what"]
        found[key] = f"{found[key]}\n\n{paragraph}".strip() if key in found else paragraph
    return found


def requires(cls: type[EnsembleMethod]) -> str:
    """What a strategy requires of its models: its docstring's words, else its class variables."""
    if said := told(cls).get("Requires"):
        return said
    capabilities = " and ".join(f"`{name}`" for name in sorted(cls.requires))
    parts = [f"{capabilities} of its models"] if capabilities else []
    least = getattr(cls, "min_engines", 1)
    if isinstance(least, int) and least > 1:
        parts.append(f"at least {least} models")
    return f"It requires {', and '.join(parts)}." if parts else "It requires nothing of its models."


def shortened(default: str) -> str:
    """A default in at most LONGEST characters, cut between words."""
    if len(default) <= LONGEST:
        return default
    return default[:LONGEST].rsplit(" ", 1)[0] + " …"


def options(cls: type) -> str:
    """Table of a dataclass's fields: default, and what its docstring says."""
    about = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            about.update(sections(base.__doc__ or "")[1])
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for option in dataclasses.fields(cls):
        default: Any = option.default
        if default is dataclasses.MISSING:
            made = option.default_factory
            default = "required" if made is dataclasses.MISSING else made()
        shown = str(default).replace("|", "\\|").replace("\n", "\\n")
        text = about.get(option.name, "").replace("|", "\\|")
        lines.append(f"| `{option.name}` | `{shortened(shown)}` | {text} |")
    return "\n".join(lines) if len(lines) > 2 else "It has no options."


def example(kind: str, name: str) -> Path:
    """The file in `examples/` that shows a strategy; the tests run every one of them."""
    for path in sorted((ROOT / "examples").glob(SHOWN.get((kind, name), "*.yaml"))):
        if getattr(Config.read(path), kind).method == name:
            return path
    raise LookupError(f"no example of {kind} {name}")


def measured(kind: str, name: str) -> str:
    """Rows of the kept results in which a strategy took part, as a table; empty where there are none."""
    rows = []
    rivals = json.loads((ROOT / RIVALS).read_text())["lines"]
    for row in json.loads((ROOT / GRID).read_text()):
        other = {"aggregation": "selection", "selection": "aggregation"}[kind]
        if row[kind].split(" ")[0] == name and row[other] in ("all", "single"):
            rows.append((f"{row['selection']}, {row['aggregation']}", row))
    if kind == "aggregation":
        label = name.replace("_", " ")
        rows += [(row["method"], row) for row in rivals if f"{row['method']} ".startswith(f"{label} ")]
    if not rows:
        return ""
    rows += [(f"to compare: {row['method']}", row) for row in rivals if row["method"] in ALONE]
    lines = ["| | n | accuracy | written | GFLOPs | seconds |", "|---|---|---|---|---|---|"]
    for title, row in rows:
        interval = f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}"
        cells = f"{row['accuracy']:.1%} ({interval}) | {row['written']:.0f} | {1000 * row['tflops']:.3f}"
        lines.append(f"| {title} | {row['n']} | {cells} | {row['seconds']:.3f} |")
    return "\n".join(lines)


def card(kind: str, name: str) -> str:
    """The page of a strategy."""
    cls = class_of(kind, name)
    about = told(cls)
    method = "model_selection_method" if kind == "selection" else "output_aggregation_method"
    path = example(kind, name)
    rows = measured(kind, name)
    parts = [
        f"# {name}",
        f"*{kind}; `{method}: {name}`*",
        about["what"],
        f"{sentence(kind, name)} The [guide](../toolkit.md) has it beside the others.",
        re.sub(r"\s+Not when\s", "\n\nNot when ", about["Use when"]),
        requires(cls),
        f"## Options\n\n{options(cls)}",
        f"## Example\n\n`{path.relative_to(ROOT)}`, which the tests run:\n\n```yaml\n{path.read_text().rstrip()}\n```",
        "## Cost\n\n"
        + (
            f"On the built-in models (see the [board](../board.md)):\n\n{rows}"
            if rows
            else "Not measured yet."
        ),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def overview() -> str:
    """The list of all cards."""
    lines = [
        "# Strategies",
        "",
        "A selection says which models take part, an aggregation how they answer together.",
        "",
    ]
    for kind in TABLES.values():
        lines += [f"## {kind.capitalize()}s", "", "| | |", "|---|---|"]
        for address in (address for address, other in strategies().items() if other == kind):
            name = address.removeprefix(f"{kind}_")
            lines.append(f"| [{name}]({address}.md) | {sentence(kind, name)} |")
        lines.append("")
    return "\n".join(lines)


def board() -> str:
    """The kept result tables."""
    said = "Each table is written by a command; `ensemblehub board` makes such a page of your runs."
    parts = ["# Board", said]
    for path, title in BOARD.items():
        body = re.sub(r"^# .*\n", "", (ROOT / path).read_text(encoding="utf-8")).strip()
        body = body.replace("tflops", "compute")  # its cells have units
        parts.append(f"## {title}\n\n`{path}`\n\n{re.sub(r'^#', '##', body, flags=re.MULTILINE)}")
    return "\n\n".join(parts) + "\n"


def reference() -> str:
    """Directives for the public names."""
    modules = ensemblehub._MODULE_OF
    names = [f"::: ensemblehub.{module}.{name}" for name, module in modules.items()]
    return "# Python reference\n\nAll are names of `ensemblehub`.\n\n" + "\n\n".join(names) + "\n"


OPTIONS = {  # read without importing them, since a site needs no torch
    "hf": "hf.loading.HFOptions",
    "llama_cpp": "llama_cpp.options.LlamaCppOptions",
    "vllm": "vllm.engine.VLLMOptions",
    "openai": "openai.options.OpenAIOptions",
    "numpy": "numpy.engine.NumpyOptions",
    "echo": "echo.EchoOptions",
}


def engine_options() -> str:
    """Directives for the options of every engine."""
    said = "Keys of an entry of `model_specs`, beside `name` and `engine`; the [guide](engines.md) says more."
    parts = [f"## {engine}\n\n::: ensemblehub.generators.{target}" for engine, target in OPTIONS.items()]
    patience = "## patience\n\n::: ensemblehub.generators.openai.patience.Patience"
    return "\n\n".join(["# Engines' options", said, *parts, patience]) + "\n"


COMMANDS = """# Command line

::: mkdocs-click
    :module: ensemblehub.cli
    :command: cli
    :prog_name: ensemblehub
    :style: table
    :list_subcommands: true
"""


def generated() -> dict[str, str]:
    """All pages that are written here, by address."""
    cards = {
        f"strategies/{address}.md": card(kind, address.removeprefix(f"{kind}_"))
        for address, kind in strategies().items()
    }
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    changes = re.sub(r"\]\(docs/", "](", changes)
    pages = {
        "board.md": board(),
        "reference.md": reference(),
        "engine_options.md": engine_options(),
        "cli.md": COMMANDS,
        "changelog.md": changes,
    }
    return {"strategies/index.md": overview(), **cards, **pages}


def linked(markdown: str, names: set[str]) -> str:
    """A page whose mentions of `docs/NAME.md` are links, and whose links to results stay inside the site."""

    def link(match: re.Match[str]) -> str:
        return f"[`docs/{match[1]}`]({match[1]})" if match[1] in names else match[0]

    return re.sub(r"(?<!\[)`docs/([a-z_/]+\.md)`", link, markdown.replace("](../results/", "](results/"))


def first_answer() -> str:
    """The kept measurements of the first answer as a table."""
    lines = (ROOT / "results/benchmarks/first_answer.txt").read_text(encoding="utf-8").splitlines()
    pattern = r"(.+?) +([\d.]+) s \(.*?\) +again +([\d.]+) s +(\d+) wheels, +([\d.]+) MB"
    rows = [match.groups() for match in (re.match(pattern, line) for line in lines) if match]
    head = "| | first answer | again | downloaded |\n|---|---|---|---|"
    return "\n".join(
        [
            head,
            *(
                f"| `{way}` | {first} s | {again} s | {wheels} wheels, {size} MB |"
                for way, first, again, wheels, size in rows
            ),
            container(),
        ]
    )


def container() -> str:
    """The row of the container of `Dockerfile`, from its own measurement."""
    text = (ROOT / "results/benchmarks/container_image.txt").read_text(encoding="utf-8")
    found = {
        step: re.search(rf"^{step}.*? ([\d.]+) s  (.*?)(?:  on the disk.*)?$", text, re.MULTILINE)
        for step in ("base", "image", "all")
    }
    (base, packages), (_, wheels), (whole, again) = (match.groups() for match in found.values() if match)
    seconds = f"{whole} s, {base} s of them for the base"
    return (
        f"| container of `Dockerfile` | {seconds} | {again.removeprefix('again ')} | {packages}; {wheels} |"
    )


def on_config(config: Any) -> Any:
    """Register all commands, and put the cards into the navigation."""
    cli.add_plugins()
    for entry in config["nav"]:
        if "Strategies" in entry:
            entry["Strategies"] = [
                "strategies/index.md",
                *(f"strategies/{address}.md" for address in strategies()),
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and the results that pages link to."""
    from mkdocs.structure.files import File, InclusionLevel

    for address, content in generated().items():
        files.append(File.generated(config, address, content=content))
    pages = (path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for target in sorted(
        {target for page in pages for target in re.findall(r"\]\(\.\./(results/[^)#]+)", page)}
    ):
        added = File.generated(config, target, abs_src_path=str(ROOT / target))
        added.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(added)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn mentions of pages into links."""
    markdown = markdown.replace('--8<-- "first_answer"', first_answer())
    if "/" in page.file.src_uri:
        return markdown
    return linked(markdown, {file.src_uri for file in files.documentation_pages()})


def on_post_build(config: Any) -> None:
    """Check that the search finds every card.

    Raises:
        RuntimeError: the index lacks some.
    """
    index = json.loads((Path(config["site_dir"]) / "search/search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    if lost := {f"strategies/{address}/" for address in strategies()} - found:
        raise RuntimeError(f"the search finds no {', '.join(sorted(lost))}")
