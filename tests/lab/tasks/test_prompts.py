"""Prompt profiles: the words that reproduce published scores, letter by letter."""

import asyncio
import json
from dataclasses import replace

import pytest

from ensemblehub.config import Config
from ensemblehub.errors import ConfigError
from ensemblehub.lab.advise.record import InternAnswer, Recorder
from ensemblehub.lab.pipeline.experiment import Experiment
from ensemblehub.lab.pipeline.records import Run
from ensemblehub.lab.tasks import task_named
from ensemblehub.schema import Sampling
from ensemblehub.tandem.insights import PROFILES, Dialogue

HUMANEVAL = {
    "task_id": "HumanEval/3",
    "prompt": 'def half(x):\n    """Half of {x}, as {question}.\n    """\n',
    "entry_point": "half",
    "canonical_solution": "    return x / 2\n",
    "test": "def check(candidate):\n    assert candidate(3) == 1.5\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to halve a number.",
    "code": "def half(x):\n    return x / 2",
    "test_list": ["assert half(3) == 1.5", "assert half(4) == 2"],
    "test_setup_code": "",
}
GSM8K = {"question": "What is half of 6?", "answer": "It is 3.\n#### 3"}
ROWS = {"humaneval": HUMANEVAL, "mbpp": MBPP, "gsm8k": GSM8K}


def asked(tmp_path, name, prompt, **sampling):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[name]) + "\n")
    task = task_named(name, tmp_path / "rows.jsonl", prompt)
    (item,) = task.items("all" if name != "gsm8k" else "test")
    return task, item, task.ask(item, Sampling(**sampling))


def as_chatml(request):
    """A request as Qwen2.5's chat template renders it, with the opening of the answer."""
    turns = [f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in request.prompt.messages]
    return "".join(turns) + f"<|im_start|>assistant\n{request.prefix}"


def test_the_official_prompt_of_qwen_coder_is_the_makers_string(tmp_path):
    _, _, request = asked(tmp_path, "humaneval", "official")
    assert as_chatml(request) == (
        "<|im_start|>system\n"
        "You are an intelligent programming assistant to produce Python algorithmic solutions<|im_end|>\n"
        "<|im_start|>user\n"
        "Can you complete the following Python function?\n"
        '```python\ndef half(x):\n    """Half of {x}, as {question}.\n    """\n```\n'
        "<|im_end|>\n"
        "<|im_start|>assistant\n"
        "```python\n"
    )
    assert (request.id, request.sampling.max_tokens) == ("HumanEval/3", 768)
    assert {"\n```", "\n#", "\nprint("} <= set(request.sampling.stop)


def test_mbpp_is_put_as_a_docstring_with_its_first_test(tmp_path):
    _, _, request = asked(tmp_path, "mbpp", "official")
    docstring = '"""\nWrite a function to halve a number.\nassert half(3) == 1.5\n"""'
    assert f"```python\n{docstring}\n```\n" in request.prompt.messages[1].content


def test_the_answer_is_graded_with_its_opening(tmp_path):
    for prompt in ("official", "evalplus"):
        task, item, request = asked(tmp_path, "humaneval", prompt)
        assert request.prefix.endswith("```python\n")
        assert task.grade(item, "def half(x):\n    return x / 2").correct
        assert task.grade(item, "```python\ndef half(x):\n    return x / 2\n```").correct  # opened it again
        assert not task.grade(item, "def half(x):\n    return x // 2").correct


def test_plain_is_the_default_and_changes_no_sampling(tmp_path):
    task, item, request = asked(tmp_path, "gsm8k", None, max_tokens=77, stop=("x",))
    assert (task.prompt, task.prompts) == ("plain", ("plain", "official", "reference", "few_shot"))
    assert (request.prompt, request.prefix) == (task.request(item), "")
    assert (request.sampling.max_tokens, request.sampling.stop) == (77, ("x",))
    assert "prompt" not in task.about("test")
    assert task.ask(item, Sampling(), thinking=False).prompt == replace(request.prompt, thinking=False)


def test_a_profile_adds_to_the_stops_that_are_configured(tmp_path):
    _, _, request = asked(tmp_path, "humaneval", "evalplus", stop=("</s>", "END"))
    assert request.sampling.stop[:2] == ("</s>", "END")
    assert request.sampling.stop.count("</s>") == 1


def test_records_tell_profiles_apart(tmp_path):
    abouts = [
        asked(tmp_path, "humaneval", name)[0].about("all") for name in ("plain", "official", "evalplus")
    ]
    assert abouts[1]["prompt"].startswith("official ")
    assert len({json.dumps(about) for about in abouts}) == 3
    assert len({about["sha256"] for about in abouts}) == 1  # the questions are the same


def test_math_is_put_as_the_makers_of_qwen_math_put_it(tmp_path):
    _, _, request = asked(tmp_path, "gsm8k", "official")
    assert as_chatml(request) == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nWhat is half of 6?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_unknown_profile_is_one_line_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown prompt of humaneval 'oficial'; did you mean 'official'"):
        task_named("humaneval", prompt="oficial")
    with pytest.raises(ConfigError, match="task 'builtin_math' has one prompt, 'plain'"):
        task_named("builtin_math", prompt="official")
    assert task_named("builtin_math", prompt="plain").prompt == "plain"


def test_the_profile_is_a_key_of_the_experiment():
    config = Config.from_dict({"model_specs": [{"path": "echo"}], "experiment": {"prompt": "official"}})
    assert config.experiment.prompt == "official"


def test_in_tandem_the_intern_goes_on_behind_the_opening_and_the_mentor_does_not(tmp_path):
    _, _, request = asked(tmp_path, "humaneval", "official")
    dialogue = Dialogue(request, PROFILES["instruct"])
    mentor, intern = dialogue.mentor_request(48), dialogue.intern_request("Goal: halve it")
    assert (mentor.prefix, mentor.sampling.stop, mentor.sampling.max_tokens) == ("", (), 48)
    assert (intern.prefix, intern.sampling) == (request.prefix, request.sampling)
    assert intern.prompt.messages[-1].content.endswith("Goal: halve it")
    assert all(
        request.prompt.messages[0].content in each.prompt.messages[0].content for each in (mentor, intern)
    )


PAIR = {
    "model_specs": [
        {"engine": "echo", "name": name, "parameters": size} for name, size in (("big", 2), ("small", 1))
    ],
    "ensemble": {"output_aggregation_method": "tandem", "generation": {"max_tokens": 9}},
}


def test_what_is_recorded_names_what_the_profile_sets(tmp_path):
    task, _, request = asked(tmp_path, "humaneval", "official")
    experiment = Experiment(Config.from_dict(PAIR), task)
    header = experiment.header("all", *experiment.unjudged())
    assert header["max_tokens"] == header["sampling"]["max_tokens"] == 768
    assert header["sampling"]["stop"] == list(request.sampling.stop)


def test_samples_of_a_draft_keep_what_the_profile_sets(tmp_path, monkeypatch):
    task, item, request = asked(tmp_path, "humaneval", "official", max_tokens=9)
    ensemble, tandem = Experiment(Config.from_dict(PAIR), task).unjudged()
    seen = []

    async def draft(self, item, request):
        seen.append(request.sampling)
        return InternAnswer(Run(True, "stop", 0, 0, 0, 0, 0.0, False, ""), None, None)

    monkeypatch.setattr(Recorder, "attempt", draft)
    recorder = Recorder(tandem, ensemble.engines, task, Sampling(max_tokens=9), 2, {item.id: {}})
    asyncio.run(recorder.collect(item))
    assert [sampling.temperature for sampling in seen] == [0.0, 0.7, 0.7]
    for sampling in seen:
        assert (sampling.max_tokens, sampling.stop) == (768, request.sampling.stop)


def test_few_shot_shows_solved_training_questions_and_never_the_asked_one(tmp_path):
    for split, numbers in (("train", range(1, 9)), ("test", range(11, 14))):
        rows = [{"question": f"What is half of {2 * n}?", "answer": f"It is {n}.\n#### {n}"} for n in numbers]
        (tmp_path / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_named("gsm8k", tmp_path, "few_shot")
    for item in (*task.items("train"), *task.items("test")):
        *shown, last = task.request(item).messages
        assert last.content == f"Question: {item.text}\nAnswer:"
        assert [turn.role for turn in shown] == ["user", "assistant"] * 4
        assert not any(item.text in turn.content for turn in shown)
        assert all(turn.content.endswith("}") for turn in shown if turn.role == "assistant")
    alone = task_named("gsm8k", tmp_path / "gsm8k_test.jsonl", "few_shot")
    item = next(alone.items("test"))
    with pytest.raises(ConfigError, match="for `train` name its files"):
        alone.request(item)
