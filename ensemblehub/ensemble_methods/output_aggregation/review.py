"""`review`: the small model answers, the large one rewrites that from the first wrong line on.

Ours; after critique and repair as in Madaan et al., "Self-Refine", NeurIPS 2023, with the critic and the
author two models. What the large model writes is a word where it agrees, and else only what follows the
part that it leaves as it is. `by: logprob` takes its own probabilities of the draft's lines, from one
forward pass, in place of its words; that is speculative decoding's check with lines for tokens and a mean
for the rejection rule.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from ensemblehub.ensemble_methods.acceptance import NEVER, Trial
from ensemblehub.ensemble_methods.escalation import Escalation
from ensemblehub.ensemble_methods.repair import continued, kept_part, likely_length, limited
from ensemblehub.ensemble_methods.roles import require
from ensemblehub.ensemble_methods.templates import check_template, filled, question_of, with_question
from ensemblehub.errors import ConfigError
from ensemblehub.generators.base import Engine
from ensemblehub.schema import Event, Piece, Request, Token

OBJECTION = 0.5
TEMPLATE = """{question}

Someone else answered the request above. The lines of that answer are numbered:
{answer}

If the answer is right, reply OK and nothing else. Otherwise reply with the number of the first wrong line \
and a colon, and then write the answer anew from that line on, to its end."""
AGREED = re.compile(r"\W*ok\W*", re.IGNORECASE)
OBJECTED = re.compile(r"\s*(?:line\s*)?(\d{1,9})\s*:(?:(?:[^\S\n]*\n)+| ?)", re.IGNORECASE)
DECIDED = 16  # characters after which a reply that has neither form is the answer


@dataclass(frozen=True)
class Review(Escalation):
    """The small model's answer as far as the large one leaves it, and the large one's from there on.

    A reply of the reviewer that is neither OK alone nor begins with the number of a line and a colon is the
    whole answer.  `max_tokens` bounds the answer, and the reply with its number; `min_tokens` holds for the
    small model's answer, and with `by: words` not for the reply, which may be OK.

    Requires at least 2 models, of the large one `score` and `prefix` with `by: logprob`, and of the small
    one what `accept` needs.

    Use when the large model objects to wrong lines and to those alone.  Not when it objects to most
    answers, as the built-in mentor does: on built-in math its 87.5 % for 1.32 times its cost, and on
    built-in code 68.7 % where the intern alone has 85.5 %.

    Attributes:
        large, small: engines by name; the largest and the smallest by default.
        by: `words`: the large model is asked; `logprob`: it objects to the first line that is less
            probable to it than `objection`.
        objection: geometric mean probability of a line's tokens; 0.5 by default.  Not with `by: words`.
        template: what the large model is asked, with {question} and {answer}.
        accept, threshold, lost: when an answer is not reviewed, as for `cascade`; by default each is.
    """

    keeps_draft: ClassVar[bool] = True

    accept: str = NEVER
    by: Literal["words", "logprob"] = "words"
    objection: Annotated[float, Ge(0), Le(1)] | None = None
    template: str = TEMPLATE

    def escalated(self, trial: Trial, large: Engine) -> AsyncGenerator[Event, None]:
        if self.by == "logprob":
            return self.read(trial, large)
        return limited(self.asked(trial, large), trial.request.sampling)

    async def read(self, trial: Trial, large: Engine) -> AsyncGenerator[Event, None]:
        """The answer where the large model objects by its probabilities."""
        request, draft = trial.request, trial.draft
        ledger = trial.ledger
        scored = await large.score(request.continued(draft.text), ledger.meter("judge"))
        tokens = scored.after(request.prompt, len(request.prefix))
        agreed = likely_length(request, draft.text, tokens, self.objected_below)
        if agreed is None:
            yield draft.answer
            return
        kept = kept_part(draft, agreed, request.sampling.max_tokens, ledger)
        async with aclosing(continued(kept, request, large, ledger)) as pieces:
            async for piece in pieces:
                yield piece

    async def asked(self, trial: Trial, large: Engine) -> AsyncGenerator[Piece, None]:
        """The answer where the large model objects in words."""
        request = self.question(trial.request, trial.draft.text)
        lines = trial.draft.text.splitlines(keepends=True) or [""]
        begun, decided = list[Piece](), False
        async with aclosing(large.stream(request, trial.ledger.meter("answer"))) as pieces:
            async for piece in pieces:
                if decided:
                    yield replace(piece, round=2)
                    continue
                begun.append(piece)
                head = "".join(part.text for part in begun)
                found = OBJECTED.match(head)
                if piece.finish is None and undecided(head, found):
                    continue
                if AGREED.fullmatch(head):
                    yield trial.draft.answer
                    return
                decided = True
                found = found if found and 1 <= int(found[1]) <= len(lines) else None
                kept = len("".join(lines[: int(found[1]) - 1])) if found else 0
                yield kept_part(trial.draft, kept, request.sampling.max_tokens, trial.ledger)
                for part in behind(begun, found.end() if found else 0):
                    yield replace(part, round=2)

    def question(self, request: Request, draft: str) -> Request:
        """What the large model is asked about a draft."""
        lines = draft.splitlines() or [""]
        numbered = "\n".join(f"{number}: {line}" for number, line in enumerate(lines, 1))
        words = filled(self.template, question=question_of(request.prompt, "review"), answer=numbered)
        sampling = replace(request.sampling, stop=(), min_tokens=0)
        return replace(
            request, prompt=with_question(request.prompt, words), sampling=sampling, prefix="", written=()
        )

    @property
    def objected_below(self) -> float:
        """`objection`, or its default."""
        return OBJECTION if self.objection is None else self.objection

    def deciding(self) -> dict[str, Any]:
        found = super().deciding()
        return found | {"settings": found["settings"] | {"objection": self.objected_below}}

    def check(self, engines: Sequence[Engine]) -> None:
        super().check(engines)
        if self.objection is not None and self.by == "words":
            raise ConfigError("review: `objection` is a probability, which needs `by: logprob`")
        check_template(self.template, ["question", "answer"], "review")
        require(
            self.pair(engines)[0], {"score", "prefix"} if self.by == "logprob" else set(), "review (large)"
        )


def undecided(head: str, found: re.Match[str] | None) -> bool:
    """Whether what follows the beginning of a reply may still decide which form it has."""
    if found:
        return not head[found.end() :].strip()
    return len(head) < DECIDED or AGREED.fullmatch(head) is not None


def behind(pieces: Sequence[Piece], characters: int) -> list[Piece]:
    """The pieces and tokens of what follows the first `characters` of a text."""
    left = list[Piece]()
    for piece in pieces:
        tokens, start = list[Token](), characters
        for token in piece.tokens:
            if not start:
                tokens.append(token)
            elif len(token.text) > start:
                tokens.append(replace(token, text=token.text[start:], part=None))
            start = max(0, start - len(token.text))
        text = piece.text[characters:]
        if text or tokens or piece.finish:
            left.append(replace(piece, text=text, tokens=tuple(tokens)))
        characters = max(0, characters - len(piece.text))
    return left
