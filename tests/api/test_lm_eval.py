"""lm-evaluation-harness itself against a server: generation and log-likelihood, offline, on tasks of our own."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ensemblehub import builtin
from ensemblehub.lab.bench import run
from ensemblehub.lab.bench.cells import cells_of
from ensemblehub.lab.bench.rows import read_rows
from ensemblehub.lab.builtin import word_problems
from ensemblehub.lab.tasks import task_named

pytestmark = pytest.mark.slow
MIXED = Path(__file__).parents[2] / "examples" / "all_gac.yaml"
TASKS = {
    "builtin_writes": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 48}
filter_list:
  - name: last
    filter: [{function: regex, regex_pattern: "(-?[0-9]+)", group_select: -1}, {function: take_first}]
metric_list: [{metric: exact_match}]
""",
    "builtin_chooses": """
output_type: multiple_choice
doc_to_text: "{{question}} The answer is"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
}

BOXED = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["never"], max_gen_toks: 200}
filter_list:
  - name: last
    filter: [{function: regex, regex_pattern: "boxed\\\\{(-?[0-9]+)\\\\}", group_select: -1}, {function: take_first}]
metric_list: [{metric: exact_match}]
"""


# The harness with its imports done: forks for every command line of standard input, and says how that ended.
FORKING = """
import json, os, signal, sys
import datasets, lm_eval.evaluator, lm_eval.models, lm_eval.tasks, torch, transformers
from lm_eval.__main__ import cli_evaluate

# Not its index of the tasks that come with it: reading that takes as long as everything else.
lm_eval.tasks.TaskManager.__init__.__defaults__ = (None, None, False, None)
for line in sys.stdin:
    child = os.fork()
    if not child:
        signal.alarm(240)
        folder, *sys.argv = json.loads(line)
        os.chdir(folder)
        output = os.open("output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        cli_evaluate()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENAI_API_KEY": "none",
}


@pytest.fixture(scope="module")
def harness():
    """A process that evaluates one command line after another, each in a fork of its own."""
    command, pipe = [sys.executable, "-c", FORKING], subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **OFFLINE}
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with the tasks and their questions."""
    folder, rng = tmp_path_factory.mktemp("tasks"), random.Random(3)
    rows = []
    for number in range(8):
        problem = word_problems.draw(rng, steps=1 + number % 2)
        right = int(problem.answer)
        rows.append(
            {
                "question": problem.text,
                "answer": str(right),
                "choices": [f"{right}", f"{right + 1}", f"{right + 7}"],
            }
        )
    (folder / "questions.jsonl").write_text("".join(json.dumps({**row, "gold": 0}) + "\n" for row in rows))
    for name, text in TASKS.items():
        data = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}\n"
        (folder / f"{name}.yaml").write_text(f"{data}test_split: test\n{text}")
    return folder


@pytest.fixture(scope="module")
def server(serve):
    return serve(None, "-s", "model_specs.0.engine=numpy", "-s", "model_specs.1.engine=numpy")


def evaluated(harness, tasks, out, names, model, arguments, *flags, fails=False):
    """Metrics and answers by task; with `fails`, what it printed."""
    command = ["lm_eval", "--model", model, "--tasks", ",".join(names), "--include_path", str(tasks)]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    command += ["--output_path", str(out), "--log_samples", *flags]
    print(json.dumps([str(out), *command]), file=harness.stdin, flush=True)
    status = int(harness.stdout.readline())
    said = (out / "output").read_text()
    if fails:
        assert status
        return said
    assert status == 0, said[-3000:]
    (results,) = out.rglob("results_*.json")
    metrics = json.loads(results.read_text())["results"]
    samples = {}
    for name in names:
        (file,) = out.rglob(f"samples_{name}_*.jsonl")
        samples[name] = [json.loads(line)["resps"] for line in file.read_text().splitlines()]
    return {
        name: {key: value for key, value in metrics[name].items() if key != "alias"} for name in names
    }, samples


@pytest.fixture(scope="module")
def bench_task(tmp_path_factory):
    """A task of lm_eval with 50 questions of `builtin_math`, graded as `bench` grades them."""
    folder = tmp_path_factory.mktemp("bench_task")
    rows = [
        {"question": item.text, "answer": item.answer}
        for item in task_named("builtin_math").items("test", 50)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}\ntest_split: test\n"
    (folder / "same_questions.yaml").write_text(f"task: same_questions\ndataset_path: json\n{data}{BOXED}")
    return folder


@pytest.mark.client("lm-evaluation-harness", "answers")
@pytest.mark.parametrize("model", ["intern", "ensemble"])
def test_the_harness_gets_the_texts_and_the_accuracy_of_bench(harness, server, bench_task, tmp_path, model):
    chat = {"model": model, "base_url": f"{server.url}/v1/chat/completions", "num_concurrent": 8}
    metrics, samples = evaluated(
        harness,
        bench_task,
        tmp_path,
        ["same_questions"],
        "local-chat-completions",
        chat,
        "--apply_chat_template",
    )
    limit = ["ensemble.generation.max_tokens=200", "experiment.concurrency=8"]
    questions = run.questions_of("builtin_math", "test", None, None, 50)
    run.bench(cells_of([f"{model}:{server.url}/v1"], limit), questions, tmp_path / "bench")
    (file,) = (tmp_path / "bench" / "answers").iterdir()
    rows = read_rows(file)[1]
    ours = [rows[item.id] for item in questions.items]
    assert all(row.flops > 1e6 for row in ours)  # as the server states them
    theirs = [text for [[text]] in samples["same_questions"]]
    assert [row.text.rpartition("</think>")[2].strip() for row in ours] == [text.strip() for text in theirs]
    assert [row.correct for row in ours] == [
        questions.task.grade(item, text).correct for item, text in zip(questions.items, theirs, strict=True)
    ]
    accuracy = metrics["same_questions"]["exact_match,last"]
    assert accuracy == pytest.approx(sum(row.correct for row in ours) / 50)
    assert 0 < accuracy < 1


def through(server, model, **more):
    return {"model": model, "base_url": f"{server.url}/v1/completions", **more}


@pytest.fixture(scope="module")
def at_home(harness, tasks, tmp_path_factory):
    """The same model, run by the harness itself."""
    arguments = {"pretrained": builtin.resolve("builtin:intern"), "dtype": "float32"}
    return evaluated(harness, tasks, tmp_path_factory.mktemp("hf"), TASKS, "hf", arguments, "--device", "cpu")


@pytest.mark.parametrize(
    ("more", "flags"),
    [
        ({}, []),  # the tokenizer is found by itself, and prompts come as ids
        ({"tokenizer": builtin.resolve("builtin:intern"), "num_concurrent": 2}, ["--batch_size", "4"]),
        ({"tokenizer": builtin.resolve("builtin:intern"), "tokenized_requests": False}, []),
    ],
    ids=["remote tokenizer", "batches", "words"],
)
def test_a_single_model_scores_through_the_server_as_at_home(
    harness, server, tasks, tmp_path, at_home, more, flags
):
    metrics, samples = evaluated(
        harness, tasks, tmp_path, TASKS, "local-completions", through(server, "intern", **more), *flags
    )
    assert metrics == at_home[0]
    assert samples["builtin_writes"] == at_home[1]["builtin_writes"]
    for ours, theirs in zip(samples["builtin_chooses"], at_home[1]["builtin_chooses"], strict=True):
        for [(value, greedy)], [(other, greedy_too)] in zip(ours, theirs, strict=True):
            assert float(value) == pytest.approx(float(other), abs=1e-3)
            assert greedy == greedy_too


def test_models_of_different_tokenizers_have_a_log_likelihood_together(
    harness, serve, tasks, tmp_path, at_home
):
    mixing = serve(MIXED.read_text())
    named = through(mixing, "ensemble", tokenizer=builtin.resolve("builtin:intern"))
    metrics, samples = evaluated(harness, tasks, tmp_path, TASKS, "local-completions", named)
    assert 0 <= metrics["builtin_chooses"]["acc,none"] <= 1
    assert all(text for [[text]] in samples["builtin_writes"])
    mixed = [float(value) for sample in samples["builtin_chooses"] for [(value, _)] in sample]
    alone = [float(value) for sample in at_home[1]["builtin_chooses"] for [(value, _)] in sample]
    assert all(value < 0 for value in mixed)
    assert mixed != pytest.approx(alone, abs=0.01)
    direct = []
    for line in (tasks / "questions.jsonl").read_text().splitlines():
        row = json.loads(line)
        context = f"{row['question']} The answer is"
        length = mixing.post("/tokenize", {"prompt": context, "model": "ensemble"}).json()["count"]
        prompts = [f"{context} {choice}" for choice in row["choices"]]
        body = {"model": "ensemble", "prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 0}
        choices = mixing.post("/v1/completions", body).json()["choices"]
        direct += [sum(choice["logprobs"]["token_logprobs"][length:]) for choice in choices]
    assert mixed == pytest.approx(direct, abs=1e-3)

    # the harness asks for "the" tokenizer and names no model: of several, none is told in place of another
    remote = through(mixing, "guest", tokenizer_backend="remote", max_retries=1)
    said = evaluated(harness, tasks, tmp_path, ["builtin_chooses"], "local-completions", remote, fails=True)
    assert "/tokenizer_info failed" in said


@pytest.mark.client("lm-evaluation-harness", "answers", "errors")
def test_tandem_answers_chats_and_says_what_its_log_likelihood_needs(harness, server, tasks, tmp_path):
    chat = {"model": "ensemble", "base_url": f"{server.url}/v1/chat/completions"}
    flags = ["--apply_chat_template", "--gen_kwargs", "max_gen_toks=200"]
    metrics, _ = evaluated(
        harness, tasks, tmp_path, ["builtin_writes"], "local-chat-completions", chat, *flags
    )
    assert (
        metrics["builtin_writes"]["exact_match,last"] >= 0.5
    )  # the pair solves problems of one and two steps
    more = {"max_retries": 1}
    said = evaluated(
        harness,
        tasks,
        tmp_path,
        ["builtin_chooses"],
        "local-completions",
        through(server, "ensemble", **more),
        fails=True,
    )
    assert "ensemble.context_tokens" in said
