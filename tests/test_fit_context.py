"""A `max_tokens` that nobody asked for is cut to the room there is; one that was asked for is refused."""

import asyncio
import json

import pytest

from ensemblehub.cli import main as command
from ensemblehub.config import Config
from ensemblehub.config.sections import Generation
from ensemblehub.cost import UsageLedger
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.errors import ContextOverflowError
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Chat, Message, Request, Sampling

REPLY = "a b c d e f g h"
LONG = "one two three four five six"


def engine(context):
    return EchoEngine("echo", EchoOptions(replies={"": REPLY}, context=context))


def answered(context, **sampling):
    request = Request(Chat((Message("user", LONG),)), *([Sampling(**sampling)] if sampling else []))

    async def main():
        pieces = [piece async for piece in engine(context).stream(request, UsageLedger().meter("answer"))]
        return "".join(piece.text for piece in pieces), pieces[-1].finish

    return asyncio.run(main())


def test_a_default_is_cut_and_what_is_asked_for_refused():
    assert answered(10) == ("a b c d", "length")  # nobody said anything
    assert answered(10, max_tokens=8, fit_context=True) == ("a b c d", "length")
    assert answered(10, max_tokens=3, fit_context=True) == ("a b c", "length")
    assert answered(14, max_tokens=8) == (REPLY, "stop")
    with pytest.raises(ContextOverflowError, match=r"is 13 tokens.* requested 14 tokens \(6 in the prompt"):
        answered(13, max_tokens=8)
    with pytest.raises(ContextOverflowError, match=r"is 6 tokens.* requested 7 tokens \(6 in the prompt"):
        answered(6)


def test_what_is_not_known_fits():
    request = Request(Chat(()), Sampling(max_tokens=9))
    assert engine(5).fitted(request, None) is request
    assert engine(0).fitted(request, 1000) is request


def written(tmp_path, aggregation, generation="{max_tokens: 50}", context=12, big=12, **options):
    params = f", output_aggregation_params: {json.dumps(options)}" if options else ""
    (tmp_path / "some.yaml").write_text(
        f"""
model_specs:
- {{name: big, engine: echo, context: {big}, parameters: 9, replies: {{"": "{REPLY}"}}}}
- {{name: small, engine: echo, context: {context}, parameters: 1, replies: {{"": "{REPLY}"}}}}
ensemble: {{output_aggregation_method: {aggregation}{params}, generation: {generation}}}
"""
    )
    return tmp_path / "some.yaml"


def ask(path, question=LONG):
    async def main():
        async with AsyncEnsemble.from_config(path) as ensemble:
            return await ensemble.generate(question)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("aggregation", "options"),
    [("single", {}), ("loop", {"max_new_tokens_per_round": 2}), ("vote", {})],
)
def test_a_configured_default_is_cut_in_every_kind_of_ensemble(tmp_path, aggregation, options):
    result = ask(written(tmp_path, aggregation, **options))
    assert (result.text, result.finish) == ("a b c d e f", "length")
    with pytest.raises(ContextOverflowError):
        ask(written(tmp_path, aggregation, "{max_tokens: 50, fit_context: false}", **options))
    with pytest.raises(ContextOverflowError):
        ask(written(tmp_path, aggregation, **options), " ".join(["w"] * 12))


def test_tandem_keeps_room_for_its_insight_and_cuts_the_answer(tmp_path):
    path = written(tmp_path, "tandem", context=0, big=0, levels={"low": 3}, judge="fixed:low")
    result = ask(path, " ".join(["w"] * 30))
    assert result.text == REPLY
    read = max(line.cost.prompt_tokens for line in result.usage.lines if line.engine == "small")
    tight = written(tmp_path, "tandem", context=read + 5, big=0, levels={"low": 3}, judge="fixed:low")
    assert ask(tight, " ".join(["w"] * 30)).text == "a b c d e"
    strict = "{max_tokens: 50, fit_context: false}"
    path = written(tmp_path, "tandem", strict, read + 5, 0, levels={"low": 3}, judge="fixed:low")
    with pytest.raises(ContextOverflowError):
        ask(path, " ".join(["w"] * 30))


def test_the_flag_of_infer_is_asked_for_and_the_file_is_a_default(tmp_path, capsys):
    path, source, out = written(tmp_path, "single"), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"question": LONG}) + "\n")
    flags = ["infer", str(path), "--input_path", str(source), "--output_path", str(out), "--force"]
    for more, status in (([], 0), (["--max_tokens", "6"], 0), (["--max_tokens", "7"], 1)):
        with pytest.raises(SystemExit) as ended:
            command([*flags, *more])
        assert ended.value.code == status
        row = json.loads(out.read_text())
        assert (row["predict"], row["finish_reason"]) == (
            ("a b c d e f", "length") if not status else (None, None)
        )
    assert "7 in the completion" in row["error"]
    capsys.readouterr()


def test_null_and_what_a_file_says_are_defaults():
    assert Generation().sampling().fit_context
    assert Generation(max_tokens=9).sampling().required == 1
    assert Generation(max_tokens=9, fit_context=False).sampling().required == 9
    assert Config.model_validate({"model_specs": [{"path": "x"}]}).ensemble.generation.fit_context


def test_the_server_cuts_its_default_and_refuses_what_a_client_asks_for(tmp_path):
    pytest.importorskip("fastapi")
    import httpx2 as httpx

    from ensemblehub.api.app import create_app

    app = create_app(written(tmp_path, "single"))
    body = {"messages": [{"role": "user", "content": LONG}]}

    async def main():
        transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            while (await client.get("/health")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            asks = ({}, {"max_tokens": 6}, {"max_tokens": 7}, {"max_completion_tokens": 7})
            return [await client.post("/v1/chat/completions", json=body | more) for more in asks]

    cut, fits, *refused = asyncio.run(main())
    for answer in (cut, fits):
        choice = answer.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("a b c d e f", "length")
    for answer in refused:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
