"""The schedulers' examples in docs/scale.md: each process gets its own shard, and all together are all shards."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from ensemblehub.cli import add_plugins, cli
from ensemblehub.shards import Shard

add_plugins()
TEXT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
BLOCKS = re.findall(r"```(?:bash|yaml)\n(.*?)```", TEXT, re.DOTALL)


def block(word):
    """The first code of the page that has a word in it."""
    return next(text for text in BLOCKS if word in text)


def calls(folder, script, count=1, **environment):
    """What a script asks of `ensemblehub`, once for each number, and the GPU that it sees."""
    asked = folder / "asked"
    stub = folder / "ensemblehub"
    stub.write_text(f'#!/bin/sh\n[ "$1" = merge ] || echo "$CUDA_VISIBLE_DEVICES" "$@" >> {asked}\n')
    stub.chmod(0o755)
    for number in range(count):
        numbered = {name: value.format(number) for name, value in environment.items()}
        known = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "-"}
        subprocess.run(["bash", "-euc", script], env=known | numbered, check=True, timeout=60)
    return [line.split() for line in asked.read_text().splitlines()]


def check(found, count):
    """The calls are those of all shards of the number, and the command takes them."""
    shards = set()
    for _, command, *arguments in found:
        context = cli.commands[command].make_context(command, arguments, resilient_parsing=False)
        shards.add(str(context.params["shard"]))
    assert shards == {str(Shard(index, count)) for index in range(count)}
    assert len(found) == count


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder in which the files of the examples exist; `/data` and `/out` are names of it."""
    monkeypatch.chdir(tmp_path)
    for name in ("pair.yaml", "in.jsonl"):
        (tmp_path / name).touch()


def test_xargs(tmp_path):
    check(calls(tmp_path, block("xargs -P 4 -I {} ensemblehub infer")), 4)


def test_xargs_gives_each_shard_a_gpu(tmp_path):
    found = calls(tmp_path, block("CUDA_VISIBLE_DEVICES"))
    check(found, 4)
    assert all(arguments[-1] == f"{gpu}/4" for gpu, *arguments in found)


def test_slurm(tmp_path):
    script = block("#SBATCH")
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", script).groups())
    check(calls(tmp_path, script, last + 1, SLURM_ARRAY_TASK_ID="{}"), last - first + 1)


def test_kubernetes(tmp_path):
    spec = yaml.safe_load(block("kind: Job"))["spec"]
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    shell, flag, script = container["command"]
    assert (shell, flag) == ("sh", "-c")
    there = script.replace("/data/", "")
    check(calls(tmp_path, there, spec["completions"], JOB_COMPLETION_INDEX="{}"), spec["completions"])


def test_skypilot(tmp_path):
    task = yaml.safe_load(block("num_nodes"))
    nodes = {"SKYPILOT_NODE_RANK": "{}", "SKYPILOT_NUM_NODES": str(task["num_nodes"])}
    check(calls(tmp_path, task["run"].replace("/out/", ""), task["num_nodes"], **nodes), task["num_nodes"])
