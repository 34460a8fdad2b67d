import json
import subprocess
import sys

import pytest

from ensemblehub.cli import main

ECHO = """
model_specs:
  - {name: big, engine: echo, replies: {"": "Goal: add. Planning: add. Retrieval: none. Action: add."}, parameters: 9}
  - {name: small, engine: echo, replies: {"": "It is 4."}, parameters: 1}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, high: 4}, judge: "fixed:high"}
"""


def run(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code, capsys.readouterr()


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "echo.yaml"
    path.write_text(ECHO)
    return path


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize(
    "option",
    [
        ["advise", "--task", "builtin_math", "--aim", "accuracy", "--budget"],
        ["advise", "--task", "builtin_math", "--margin"],
        ["advise", "--task", "builtin_math", "--max-loss"],
        ["advise", "--task", "builtin_math", "--confidence"],
        ["calibrate", "--budget"],
        ["calibrate", "--min-accuracy"],
        ["calibrate", "--max-loss"],
        ["calibrate", "--max-loss", "0.1", "--confidence"],
        ["doctor", "--gpu-memory"],
        ["collect", "--worker_gpus"],
    ],
)
def test_numbers_are_finite(config, capsys, option, number):
    code, said = run([*option, number, "--config", str(config)], capsys)
    assert code == 2
    assert f"'{option[-1]}'" in said.err


SAYS = "stopped at 4 mentor tokens"


def test_ask_prints_one_json_object(config, capsys):
    main(["ask", "2 + 2?", "--config", str(config), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["answer"] == "It is 4."
    assert record["insight"] == "Goal: add. Planning: add."
    assert [verdict["level"] for verdict in record["verdicts"]] == ["low", "high"]
    assert sum(line["flops"] for line in record["usage"]) == record["flops"]
    assert record["explanation"] == SAYS


def test_ask_says_what_the_intern_would_have_had_alone(config, capsys):
    old, new = 'judge: "fixed:high"', 'start_with_intern: true, judge: "entropy:0.5"'
    config.write_text(ECHO.replace(old, new).replace("parameters: 1}", "parameters: 1, confident: [add]}"))
    main(["ask", "2 + 2?", "--config", str(config), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["explanation"] == (
        "stopped at 2 mentor tokens, entropy score 0.98, 0.50 suffices; alone the intern would have had 0.33"
    )


def test_ask_shows_the_run(config, capsys):
    main(["ask", "2 + 2?", "--config", str(config)])
    shown = capsys.readouterr().out
    assert "big · insight" in shown
    assert "small · answer" in shown
    assert SAYS in shown.replace("\n", " ")
    assert "usage and cost" in shown


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("levels:", "levls:", "did you mean 'levels'"),
        ("tandem", "tandm", "did you mean 'tandem'"),
        ("engine: echo", "engine: ecko", "did you mean 'echo'"),
        ("model_specs", "model_spec", "did you mean 'model_specs'"),
        ("parameters: 9", "paramters: 9", "did you mean 'parameters'"),
        ("fixed:high", "fixed:hihg", "did you mean 'high'"),
        ("fixed:high", "no/such/judge", "no/such/judge"),
        ("{low: 2, high: 4}", "{low: 4, high: 2}", "levels"),
        ("{low: 2, high: 4}", "{}", "levels"),
        ("ensemble:", "ensemble: [", "not YAML"),
    ],
)
def test_a_mistake_gets_one_line_with_the_nearest_name(config, capsys, old, new, says):
    config.write_text(ECHO.replace(old, new, 1))
    code, output = run(["ask", "2 + 2?", "--config", str(config)], capsys)
    assert code == 2
    assert says in output.err
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err


def test_set_changes_the_file_for_one_run(config, capsys):
    level = "ensemble.output_aggregation_params.judge=fixed:low"
    main(
        [
            "ask",
            "2 + 2?",
            "-c",
            str(config),
            "--json",
            "-s",
            level,
            "--set",
            'model_specs.1.replies={"": five}',
        ]
    )
    record = json.loads(capsys.readouterr().out)
    assert record["answer"] == "five"
    assert len(record["verdicts"]) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ensemble.genration={}", "did you mean 'generation'"),
        ("model_specs.7.name=x", "cannot set"),
        ("model_specs.².name=x", "cannot set"),
        ("nothing", "no ="),
        ("ensemble.generation.max_tokens=[", "cannot set"),
        ("ensemble.generation.max_tokens=many", "max_tokens"),
    ],
)
def test_a_wrong_change_is_one_line(config, capsys, change, says):
    code, output = run(["ask", "2 + 2?", "-c", str(config), "-s", change], capsys)
    assert code == 2
    assert says in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["aks", "x"], "did you mean 'ask'"),
        (["ask", "x", "--confg", "y"], "--config"),
        (["ask", "x", "--config", "missing.yaml"], "missing.yaml"),
        (["ask", "  "], "empty"),
        (["calibrate", "--budget", "0.4", "--max-accuracy"], "one of"),
    ],
)
def test_wrong_command_lines(capsys, arguments, says):
    code, output = run(arguments, capsys)
    assert code == 2
    assert says in output.err
    assert output.err.count("\n") == 1


def test_help_and_version_start_quickly_without_a_backend():
    check = "import sys; from ensemblehub.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    check += "assert not {'torch', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "ensemblehub demo" in done.stdout


def test_a_question_that_is_no_utf8_is_refused_in_one_line(config):
    for question, given in ((b"caf\xe9", b""), (b"-", b"caf\xe9")):
        command = [
            sys.executable,
            "-X",
            "utf8",
            "-m",
            "ensemblehub",
            "ask",
            question,
            "--config",
            str(config),
        ]
        done = subprocess.run(command, input=given, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (2, b"ensemblehub: the question is not UTF-8 text\n")
