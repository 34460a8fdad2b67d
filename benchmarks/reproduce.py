"""Estimated cost of reproducing the paper on real GPUs: `python -m benchmarks.reproduce`.

Memory, hours and dollars of `scripts/mentor_guided/exp_homo_math.sh` (MATH-500, 600 questions collected, 100 run
live), from the mean lengths in the paper (Table 1) and the assumptions below. This is an estimate, not a measurement:
decoding is assumed to be bound by memory bandwidth, a share of which is reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemblehub.lab.markdown import table

RESULT = Path("results/benchmarks/reproduce.txt")
COLLECTED, LIVE = 600, 100  # questions: train 400, calibration 100 of them once more, test 100
BANDWIDTH, SHARE = 3.35e12, 0.5  # bytes/s of an H100, and how much of it decoding reaches
DOLLARS = 3.0  # per GPU and hour
GPT_4O = 10.0  # dollars per million output tokens of GPT-4o
ANSWER = 600  # assumed tokens of an answer of GPT-4o


@dataclass(frozen=True)
class Model:
    """A model in bf16.

    Attributes:
        parameters: number of parameters.
        token: bytes of keys and values per token.
        collect: output tokens per collected question, from the paper's mean lengths.
        live: output tokens per question run live.
        longer: factor of both at `max_tokens` 32,768, from the reference's own runs with 32,768 and 4,096.
    """

    parameters: float
    token: float
    collect: float
    live: float
    longer: float


# Mentor: an insight of 994 tokens, and alone 2,630 thinking (as many again at most without).  Intern: 2,732, 2,634,
# 2,353 and 1,936 tokens after 0, 100, 500 and 1,000 tokens of insight.
MENTOR = Model(32.8e9, 64 * 8 * 128 * 2 * 2, 994 + 2630 + 2630, 920, 2849 / 2630)
INTERN = Model(7.6e9, 28 * 4 * 128 * 2 * 2, 2732 + 2634 + 2353 + 1936, 1996, 3199 / 2732)


@dataclass(frozen=True)
class Machine:
    """GPUs of 80 GB, and how the pair is laid out on them."""

    gpus: int
    workers: int
    layout: str
    bytes_per_parameter: float = 2.0
    rows: int = 8


MACHINES = (
    Machine(1, 1, "both on one GPU, the mentor in 8 bit (`quantization: 8bit`)", 1.0),
    Machine(4, 2, "two workers, each a GPU for the mentor and one for the intern"),
    Machine(8, 4, "four workers, each a GPU for the mentor and one for the intern"),
)


def hours(model: Model, machine: Machine, weight_bytes: float, longest: int) -> float:
    """Hours in which `machine.workers` copies of the model write everything."""
    longer = model.longer if longest > 4096 else 1.0
    tokens = longer * (COLLECTED * model.collect + LIVE * model.live)
    second = machine.rows * SHARE * BANDWIDTH / (model.parameters * weight_bytes)  # tokens of one copy
    return tokens / second / machine.workers / 3600


def row(machine: Machine, longest: int) -> tuple[str, ...]:
    """The cells of one line of the table."""
    mentor = hours(MENTOR, machine, machine.bytes_per_parameter, longest)
    intern = hours(INTERN, machine, 2.0, longest)
    weights = MENTOR.parameters * machine.bytes_per_parameter, INTERN.parameters * 2
    cache = tuple(model.token * machine.rows * 4096 for model in (MENTOR, INTERN))
    took = mentor + intern  # a question waits for its mentor, then for its intern
    memory = ", ".join(f"{(a + b) / 1e9:.0f} GB" for a, b in zip(weights, cache, strict=True))
    cells = (
        machine.gpus,
        machine.layout,
        memory,
        f"{longest:,}",
        f"{took:.1f}",
        f"{took * machine.gpus * DOLLARS:.0f}",
    )
    return tuple(map(str, cells))


def text() -> str:
    """The tables as Markdown."""
    header = ("GPUs", "layout", "memory of a mentor, of an intern", "max_tokens", "hours", "dollars")
    lines = [table(header, (row(machine, longest) for machine in MACHINES for longest in (4096, 32768)))]
    api = (COLLECTED * (994 + 2 * ANSWER) + LIVE * 920) * GPT_4O / 1e6
    lines += [
        "",
        f"Assumptions: H100 with {BANDWIDTH / 1e12:.2f} TB/s, of which decoding reaches {SHARE:.0%}; {DOLLARS:g} "
        f"dollars per GPU-hour; {MACHINES[0].rows} questions at a time, each with keys and values of 4,096 tokens; at "
        f"32,768 tokens, answers {MENTOR.longer:.2f} (mentor) and {INTERN.longer:.2f} (intern) times as long, as the "
        "reference measured.",
        f"With GPT-4o as mentor (`exp_hetero_math.sh`): {api:.0f} dollars at {GPT_4O:g} dollars per million output "
        f"tokens, with answers of {ANSWER} tokens and without the cost of prompts. The provider charges for all tokens "
        "it generated, including those discarded; the usage records them.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    RESULT.write_text(text(), encoding="utf-8")
    print(text(), end="")
