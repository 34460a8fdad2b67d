"""Formats and tools on a real model through the server: `python -m benchmarks.structured_output FILE.gguf`.

OpenAI's SDK asks a `llama_cpp` member, at temperature 0: a tool call and the answer to its result (chat completions and
Responses), an answer parsed into a pydantic model, and one sentence after another for a person's name, age and city,
free, with `json_schema`, and with a tool that it may call (`auto`), in random order for each sentence.  Tokens a
second are those of a stream from its first to its last part, each of which is a token; ratios are taken within a
sentence.  The model's chat template has to show tools, and it has to write calls as `--tool-parser` says.

Writes `structured_output.json` and `.txt`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from openai import OpenAI
from pydantic import BaseModel, ValidationError

from benchmarks import server_load as load
from benchmarks.engine_overhead import interval


class Person(BaseModel):
    """What a sentence says of a person."""

    name: str
    age: int
    city: str


NAMES = ("Ada", "Bela", "Chen", "Dana", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun", "Kira", "Luis")
CITIES = ("Oslo", "Lima", "Kyoto", "Porto")
SCHEMA = Person.model_json_schema() | {"additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
KEEP = {"name": "keep_person", "description": "Keep a person.", "parameters": SCHEMA, "strict": True}
WEATHER = {
    "name": "weather",
    "description": "The weather in a city now.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
WAYS: dict[str, dict[str, Any]] = {
    "free": {},
    "json_schema": {"response_format": FORM},
    "tools, auto": {"tools": [{"type": "function", "function": KEEP}]},
}


def main() -> None:
    """Ask, measure and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the model, whose tokenizer may lie beside it")
    parser.add_argument("--tool-parser", default="hermes", help="how it writes calls (default: hermes)")
    parser.add_argument("--sentences", type=int, default=12, help="number of sentences (default: 12)")
    parser.add_argument("--out", type=Path, default=load.RESULTS, help="folder of the result")
    given = parser.parse_args()
    where = load.conditions()
    options = {"path": str(given.file), "tool_parser": given.tool_parser, "n_ctx": 2048, "threads": 1}
    config = {"model_specs": [{"name": "model", "engine": "llama_cpp", **options}]}
    with (
        load.server(config) as (url, _),
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        transcript = [*a_call(client), *a_response(client), *a_person(client)]
        rates, counts = asked(client, given.sentences)
    lines, record = figures(rates, counts)
    title = f"{given.file.parent.name}, llama_cpp, 1 thread, temperature 0, {given.sentences} sentences"
    text = "\n".join((title, *lines, "", *transcript, "", load.told(where)))
    load.keep(given.out, "structured_output", {"where": where, "model": title, **record}, text, [])


def a_call(client: OpenAI) -> list[str]:
    """A streamed tool call and the answer to its result."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    tools: list[Any] = [{"type": "function", "function": WEATHER}]
    name = arguments = call = ""
    asked: dict[str, Any] = {"model": "model", "tools": tools, "temperature": 0}
    stream = client.chat.completions.create(**asked, messages=messages, tool_choice="required", stream=True)
    for chunk in stream:
        for part in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            call, name = call or part.id or "", name or part.function.name or ""
            arguments += part.function.arguments or ""
    made = {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages += [{"role": "assistant", "content": None, "tool_calls": [made]}]
    messages += [{"role": "tool", "tool_call_id": call, "content": "-3 degrees, snow"}]
    reply = client.chat.completions.create(**asked, messages=messages)
    said = reply.choices[0].message.content
    return [f"chat completions, streamed call: {name}({arguments})", f"  after '-3 degrees, snow': {said!r}"]


def a_response(client: OpenAI) -> list[str]:
    """The same call through the Responses API."""
    tool: Any = {"type": "function", "strict": False, **WEATHER}
    asked = "What is the weather in Lima?"
    response = client.responses.create(model="model", input=asked, tools=[tool], tool_choice="required")
    calls = [f"{item.name}({item.arguments})" for item in response.output if item.type == "function_call"]
    return [f"responses, call: {', '.join(calls)}"]


def a_person(client: OpenAI) -> list[str]:
    """An answer that the SDK parses into a model."""
    messages: list[Any] = [{"role": "user", "content": "Mia is 31 and lives in Porto. Name, age and city?"}]
    reply = client.chat.completions.parse(
        model="model", messages=messages, response_format=Person, temperature=0
    )
    return [f"parsed by the SDK: {reply.choices[0].message.parsed!r}"]


def asked(client: OpenAI, sentences: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Tokens a second of each sentence and way, and how many answers are a person as asked."""
    rng = random.Random(0)
    rates, counts = defaultdict[str, list[float]](list), defaultdict[str, int](int)
    for number in range(sentences):
        person = Person(name=NAMES[number % 12], age=rng.randint(18, 90), city=rng.choice(CITIES))
        question = (
            f"{person.name}, who is {person.age}, moved to {person.city}. Give name, age and city as JSON."
        )
        for way in rng.sample(list(WAYS), len(WAYS)):
            rate, written, called = streamed(client, question, WAYS[way])
            rates[way].append(rate)
            counts[f"{way}: valid"] += is_person(written, None)
            counts[f"{way}: right"] += is_person(written, person)
            counts[f"{way}: called"] += called
        print(f"{number + 1} of {sentences} sentences", flush=True)
    return rates, counts


def streamed(client: OpenAI, question: str, way: Mapping[str, Any]) -> tuple[float, str, bool]:
    """Tokens a second of a streamed answer, its text and the arguments of its calls, and whether it calls."""
    at, written, called = list[float](), "", False
    for chunk in client.chat.completions.create(  # type: ignore[call-overload]
        model="model",
        messages=[{"role": "user", "content": question}],
        max_tokens=96,
        temperature=0,
        stream=True,
        **way,
    ):
        for choice in chunk.choices:
            calls = choice.delta.tool_calls or ()
            written += (choice.delta.content or "") + "".join(call.function.arguments or "" for call in calls)
            called = called or bool(calls)
            if choice.delta.content or calls:
                at.append(time.perf_counter())
    return (len(at) - 1) / (at[-1] - at[0]), written, called


def is_person(text: str, person: Person | None) -> bool:
    """Whether a text is JSON of a person, or of this one."""
    try:
        found = Person.model_validate_json(text, strict=True)
    except ValidationError:
        return False
    return person is None or found == person


def figures(rates: Mapping[str, list[float]], counts: Mapping[str, int]) -> tuple[list[str], dict[str, Any]]:
    """Lines and a record of the measurement."""
    lines, record = list[str](), dict[str, Any]()
    for way, found in rates.items():
        ratios = list(np.array(found) / np.array(rates["free"]))
        middle, (low, high) = float(np.median(ratios)), interval(ratios)
        answers = {what: counts[f"{way}: {what}"] for what in ("valid", "right", "called")}
        record[way] = {"tokens_per_second": found, "ratio": [middle, low, high], **answers}
        lines.append(
            f"{way:12} {np.median(found):6.1f} tokens/s, {middle:.2f} times free ({low:.2f} to {high:.2f}); "
            f"a person's JSON and nothing else {answers['valid']} of {len(found)}, "
            f"of the right person {answers['right']}, as a call {answers['called']}"
        )
    return lines, record


if __name__ == "__main__":
    main()
