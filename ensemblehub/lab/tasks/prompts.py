"""How a benchmark's questions are put to a model: named profiles of wording, each with its source.

Published scores depend on the words: 17 to 71 % have been reported for Qwen2.5-Coder-1.5B-Instruct on
HumanEval.  `plain` is this project's own wording, in `lab.tasks.public`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ensemblehub.schema import Chat, Message, Sampling


@dataclass(frozen=True)
class PromptProfile:
    """The words around a question.

    Attributes:
        user: the user's message; `{question}` and `{code}` stand for the question as text and as the start
            of a Python program.
        system: system text; where it is empty the chat template may add its own.
        opening: the start of the assistant's turn, which the model continues.
        stop: strings that end the answer, besides those of the configuration.
        max_tokens: maximum length of the answer that the scores were published with; None leaves the
            configuration's.
        shots: number of training questions that stand before, each with its solution, as turns.
    """

    user: str
    system: str = ""
    opening: str = ""
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    shots: int = 0

    @property
    def fingerprint(self) -> str:
        """Changes with any word."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    def chat(self, question: str, code: str, shots: Iterable[tuple[str, str]] = ()) -> Chat:
        """The conversation up to the assistant's turn.

        Args:
            shots: questions and their solutions.
        """
        system = (Message("system", self.system),) if self.system else ()
        turns = [
            turn
            for asked, solution in shots
            for turn in (Message("user", self._filled(asked, asked)), Message("assistant", solution))
        ]
        return Chat((*system, *turns, Message("user", self._filled(question, code))))

    @property
    def wording(self) -> list[str]:
        """Its parts that no configuration can hold."""
        parts = {
            "user text": self.user != "{question}",
            "system text": self.system,
            "opening": self.opening,
            "examples": self.shots,
        }
        return [name for name, used in parts.items() if used]

    def _filled(self, question: str, code: str) -> str:
        given = {"{question}": question, "{code}": code}
        return "".join(given.get(part, part) for part in _parts(self.user))

    def sampling(self, configured: Sampling) -> Sampling:
        """The configured sampling with the profile's stop strings and its length."""
        stop = tuple(dict.fromkeys((*configured.stop, *self.stop)))
        return replace(configured, stop=stop, max_tokens=self.max_tokens or configured.max_tokens)


def _parts(template: str) -> list[str]:
    """The template split at its two places, which stay; braces elsewhere mean nothing."""
    marked = template
    for place in ("{question}", "{code}"):
        marked = marked.replace(place, f"\0{place}\0")
    return marked.split("\0")


_ENDS = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")

QWEN_CODER = PromptProfile(
    system="You are an intelligent programming assistant to produce Python algorithmic solutions",
    user="Can you complete the following Python function?\n```python\n{code}\n```\n",
    opening="```python\n",
    stop=(*_ENDS, "\n#", "\n```"),
    max_tokens=768,
)
"""Qwen2.5-Coder's makers on HumanEval and MBPP: `ChatML` in `qwencoder-eval/instruct/eval_plus/model.py` of
QwenLM/Qwen2.5-Coder.  They allow 1,536 tokens with the prompt; 768 for the answer is EvalPlus's default."""

EVALPLUS = PromptProfile(
    user="Please provide a self-contained Python script that solves the following problem in a markdown code "
    "block:\n```\n{code}\n```\n",
    opening="Below is a Python script with a self-contained function that solves the problem and passes "
    "corresponding tests:\n```python\n",
    stop=(*_ENDS, "\n```\n"),
    max_tokens=768,
)
"""EvalPlus's leaderboard: `make_raw_chat_prompt` in `evalplus/provider/utility.py` of evalplus/evalplus, the
words from `evalplus/codegen.py`."""

QWEN_MATH = PromptProfile(
    system="Please reason step by step, and put your final answer within \\boxed{}.",
    user="{question}",
    max_tokens=2048,
)
"""Qwen2.5-Math's makers, zero-shot: `qwen25-math-cot` in `evaluation/utils.py` of QwenLM/Qwen2.5-Math, with
the length that its `math_eval.py` sets by default."""

REFERENCE = replace(QWEN_MATH, max_tokens=4096)
"""The reference toolkit's final collector (`collect_data_vllm_think.py`, `--prompt-type simple`), which asks
for the box on every benchmark, code included; it samples at temperature 0.7."""

CODE_PROFILES: Mapping[str, PromptProfile] = {
    "official": QWEN_CODER,
    "evalplus": EVALPLUS,
    "reference": REFERENCE,
}
MATH_PROFILES: Mapping[str, PromptProfile] = {"official": QWEN_MATH, "reference": REFERENCE}

FEW_SHOT = PromptProfile(user="Question: {question}\nAnswer:", stop=("Question:",), shots=4)
"""lm-evaluation-harness on GSM8K (`gsm8k.yaml`) with its examples as turns (`--fewshot_as_multiturn`), four as
most reports have.  The examples are the first of the seeded training split; their solutions end in a box."""
TRAINED_MATH_PROFILES: Mapping[str, PromptProfile] = {**MATH_PROFILES, "few_shot": FEW_SHOT}
