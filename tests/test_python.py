"""The Python interface: sync and async alike, in scripts, threads and running loops; typed for users."""

import asyncio
import gc
import inspect
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import ensemblehub as eh
from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.registry import AGGREGATIONS, SELECTIONS


def engine(name, reply, **options):
    return EchoEngine(name, EchoOptions(replies={"": reply}, parameters=1 + len(reply), **options))


def pair(**options):
    return eh.Ensemble.tandem(engine("big", "Goal: add. Action: 2 + 2"), engine("small", "four"), **options)


def test_a_question_a_list_a_conversation_and_a_stream():
    with pair(judge="fixed:low") as ensemble:
        result = ensemble.generate("How many?", temperature=0.7, max_tokens=256)
        assert (result.text, result.insight) == ("four", "Goal: add. Action: 2 + 2")
        assert [verdict.level for verdict in result.verdicts] == ["low"]
        assert result.usage.cost.completion_tokens == sum(
            line.cost.completion_tokens for line in result.usage.lines
        )
        assert [each.text for each in ensemble.generate(["How many?", "And now?"])] == ["four"] * 2
        assert ensemble.generate([{"role": "user", "content": "Hi"}]).text == "four"
        assert ensemble.chat([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]).text == "four"
        events = list(ensemble.stream("How many?"))
        assert {event.type for event in events} == {"piece", "verdict"}
        assert "".join(ensemble.stream_text("How many?")) == "four"


def test_a_result_as_a_dict_is_json_and_adds_up():
    import json

    result = pair(judge="fixed:low").generate("How many?")
    record = json.loads(json.dumps(result.to_dict()))
    assert record["text"] == "four"
    assert record["usage"]["cost"]["flops"] == sum(line["flops"] for line in record["usage"]["lines"])


def test_both_have_the_same_methods():
    own = {
        name: list(inspect.signature(method).parameters)
        for name, method in inspect.getmembers(eh.Ensemble, callable)
        if not name.startswith("_")
    }
    internal = {"ledger", "engines", "scorers"}
    for name, parameters in own.items():
        method = getattr(eh.AsyncEnsemble, name)
        assert parameters == [
            each for each in inspect.signature(method).parameters if each not in internal
        ], name


def test_the_async_one_is_awaited():
    async def answers():
        async with eh.AsyncEnsemble([engine("a", "yes")]) as ensemble:
            texts = [text async for text in ensemble.stream_text("Well?")]
            return await ensemble.generate(["Well?"]), "".join(texts)

    (result,), text = asyncio.run(answers())
    assert result.text == text == "yes"


def test_it_works_in_a_running_loop_and_in_threads():
    ensemble = eh.Ensemble([engine("a", "yes")])

    async def notebook():
        return ensemble.generate("Well?").text

    assert asyncio.run(notebook()) == "yes"
    found = []
    threads = [threading.Thread(target=lambda: found.append(ensemble.generate("Well?").text)) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["yes"] * 4


def test_a_closed_stream_stops_the_model_and_an_unread_one_waits():
    slow = engine("slow", "a b c d e f g h", delay=0.01)
    ensemble = eh.Ensemble([slow])
    with closing(ensemble.stream("Go", max_tokens=8)) as events:
        next(events)
    assert ensemble.generate("Go").text == "a b c d e f g h"  # nothing is left over


def test_ctrl_c_stops_the_models_and_the_ensemble_goes_on():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts deaf to it
    ensemble = eh.Ensemble([engine("slow", "word " * 6_000, delay=0.01)])  # 60 s
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        ensemble.generate("Go", max_tokens=6_000)
    assert time.perf_counter() - started < 40
    assert ensemble.generate("Go", max_tokens=3).finish == "length"


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda e: e.generate("x", temprature=1), eh.RequestError, "did you mean 'temperature'"),
        (lambda e: e.generate("x", temperature="hot"), eh.RequestError, "'temperature'"),
        (lambda e: e.chat([{"role": "usr", "content": "x"}]), eh.RequestError, "a message needs a role"),
        (
            lambda e: e.chat([{"role": "user", "content": [{"type": "image_url"}]}]),
            eh.RequestError,
            "image_url",
        ),
        (lambda e: e.generate("x", temperature=-1), eh.RequestError, "'temperature'"),
        (lambda e: e.generate("x", top_p=2), eh.RequestError, "'top_p'"),
        (lambda e: e.generate(None), eh.RequestError, "a question is text"),
        (lambda e: e.chat({"role": "user", "content": "x"}), eh.RequestError, "a question is text"),
        (lambda e: list(e.stream(["a", "b"])), eh.RequestError, "a question is text"),
        (lambda e: eh.Ensemble([]), eh.ConfigError, "at least one model"),
        (lambda e: eh.Ensemble("builtin:mentor"), eh.ConfigError, "models are a list"),
        (lambda e: eh.Ensemble([3]), eh.ConfigError, "a model is a path"),
        (lambda e: eh.Ensemble([engine("a", "x")], aggregation=eh.Vote), eh.ConfigError, "aggregation is"),
        (lambda e: eh.Ensemble([engine("a", "x")], selection=eh.Vote()), eh.ConfigError, "selection is"),
        (lambda e: pair(judge="fixed:low").generate([None]), eh.RequestError, "a question is text"),
        (
            lambda e: eh.Ensemble(
                [engine("a", "x"), engine("b", "xy")], aggregation=eh.Tandem(fallback="none")
            ),
            eh.ConfigError,
            "'fallback'",
        ),
        (lambda e: eh.Ensemble([engine("a", "x")], "al"), eh.ConfigError, "did you mean 'all'"),
        (lambda e: eh.Ensemble([{"path": "builtin:intern", "temprature": 1}]), eh.ConfigError, "temprature"),
        (lambda e: eh.Ensemble(["builtin:mento"]), eh.ConfigError, "did you mean 'mentor'"),
        (lambda e: eh.Ensemble.tandem(engine("a", "x"), engine("a", "y")), eh.ConfigError, "both would be"),
        (
            lambda e: eh.Ensemble(["http://127.0.0.1:9/v1"]),
            eh.ConfigError,
            "write MODEL:http://127.0.0.1:9/v1",
        ),
    ],
)
def test_what_is_wrong_is_one_line(call, error, says):
    with pytest.raises(error) as found:
        call(eh.Ensemble([engine("a", "x")]))
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_a_script_that_closes_nothing_ends_quietly():
    code = """
    import ensemblehub as eh
    pair = eh.Ensemble(["builtin:intern"], aggregation=eh.BestOf(samples=2),
                       scorers=[{"path": "builtin:prm", "engine": "reward_model"}])
    assert pair.generate("There are 8 bowls. How many bowls are there?", max_tokens=2).text
    events = pair.stream("There are 8 bowls. How many bowls are there?")
    next(events)
    """
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ensemble_that_is_collected_in_its_own_thread_is_freed():
    ensemble = eh.Ensemble([engine("a", "x")])
    ensemble.cycle, loop = ensemble, ensemble._loop
    del ensemble
    loop.call_soon_threadsafe(gc.collect)
    deadline = time.monotonic() + 30
    while not loop.is_closed() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loop.is_closed()


def test_a_closed_ensemble_says_so():
    ensemble = eh.Ensemble([engine("a", "x")])
    ensemble.close()
    with pytest.raises(RuntimeError, match="closed"):
        ensemble.generate("x")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/model.Q4_K_M.gguf", "llama_cpp"),
        ("http://localhost:8000/v1", "openai"),
        ("gpt-4o:https://api.openai.com/v1", "openai"),
        ("Qwen/Qwen3-8B", "hf"),
        ("./folder", "hf"),
    ],
)
def test_the_engine_is_chosen_by_what_the_path_is(path, kind):
    from ensemblehub.config.sections import ModelSpec
    from ensemblehub.registry import engine_for

    assert engine_for(path) == kind
    assert ModelSpec(path=path).engine == kind


def test_public_names_are_there_and_import_nothing():
    assert all(getattr(eh, name) is not None for name in eh.__all__)
    strategies = {**SELECTIONS, **AGGREGATIONS}.values()
    assert {target.partition(":")[2] for target in strategies} <= set(eh.__all__)
    code = "import sys, ensemblehub; print([name for name in sys.modules if name.startswith('ensemblehub.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_users_program_is_typed(tmp_path):
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import ensemblehub as eh

            def main() -> str:
                pair = eh.Ensemble.tandem(mentor="builtin:mentor", intern="builtin:intern")
                result: eh.Result = pair.generate("How many?", temperature=0.7, max_tokens=256)
                results: list[eh.Result] = pair.generate(["one", "two"])
                for event in pair.stream("How many?"):
                    if event.type == "verdict":
                        print(event.level, event.probability)
                    elif isinstance(event, eh.Piece):
                        print(event.text)
                print(result.usage.cost.usd, result.verdicts[0].sufficient, results[0].to_dict())
                return pair.chat([{"role": "user", "content": "Hi"}]).text

            async def other() -> None:
                async with eh.AsyncEnsemble.from_config("pair.yaml") as pair:
                    print((await pair.generate("Hi")).text, len(await pair.generate(["a", "b"])))
                    async for text in pair.stream_text("Hi"):
                        print(text)
                ensemble = eh.AsyncEnsemble(["a", "b"], aggregation=eh.Vote(samples=3))
                await ensemble.chat([eh.Message("user", "Hi")], seed=1)
            """
        )
    )
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import ensemblehub\nensemblehub.Nix\n")
    command = [sys.executable, "-m", "mypy", "--strict", str(program), str(wrong)]
    root = Path(__file__).parents[1]  # whose options and cache `make types` uses too
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    *errors, last = done.stdout.splitlines()
    assert last.startswith("Found 1 error in 1 file (checked 2 "), done.stdout + done.stderr
    assert "wrong.py:2: error:" in errors[0]
    assert "Nix" in errors[0]


def test_the_examples_of_the_page_and_the_readme_run():
    root = Path(__file__).parents[1]
    names = {"print": lambda *_, **__: None}
    for page in ("docs/python.md", "README.md"):
        for block in re.findall(r"```python\n(.*?)```", (root / page).read_text(), re.DOTALL):
            if "async with" in block:
                indented = textwrap.indent(block, "    ")
                block = f"import asyncio\nasync def main():\n{indented}\nasyncio.run(main())"
            exec(compile(block, page, "exec"), names)
    assert names["result"].text.endswith("\\boxed{11}")
