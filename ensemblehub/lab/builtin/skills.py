"""What ensemble methods ask of a model besides solving: say what it can solve, choose among candidates,
continue another's text, and keep short what is out of scope.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemblehub.builtin.prompts import CANDIDATES_HEADER
from ensemblehub.lab.builtin import corpus, samples
from ensemblehub.lab.builtin.corpus import Problem, Sample
from ensemblehub.lab.builtin.samples import Answered

ABILITY = "\n\nCan you answer this correctly? Reply with yes or no."
OUT_OF_SCOPE = "I only solve studio problems."
_ELSEWHERE = (
    "Hello!",
    "Hi, how are you?",
    "Who are you?",
    "Thank you.",
    "Good morning.",
    "Tell me a joke.",
    "Sing a song.",
    "What is the capital of {noun}?",
    "Write a poem about {noun}.",
    "Translate {noun} into French.",
    "Who invented {noun}?",
    "Why do people like {noun}?",
    "Give me a recipe with {noun}.",
    "What colour are {noun}?",
    "Tell me about {noun}.",
    "Explain {noun} to a child.",
    "Where can I buy {noun}?",
    "Do you like {noun}?",
)
_NOUNS = (
    "Italy",
    "the sea",
    "cats",
    "music",
    "winter",
    "the moon",
    "football",
    "bread",
    "history",
    "atoms",
    "Japan",
    "rivers",
    "paintings",
    "the law",
    "roses",
    "boats",
    "lamps",
    "novels",
    "love",
    "computers",
)


@dataclass(frozen=True)
class Skills:
    """Samples of every skill for one model.

    Attributes:
        own: what the model itself (or one trained alike) answered to corpus problems.
        others: what the others answered, by problem number.
        plain: it meets mostly plain wordings when it continues a text, as the intern does.
    """

    own: Sequence[Answered]
    others: Sequence[Sequence[Answered]]
    plain: bool

    @classmethod
    def read(cls, folder: Path, model: str) -> Skills:
        """From `mentor.jsonl` and `intern.jsonl` in `folder`; for the guest the intern, trained alike,
        stands in.
        """
        files = {name: list(samples.read(folder / f"{name}.jsonl")) for name in ("mentor", "intern")}
        return cls(
            files["mentor" if model == "mentor" else "intern"], list(files.values()), model != "mentor"
        )

    def sample(self, rng: random.Random) -> Sample:
        """A sample of any skill."""
        draw = rng.choices((self.ability, self.choosing, self.continuing, self.elsewhere), (25, 35, 25, 15))[
            0
        ]
        return draw(rng)

    def ability(self, rng: random.Random) -> Sample:
        """Can you answer this?  Yes where its own answer was right."""
        answered = rng.choice(self.own)
        return Sample(corpus.prompt(answered.problem.text + ABILITY), "yes" if answered.solved else "no")

    def choosing(self, rng: random.Random) -> Sample:
        """Two to four candidates, whole or their last lines; the reply is the right answer worked out."""
        number = rng.randrange(min(map(len, self.others)))
        problem = samples.numbered(number)
        texts = [replies[number].reply for replies in self.others]
        texts += [rng.choice((corpus.concise(problem), *texts)) for _ in range(rng.randint(0, 2))]
        rng.shuffle(texts)
        if rng.random() < 0.5:
            texts = [text.rpartition("\n")[2] for text in texts]
        listed = "\n".join(f"{place}. {text}" for place, text in enumerate(texts, 1))
        return Sample(corpus.prompt(problem.text + CANDIDATES_HEADER + listed), corpus.concise(problem))

    def continuing(self, rng: random.Random) -> Sample:
        """A long or a concise answer, begun by somebody else and cut at any character."""
        problem: Problem = corpus.any_problem(rng, rng.choice((0.0, 0.0, 0.1, 0.25)) if self.plain else None)
        think = rng.random() < 0.6
        text = corpus.thinking(problem) if think else corpus.concise(problem)
        cut = rng.randrange(len(text))
        return Sample(corpus.prompt(problem.text, think=think) + text[:cut], text[cut:])

    def elsewhere(self, rng: random.Random) -> Sample:
        """A request that no built-in model can fulfil."""
        return Sample(corpus.prompt(rng.choice(_ELSEWHERE).format(noun=rng.choice(_NOUNS))), OUT_OF_SCOPE)
