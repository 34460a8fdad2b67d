"""The figures in sentences of the README and the documentation are those of the result files."""

import json
import math
import re

import pytest

from benchmarks.readme import README, ROOT, cells_of

QWEN, CODE, MATH = "results/qwen_coder", "results/rivals/builtin_code", "results/rivals/builtin_math"
SHOWN = "cascade by shown tests"


def rows(folder):
    """The rows of a folder's `summary.json`, by method."""
    found = json.loads((ROOT / folder / "summary.json").read_text())
    return {row["method"]: row for row in (found["lines"] if isinstance(found, dict) else found)}


def right(folder, *methods, column="accuracy"):
    return [100 * rows(folder)[method][column] for method in methods]


def cost(folder, method):
    """As a share of the mentor's."""
    return [rows(folder)[method]["tflops"] / rows(folder)["mentor"]["tflops"]]


def cells(file, name, *columns):
    """Every number in some cells of a Markdown table's row: a figure, then the ends of its interval."""
    return [
        float(number)
        for column in columns
        for number in re.findall(r"[+-]?\d+(?:\.\d+)?", cells_of(file, name)[column])
    ]


def insights():
    """The most and the least points that insights of any length add to the intern, over all tasks."""
    gains = [
        right(folder, level)[0] - right(folder, "intern")[0]
        for folder in (f"{QWEN}/tandem_{task}" for task in ("mbpp", "mbpp_plus", "humaneval", "gsm8k"))
        for level in ("fixed_low", "fixed_medium", "fixed_high")
    ]
    return [max(gains), min(gains)]


def formula():
    """The intern's share of the cost a token, tokens of both answers, and of the insight that pays for itself."""
    found = rows(f"{QWEN}/tandem_mbpp")
    small, large = found["intern"]["intern_tokens"], found["mentor"]["mentor_tokens"]
    rho = found["intern"]["tflops_paper"] / small * large / found["mentor"]["tflops_paper"]
    return [rho, small, large, (large - rho * small) / (1 + rho)]


def closed():
    """Shares of the gaps from the high level to the oracle that the mentor without thinking closes, in per cent."""
    columns = ("difference, points [95 %]", "FLOPs, times")
    (gain, _, _, paid), (gap, _, _, least) = (
        cells(f"{MATH}/against_tandem_high.md", f"{name} against tandem high", *columns)
        for name in ("mentor (no thinking)", "oracle")
    )
    return [100 * gain / gap, 100 * (1 - paid) / (1 - least)]


def judge(folder):
    return json.loads((ROOT / folder / "judge.json").read_text())


def certificate(folder):
    found = json.loads((ROOT / folder / "certificate.json").read_text())
    return [found["thresholds"]["none"], judge(folder)["levels"]["low"], 100 * found["max_loss"]]


def advised(folder):
    return cells(f"{QWEN}/{folder}/advice.md", SHOWN, "accuracy", "cost_vs_mentor", "difference")


def kept_where_lost(task):
    name = f"{SHOWN}, lost questions by entropy"
    return cells(f"{QWEN}/advise_{task}/cost/advice.md", name, "difference", "cost_vs_mentor")


SENTENCES = {  # and how their figures are computed
    "insights of 16 to 64 tokens move the intern by {:+.0f} to {:+.0f} points": insights,
    "HumanEval ({}), judges unchanged: intern {:.1f} %, mentor {:.1f} %, 16 tokens {:.1f} % at {:.2f} of": lambda: [
        rows(f"{QWEN}/tandem_humaneval")["mentor"]["n"],
        *right(f"{QWEN}/tandem_humaneval", "intern", "mentor", "fixed_low"),
        *cost(f"{QWEN}/tandem_humaneval", "fixed_low"),
    ],
    "GSM8K ({}), in this order: {:.1f}, {:.1f}, {:.1f} % at {:.2f}, {:.1f} % at {:.2f}.": lambda: [
        rows(f"{QWEN}/tandem_gsm8k")["mentor"]["n"],
        *right(f"{QWEN}/tandem_gsm8k", "intern", "mentor", "fixed_low"),
        *cost(f"{QWEN}/tandem_gsm8k", "fixed_low"),
        *right(f"{QWEN}/tandem_gsm8k", "logistic"),
        *cost(f"{QWEN}/tandem_gsm8k", "logistic"),
    ],
    "{0:.1f} % at {3:.2f} on MBPP ({6:+.1f}, {7:+.1f} to {8:+.1f}, points;": lambda: advised("advise_mbpp"),
    "{0:.1f} % at {3:.2f} on HumanEval ({6:+.1f}, {7:+.1f} to {8:+.1f})": lambda: advised("advise_humaneval"),
    "leaves {0:+.1f} points at {3:.2f} ({1:+.1f} to {2:+.1f})": lambda: kept_where_lost("mbpp"),
    " and {0:+.1f} at {3:.2f} ({1:+.1f} to {2:+.1f}).": lambda: kept_where_lost("humaneval"),
    "with ρ = {:.2f} and answers of {:.0f} to {:.0f} tokens the formula leaves some {:.0f} for": formula,
    "({} questions to train on, {} for thresholds": lambda: [
        judge(f"{QWEN}/judges/logistic")["data"]["n"],
        judge(f"{QWEN}/judges/logistic")["data"]["calibrated"]["n"],
    ],
    "(HumanEval {:.1f} % here, 70.7 published; MBPP {:.1f}, 69.2; MBPP+ {:.1f}, 59.4)": lambda: [
        *right(f"{QWEN}/published_humaneval", "mentor"),
        *right(f"{QWEN}/published_mbpp", "mentor", column="base_share"),
        *right(f"{QWEN}/published_mbpp", "mentor", column="plus_share"),
    ],
    "to the oracle, {:.1f} % at {:.3f}, it closes none": lambda: [
        *right("results/builtin_math", "oracle"),
        *cost("results/builtin_math", "oracle"),
    ],
    "reasons as well in {:.0f} tokens as in {:.0f}.": lambda: [
        rows("results/builtin_math")[mentor]["mentor_tokens"] for mentor in ("mentor_concise", "mentor")
    ],
    "Of {} ways to use the pair on {:,} of these questions": lambda: [
        len(rows(MATH)),
        rows(MATH)["mentor"]["n"],
    ],
    "closes {:.0f} % of the gap in accuracy from the high level to the oracle, and {:.0f} % of that in cost": closed,
    "(`think_on_failure`): {:.1f} % at {:.3f}, with {:.0f} of {:,.0f} wrong that it has right": lambda: cells(
        f"{MATH}/against_mentor.md",
        "think on failure 0.995 against mentor",
        *("accuracy", "FLOPs, times", "losses", "n"),
    ),
    "Tandem has {:.1f} % right at {:.3f} of the mentor's cost": lambda: cells(
        f"{CODE}/against_mentor.md", "tandem draft 0.99 against mentor", "accuracy", "FLOPs, times"
    ),
    "a mix of single models has {0:.1f} %": lambda: cells(
        f"{CODE}/against_tandem_low.md",
        "tandem draft 0.99 against tandem low",
        "mix of models at equal cost; points to it [95 %]",
    ),
    "(the best fixed level, low: {:.1f} % at {:.3f};": lambda: cells(
        f"{CODE}/against_mentor.md", "tandem low against mentor", "accuracy", "FLOPs, times"
    ),
    "judge trained on math, too, {:.1f} % at {:.3f})": lambda: cells(
        f"{CODE}/against_mentor.md", "tandem draft, judge 0.9 against mentor", "accuracy", "FLOPs, times"
    ),
    "from {:.2f} on, else {} tokens, it is certified to lose at most {:.0f} % of": lambda: certificate(
        "results/builtin_code_draft/judge"
    ),
}
TRANSFER, ADVICE = "results/rivals/transfer", "results/advise"


def transferred(method):
    """Its difference to always the high level in points, with its interval, and its cost as a share of that."""
    found, high = rows(TRANSFER)[method], rows(TRANSFER)["always high"]
    names = ("difference", "difference_low", "difference_high")
    return [*(100 * found[name] for name in names), found["tflops"] / high["tflops"]]


def paid(folder, *methods):
    """Accuracy and cost of some strategies in a report of `advise`."""
    file = f"{ADVICE}/{folder}/advice.md"
    found = [cells(file, method, "accuracy", "cost_vs_mentor") for method in methods]
    return [row[at] for row in found for at in (0, 3)]


OF_PAGES = {
    ("judges", "points below always the high level [{1:+.2f}, {2:+.2f}] at {3:.3f} of its cost ("): lambda: (
        transferred("draft judged, else low")
    ),
    ("judges", "({:.2f} against {:.2f} %)"): lambda: right(TRANSFER, "draft judged, else low", "always high"),
    ("judges", "it is {:+.1f} [{:+.1f}, {:+.1f}] at {:.3f}, and"): lambda: transferred(
        "draft judged, else low; 0.5"
    ),
    ("judges", "at 0.9 {:.1f} [{:+.1f}, {:+.1f}] at {:.3f} ("): lambda: transferred(
        "draft judged, else low; 0.9"
    ),
    ("advise", "answers {0:.1f} % right at {1:.3f} of the thinking mentor's cost ({2:.1f} %)"): lambda: paid(
        "builtin_math_test", "mentor alone, no thinking", "mentor alone"
    ),
    (
        "advise",
        "reaches {:.1f} % at {:.3f}, the same plan only where a draft is not accepted {:.1f} % at {:.3f}, a cascade "
        "{:.1f} % at {:.3f}, the mentor that thinks only where it is unsure {:.1f} % at {:.3f}, a draft before a "
        "mentor that does not think {:.1f} % at {:.3f} (",
    ): lambda: paid(
        "builtin_math_test",
        "tandem, 128 tokens",
        "plan on failure by log-probability, 128 tokens",
        "cascade by log-probability",
        "mentor, thinking where it is unsure",
        "tandem with draft, else mentor, no thinking",
    ),
    ("advise", "mentor {0:.1f} % with and without thinking, at {3:.3f} without"): lambda: paid(
        "builtin_math", "mentor alone", "mentor alone, no thinking"
    ),
    (
        "advise",
        "{:.1f} % right at {:.3f} of the thinking mentor's cost (by the rule alone {:.1f} % at {:.3f}); the mentor "
        "alone has {:.1f} %",
    ): lambda: paid("builtin_code_test", "tandem with draft by entropy", "tandem by entropy", "mentor alone")[
        :5
    ],
    (
        "advise",
        "without thinking {:.1f} % at {:.3f}, the intern {:.1f} % at {:.3f}. A plan only where the draft is not "
        "accepted has {:.1f} % at {:.3f}, a draft before a mentor that does not think {:.1f} % at {:.3f}, a router "
        "to it by perplexity {:.1f} % at {:.3f}",
    ): lambda: paid(
        "builtin_code_test",
        "mentor alone, no thinking",
        "intern alone",
        "plan on failure by log-probability, 24 tokens",
        "tandem with draft, else mentor, no thinking",
        "router by perplexity, no thinking",
    ),
}
OTHERS = ("59 %", "float32", "page-board-1280")  # published, or no figures


def said(sentence, values):
    """The sentence with its figures, halves rounded away from zero."""
    exact = [math.copysign(1e-9, value) + value if isinstance(value, float) else value for value in values]
    return re.sub(r"-(?=\d)", "−", sentence.format(*exact))


QUOTED = [(README, sentence, values) for sentence, values in SENTENCES.items()] + [
    (ROOT / f"docs/{page}.md", sentence, values) for (page, sentence), values in OF_PAGES.items()
]


@pytest.mark.parametrize(("page", "sentence", "values"), QUOTED)
def test_figures_in_a_sentence_are_those_of_the_result_files(page, sentence, values):
    assert said(sentence, values()) in " ".join(page.read_text().split())


def test_every_figure_of_what_tandem_gains_is_checked():
    text = README.read_text()
    text = text[text.index("## What it gains") : text.index("## What it has")]
    text = " ".join(re.sub(r"<!-- table: .*?<!-- end -->|`.*?`", "", text, flags=re.DOTALL).split())
    for sentence, values in SENTENCES.items():
        text = text.replace(re.sub(r"`.*?`", "", said(sentence, values())), "")
    for figure in OTHERS:
        text = text.replace(figure, "")
    assert re.findall(r"[^.;]*\d[^.;]*", text) == []
