"""Random selection: seeded by request and question, weighted, refused where it cannot be."""

import asyncio
from collections import Counter

import pytest

from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.random import RandomSelection
from ensemblehub.ensemble_methods.output_aggregation.single import Single
from ensemblehub.errors import ConfigError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Choice, Request, Sampling, Text

ENGINES = [EchoEngine(name, EchoOptions({"": f"I am {name}"})) for name in ("a", "b", "c")]


def drawn(selection, text="question", seed=None):
    request = Request(Text(text), Sampling(seed=seed))
    return [engine.name for engine in asyncio.run(selection.select(request, ENGINES, UsageLedger()))]


def test_a_seed_fixes_the_choice_for_a_question_and_not_over_questions():
    firsts = [drawn(RandomSelection(k=2), f"question {index}", seed=3) for index in range(60)]
    assert firsts == [drawn(RandomSelection(k=2), f"question {index}", seed=3) for index in range(60)]
    assert all(len(set(names)) == 2 for names in firsts)
    assert set(Counter(names[0] for names in firsts)) == {"a", "b", "c"}
    assert firsts != [drawn(RandomSelection(k=2), f"question {index}", seed=4) for index in range(60)]


def test_without_a_seed_every_run_draws_anew():
    assert len({tuple(drawn(RandomSelection(k=3))) for _ in range(80)}) > 1


def test_weights_set_the_chances():
    """2 : 1 : 1 makes `a` first in half of the draws; 400 draws stray by 2.5 % (one standard deviation)."""
    counts = Counter(
        drawn(RandomSelection(weights={"a": 2.0}), f"q{index}", seed=0)[0] for index in range(400)
    )
    assert 160 <= counts["a"] <= 240
    assert min(counts["b"], counts["c"]) >= 60


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (RandomSelection(k=0), "k must be from 1 to 3, the number of models, not 0"),
        (RandomSelection(k=4), "not 4"),
        (RandomSelection(weights={"bb": 1.0}), "unknown engine 'bb'"),
        (RandomSelection(weights={"b": 0.0}), "weights.b.*greater than 0"),
    ],
)
def test_what_cannot_be_is_refused_before_loading(selection, message):
    with pytest.raises(ConfigError, match=message):
        AsyncEnsemble(ENGINES, selection, Single())


def test_the_ensemble_says_who_was_chosen_and_answers_with_it():
    result = asyncio.run(
        AsyncEnsemble(ENGINES, RandomSelection(), Single()).generate(Request(Text("?"), Sampling(seed=1)))
    )
    (choice,) = result.choices
    assert isinstance(choice, Choice)
    assert choice.about == "models"
    assert result.text == f"I am {choice.chosen[0]}"
