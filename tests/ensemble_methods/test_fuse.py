"""Fusing: who reads what, in how many layers, who writes the answer."""

import asyncio
import random
from contextlib import aclosing
from pathlib import Path

import pytest

from ensemblehub import registry
from ensemblehub.builtin.prompts import CANDIDATES_HEADER
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.model_selection.all import All
from ensemblehub.ensemble_methods.model_selection.random import RandomSelection
from ensemblehub.ensemble_methods.output_aggregation.fuse import Fuse
from ensemblehub.ensemble_methods.templates import filled
from ensemblehub.errors import ConfigError, EngineError, RequestError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.lab.builtin import samples, skills
from ensemblehub.schema import Chat, Message, Request, Sampling, Text, TokenIds

QUESTION = "How many {candidates} are there?"
CHAT = Chat((Message("system", "Be brief."), Message("user", QUESTION)), thinking=False)
LISTED = "{question}\nCandidate answers:\n{candidates}"


class Spy(EchoEngine):
    """Remembers what it was asked."""

    def __init__(self, name, replies, parameters=1_000_000, **options):
        if isinstance(replies, str):
            replies = {"": replies}
        super().__init__(name, EchoOptions(replies, parameters=parameters, **options))
        self.asked = []

    def stream(self, request, meter):
        self.asked.append((request, meter.purpose))
        return super().stream(request, meter)


def trio(**options):
    replies = {"Candidate answers": "fused by b", "": "b says\n\\boxed{2}"}
    return [
        Spy("a", "a says\n\\boxed{1}"),
        Spy("b", replies, 9_000_000, **options),
        Spy("c", "c says nothing"),
    ]


def fuse(engines, fusing=None, prompt=CHAT, prefix="", **sampling):
    hub = AsyncEnsemble(engines, All(), fusing or Fuse(template=LISTED))
    return asyncio.run(hub.generate(Request(prompt, Sampling(**sampling), prefix)))


def test_the_largest_writes_from_everybodys_proposals():
    engines = trio()
    result = fuse(engines)
    assert result.text == "fused by b"
    assert [(piece.engine, piece.purpose) for piece in result.pieces] == [("b", "answer")]
    request, purpose = engines[1].asked[-1]
    assert purpose == "answer"
    listed = "1. a says\n\\boxed{1}\n2. b says\n\\boxed{2}\n3. c says nothing"
    assert request.prompt.messages == (
        CHAT.messages[0],
        Message("user", f"{QUESTION}\nCandidate answers:\n{listed}"),
    )
    assert request.prompt.thinking is False
    costs = {(line.engine, line.purpose): line.cost.completion_tokens for line in result.usage.lines}
    assert costs == {("a", "propose"): 3, ("b", "propose"): 3, ("c", "propose"): 3, ("b", "answer"): 3}
    assert result.cost.discarded_tokens == 0  # every proposal was read


@pytest.mark.parametrize(
    ("show", "listed"),
    [
        ("full", "1. a says\n\\boxed{1}\n2. b says\n\\boxed{2}\n3. c says nothing"),
        ("last_line", "1. \\boxed{1}\n2. \\boxed{2}\n3. c says nothing"),
        ("answer", "1. 1\n2. 2\n3. c says nothing"),
    ],
)
def test_how_proposals_are_shown(show, listed):
    engines = trio()
    fuse(engines, Fuse(template=LISTED, show=show))
    assert engines[1].asked[-1][0].prompt.messages[-1].content.endswith(f"answers:\n{listed}")


def test_thoughts_are_not_shown():
    engines = [Spy("a", "<think>long thoughts</think>\nso: 4"), Spy("b", "so: 5", 2_000_000)]
    fuse(engines)
    assert engines[1].asked[-1][0].prompt.messages[-1].content.endswith("1. so: 4\n2. so: 5")


def test_fuser_and_proposers_by_name():
    engines = trio()
    result = fuse(engines, Fuse(fuser="c", proposers=("b", "a"), template=LISTED))
    assert result.text == "c says nothing"
    assert [len(engine.asked) for engine in engines] == [1, 1, 1]
    assert (
        engines[2]
        .asked[0][0]
        .prompt.messages[-1]
        .content.endswith("1. b says\n\\boxed{2}\n2. a says\n\\boxed{1}")
    )


def test_further_layers_see_the_proposals_of_the_layer_before():
    def second(name):
        return {f"1. {name} again": "third", "1. ": f"{name} again", "": f"{name} first"}

    engines = [Spy("a", second("a")), Spy("b", second("b"), 2_000_000)]
    fuse(engines, Fuse(template=LISTED, layers=3))
    heard = [request.prompt.messages[-1].content for request, _ in engines[1].asked]
    assert heard == [
        QUESTION,
        f"{QUESTION}\nCandidate answers:\n1. a first\n2. b first",
        f"{QUESTION}\nCandidate answers:\n1. a again\n2. b again",
        f"{QUESTION}\nCandidate answers:\n1. third\n2. b again",
    ]
    assert [purpose for _, purpose in engines[1].asked] == ["propose"] * 3 + ["answer"]
    assert len(engines[0].asked) == 3


def test_samples_of_one_model_differ_in_seed_by_layer_and_number():
    engine = Spy("a", "an answer")
    fuse([engine], Fuse(samples=2, layers=2), temperature=1.0, seed=3)
    assert len({request.sampling.seed for request, _ in engine.asked}) == 5
    assert engine.asked[-1][0].sampling.seed == 3


def test_at_temperature_0_each_proposer_writes_one_sample():
    engine = Spy("a", "an answer")
    assert fuse([engine], Fuse(samples=2, layers=2)).text == "an answer"
    assert [purpose for _, purpose in engine.asked] == ["propose", "propose", "answer"]


def test_the_request_limits_and_prefix_hold_for_the_answer():
    engines = [
        Spy("a", "It is one two three"),
        Spy("b", {"Candidate": "It is one END", "": "It is"}, 2_000_000),
    ]
    result = fuse(engines, prefix="It is", max_tokens=2, stop=("END",))
    request, _ = engines[1].asked[-1]
    assert request.prefix == "It is"
    assert request.prompt.messages[-1].content.endswith("1. It is one two\n2. It is")
    assert (result.text, result.finish) == (" one ", "stop")


def test_the_answer_is_streamed_and_closing_it_stops_the_fuser():
    engines = [Spy("a", "one"), Spy("b", {"Candidate": "word " * 500, "": "two"}, 2_000_000)]
    ledger = UsageLedger()

    async def run():
        async with aclosing(
            AsyncEnsemble(engines, All(), Fuse(template=LISTED)).stream(Request(CHAT), ledger)
        ) as events:
            async for _ in events:
                break

    asyncio.run(run())
    assert engines[1].written == 2
    assert ledger.total.completion_tokens == 3


def test_a_failing_proposer_fails_the_answer():
    engines = trio(fail_after=1)
    with pytest.raises(EngineError, match="b failed after 1 tokens"):
        fuse(engines)
    assert all(purpose == "propose" for engine in engines for _, purpose in engine.asked)


def test_raw_text_stays_raw_and_what_has_no_words_is_refused_before_it_costs():
    engines = trio()
    fuse(engines, prompt=Text("2 + 2 ="))
    assert engines[1].asked[-1][0].prompt.text.startswith("2 + 2 =\nCandidate answers:\n1. a says")
    asked = len(engines[0].asked)
    for prompt in (TokenIds((1, 2)), Chat(())):
        with pytest.raises(RequestError, match="fuse needs a question in words"):
            fuse(engines, prompt=prompt)
    assert len(engines[0].asked) == asked


def test_the_builtin_template_is_what_the_builtin_models_are_taught():
    own = [samples.Answered(number, f"Work: {number}\nAnswer: {number}", True) for number in range(20)]
    taught = skills.Skills(own, [own, own], plain=False)
    shown = set()
    for seed in range(8):
        prompt = taught.choosing(random.Random(seed)).prompt
        question, _, listed = prompt.partition(CANDIDATES_HEADER)
        places = [line for line in listed.splitlines() if line[:1].isdigit()]
        shown.add("last_line" if len(places) == len(listed.splitlines()) else "full")
        asked = filled(Fuse(template="builtin").words, question=question, candidates=listed)
        assert asked == prompt
    assert shown == {"last_line", "full"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fuser": "bb"}, "fuse: fuser: unknown engine 'bb'; did you mean 'b'?"),
        ({"proposers": ["a", "x"]}, "fuse: proposers: unknown engine 'x'"),
        ({"proposers": ["a", "a"]}, "a proposer is named twice"),
        ({"layers": 0}, "option 'layers': Input should be greater than or equal to 1 (got 0)"),
        ({"samples": 0}, "option 'samples': Input should be greater than or equal to 1 (got 0)"),
        ({"template": "builti"}, "did you mean 'builtin'"),
        ({"template": "Look: {candidates}"}, "the template lacks {question}"),
        ({"template": "Look at it."}, "the template lacks {candidates} and {question}"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        AsyncEnsemble(trio(), All(), registry.build(Fuse, options, "fuse"))
    assert message in str(error.value)


def test_a_selection_that_may_drop_a_named_engine_is_refused():
    with pytest.raises(ConfigError, match="fuse needs 'b', which selection random may drop"):
        AsyncEnsemble(trio(), RandomSelection(k=2), Fuse(fuser="b"))
    with pytest.raises(ConfigError, match="fuse needs 'b' and 'a'"):
        AsyncEnsemble(trio(), RandomSelection(k=2), Fuse(fuser="b", proposers=("a",)))
    with pytest.raises(ConfigError, match="at least 2 engines"):
        AsyncEnsemble(trio(), RandomSelection(k=1), Fuse())
    assert asyncio.run(AsyncEnsemble(trio(), RandomSelection(k=2), Fuse()).generate("How many?")).text


def test_the_builtin_models_fuse_and_vote_from_yaml(tmp_path: Path):
    models = "model_specs:\n- {name: intern, path: builtin:intern}\n- {name: mentor, path: builtin:mentor}\n"
    generation = "  generation: {max_tokens: 96, temperature: 0.8, seed: 4}\n"
    question = "There are 3 mugs. There are 2 more plates than mugs. How many plates are there?"

    def run(method, params):
        path = tmp_path / f"{method}.yaml"
        how = f"ensemble:\n  output_aggregation_method: {method}\n  output_aggregation_params: {params}\n"
        path.write_text(models + how + generation)

        async def go():
            async with AsyncEnsemble.from_config(path) as hub:
                return await hub.generate(
                    Request(Chat((Message("user", question),)), Sampling(96, 0, 0.8, seed=4))
                )

        return asyncio.run(go())

    voted = run("vote", "{samples: 3}")
    assert voted.choices[0].chosen[0].startswith(("intern#", "mentor#"))
    assert voted.choices[0] == run("vote", "{samples: 3}").choices[0]  # seeded: the same every time
    assert sum(line.cost.calls for line in voted.usage.lines) == 6
    fused = run("fuse", "{template: builtin, show: last_line}")
    assert {(line.engine, line.purpose) for line in fused.usage.lines} == {
        ("intern", "propose"),
        ("mentor", "propose"),
        ("mentor", "answer"),
    }
    assert fused.finish in ("stop", "length")
