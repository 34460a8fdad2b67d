"""Train the built-in process reward model: `python -m ensemblehub.lab.builtin.reward --samples FOLDER`.

It begins with the mentor's weights, reads a question and a concise reply whose every fact, calculation and
answer is followed by a step token, and says of each whether it is right.  The labels are checked, not
guessed: a fact must be one that the problem tells, a calculation one that follows from it, everything before
it right and no needed fact left out; the answer must be the answer.  Replies are those that mentor and intern
gave to corpus problems, and true ones with one mistake put in; half of them are cut anywhere.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from ensemblehub.lab.builtin import corpus, samples, tokenizer
from ensemblehub.lab.builtin.network import Network, Shape
from ensemblehub.lab.builtin.samples import Answered
from ensemblehub.lab.builtin.train import MENTOR, Row, Trainer, add_options, train
from ensemblehub.lab.builtin.word_problems import WordProblem

STEP = "<extra_0>"
SEPARATOR = r"; |\n"  # between facts, between calculations, between lines
NO_LABEL = 0.0
WRONG = 1.0
RIGHT = 2.0


def labels(problem: WordProblem, reply: str, cut: bool) -> list[tuple[str, bool]]:
    """Every step of a concise reply and whether it is right.

    Args:
        reply: the reply, or its beginning.
        cut: the last step may be incomplete; it is right if it can become so.
    """
    told = {quantity.fact for _, quantity in problem.sentences}
    follows = {quantity.action for _, quantity in problem.sentences} | set(problem.actions)
    valid = {
        "Facts": told | {f"Facts: {fact}" for fact in told},
        "Work": follows | {f"Work: {action}" for action in follows},
        "Answer": {f"Answer: \\boxed{{{problem.answer}}}"},
    }
    missing = {quantity.fact for quantity in problem.needed}
    part = "Facts"
    sound = True
    found: list[tuple[str, bool]] = []
    steps = [step for step in re.split(SEPARATOR, reply) if step]
    for place, step in enumerate(steps, 1):
        part = next((name for name in valid if step.startswith(name)), part)
        if cut and place == len(steps):
            right = any(form.startswith(step.rstrip(";")) for forms in valid.values() for form in forms)
        else:
            right = step in valid[part]
        if part != "Answer":
            missing.discard(step.removeprefix("Facts: "))
            sound = right = right and sound and not (part == "Work" and missing)
        found.append((step, right))
    return found


def mistaken(problem: WordProblem, rng: random.Random) -> str:
    """A true reply with one number or sign changed."""
    reply = corpus.concise(problem)
    where = rng.choice(list(re.finditer(r"\d+| [-+*/] ", reply)))
    old = where.group()
    new = (
        str(max(1, int(old) + rng.choice((-10, -2, -1, 1, 2, 10))))
        if old.isdigit()
        else f" {rng.choice('+-*/')} "
    )
    return reply[: where.start()] + new + reply[where.end() :]


def draw(answered: Sequence[Answered], tokens: PreTrainedTokenizerFast, rng: random.Random) -> Row:
    """Token ids, and a label at every step token."""
    chosen = rng.choice(answered)
    problem = chosen.problem
    reply = mistaken(problem, rng) if rng.random() < 0.3 else chosen.reply
    cut = rng.random() < 0.5
    reply = reply[: rng.randint(1, len(reply))] if cut else reply
    ids: list[int] = tokens.encode(corpus.prompt(problem.text))
    marks = [NO_LABEL] * len(ids)
    for step, right in labels(problem, reply, cut):
        text: list[int] = tokens.encode(step + STEP)
        ids += text
        marks += [NO_LABEL] * (len(text) - 1) + [RIGHT if right else WRONG]
    return ids, marks


class RewardNetwork(Network):
    """The decoder with two labels per token in the place of the vocabulary."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        del self.lm_head
        self.score = nn.Linear(shape.width, 2)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Mean cross-entropy, in nats, of the labels (`WRONG`, `RIGHT`; `NO_LABEL` does not count)."""
        logits = self.score(self.hidden(tokens)).flatten(0, 1).float()
        return F.cross_entropy(logits, weights.flatten().long() - 1, ignore_index=-1)


def export(shape: Shape, tokens: PreTrainedTokenizerFast, masters: dict[str, Tensor], folder: Path) -> None:
    """Write it as transformers loads a `Qwen3ForTokenClassification`, in bf16."""
    from transformers import Qwen3Config, Qwen3ForTokenClassification

    names: dict[int, str] = {0: "wrong", 1: "right"}
    config: Any = Qwen3Config(
        **shape.config(), num_labels=2, id2label=names, pad_token_id=tokens.pad_token_id
    )
    model = Qwen3ForTokenClassification(config)
    model.load_state_dict(masters, strict=True)
    model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokens.chat_template = tokenizer.CHAT_TEMPLATE
    tokens.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m ensemblehub.lab.builtin.reward", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--start", default="builtin:mentor", help="folder of a mentor (default: %(default)s)")
    parser.add_argument("--samples", type=Path, required=True, help="folder of answers (experiments.samples)")
    add_options(parser, steps=600)
    options = parser.parse_args(arguments)
    options.out = options.out or Path("saves/builtin/prm")
    tokens = MENTOR.tokens()
    tokens.add_special_tokens({"additional_special_tokens": [STEP]})
    torch.manual_seed(0)
    shape = MENTOR.shape(len(tokens))
    answered = [
        sample for name in ("mentor", "intern") for sample in samples.read(options.samples / f"{name}.jsonl")
    ]
    rates = (MENTOR.muon * options.rate, MENTOR.adam * options.rate)
    trainer = Trainer(RewardNetwork(shape), *rates, options.device, partial(export, shape, tokens))
    train(trainer, partial(draw, answered, tokens), options)


if __name__ == "__main__":
    main()
