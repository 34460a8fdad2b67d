import asyncio
import json
import logging
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from ensemblehub import builtin, registry
from ensemblehub.config import Config, old_keys, sections
from ensemblehub.config.flags import configured
from ensemblehub.config.old_keys import MOVED
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.output_aggregation.distribution import DistributionMixture
from ensemblehub.ensemble_methods.output_aggregation.stepwise import Stepwise
from ensemblehub.errors import ConfigError
from ensemblehub.lab.tasks import TASKS
from ensemblehub.registry import ENGINES, build, lookup
from ensemblehub.schema import Price, Sampling


def read(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Config.read(path)


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("just text", "not a mapping"),
        ("- a\n- b", "not a mapping"),
        ("a: [1", "some.yaml:1: not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        ('a: 1\nb: ["x", "\\ud83d y"]', "some.yaml:2: not YAML: half a surrogate pair is no text"),
        ('a: 1\n"\\ude00": y', "some.yaml:2: not YAML: half a surrogate pair is no text"),
        ("ensemble: {}", "model_specs"),
        ("model_specs: []", "some.yaml:1: model_specs"),
        ("model_specs:\n- {name: a}\n- {name: a}", "share a name"),
        (
            "model_specs: [{name: a}]\n\nensemble:\n  genration: {}",
            "some.yaml:4: unknown key 'genration'; did you mean",
        ),
        ("model_specs: [{name: a}]\nensemble:\n  generation:\n    temperature: hot", "some.yaml:4"),
        ("model_specs: [{name: a}]\nensemble:\n  generation:\n    max_tokens: 0", "max_tokens"),
        ("model_specs: [{name: a}]\nexperiment: {concurrency: -1}", "concurrency"),
        ("model_specs:\n- {engine: echo}", "some.yaml:1: model_specs: a model needs a path or a name"),
        (
            "model_specs: [{name: a}]\nserver:\n  prot: 1",
            "some.yaml:3: unknown key 'prot'; did you mean 'port'",
        ),
        ("model_specs: [{name: a}]\nserver:\n  port: 70000", "some.yaml:3: server.port"),
        ("model_specs: [{name: a}]\ndebug: {show_input: 1}", "did you mean 'show_input_details'"),
        ("model_specs: [{name: a}]\nmodel_stats:\n  stat: {}", "did you mean 'stats'"),
        ("model_specs: [{name: 7}]", "some.yaml:1: model_specs.0.name"),
        ("model_specs: [a]", "some.yaml:1: model_specs.0"),
        ("model_specs: {name: a}", "some.yaml:1: model_specs"),
        ("model_specs: [{name: a}]\nensemble: [loop]", "some.yaml:2: ensemble"),
        ("model_specs: [{name: a}]\nensemble:\n  progressive: [1]", "some.yaml:3: ensemble.progressive"),
        ("model_specs: [{name: a}]\n1: 2", "some.yaml:2"),
        ("model_specs: [{name: a}]\ngenration:", "unknown key 'genration'"),
        (
            "model_specs: [{name: a}]\n\nmodel_specs: [{name: b}]",
            "some.yaml:3: not YAML: key 'model_specs' is said twice",
        ),
        (
            "model_specs:\n- name: a\n  name: b",
            "some.yaml:3: not YAML: key 'name' is said twice, first on line 2",
        ),
        ("? [a]\n: b", "not YAML"),
        ("a: !!int x", "not YAML"),
        ("a: !!timestamp x", "not YAML"),
        ("a: 2024-99-99", "not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a: \0", "not YAML"),
        ("a: *b", "some.yaml:1: not YAML"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "x" * 2**20, "larger than"),
        (BOMB, "not YAML: its aliases make more than 100,000 values"),
        ("a: &a [*a]", "not YAML: its aliases make more than 100,000 values"),
        ("model_specs: [{name: a}]\nensemble: {generation: {do_sample: true, temperature: 0}}", "above 0"),
        ("model_specs: [{name: a}]\nreward_specs: [{name: s}, {name: s}]", "scorers share a name"),
    ],
)
def test_a_wrong_file_is_one_line_with_file_and_line(tmp_path, text, says):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        Config.read(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="directory"):
        Config.read(tmp_path)


def test_the_shipped_configuration_builds_and_the_example_is_the_same_file():
    config = Config.read(builtin.CONFIG)
    assert config.aggregation.method == "tandem"
    with pytest.raises(ConfigError, match="did you mean 'mentor'"):
        builtin.resolve("builtin:mentr")


def test_code_outside_the_package_is_named_by_its_path(tmp_path):
    assert lookup(ENGINES, "ensemblehub.generators.echo:EchoEngine", "engine").__name__ == "EchoEngine"
    for name in ("nowhere.at_all:Class", "ensemblehub.generators.echo:Nothing"):
        with pytest.raises(ConfigError, match="cannot load"):
            lookup(ENGINES, name, "engine")
    with pytest.raises(ConfigError, match="did you mean 'builtin_math'"):
        lookup(TASKS, "builtin_maths", "task")


def test_options_are_checked_by_name_and_type():
    options = lookup(ENGINES, "echo", "engine").options
    assert (
        build(options, {"replies": {"": "x"}, "price": {"prompt": 1, "completion": 2}}, "m").price.completion
        == 2
    )
    with pytest.raises(ConfigError, match="m: unknown option 'dealy'; did you mean 'delay'"):
        build(options, {"dealy": 1}, "m")
    with pytest.raises(ConfigError, match="option 'delay'"):
        build(options, {"delay": "soon"}, "m")


def classes_of_options():
    """Options of what needs no extra, by name."""
    strategies = {**registry.SELECTIONS, **registry.AGGREGATIONS}.values()
    named = {target: registry.lookup({}, target, "strategy") for target in strategies}
    scorers = {"perplexity", "api"}
    named |= {f"scorer {name}": lookup(registry.SCORERS, name, "scorer").options for name in scorers}
    named |= {name: lookup(ENGINES, name, "engine").options for name in ("echo", "openai")}
    return named | {"sampling": Sampling}


@pytest.mark.parametrize(("name", "cls"), sorted(classes_of_options().items()))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_number_of_an_option_is_finite(name, cls, value):
    needed = {"path": "http://localhost"} if name == "scorer api" else {}
    for option in fields(cls):
        if not re.search(r"\b(float|Seconds)\b", str(option.type)):
            continue
        key = 7 if option.name == "logit_bias" else "x"
        given = {key: value} if "Mapping" in str(option.type) else value
        with pytest.raises(ConfigError, match=f"option '{option.name}(\\.\\w+)?': Input should be .*got "):
            build(cls, {**needed, option.name: given}, name)


def test_a_number_that_is_not_finite_is_refused_in_one_line():
    with pytest.raises(ConfigError) as error:
        build(Stepwise, {"threshold": math.nan}, "stepwise")
    assert str(error.value) == "stepwise: option 'threshold': Input should be a finite number (got nan)"
    assert error.value.option == ("threshold",)
    options = lookup(ENGINES, "echo", "engine").options
    priced = {"price": {"prompt": 1, "completion": "inf"}}
    with pytest.raises(ConfigError, match=r"option 'price\.completion': Input should be a finite number"):
        build(options, priced, "m")
    with pytest.raises(
        ConfigError, match=r"option 'weights\.a': Input should be a finite number \(got inf\)"
    ):
        build(DistributionMixture, {"weights": {"a": math.inf}}, "distribution")
    assert build(Stepwise, {"threshold": -1.5}, "stepwise").threshold == -1.5


@pytest.mark.parametrize(
    ("name", "given", "option"),
    [
        ("engine echo", {"price": {"prompt": -0.5, "completion": 1}}, "price.prompt"),
        ("engine openai", {"price": {"prompt": 1, "completion": -0.5}}, "price.completion"),
        ("scorer api", {"price": {"prompt": 1, "completion": 1, "cached": -0.5}}, "price.cached"),
        ("scorer perplexity", {"price": {"prompt": -0.5, "completion": 1}}, "price.prompt"),
        ("scorer perplexity", {"prefix_cache_tokens": -1}, "prefix_cache_tokens"),
        ("engine echo", {"parameters": -1}, "parameters"),
        ("engine echo", {"context": -1}, "context"),
        ("engine echo", {"delay": -0.5}, "delay"),
        ("engine echo", {"fail_after": -1}, "fail_after"),
        ("engine echo", {"lookahead": -1}, "lookahead"),
    ],
)
def test_an_amount_below_0_is_refused_by_name(name, given, option):
    kind, _, named = name.partition(" ")
    found = lookup({"engine": ENGINES, "scorer": registry.SCORERS}[kind], named, kind).options
    needed = {"path": "http://localhost"} if named in ("api", "openai") else {}
    with pytest.raises(ConfigError) as error:
        build(found, {**needed, **given}, name)
    value = next(iter(given.values()))
    negative = min(value.values()) if isinstance(value, dict) else value
    says = f"{name}: option '{option}': Input should be greater than or equal to 0 (got {negative})"
    assert str(error.value) == says


def test_0_is_a_price():
    options = lookup(ENGINES, "echo", "engine").options
    assert build(options, {"price": {"prompt": 0, "completion": 0}}, "m").price == Price(0, 0)


@pytest.mark.parametrize(
    "section", [sections.Generation, sections.ServerSection, sections.Bound, sections.RewardSpec]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_number_of_a_section_is_finite(section, value):
    numbers = [name for name, field in section.model_fields.items() if "float" in repr(field.annotation)]
    assert numbers
    for name in numbers:
        with pytest.raises(ValidationError, match=name):
            section.model_validate({name: value})


def test_a_threshold_in_a_file_that_is_not_finite_is_refused_with_its_line(tmp_path):
    with pytest.raises(
        ConfigError, match=r"some.yaml:\d+: .*option 'threshold': .*finite number \(got nan\)"
    ):
        AsyncEnsemble.from_config(
            read(
                tmp_path,
                "model_specs: [{name: a, engine: echo}, {name: b, engine: echo}]\n"
                "ensemble:\n"
                "  output_aggregation_method: stepwise\n"
                "  output_aggregation_params: {threshold: .nan}\n",
            )
        )


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused_before_loading(device):
    pytest.importorskip("torch")
    options = lookup(ENGINES, "hf", "engine").options
    with pytest.raises(ConfigError, match="cannot be used here"):
        build(options, {"path": "x", "device": device}, "m")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": "many"}, "levels"),
        ({"levels": {"low": -1}}, "levels"),
        ({"levels": {"low": "few"}}, "levels"),
        ({"judge": "entropy:"}, "number"),
        ({"judge": "entropy:-1"}, "above 0"),
        ({"profile": "bulitin"}, "did you mean 'builtin'"),
        ({"fallback": "bets"}, "fallback"),
    ],
)
def test_tandem_options(tmp_path, options, says):
    specs = [{"name": name, "engine": "echo", "parameters": size} for name, size in (("a", 1), ("b", 2))]
    section = {"output_aggregation_method": "tandem", "output_aggregation_params": options}
    config = Config.model_validate({"model_specs": specs, "ensemble": section})
    with pytest.raises(ConfigError, match=says):
        AsyncEnsemble.from_config(config)


def ensemble(tmp_path, text):
    return AsyncEnsemble.from_config(read(tmp_path, text))


ECHO = "model_specs:\n- {name: a, engine: echo, parameters: 2}\n- {name: b, engine: echo, parameters: 1}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ECHO + "- name: c\n  engine: ecko", "some.yaml:5: unknown engine 'ecko'; did you mean 'echo'"),
        (ECHO + "- name: c\n  engine: echo\n  dealy: 1", "some.yaml:6: model 'c': unknown option 'dealy'"),
        (ECHO + "- name: c\n  engin: echo", "did you mean 'engine'"),
        (
            ECHO + "- name: c\n  engine: echo\n  price:\n    prompt: -0.5\n    completion: 1",
            "some.yaml:7: model 'c': option 'price.prompt': Input should be greater than or equal to 0 (got -0.5)",
        ),
        (
            ECHO + "ensemble:\n  output_aggregation_method: lop",
            "some.yaml:5: unknown aggregation 'lop'; did you mean 'loop'",
        ),
        (
            ECHO + "ensemble:\n  model_selection_params:\n    l: 1",
            "some.yaml:6: selection 'all': unknown option 'l'",
        ),
        (
            ECHO
            + "ensemble:\n  output_aggregation_method: tandem\n  output_aggregation_params:\n    levels:\n      low: x",
            "some.yaml:8: aggregation 'tandem': option 'levels.low'",
        ),
        (
            ECHO + "ensemble:\n  output_aggregation_method: progressive\n  progressive: {outline_max: 3}",
            "unknown option 'outline_max'; did you mean 'outline_max_tokens'",
        ),
        (
            ECHO
            + "ensemble:\n  output_aggregation_method: best_of\n  reward_specs:\n  - engine: perplexity\n    modle: a",
            "some.yaml:8: scorer 'perplexity': unknown option 'modle'; did you mean 'model'",
        ),
        (ECHO + "ensemble:\n  output_aggregation_method: best_of", "some.yaml:4: best_of needs a scorer"),
    ],
)
def test_a_wrong_option_says_its_file_and_line(tmp_path, text, says):
    with pytest.raises(ConfigError) as error:
        ensemble(tmp_path, text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_null_sections_are_their_defaults(tmp_path):
    config = read(
        tmp_path,
        ECHO
        + "ensemble:\n  generation:\n  reward_specs:\n  progressive:\nserver:\ndebug: {enable_thinking: }",
    )
    assert config.ensemble == read(tmp_path, ECHO).ensemble
    assert config.server.port == 8000


def test_a_byte_order_mark_and_anchors_are_read(tmp_path):
    text = "x: &x {engine: echo, delay: 0.5}\n"
    with pytest.raises(ConfigError, match="unknown key 'x'"):
        read(tmp_path, text + ECHO)
    config = read(
        tmp_path, "\ufeffmodel_specs:\n- &x {name: a, engine: echo, delay: 0.5}\n- {<<: *x, name: b}"
    )
    assert [(spec.name, spec.options["delay"]) for spec in config.model_specs] == [("a", 0.5), ("b", 0.5)]


def test_models_without_a_name_are_called_by_their_path(tmp_path):
    config = read(
        tmp_path, "model_specs: [{path: x/y}, {path: x/y}, {name: x/y-2, path: z}, {path: x/y, name: }]"
    )
    assert [spec.name for spec in config.model_specs] == ["x/y", "x/y-3", "x/y-2", "x/y-4"]


def test_scorers_stand_at_top_level_or_under_ensemble(tmp_path):
    first, second = "- {path: p, engine: hf_gen, weight: 2.0}", "- {path: p}"
    config = read(tmp_path, ECHO + f"reward_specs:\n{first}\nensemble:\n  reward_specs:\n  {second}")
    assert [(spec.name, spec.engine, spec.weight) for spec in config.reward_specs] == [
        ("p", "hf_gen", 2.0),
        ("p-2", "hf_rm", 1.0),
    ]
    assert Config.model_validate(config).reward_specs == config.reward_specs


def test_options_of_the_reference_reach_the_aggregation(tmp_path):
    text = (
        ECHO + "ensemble:\n  max_rounds: 7\n  output_aggregation_method: loop\n  output_aggregation_params: "
    )
    assert ensemble(tmp_path, text + "{max_repeat: 2}").aggregation.max_rounds == 7
    assert ensemble(tmp_path, text + "{max_rounds: 3}").aggregation.max_rounds == 3
    text = (
        ECHO + "ensemble:\n  output_aggregation_method: progressive\n  progressive: {outline_max_tokens: 9}"
    )
    assert ensemble(tmp_path, text).aggregation.outline_max_tokens == 9
    scored = "reward_specs: [{engine: perplexity, model: a}]\nensemble:\n  output_aggregation_method: reward_based\n"
    assert ensemble(tmp_path, ECHO + scored + "  score_threshold: -2.0").aggregation.score_threshold == -2.0


def test_options_beside_a_method_reach_the_one_that_a_flag_names(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(
        ECHO + "ensemble:\n  max_rounds: 7\n  score_threshold: 1\n  output_aggregation_method: loop\n"
        "  output_aggregation_params: {max_repeat: 2}\n"
    )
    config = configured(path, aggregation="vote")
    assert config.aggregation.params == {}
    assert any("max_rounds has no effect: the aggregation 'vote'" in note for note in config.notes)
    AsyncEnsemble.from_config(config)
    rewarded = configured(path, aggregation="reward_based").aggregation
    assert rewarded.params == {"max_rounds": 7, "score_threshold": 1}
    assert configured(path, aggregation="loop").aggregation.params == {"max_repeat": 2, "max_rounds": 7}
    unchanged = configured(
        path, ["ensemble.output_aggregation_method=single", "ensemble.output_aggregation_params={}"]
    )
    assert unchanged.aggregation.params == {}


def test_statistics_of_the_reference_reach_the_selection(tmp_path):
    statistics = "{ppl_mean: 1, ppl_std: 1, conf_mean: 1, conf_std: 1}"
    text = (
        ECHO
        + f"model_stats: {{stats: {{a: {statistics}, b: {statistics}}}}}\nensemble: {{model_selection_method: zscore"
    )
    assert ensemble(tmp_path, text + "}").selection.stats["b"].ppl_std == 1
    with pytest.raises(ConfigError, match="no statistics of 'b'"):  # its own go before
        ensemble(tmp_path, text + f", model_selection_params: {{stats: {{a: {statistics}}}}}}}")


def test_what_has_no_effect_is_said_once(tmp_path, caplog):
    text = """
debug: {save_results: true}
engine_options: {vllm: {a: 1}, hf: {low_cpu_mem: true}}
model_stats: {stats_file: x}
ensemble:
  max_rounds: 5
  score_threshold: 0.5
  progressive: {outline_max_tokens: 3}
model_specs:
- {name: a, engine: echo, padding_side: left}
- {name: b, engine: echo, padding_side: left}
"""
    with caplog.at_level(logging.WARNING):
        ensemble(tmp_path, text)
        ensemble(tmp_path, text)
    said = sorted(
        record.message.removeprefix(f"{tmp_path}/some.yaml:").split(" has no effect")[0]
        for record in caplog.records
    )
    assert said == [
        "10: model_specs.0.padding_side",
        "3: engine_options.hf",
        "3: engine_options.hf.low_cpu_mem",
        "3: engine_options.vllm",
        "4: model_stats.stats_file",
        "6: ensemble.max_rounds",
        "7: ensemble.score_threshold",
        "8: ensemble.progressive",
    ]
    assert read(tmp_path, ECHO).notes == []


def test_old_names_are_read_with_one_warning_each(tmp_path, caplog):
    text = """
model_specs:
- {name: a, path: studio:mentor}
- {name: b, path: studio:intern}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {profile: studio, judge: studio:judge}
  request_params: {judge: {choices: ["studio:judge", "fixed:low"]}}
experiment: {task: studio_math}
"""
    config = read(tmp_path, text)
    with caplog.at_level(logging.WARNING):
        config.warn()
        config.warn()
    said = [record.message.removeprefix(f"{tmp_path}/some.yaml:") for record in caplog.records]
    assert said == [
        "3: path 'studio:mentor' is now called 'builtin:mentor'",
        "4: path 'studio:intern' is now called 'builtin:intern'",
        "7: profile 'studio' is now called 'builtin'",
        "7: judge 'studio:judge' is now called 'builtin:judge'",
        "8: choices 'studio:judge' is now called 'builtin:judge'",
        "9: task 'studio_math' is now called 'builtin_math'",
    ]
    new = text.replace("studio_", "builtin_").replace("studio", "builtin")
    assert config.model_dump() == read(tmp_path, new).model_dump()
    assert read(tmp_path, new).notes == []


def test_text_that_only_looks_like_an_old_name_is_left_alone(tmp_path):
    config = read(tmp_path, 'model_specs: [{name: studio, engine: echo, replies: {"": "studio: x"}}]')
    assert config.notes == []
    assert config.model_specs[0].options["replies"][""] == "studio: x"


def test_names_outside_a_file_are_translated_too(caplog):
    old_keys.warn_once.cache_clear()
    assert old_keys.current("pair", "studio-guest") == "builtin-guest"
    assert "pair 'studio-guest' is now called 'builtin-guest'" in caplog.text
    assert old_keys.current("pair", "deepseek") == "deepseek"


def test_the_page_of_old_names_has_the_table_of_the_code():
    page = Path(__file__).parents[1] / "docs" / "old_names.md"
    assert old_keys.table() in page.read_text()


def test_moved_keys_lead_to_their_line(tmp_path):
    with pytest.raises(ConfigError, match=r"some\.yaml:7: scorer 's': unknown option 'modle'"):
        ensemble(
            tmp_path,
            ECHO + "reward_specs: [{engine: perplexity, model: a}]\nensemble:\n  reward_specs:\n"
            "  - {name: s, engine: perplexity, modle: a}\n  output_aggregation_method: best_of",
        )
    with pytest.raises(ConfigError, match=r"some\.yaml:6: aggregation 'loop': option 'max_rounds'"):
        ensemble(tmp_path, ECHO + "ensemble:\n  output_aggregation_method: loop\n  max_rounds: x")
    with pytest.raises(ConfigError, match="unknown key 'max_round'; did you mean 'max_rounds'"):
        read(tmp_path, ECHO + "ensemble: {max_round: 3}")


def test_options_of_all_models_on_an_engine(tmp_path):
    text = """
engine_options: {hf: {use_eager_attention: true, low_cpu_mem: true, dtype: float32}}
debug: {enable_thinking: false}
model_specs:
- path: p
- {path: q, dtype: bfloat16, attn_implementation: sdpa, enable_thinking: true, padding_side: left}
"""
    config = read(tmp_path, text)
    first, second = map(config.options, config.model_specs)
    assert first == {
        "path": "p",
        "attn_implementation": "eager",
        "dtype": "float32",
        "enable_thinking": False,
    }
    assert second == {
        "path": "q",
        "attn_implementation": "sdpa",
        "dtype": "bfloat16",
        "enable_thinking": True,
    }


@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ("{}", "max_tokens", 512),
        ("{max_tokens: null}", "max_tokens", 100),
        ("{temperature: 0.7}", "temperature", 0.7),
        ("{temperature: 0.7, do_sample: false}", "temperature", 0.0),
        ("{do_sample: true}", "temperature", 1.0),
        ("{temperature: null}", "temperature", 0.0),
        ("{stop_strings: [a], stop_sequences: b}", "stop", ("a", "b")),
        ("{repetition_penalty: 1.1}", "repetition_penalty", 1.1),
        ("{presence_penalty: 0.5}", "presence_penalty", 0.5),
        ("{frequency_penalty: 0.5}", "frequency_penalty", 0.5),
        ("{top_k: 50}", "top_k", 50),
        ("{seed: 3}", "seed", 3),
    ],
)
def test_generation_becomes_the_request(tmp_path, keys, field, value):
    generation = read(tmp_path, ECHO + f"ensemble: {{generation: {keys}}}").ensemble.generation
    assert getattr(generation.sampling(context=200), field) == value


def test_an_unlimited_answer_takes_at_most_what_the_reference_took(tmp_path):
    generation = read(tmp_path, ECHO + "ensemble: {generation: {max_tokens: }}").ensemble.generation
    assert generation.sampling().max_tokens == generation.sampling(10**6).max_tokens == sections.LONGEST


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>a</think> b", "b"),
        ("a</think>b</think> c ", "c"),
        ("a</think>b ### c", "c"),
        (" no mark ", " no mark "),
        ("a</think>", ""),
    ],
)
def test_extract_after_keeps_what_is_behind_the_last_mark(tmp_path, text, kept):
    generation = read(
        tmp_path, ECHO + "ensemble: {generation: {extract_after: ['</think>', '###', '']}}"
    ).ensemble.generation
    assert generation.extracted(text) == kept


async def asked(whole):
    return await whole.generate("?")


def test_details_are_printed_where_asked_for(tmp_path, capsys):
    asyncio.run(asked(ensemble(tmp_path, ECHO)))
    assert capsys.readouterr().err == ""
    asyncio.run(
        asked(ensemble(tmp_path, ECHO + "debug: {show_input_details: true, show_output_details: true}"))
    )
    request, result = map(json.loads, capsys.readouterr().err.splitlines())
    assert request["request"]["prompt"]["messages"][0]["content"] == "?"
    assert result["result"]["text"] == "ok"
    assert result["result"]["usage"]["cost"]["completion_tokens"] == 1


def test_a_value_is_set_below_an_empty_section(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(ECHO + "ensemble:")
    assert Config.read(path, ["ensemble.generation.top_k=3"]).ensemble.generation.top_k == 3


ODD = [
    "",
    "0",
    "-1",
    "2.5",
    ".inf",
    "true",
    "x",
    "[]",
    "[1]",
    "[[a]]",
    "{}",
    "{a: 1}",
    "{1: 2}",
    "{? : 1}",
    "2020-01-01",
    "!!binary YWI=",
]


KEYS = ["model_specs.0.name", "model_specs.0.path", "reward_specs.0", *Config.model_fields]
KEYS += [f"ensemble.{key}" for key in (*sections.EnsembleSection.model_fields, *MOVED["ensemble"])]
KEYS += ["model_stats", "debug.enable_thinking", "ensemble.progressive.template_language"]
WITHOUT_EFFECT = ("max_rounds", "score_threshold", "enable_thinking", "template_language")  # on these models
KEYS += [f"ensemble.generation.{key}" for key in sections.Generation.model_fields]


@pytest.mark.parametrize("key", KEYS)
def test_an_odd_value_is_taken_or_refused_in_one_line(tmp_path, key):
    path = tmp_path / "some.yaml"
    path.write_text(ECHO + "reward_specs: [{engine: perplexity, model: a}]")
    refusals = []
    for value in ODD:
        try:
            AsyncEnsemble.from_config(Config.read(path, [f"{key}={value}"]))
        except ConfigError as error:
            refusals.append(str(error))
    assert refusals or key.endswith(WITHOUT_EFFECT)
    assert not any("\n" in refusal for refusal in refusals)


def test_a_character_that_is_escaped_as_a_surrogate_pair_is_that_character(tmp_path):
    spec = '{name: a, engine: echo, replies: {"": "\\ud83d\\ude00"}}'
    config = read(tmp_path, f"model_specs: [{spec}]")
    assert config.options(config.model_specs[0])["replies"][""] == "\U0001f600"
    changed = Config.read(tmp_path / "some.yaml", ['experiment.task="\\ud83d\\ude00"'])
    assert changed.experiment.task == "\U0001f600"
    with pytest.raises(ConfigError, match="half a surrogate pair"):
        Config.read(tmp_path / "some.yaml", ['experiment.task="\\ud83d"'])
