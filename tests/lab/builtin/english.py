"""An independent reader of the word problems: English sentences to equations, equations to the answer.

Written from the meaning of the sentences; it knows nothing of how problems are drawn.
"""

import re
from fractions import Fraction

NUMBER_WORDS = {
    "a pair of": 2,
    "a trio of": 3,
    "a quartet of": 4,
    "half a dozen": 6,
    "a dozen": 12,
    "a baker's dozen": 13,
    "a score of": 20,
    "twice": 2,
    "three times": 3,
    "four times": 4,
    "double": 2,
    "triple": 3,
    "quadruple": 4,
}
IDIOM = "(?P<k>a pair of|a trio of|a quartet of|half a dozen|a dozen|a baker's dozen|a score of)"
FACTOR = "(?P<k>twice|three times|four times)"
K, A, B, C = r"(?P<k>\d+)", r"(?P<a>[a-z]+)", r"(?P<b>[a-z]+)", r"(?P<c>[a-z]+)"

# Each sentence means: first name = weight * second [+- third] + shift.
SENTENCES = {
    rf"There are {K} {A}\.": lambda k: ({"a": 1}, k),
    rf"The [a-z]+ has {K} {A}\.": lambda k: ({"a": 1}, k),
    rf"Somebody counted {IDIOM} {A}\.": lambda k: ({"a": 1}, k),
    rf"In the [a-z]+ stand {IDIOM} {A}\.": lambda k: ({"a": 1}, k),
    rf"There are {K} more {A} than {B}\.": lambda k: ({"a": 1, "b": -1}, k),
    rf"The {A} are {K} more than the {B}\.": lambda k: ({"a": 1, "b": -1}, k),
    rf"The {A} fall {K} short of the {B}\.": lambda k: ({"a": 1, "b": -1}, -k),
    rf"Take {K} from the {A} and the {B} match them\.": lambda k: ({"a": 1, "b": -1}, k),
    rf"There are {K} fewer {A} than {B}\.": lambda k: ({"a": 1, "b": -1}, -k),
    rf"The {A} are {K} fewer than the {B}\.": lambda k: ({"a": 1, "b": -1}, -k),
    rf"The {A} exceed the {B} by {K}\.": lambda k: ({"a": 1, "b": -1}, k),
    rf"Add {K} to the {A} and the {B} match them\.": lambda k: ({"a": 1, "b": -1}, -k),
    rf"There are {FACTOR} as many {A} as {B}\.": lambda k: ({"a": 1, "b": -k}, 0),
    rf"The {A} are {FACTOR} the {B}\.": lambda k: ({"a": 1, "b": -k}, 0),
    rf"To each of the {A} belong {K} {B}\.": lambda k: ({"b": 1, "a": -k}, 0),
    rf"(?P<k>Double|Triple|Quadruple) the {A} and the {B} match them\.": lambda k: ({"b": 1, "a": -k}, 0),
    rf"There are half as many {A} as {B}\.": lambda k: ({"a": 2, "b": -1}, 0),
    rf"The {A} are half of the {B}\.": lambda k: ({"a": 2, "b": -1}, 0),
    rf"Double the {A} to reach the {B}\.": lambda k: ({"a": 2, "b": -1}, 0),
    rf"Every two of the {A} share one of the {B}\.": lambda k: ({"a": 1, "b": -2}, 0),
    rf"The {A} are as many as the {B} and the {C} together\.": lambda k: ({"a": 1, "b": -1, "c": -1}, 0),
    rf"There are as many {A} as {B} and {C}\.": lambda k: ({"a": 1, "b": -1, "c": -1}, 0),
    rf"Put the {A} with the {B} and the {C} match them\.": lambda k: ({"a": 1, "b": 1, "c": -1}, 0),
    rf"The {A} are what is left of the {B} without the {C}\.": lambda k: ({"a": 1, "b": -1, "c": 1}, 0),
    rf"Only with the {A} do the {B} match the {C}\.": lambda k: ({"a": 1, "b": 1, "c": -1}, 0),
}
QUESTIONS = {
    rf"How many {A} are there\?": {"a": 1},
    rf"Find the number of {A}\.": {"a": 1},
    rf"How many {A} and {B} are there in all\?": {"a": 1, "b": 1},
    rf"Count the {A} and the {B} together\.": {"a": 1, "b": 1},
    rf"How many more {A} than {B} are there\?": {"a": 1, "b": -1},
    rf"By how many do the {A} outnumber the {B}\?": {"a": 1, "b": -1},
}


def sentences(text):
    """The sentences of a problem, the question last."""
    return re.findall(r"[^.?]+[.?]", text.replace(". ", ".\n").replace("? ", "?\n").replace("\n", ""))


def equation(sentence):
    """A sentence as ({name: weight}, right side); exactly one reading may fit."""
    readings = []
    for pattern, meaning in SENTENCES.items():
        match = re.fullmatch(pattern, sentence)
        if match:
            names = match.groupdict()
            said = names.pop("k", None)
            k = None if said is None else int(said) if said.isdigit() else NUMBER_WORDS[said.lower()]
            weights, right = meaning(k)
            readings.append(({names[letter]: weight for letter, weight in weights.items()}, right))
    assert len(readings) == 1, (sentence, readings)
    return readings[0]


def solve(text):
    """The answer to a problem, from nothing but its text."""
    *told, question = sentences(text)
    open_equations, values = [equation(sentence) for sentence in told], {}
    while True:
        left = []
        for weights, right in open_equations:
            unknown = [name for name in weights if name not in values]
            rest = right - sum(weight * values[name] for name, weight in weights.items() if name in values)
            if len(unknown) == 1:
                values[unknown[0]] = Fraction(rest, weights[unknown[0]])
            elif unknown:
                left.append((weights, right))
            else:
                assert rest == 0, "the sentences contradict each other"
        if len(left) == len(open_equations):
            break
        open_equations = left
    for pattern, weights in QUESTIONS.items():
        match = re.fullmatch(pattern, question)
        if match:
            return sum(weight * values[match[letter]] for letter, weight in weights.items())
    raise AssertionError(question)
