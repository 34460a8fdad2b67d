"""A mentor behind an API, in a process of its own, and a local intern: the same run as with both at home."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import ensemblehub
from ensemblehub import builtin
from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.lab.builtin import word_problems
from ensemblehub.schema import Chat, Message, Request
from tests.waiting import until

FAR = ["model_specs.0.engine=openai", "model_specs.0.path=mentor", "model_specs.0.dialect=vllm"]


def runs(config, count=12):
    rng = random.Random(5)
    questions = [word_problems.draw(rng, steps=3 + number % 3).text for number in range(count)]

    async def main():
        async with AsyncEnsemble.from_config(config) as ensemble:
            found = []
            for question in questions:
                sampling = replace(ensemble.sampling, max_tokens=64)
                found.append(await ensemble.generate(Request(Chat((Message("user", question),)), sampling)))
            return found

    return asyncio.run(main())


def far(url, *changes):
    params = [f"ensemble.output_aggregation_params.{change}" for change in changes]
    return Config.read(builtin.CONFIG, [*FAR, f"model_specs.0.base_url={url}/v1", *params])


def test_the_run_is_the_same_and_a_mentor_that_is_stopped_stops_over_there(serve):
    server = serve()
    away = runs(far(server.url, "strict=false"))
    home = runs(Config.read(builtin.CONFIG))
    for there, here in zip(away, home, strict=True):
        assert there.insight == here.insight
        assert [verdict.level for verdict in there.verdicts] == [verdict.level for verdict in here.verdicts]
        assert there.text == here.text
    asked = [result for result in away if any(line.purpose == "insight" for line in result.usage.lines)]
    assert asked
    stopped = [
        result
        for result in asked
        if any(line.cost.estimated for line in result.usage.lines if line.purpose == "insight")
    ]
    until(lambda: not server.get("/status").json()["running"])
    metrics = server.get("/metrics").text
    left = [
        line
        for line in metrics.splitlines()
        if 'outcome="disconnected"' in line and line.startswith("ensemblehub_requests")
    ]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in left) == len(stopped)


def test_without_the_mentor_the_intern_answers_alone_where_so_configured():
    nobody = far("http://127.0.0.1:9", "on_mentor_error=intern")
    (run,) = runs(
        nobody.model_copy(update={"model_specs": [quick(nobody.model_specs[0]), nobody.model_specs[1]]}), 1
    )
    assert run.text
    assert run.insight == ""


def quick(spec):
    return type(spec).model_validate({**spec.model_dump(), "patience": {"tries": 2, "backoff": 0.01}})


def test_the_example_of_a_mentor_behind_an_api_rides_with_another_address_and_small_models(serve):
    example = Path(ensemblehub.__file__).parents[1] / "examples" / "hetero_openrouter.yaml"
    models = ["model_specs.0.path=mentor", f"model_specs.0.base_url={serve().url}/v1"]
    models += [
        "model_specs.1.path=builtin:intern",
        "model_specs.1.device=cpu",
        "ensemble.generation.max_tokens=64",
    ]
    config = Config.read(example, [*models, "ensemble.output_aggregation_params.levels={low: 24, high: 64}"])
    for run in runs(config, 2):
        assert run.insight
        assert run.text
        assert {(line.engine, line.purpose) for line in run.usage.lines} >= {
            ("mentor", "insight"),
            ("intern", "answer"),
        }
