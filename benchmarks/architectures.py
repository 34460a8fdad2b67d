"""Which causal architectures the `hf` engine runs as transformers does: `python -m benchmarks.architectures`.

For each architecture of transformers' `AutoModelForCausalLM` a tiny random model is made and saved, and the engine is
compared with `model.generate` on it, in float32 on a CPU, under `sdpa` and under `eager`: the greedy tokens and their
logprobs of a prompt alone, of two prompts of unlike length in one batch, of a prompt that continues a cached one, and
the logprobs of a prompt that is read.  What is found goes into the table that the engine and `doctor` read
(`ensemblehub/generators/hf/architectures.json`) and into `results/engines/architectures.md`.

An architecture that the table already has for this version of transformers is not run again without `--again`, so a
run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

from benchmarks.tiny_configs import VARIANTS, VOCABULARY, tiny
from ensemblehub.cost import UsageLedger
from ensemblehub.errors import EnsembleHubError, one_line
from ensemblehub.generators.hf.architectures import KERNELS, SAME, TABLE, Support
from ensemblehub.generators.hf.engine import HFEngine, HFOptions
from ensemblehub.schema import Request, Sampling, TokenIds

REPORT = Path("results/engines/architectures.md")
NEW = 12  # tokens written
MOST = 20_000_000  # parameters of a model that is made
TOLERANCE = 1e-3  # nats of a logprob
LONG = tuple(3 + (7 * index + index // 5) % (VOCABULARY - 3) for index in range(29))
SHORT = tuple(3 + (11 * index + 5) % (VOCABULARY - 3) for index in range(17))
Written = tuple[list[int], list[float]]  # ids and logprobs


class Engine(HFEngine):
    """The engine under test, which the table does not stop."""

    def _supported(self) -> Support:
        return Support(self.settings.attn_implementation)


class Difference(Exception):
    """The engine's tokens or logprobs are not those of `generate`."""


class Untried(Exception):
    """There is nothing to compare the engine with."""


def save(config: Any, folder: Path) -> None:
    """A model with random weights, large enough that logits differ, and a tokenizer of single letters."""
    with torch.device("meta"):
        size = sum(
            weight.numel() for weight in transformers.AutoModelForCausalLM.from_config(config).parameters()
        )
    if size > MOST:
        raise Untried(f"it has {size:,} parameters")
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 1.2 / weight.shape[-1] ** 0.5)
    network.generation_config.update(eos_token_id=None, pad_token_id=0, bos_token_id=1)
    network.save_pretrained(folder)
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {
        chr(0x4E00 + index): index for index in range(3, VOCABULARY)
    }
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(folder)


def expected(network: Any, ids: Sequence[int]) -> Written:
    """What `generate` writes, with its logprobs."""
    output = network.generate(
        torch.tensor([list(ids)]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
    )
    written = output.sequences[0, len(ids) :].tolist()
    lines = torch.cat(output.logits).float().log_softmax(-1)
    return written, [float(line[index]) for line, index in zip(lines, written, strict=True)]


async def written(engine: HFEngine, ids: Sequence[int], ledger: UsageLedger) -> Written:
    """What the engine writes, with its logprobs."""
    request = Request(TokenIds(tuple(ids)), Sampling(max_tokens=NEW, ignore_eos=True))
    async with aclosing(engine.stream(request, ledger.meter("answer"))) as pieces:
        tokens = [token async for piece in pieces for token in piece.tokens]
    return [token.id or 0 for token in tokens], [token.logprob or 0.0 for token in tokens]


def compare(what: str, found: Written, wanted: Written) -> None:
    """See whether tokens are equal and logprobs within the tolerance.

    Raises:
        Difference: they are not.
    """
    differences = [abs(mine - other) for mine, other in zip(found[1], wanted[1], strict=True)]
    if not all(difference <= TOLERANCE for difference in differences):  # NaN is none
        raise Difference(f"{what}, logprobs differ from transformers' by up to {max(differences):.2g}")
    if found[0] != wanted[0]:
        raise Difference(f"{what}, other tokens than transformers'")


async def agree(folder: str, kernel: str) -> None:
    """Compare the engine with `generate` on one model.

    Raises:
        Difference: they differ.
        Untried: transformers alone fails.
        EnsembleHubError: the engine refuses the model, or failed.
    """
    try:
        network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            wanted = {ids: expected(network, ids) for ids in (LONG, SHORT)}
            further = (*LONG, *wanted[LONG][0][:5], 9, 4)
            wanted[further] = expected(network, further)
            direct = network(torch.tensor([LONG]), use_cache=False).logits[0].float().log_softmax(-1)
    except Exception as error:  # whatever it raises
        Engine("tiny", HFOptions(folder, device="cpu"))  # a refusal says more
        raise Untried(f"transformers alone fails on the tiny model: {one_line(error, 200)}") from error
    engine, ledger = (
        Engine("tiny", HFOptions(folder, device="cpu", attn_implementation=kernel)),
        UsageLedger(),
    )
    try:
        await engine.load()
        if engine._started().loaded.result().network.config._attn_implementation != kernel:
            raise Difference(f"transformers has no {kernel} for it")
        compare("of a prompt alone", await written(engine, LONG, ledger), wanted[LONG])
        compare("behind a cached prefix", await written(engine, further, ledger), wanted[further])
        if not ledger.total.cached_tokens:
            raise Difference("no prefix is found again")
        engine._started().cache.entries.clear()
        both = await asyncio.gather(*(written(engine, ids, ledger) for ids in (SHORT, LONG)))
        for ids, found in zip((SHORT, LONG), both, strict=True):
            compare("of two prompts together", found, wanted[ids])
        scored = await engine.score(Request(TokenIds(LONG)), ledger.meter("score"))
        read, targets = [token.logprob or 0.0 for token in scored.tokens[1:]], list(LONG[1:])
        known = [float(direct[index, after]) for index, after in enumerate(targets)]
        compare("of a prompt that is read", (targets, read), (targets, known))
    finally:
        await engine.close()


def outcome(folder: str, kernel: str) -> str:
    """`SAME`, or in a few words why not."""
    try:
        asyncio.run(agree(folder, kernel))
    except (Difference, EnsembleHubError) as error:
        text = one_line(error, 300)
        if "Unrecognized configuration class" in text:
            raise Untried("its language model alone is none for AutoModelForCausalLM") from error
        for head in (f"{folder}: ", "the hf engine ", "tiny: ", "the model failed: "):
            text = text.removeprefix(head)
        return text.replace(folder, "MODEL")
    return SAME


def line_of(kind: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table's line of an architecture: what came out under each kernel, or why nothing could be tried."""
    line: dict[str, Any] = {"kind": kind, "when": dict(changes)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(tiny(kind, changes), Path(folder))
        except Exception as error:  # whatever transformers raises
            return line | {"untried": f"no tiny model: {one_line(error, 200)}"}
        try:
            return line | {kernel: outcome(folder, kernel) for kernel in KERNELS}
        except Untried as error:
            return line | {"untried": str(error)}


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table as a page."""
    runs = sum(SAME in (line.get(kernel) for kernel in KERNELS) for line in lines)
    rows = []
    for line in lines:
        when = ", ".join(f"{name}: {value}" for name, value in line["when"].items())
        cells = [str(line.get(kernel, "not tried")).replace("|", "\\|") for kernel in KERNELS]
        rows.append(f"| `{line['kind']}` | {when} | {' | '.join(cells)} | {line.get('untried', '')} |")
    return "\n".join(
        [
            "# Architectures that the `hf` engine runs",
            "",
            f"Written by `python -m benchmarks.architectures` with transformers {transformers.__version__}, torch",
            f"{torch.__version__}: tiny random models in float32 on a CPU. *{SAME}*: greedy tokens are those of",
            f"`model.generate` and logprobs within {TOLERANCE:g} nats: of a prompt alone, behind a cached prefix,",
            "of two prompts of unlike length together, and of a prompt that is read. Of the",
            f"{len(lines)} lines {runs} run under one of the two kernels at least. What runs under neither is refused",
            "before weights load; what was not tried is compared with transformers when it is loaded.",
            "",
            "| architecture | with | `sdpa` | `eager` | not tried |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> int:
    """Try what the table lacks; the exit status is 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", nargs="*", help="model types (default: all)")
    parser.add_argument("--again", action="store_true", help="try those, too, that the table has")
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder that holds ensemblehub/ and results/ (here)"
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    table, page = options.out / "ensemblehub/generators/hf" / TABLE.name, options.out / REPORT
    found = json.loads(table.read_text(encoding="utf-8"))
    kept = found["architectures"] if found["transformers"] == transformers.__version__ else []
    lines = {_key(line["kind"], line["when"]): line for line in kept}
    for kind in options.kind or NAMES:
        for changes in VARIANTS.get(kind, [{}]):
            if options.again or _key(kind, changes) not in lines:
                lines[_key(kind, changes)] = line = line_of(kind, changes)
                print(json.dumps(line), flush=True)
                _write(table, page, lines.values())
    _write(table, page, lines.values())
    return 0


def _write(table: Path, page: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    ordered = sorted(lines, key=lambda line: _key(line["kind"], line["when"]))
    rows = ",\n".join(json.dumps(line) for line in ordered)
    whole = f'{{"transformers": "{transformers.__version__}", "architectures": [\n{rows}\n]}}\n'
    for path, text in ((table, whole), (page, report(ordered))):
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)


def _key(kind: str, when: Mapping[str, Any]) -> tuple[str, str]:
    return kind, json.dumps(when, sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())
