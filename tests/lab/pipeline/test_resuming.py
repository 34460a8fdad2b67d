"""What a pipeline was begun with, what it is killed between, and whose questions it is given."""

import gzip
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from ensemblehub import cli
from ensemblehub.config import Config
from ensemblehub.errors import ArtifactError, ConfigError, EngineError
from ensemblehub.generators.openai.errors import RefusedError
from ensemblehub.lab.pipeline import report, splits
from ensemblehub.lab.pipeline.certificate import Promise
from ensemblehub.lab.pipeline.certificate_command import certify
from ensemblehub.lab.pipeline.collect import Collector
from ensemblehub.lab.pipeline.failures import about
from ensemblehub.lab.pipeline.pipeline import Pipeline
from ensemblehub.lab.pipeline.records import Collected
from ensemblehub.lab.pipeline.replayed import judged, perfect_cascade
from ensemblehub.lab.tasks import task_named
from ensemblehub.lab.tasks.base import Item
from ensemblehub.tandem.artifact import load_judge

YAML = """
model_specs:
  - {name: big, engine: echo, parameters: 9000000, replies: {"": "Goal: x Planning: y so it is \\\\boxed{9}"}}
  - name: small
    engine: echo
    parameters: 1000000
    confident: [harbour, boats]
    replies: {boats: "it is \\\\boxed{4}", "Goal: x Planning:": "it is \\\\boxed{9}", "": "it is \\\\boxed{12}"}
ensemble:
  output_aggregation_method: tandem
  output_aggregation_params: {levels: {low: 2, high: 4}, start_with_intern: true, judge: FOLDER/judge}
experiment: {task: builtin_math, results: FOLDER/results, judge: logistic, concurrency: 8}
"""
N = 60


def pipeline(folder, *changes):
    path = folder / "echo.yaml"
    path.write_text(YAML.replace("FOLDER", str(folder)))
    return Pipeline(Config.read(path, changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    whole = pipeline(folder)
    for split in ("train", "calibration", "test"):
        whole.collect(split, N)
    whole.train()
    whole.calibrate()
    whole.evaluate(20, checks=False)
    return folder


def test_a_question_that_fails_is_named(tmp_path):
    whole = pipeline(tmp_path, "model_specs.0.fail_after=1")
    (item,) = whole.items("train", 1)
    with pytest.raises(EngineError) as raised:
        whole.collect("train", 1)
    assert str(raised.value) == f"question {item.id}: big failed after 1 tokens, as scripted"
    assert raised.value.engine == "big"


def test_an_error_of_any_class_names_the_question():
    refused = RefusedError("no", "big", 429, "slow_down")
    item = Item("q7", "How many?", "4")
    with pytest.raises(RefusedError) as raised, about(task_named("builtin_math"), item):
        raise refused
    assert (str(raised.value), raised.value.engine, raised.value.status) == ("question q7: no", "big", 429)
    assert str(refused) == "no"


@pytest.fixture
def folder(finished, tmp_path):
    """A finished experiment of one's own."""
    shutil.copytree(finished, tmp_path / "own")
    return tmp_path / "own"


def state(folder):
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "echo.yaml"
    }


def refused(folder, step):
    """The message of a refusal, which leaves every file as it was."""
    before = state(folder)
    with pytest.raises(ArtifactError) as caught:
        step()
    assert "\n" not in str(caught.value)
    assert state(folder) == before
    return str(caught.value)


# What it was begun with

CHANGES = [
    ("ensemble.generation.max_tokens=7", "max_tokens 512, not 7"),
    ("ensemble.generation.temperature=0.5", "temperature 0.0, not 0.5"),
    ("ensemble.generation.top_p=0.5", "sampling.top_p 1.0, not 0.5"),
    ("ensemble.generation.stop_strings=[x]", "sampling.stop [], not ['x']"),
    ("model_specs.0.parameters=8000000", "8000000"),
    ("model_specs.0.replies={'': other}", "engines.big.replies"),
    ("model_specs.1.name=tiny", "intern 'small', not 'tiny'"),
    ("ensemble.output_aggregation_params.profile=qwen3", "prompts"),
    ("ensemble.output_aggregation_params.levels={low: 3, high: 4}", "levels.low 2, not 3"),
    ("ensemble.output_aggregation_params.insight_mode=continuation", "insight_mode"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_another_pair_or_sampling_is_refused_with_what_differs(folder, change, said):
    for step in (lambda own: own.evaluate(20), lambda own: own.collect("test", N)):
        assert said in refused(folder, lambda step=step: step(pipeline(folder, change)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ensemble.output_aggregation_params.thresholds={low: 0.25}", "thresholds.low"),
        ("ensemble.output_aggregation_params.judge=entropy:1.0", "judge.kind 'logistic', not 'entropy'"),
        (
            "ensemble.output_aggregation_params.start_with_intern=false",
            "options.start_with_intern True, not False",
        ),
        ("ensemble.output_aggregation_params.fallback=last", "options.fallback 'best', not 'last'"),
    ],
)
def test_another_way_to_judge_is_refused_with_what_differs(folder, change, said):
    assert said in refused(folder, lambda: pipeline(folder, change).evaluate(20))


def test_where_and_how_patiently_it_runs_changes_nothing(folder):
    before = (folder / "results/runs.jsonl").read_bytes()
    runs = pipeline(folder, "experiment.concurrency=2", "server.port=1").evaluate(20, checks=False)
    assert len(runs) == 20
    assert (folder / "results/runs.jsonl").read_bytes() == before


def test_a_judge_trained_again_is_another_judge(folder):
    own = pipeline(folder)
    path = folder / "results/runs.jsonl"
    head, *rows = path.read_text().split("\n")
    settings = json.loads(head)
    settings["settings"]["weights"] = hashlib.sha256(b"of another training").hexdigest()
    path.write_text("\n".join([json.dumps(settings), *rows]))
    assert "weights" in refused(folder, lambda: own.evaluate(20))


def test_a_finished_score_is_not_that_of_another_number_of_questions(folder):
    assert "n 20, not 21" in refused(folder, lambda: pipeline(folder).evaluate(21))


def test_force_starts_anew_and_the_table_says_that_the_baselines_differ(folder):
    changed = pipeline(folder, "ensemble.generation.max_tokens=7")
    assert len(changed.evaluate(20, force=True, checks=False)) == 20
    assert "run with different settings: sampling.max_tokens 7, not 512" in changed.report()
    pipeline(folder).evaluate(20, force=True, checks=False)
    assert "different settings" not in pipeline(folder).report()


def test_a_changed_question_is_refused(folder, monkeypatch):
    own = pipeline(folder)
    items = list(own.task.items("test", N))
    changed = [replace(items[0], text="How many?"), *items[1:]]
    monkeypatch.setattr(type(own.task), "items", lambda self, split, limit=None: iter(changed[:limit]))
    assert items[0].id in refused(folder, lambda: own.evaluate(20))
    assert "asked" in refused(folder, lambda: own.collect("test", N))


def test_data_of_before_these_settings_were_recorded_is_read(folder):
    """As the committed results are: no models, sampling, question hashes, nor the hash of the arrays."""
    path = folder / "results/collected/test.jsonl.gz"
    head, *rows = gzip.decompress(path.read_bytes()).decode().split("\n")
    header = json.loads(head)
    for name in ("engines", "sampling", "asked", "arrays"):
        del header[name]
    old = [
        json.dumps({key: value for key, value in json.loads(row).items() if key != "question"})
        for row in rows
        if row
    ]
    path.write_bytes(gzip.compress("".join(line + "\n" for line in [json.dumps(header), *old]).encode()))
    journal = folder / "results/runs.jsonl"
    first, *others = journal.read_text().split("\n")
    kept = {key: json.loads(first)["settings"][key] for key in ("options", "n", "judge")}
    journal.write_text("\n".join([json.dumps({"settings": kept | {"collected": header}}), *others]))
    own = pipeline(folder)
    assert "n = 20 questions" in own.report()
    assert len(own.collect("test", N).rows) == N
    assert "engines was not recorded" in refused(folder, lambda: own.evaluate(20))


# Killed between two steps


def operations(monkeypatch, fatal):
    """Count what is done to files, and end the process just before number `fatal`."""
    count = 0

    def watched(name):
        real = getattr(os, name)

        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == fatal:
                os._exit(9)
            return real(*arguments, **options)

        return call

    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(os, name, watched(name))
    return lambda: count


def killed(fatal, step):
    """Run a step in a child that ends before its operation `fatal`; whether it did."""
    child = os.fork()
    if not child:
        patch = pytest.MonkeyPatch()
        operations(patch, fatal)
        try:
            step()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


def refusal(folder):
    try:
        pipeline(folder).collect("test", 3)
    except ArtifactError as error:
        return str(error)
    return ""


def rows_of(data):
    return [
        replace(row, runs={name: replace(run, seconds=0.0) for name, run in row.runs.items()})
        for row in data.rows
    ]


@pytest.mark.parametrize("replacing", [False, True])
def test_killed_before_any_step_a_collection_goes_on(tmp_path, replacing):
    wanted = pipeline(tmp_path).collect("test", 3)
    deaths = 0
    for fatal in range(1, 40):
        shutil.rmtree(tmp_path / "results")
        if replacing:
            pipeline(tmp_path).collect("test", 2)
        died = killed(fatal, lambda: pipeline(tmp_path).collect("test", 3, force=replacing))
        deaths += died
        if replacing and died and not list((tmp_path / "results/collected").glob("*.partial.jsonl")):
            continue  # it had not begun
        old = replacing and "n 2, not 3" in refusal(
            tmp_path
        )  # the old data stands, whole, beside the new journal
        assert not old or len(Collected.load(tmp_path / "results/collected", "test").rows) == 2
        again = pipeline(tmp_path).collect("test", 3, force=old)
        assert rows_of(again) == rows_of(wanted)
        assert again.features.tobytes() == wanted.features.tobytes()
        assert not list((tmp_path / "results").rglob("*.partial.jsonl"))
        assert rows_of(Collected.load(tmp_path / "results/collected", "test")) == rows_of(wanted)
        if not died:
            break
    assert deaths > 12
    assert not died


def test_both_files_are_synced_before_the_journal_goes(tmp_path, monkeypatch):
    seen = []
    for name in ("fsync", "replace", "unlink"):
        real = getattr(os, name)

        def call(*arguments, name=name, real=real, **options):
            first = arguments[0]
            target = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(arguments[-1])
            seen.append((name, Path(target).name))
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)
    pipeline(tmp_path).collect("test", 2)
    end = seen.index(("unlink", "test.partial.jsonl"))
    order = [("fsync", "test.npz.part"), ("replace", "test.npz"), ("fsync", "test.jsonl.gz.part")]
    places = [seen.index(step) for step in [*order, ("replace", "test.jsonl.gz")]]
    assert places == sorted(places)
    assert ("fsync", "collected") in seen[places[-1] : end]


def test_a_collection_that_an_older_version_left_half_goes_on(tmp_path):
    """The arrays are there, the rows are not, and the journal is complete."""
    own = pipeline(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        wanted = own.collect("test", 3)
    (tmp_path / "results/collected/test.jsonl.gz").unlink()
    assert own.collect("test", 3).rows == wanted.rows
    assert not (tmp_path / "results/collected/test.partial.jsonl").exists()


# Whose questions it is given


def copied(folder, source, target, rename=False, ids=False):
    """Give a collected split another one's name; also in its header, and in the questions' ids."""
    place = folder / "results/collected"
    shutil.copy(place / f"{source}.npz", place / f"{target}.npz")
    text = gzip.decompress((place / f"{source}.jsonl.gz").read_bytes()).decode()
    if rename:
        text = text.replace(f'"split": "{source}"', f'"split": "{target}"')
    if ids:
        text = text.replace(f"builtin_math/{source}/", f"builtin_math/{target}/")
    (place / f"{target}.jsonl.gz").write_bytes(gzip.compress(text.encode()))


@pytest.mark.parametrize(("rename", "ids"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("target", ["calibration", "train", "test"])
def test_a_copy_of_another_split_is_refused(folder, target, rename, ids):
    copied(folder, "calibration" if target == "test" else "test", target, rename, ids)
    own = pipeline(folder)
    step = {"calibration": own.calibrate, "train": own.train, "test": lambda: own.evaluate(20)}[target]
    said = refused(folder, step)
    assert f"collected/{target}" in said
    assert ("none of" in said) if rename else ("its questions are those of" in said)


def test_questions_are_compared_by_their_words_whatever_the_file(folder, monkeypatch):
    """The benchmark's own files are copies of each other: other ids, other white space, the same words."""
    own = pipeline(folder)
    real = type(own.task).items

    def items(self, split, limit=None):
        for item in real(self, "test", limit):
            name = item.id.replace("test", split)
            yield replace(
                item, id=name, text=item.text if split == "test" else item.text.replace(" ", "  ", 3)
            )

    monkeypatch.setattr(type(own.task), "items", items)
    own.collect("calibration", N, force=True)
    own.collect("train", N, force=True)
    assert "shares 60 of its 60 questions with test" in refused(folder, own.calibrate)
    own.collect("calibration", 2, force=True)
    assert "shares 2 of its 2 questions with test" in refused(folder, own.calibrate)
    (folder / "results/collected/test.jsonl.gz").unlink()
    assert "shares 2 of its 2 questions with test" in refused(folder, own.calibrate)


def test_a_question_that_a_benchmark_repeats_by_chance_is_left_out(caplog):
    own = [f"q{index}" for index in range(200)]
    assert splits.unshared(own, {"q3", *(f"t{index}" for index in range(300))}, "train", "test") == [
        index for index in range(200) if index != 3
    ]
    assert "1 questions are left out" in caplog.text
    with pytest.raises(ArtifactError, match="shares 3 of its 200 questions"):
        splits.unshared(own, {"q3", "q4", "q5", *(f"t{index}" for index in range(300))}, "train", "test")


def test_words_decide_not_white_space_nor_names():
    first, second = Item("a", "How  many\nmugs?", "1"), Item("b", "How many mugs?", "2")
    assert (
        splits.digest(first)
        == splits.digest(second)
        != splits.digest(replace(second, text="How many bowls?"))
    )
    assert splits.asked(first) != splits.asked(replace(first, answer="3"))


@pytest.mark.parametrize(
    "levels", ["{low: 2, middle: 3, high: 4}", "{low: 2}", "{low: 2, high: 5}", "{low: 1, high: 4}"]
)
def test_levels_that_were_never_collected_are_refused(folder, levels):
    own = pipeline(folder, f"ensemble.output_aggregation_params.levels={levels}")
    assert "collected at other levels" in refused(folder, own.calibrate)


def test_a_judge_of_another_pair_is_not_calibrated(folder):
    path = folder / "judge/judge.json"
    path.write_text(path.read_text().replace('"mentor": "big"', '"mentor": "huge"'))
    assert "made for mentor 'huge', not 'big'" in refused(folder, pipeline(folder).calibrate)


def test_a_larger_limit_extends_what_was_collected(folder, monkeypatch):
    own, asked, collect = pipeline(folder), [], Collector.collect

    async def counted(collector, item):
        asked.append(item.id)
        return await collect(collector, item)

    monkeypatch.setattr(Collector, "collect", counted)
    extended = own.collect("test", N + 5)
    assert len(asked) == 5
    assert [row.id for row in extended.rows] == [item.id for item in own.items("test", N + 5)]
    anew = own.collect("test", N + 5, force=True)
    assert len(asked) == 5 + N + 5
    assert (anew.features == extended.features).all()
    assert [row.runs["low"].text for row in anew.rows] == [row.runs["low"].text for row in extended.rows]
    assert "n 65, not 60" in refused(folder, lambda: own.collect("test", N))


def test_a_replayed_judge_chooses_what_it_did_live(folder):
    own = pipeline(folder)
    runs = own.evaluate(N, force=True, checks=False)
    live = report.tandem(own.collected("test"), runs)
    replayed = judged(own.collected("test"), load_judge(folder / "judge"), "judge", "best")
    assert replayed.levels == live.levels
    for column in ("correct", "mentor_tokens", "intern_tokens"):  # echo engines cache no prefix
        assert (getattr(replayed, column) == getattr(live, column)).all(), column
    text = own.report_replayed([str(folder / "judge"), "entropy:0.5"])
    assert all(f"| {method} |" in text for method in ("judge", "entropy:0.5", "oracle", "perfect_cascade"))


def replayed_rows(folder, own, *judges):
    own.report_replayed([*map(str, judges)])
    return json.loads((folder / "results/summary.json").read_text())


def test_replayed_judges_have_a_row_each_whatever_their_folders_are_called(folder):
    own, named = pipeline(folder), [folder / "judge", folder / "other/judge", folder / "mentor"]
    for path in named[1:]:
        shutil.copytree(folder / "judge", path)
        record = json.loads((path / "judge.json").read_text())
        record["thresholds"] = {"none": 1.01, "low": 1.01, "high": 0.0}  # always at the highest level
        (path / "judge.json").write_text(json.dumps(record))
    rows = {row["method"]: row for row in replayed_rows(folder, own, *named)}
    _, other, mentor = (rows[f"judge {path}"] for path in named)
    assert other["levels"] == mentor["levels"] == {"high": N}
    alone = {row["method"]: row for row in replayed_rows(folder, own, folder / "judge")}
    assert rows["mentor"] == alone["mentor"]
    assert rows["mentor"]["difference"] == 0
    assert rows[f"judge {folder / 'judge'}"] == alone["judge"] | {"method": f"judge {folder / 'judge'}"}


@pytest.mark.parametrize(("starts", "level"), [("true", "none"), ("false", "low")])
def test_a_replayed_rule_visits_the_levels_that_the_configuration_judges(folder, starts, level):
    own = pipeline(folder, f"ensemble.output_aggregation_params.start_with_intern={starts}")
    assert replayed_rows(folder, own, "entropy:100")[-1]["levels"] == {level: N}


def test_a_replayed_judge_of_another_pair_is_warned_of(folder, caplog):
    path = folder / "judge/judge.json"
    path.write_text(path.read_text().replace('"mentor": "big"', '"mentor": "huge"'))
    replayed_rows(folder, pipeline(folder), folder / "judge")
    assert "judge: the judge was made for mentor 'huge', not 'big'" in caplog.text


def test_a_split_of_live_runs_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", "--split", "calibration"])
    assert "--split goes with --replay" in capsys.readouterr().err


def test_costs_are_unknown_where_the_size_of_a_model_was(folder, caplog):
    roles = [f"ensemble.output_aggregation_params.{role}" for role in ("mentor=big", "intern=small")]
    sizeless, sized = pipeline(folder, *roles, "model_specs.0.parameters=0"), pipeline(folder, *roles)
    for split in ("train", "calibration", "test"):
        sizeless.collect(split, 20, force=True)
    assert "the size of the model 'big' is unknown, and so are costs in FLOPs" in caplog.text
    with pytest.raises(ConfigError, match="'max-accuracy' counts FLOPs, and the size of the model 'big'"):
        sizeless.calibrate()
    for step in (sized.calibrate, lambda: certify(sized, Promise(0.5))):  # what was collected has no size
        assert "the size of the model 'big' was unknown when calibration was collected" in refused(
            folder, step
        )
    sizeless.evaluate(20, force=True)
    for text in (sizeless.report(), sizeless.report_replayed([str(folder / "judge")])):
        assert "inf" not in text
        assert "nan" not in text
        rows = json.loads((folder / "results/summary.json").read_text())
        assert {row[key] for row in rows for key in report.BY_FLOPS} == {None}
        assert "equal_cost_mix" not in {row["method"] for row in rows}


def test_a_perfect_cascade_asks_the_mentor_where_the_intern_is_wrong(folder):
    data = pipeline(folder).collected("test")
    found, mentor, intern = perfect_cascade(data), data.info("mentor"), data.info("intern")
    right = [row.runs["none"].correct for row in data.rows]
    assert found.levels == {"none": sum(right), "mentor": len(right) - sum(right)}
    assert 0 < sum(right) < len(right)
    for at, row in enumerate(data.rows):
        asked = [row.runs["none"]] if right[at] else [row.runs["none"], row.runs["mentor"]]
        assert found.correct[at] == asked[-1].correct
        assert found.flops[at] == sum(run.flops(mentor, intern) for run in asked)
        assert found.mentor_tokens[at] == sum(run.mentor_tokens for run in asked)
        assert found.truncated[at] == (asked[-1].finish == "length")
