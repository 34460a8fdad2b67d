"""Formats and tools by a grammar: what the model writes is valid, whoever shares the step, and costs others nothing."""

import asyncio
import json
import random
import sys
from dataclasses import replace

import jsonschema_rs
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hf_bench import Bench, run

from ensemblehub.errors import EngineError, MissingExtraError, RequestError
from ensemblehub.generators.structure.grammar import GrammarCompiler
from ensemblehub.generators.structure.wanted import WantedStructure
from ensemblehub.schema import Chat, Message, Request, Sampling

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "kind": {"enum": ["near", "far"]}},
    "required": ["x", "kind"],
    "additionalProperties": False,
}
NAMES = ("move", "stop")


def schema_format(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def tool(name, parameters=POINT, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def nested(levels):
    schema = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


TOOLS = [tool(name) for name in NAMES]


def ask(extra, content="the fox", **sampling):
    sampling = Sampling(**{"max_tokens": 300, "temperature": 1.0, "seed": 1} | sampling)
    return Request(Chat((Message("user", content),)), sampling, extra=extra)


def random_schema(rng, depth=2):
    """A bounded schema: an answer of any length would not end."""
    kinds = ["integer", "enum", "string", "boolean", "null", "any"] + ["array", "object"] * 2 * (depth > 0)
    kind = rng.choice(kinds)
    if kind == "integer":
        low = rng.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 100)}
    if kind == "enum":
        return {"enum": rng.sample(["red", "blue", 1, 2.5, None, True, 'a "b"', "é"], rng.randint(1, 4))}
    if kind == "string":
        return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 9)}
    if kind == "any":
        return {"anyOf": [random_schema(rng, 0) for _ in range(2)]}
    if kind == "array":
        items = random_schema(rng, depth - 1)
        return {"type": "array", "items": items, "minItems": rng.randint(0, 1), "maxItems": 3}
    if kind == "object":
        names = rng.sample(["name", "age", "tags", "x y", "näme"], rng.randint(0, 3))
        properties = {name: random_schema(rng, depth - 1) for name in names}
        required = [name for name in names if rng.random() < 0.7]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    return {"type": kind}


def shows_tools(bench):
    tokenizer = bench.engine.tokenizer.tokenizer
    tokenizer.chat_template = "{% if tools %}{{ tools | length }}{% endif %}" + tokenizer.chat_template


def calls_of(pieces):
    """Name and arguments of each call, folded from its parts."""
    calls = {}
    for part in (part for piece in pieces for part in piece.tool_calls):
        call = calls.setdefault(part["index"], {"id": part.get("id"), "name": "", "arguments": ""})
        for key, text in part["function"].items():
            call[key] += text
    return [calls[index] for index in sorted(calls)]


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def test_answers_to_random_schemas_are_valid_and_the_same_with_any_neighbour(bench):
    rng = random.Random(5)
    schemas = [random_schema(rng) for _ in range(20)]

    async def main():
        async with bench(prefix_cache_tokens=0) as b:
            asked = [ask(schema_format(schema), seed=at) for at, schema in enumerate(schemas)]
            free = ask({}, max_tokens=40, ignore_eos=True)
            alone = [await b.pieces(request) for request in (*asked, free)]
            together = await asyncio.gather(*map(b.pieces, (*asked, free)))
            assert any(rows > 10 for rows, width in b.passes if width == 1)
            assert [text_of(pieces) for pieces in together] == [text_of(pieces) for pieces in alone]
            for schema, pieces in zip(schemas, together[:-1], strict=True):
                assert pieces[-1].finish == "stop"
                jsonschema_rs.validate(schema, json.loads(text_of(pieces)))
            return {text_of(pieces) for pieces in together}

    assert len(run(main())) > 15  # the model chooses


def test_logprobs_are_of_the_distribution_among_the_allowed_tokens(bench):
    async def main():
        async with bench() as b:
            request = ask(schema_format(POINT), top_logprobs=4, temperature=0.0)
            (tokens,) = [[token for piece in await b.pieces(request) for token in piece.tokens]]
            prompt = list(b.engine.render(request).ids)
            lines = b.fresh([*prompt, *(token.id for token in tokens)])[len(prompt) - 1 :]
            compiler = GrammarCompiler("m", b.engine.vocabulary, None, b.engine.tokenizer.inside)
            grammar = compiler.grammar(WantedStructure.of(request.extra), b.engine.vocabulary.end)
            choices = 0
            for line, token in zip(lines, tokens, strict=False):
                forbidden = grammar.forbidden(len(line))
                expected = line.masked_fill(forbidden, -torch.inf).log_softmax(-1)
                assert token.id == expected.argmax()
                assert token.logprob == pytest.approx(expected.max().item(), abs=1e-4)
                assert len(token.top) == min(4, int((~forbidden).sum()))
                assert not any(forbidden[top.id] for top in token.top)
                choices += len(token.top) > 1
                grammar.consume(token.id)
            assert choices > 3
            scored = await b.engine.score(replace(request, prefix=text_of(await b.pieces(request))), b.meter)
            own = b.fresh([token.id for token in scored.tokens])
            for line, token in zip(own, scored.tokens[1:], strict=False):  # the cache holds no such logprobs
                assert token.logprob == pytest.approx(line[token.id].item(), abs=1e-4)

    run(main())


def test_the_grammars_end_is_a_stop_and_max_tokens_a_length(bench):
    async def main():
        async with bench() as b:
            whole = await b.pieces(ask(schema_format(POINT), ignore_eos=True, min_tokens=250))
            assert whole[-1].finish == "stop"
            assert json.loads(text_of(whole))
            cut = await b.pieces(ask(schema_format(POINT), max_tokens=5))
            assert (cut[-1].finish, len(cut)) == ("length", 5)
            assert text_of(whole).startswith(text_of(cut))
            exact = await b.pieces(ask(schema_format(POINT), max_tokens=len(whole)))
            assert (exact[-1].finish, text_of(exact)) == ("stop", text_of(whole))
            loose = await b.pieces(ask({"response_format": {"type": "json_object"}}, max_tokens=100))
            assert text_of(loose).startswith("{")
            stopped = await b.pieces(ask(schema_format(POINT), stop=("x",)))
            assert (text_of(stopped).strip(), stopped[-1].finish) == ('{"', "stop")

    run(main())


@pytest.mark.parametrize("parser", ["hermes", "llama3_json", "mistral"])
def test_tools_are_called_as_the_choice_says(parser, bench):
    async def main():
        async with bench(tool_parser=parser) as b:
            shows_tools(b)
            once = {"tools": TOOLS, "parallel_tool_calls": False}
            required = await b.pieces(ask({**once, "tool_choice": "required"}))
            (call,) = calls_of(required)
            assert call["name"] in NAMES
            assert len(call["id"]) == 9
            jsonschema_rs.validate(POINT, json.loads(call["arguments"]))
            assert (required[-1].finish, text_of(required)) == ("tool_calls", "")
            assert len([piece for piece in required if piece.tool_calls]) > 3  # as it is written
            choice = {"type": "function", "function": {"name": "stop"}}
            named = await b.pieces(ask({"tools": TOOLS, "tool_choice": choice}))
            assert [call["name"] for call in calls_of(named)] == ["stop"]
            assert named[-1].finish == "stop"  # as in OpenAI's API
            cut = await b.pieces(ask({**once, "tool_choice": "required"}, max_tokens=len(required) - 4))
            assert cut[-1].finish == "length"
            assert call["arguments"].startswith(calls_of(cut)[0]["arguments"])
            free = await b.pieces(ask({"tools": TOOLS}, max_tokens=40))
            assert text_of(free)
            assert not calls_of(free)
            none = await b.pieces(ask({"tools": TOOLS, "tool_choice": "none"}, max_tokens=8, ignore_eos=True))
            assert (none[-1].finish, calls_of(none)) == ("length", [])
            both = await b.pieces(ask({"tools": TOOLS, **schema_format({"enum": [1, 2]})}))
            assert text_of(both) in ("1", "2") or calls_of(both)

    run(main())


def test_several_calls_are_made_together(bench):
    async def main():
        async with bench(tool_parser="hermes") as b:
            shows_tools(b)
            index = b.engine.tokenizer.inside("\n")[0]
            extra = {"tools": [tool("a", {"const": {}}), tool("b", {"const": {}})], "tool_choice": "required"}
            pieces = await b.pieces(ask(extra, logit_bias={index: 30.0}, max_tokens=200))
            calls = calls_of(pieces)
            assert len(calls) > 1
            assert {call["name"] for call in calls} <= {"a", "b"}
            assert len({call["id"] for call in calls}) == len(calls)

    run(main())


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (schema_format({"not": {}}), r'response_format.json_schema.schema: Unimplemented keys: \["not"\]'),
        (schema_format({"type": "string", "format": "odd"}), "Unknown format: odd"),
        (schema_format({"$ref": "#"}), "no answer can keep to what is asked for"),
        (schema_format(nested(400)), "a schema is nested too deeply"),
        ({"response_format": {"type": "json_schema"}}, "'json_schema' field must be provided"),
        ({"response_format": {"type": "yaml"}}, "response_format.type: Input should be"),
        ({"tools": [{"type": "function"}]}, "tools.0.function: Field required"),
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools.0.type"),
        ({"tools": [*TOOLS, tool("move")]}, "two tools are called 'move'"),
        ({"tools": [tool("move", {"type": "array"})]}, "the arguments of a function are an object"),
        ({"tools": [tool("move", {"not": {}}, strict=True)]}, "'move': Unimplemented keys"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice does not match any of the tools: there is no 'sub'",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(extra, words, bench):
    async def main():
        async with bench(tool_parser="hermes") as b:
            shows_tools(b)
            with pytest.raises(RequestError, match=words) as found:
                await b.pieces(ask(extra))
            assert "\n" not in str(found.value)
            assert b.cost.completion_tokens == 0

    run(main())


def test_a_schema_that_is_not_strict_gives_way_where_it_cannot_be_enforced(bench):
    async def main():
        async with bench(tool_parser="hermes") as b:
            shows_tools(b)
            odd = tool("move", {"type": "object", "not": {"required": ["z"]}})
            pieces = await b.pieces(ask({"tools": [odd], "tool_choice": "required"}, temperature=0.0))
            assert calls_of(pieces)[0]["arguments"].strip().startswith("{")

    run(main())


def test_a_started_answer_keeps_to_no_format(bench):
    async def main():
        async with bench() as b:
            with pytest.raises(RequestError, match="cannot be continued"):
                await b.pieces(replace(ask(schema_format(POINT)), prefix="{"))

    run(main())


def test_a_vocabulary_without_the_letters_fails_its_own_row_only(bench):
    async def main():
        async with bench() as b:
            vocabulary = b.engine.vocabulary
            mute = tuple(b"" if b'"' in text else text for text in vocabulary.tokens)
            b.engine.vocabulary = replace(vocabulary, tokens=mute)
            broken = asyncio.create_task(b.pieces(ask(schema_format(POINT))))
            free = await b.pieces(ask({}, max_tokens=20, ignore_eos=True))
            assert len(free) == 20
            with pytest.raises(EngineError, match="the grammar cannot be followed") as found:
                await broken
            assert "\n" not in str(found.value)

    run(main())


def test_the_missing_library_is_one_line_that_names_the_extra(bench, monkeypatch):
    async def main():
        async with bench() as b:
            monkeypatch.setitem(sys.modules, "llguidance", None)
            monkeypatch.delitem(sys.modules, "ensemblehub.generators.structure.grammar")
            with pytest.raises(MissingExtraError, match=r"pip install 'ensemblehub\[structured\]'"):
                await b.pieces(ask(schema_format(POINT)))
            assert len(await b.pieces(ask({}, max_tokens=3, ignore_eos=True))) == 3

    run(main())


def test_the_options_of_an_engine_say_whether_it_calls_tools(qwen):
    assert "tools" not in Bench(qwen).engine.capabilities
    assert "tools" in Bench(qwen, tool_parser="mistral").engine.capabilities
    with pytest.raises(Exception, match="hermes"):
        Bench(qwen, tool_parser="nonsense")
