#!/usr/bin/env python3
"""Collect what the classifier is trained on: the mentor's insight at every level, the intern's reading and answers.

The reference's command and flags, over `ensemblehub collect`:

    python scripts/mentor_guided/collect_progressive_data.py --dataset math500 --split train --mentor-type local \\
        --parallel --num-workers 4 --mentor-gpus "0,1,2,3" --intern-gpus "4,5,6,7"

    PAIR=builtin python scripts/mentor_guided/collect_progressive_data.py --dataset math500 --limit 50    # offline

The command can be killed at any time; the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ensemblehub.errors import EnsembleHubError
from ensemblehub.lab.paper.study import Study
from ensemblehub.lab.pipeline import reference_format
from ensemblehub.lab.pipeline.parallel import placements

KEY = "OPENROUTER_API_KEY"


def parser() -> argparse.ArgumentParser:
    """The reference's flags, and ours."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = flags.add_argument
    add(
        "--dataset",
        default="hendrycks_math",
        help="hendrycks_math, math500, humaneval, or any of ours (default: %(default)s); "
        "math500 is divided 400 to 100 and humaneval 130 to 34, by seed 42",
    )
    add(
        "--split",
        default="all",
        choices=["train", "test", "calibration", "all"],
        help="(default: %(default)s)",
    )
    add("--mentor-type", default="local", choices=["local", "api"], help="(default: %(default)s)")
    add("--mentor-model", default="deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", help="(default: %(default)s)")
    add("--intern-model", default="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", help="(default: %(default)s)")
    add(
        "--api-model",
        default="gpt-4o",
        help="mentor behind OpenRouter, for --mentor-type api (default: %(default)s)",
    )
    add("--api-key", help=f"its key; better in the environment, as {KEY}")
    add(
        "--output-dir",
        type=Path,
        default=Path("data/acte_experiments/collected"),
        help="(default: %(default)s)",
    )
    add("--parallel", action="store_true", help="collect by worker processes")
    add("--num-workers", type=int, default=0, help="how many (default: one per GPU of the mentors)")
    add("--gpus", default="", help="GPUs for both models, such as 0,1,2,3, shared evenly")
    add("--mentor-gpus", default="", help="GPUs for the mentors")
    add("--intern-gpus", default="", help="GPUs for the interns")
    add("--mentor-device", help="device of the mentor without --parallel, such as cuda:0")
    add("--intern-device", help="device of the intern without --parallel")
    add(
        "--pair",
        default=os.environ.get("PAIR"),
        help="builtin, or a YAML file, in place of the models above (or PAIR)",
    )
    add("--data", type=Path, help="file or folder of the benchmark, where it is not in data/")
    add("--limit", type=int, help="only so many questions of each split")
    add("--max_tokens", "--max-tokens", type=int, help="of an answer (default: 4096, the built-in 768)")
    add("--force", action="store_true", help="start anew")
    return flags


def study_of(options: argparse.Namespace) -> Study:
    """The pair and the benchmark that the flags name."""
    if options.pair:
        return Study(options.pair, options.dataset, options.output_dir, options.data)
    api = options.mentor_type == "api"
    changes = [f"model_specs.1.path={json.dumps(options.intern_model)}"]
    if api:
        name = options.api_model if "/" in options.api_model else f"openai/{options.api_model}"
        changes.append(f"model_specs.0.path={json.dumps(name)}")
    else:
        changes.append(f"model_specs.0.path={json.dumps(options.mentor_model)}")
    devices = (options.mentor_device, options.intern_device)
    changes += [f"model_specs.{place}.device={device}" for place, device in enumerate(devices) if device]
    pair = "gpt-4o" if api else "deepseek"
    return Study(pair, options.dataset, options.output_dir, options.data, changes=tuple(changes))


def main() -> None:
    """The command."""
    options = parser().parse_args()
    if options.api_key:
        os.environ[KEY] = options.api_key
    try:
        places = []
        if options.parallel:
            places = placements(options.num_workers, options.gpus, options.mentor_gpus, options.intern_gpus)
        study = study_of(options).of(limit=options.limit, max_tokens=options.max_tokens, force=options.force)
        mentor = (options.api_model if options.mentor_type == "api" else options.mentor_model).rpartition(
            "/"
        )[2]
        mentor = Path(options.pair).stem if options.pair else mentor
        pipeline = study.pipeline()
        known = [name for name in pipeline.task.splits if name != "all"]
        for split in known if options.split == "all" else [options.split]:
            data = pipeline.collect(split, study.limit, study.force, places)
            items = {item.id: item for item in pipeline.items(split, study.limit)}
            name = f"{study.benchmark}_{split}"
            folder = options.output_dir / f"{name}_{mentor}"
            for file in reference_format.export(data, items, folder, name):
                print(file)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the rest", file=sys.stderr)
        sys.exit(130)
    except EnsembleHubError as error:
        print(f"collect_progressive_data: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
