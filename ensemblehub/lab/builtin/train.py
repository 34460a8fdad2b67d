"""Train a built-in model: `python -m ensemblehub.lab.builtin.train mentor|intern|guest`.

Muon for the matrices, AdamW for the rest; bf16 weights with fp32 masters on the CPU; rows of like length
in batches of equal token count; a checkpoint every few hundred steps from which the same command resumes.
The learning rate rises over 100 steps, stays, and falls to zero over the last 40 % of `--steps`, so a run
in its flat part can be lengthened or shortened by resuming it with another `--steps`.  `--start` begins with
the weights of a trained model, and `--samples` adds what ensemble methods ask of a model (`skills.py`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from transformers import PreTrainedTokenizerFast

from ensemblehub.builtin import resolve
from ensemblehub.builtin.prompts import INSIGHT_HEADER
from ensemblehub.lab.builtin import corpus, tokenizer
from ensemblehub.lab.builtin.corpus import Sample
from ensemblehub.lab.builtin.network import Network, Shape
from ensemblehub.lab.builtin.skills import Skills

BUCKET = 32  # lengths are padded to a multiple of this
POOL = 8  # batches drawn at once, to sort by length
Row = tuple[list[int], list[float]]  # token ids and, for each, a loss weight or a label


@dataclass(frozen=True)
class Recipe:
    """How one built-in model is made.

    Attributes:
        sampler: draws its training texts.
        layers, width, heads, feed_forward: its size.
        muon, adam: learning rates of the matrices and of the rest.
        prompt_weight: weight of the loss on what is read, against what is written.
        digits, vocabulary: its tokenizer (`tokenizer.build`).
        thinks: its chat template thinks unless told not to.
    """

    sampler: Callable[[random.Random], Sample]
    layers: int
    width: int
    heads: int
    feed_forward: int
    muon: float
    adam: float
    prompt_weight: float
    digits: bool = True
    vocabulary: int = tokenizer.VOCABULARY_SIZE
    thinks: bool = False

    def tokens(self) -> PreTrainedTokenizerFast:
        """Its tokenizer, trained anew; the same every time."""
        return tokenizer.build(self.digits, self.vocabulary)

    def shape(self, vocabulary: int) -> Shape:
        """Its shape with that many tokens."""
        return Shape(self.layers, self.width, self.heads, self.feed_forward, vocabulary)


MENTOR = Recipe(corpus.mentor_sample, 4, 192, 6, 448, muon=1.5e-3, adam=2e-3, prompt_weight=0.05, thinks=True)
INTERN = Recipe(corpus.intern_sample, 2, 96, 3, 192, muon=5e-3, adam=4e-3, prompt_weight=0.3)
RECIPES = {"mentor": MENTOR, "intern": INTERN, "guest": replace(INTERN, digits=False, vocabulary=1216)}


def encode(sample: Sample, tokens: PreTrainedTokenizerFast, prompt_weight: float) -> Row:
    """Token ids and loss weights of a sample, its insight cut at a token."""
    if sample.insight:
        kept = tokens.encode(sample.insight)
        kept = kept[: max(1, round(sample.cut * len(kept)))]
        head, closing = sample.prompt.rsplit(corpus.END + corpus.ASSISTANT, 1)
        prompt = tokens.encode(head + INSIGHT_HEADER) + kept
        prompt += tokens.encode(corpus.END + corpus.ASSISTANT + closing)
    else:
        prompt = tokens.encode(sample.prompt)
    reply = tokens.encode(sample.reply + corpus.END)
    return prompt + reply, [prompt_weight] * len(prompt) + [1.0] * len(reply)


def batches(draw: Callable[[random.Random], Row], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of about `size` tokens: ids and weights (or labels), each (rows, length)."""
    rng = random.Random(seed)
    while True:
        rows: list[Row] = []
        while sum(len(ids) for ids, _ in rows) < POOL * size:
            rows += [draw(rng) for _ in range(16)]
        rows.sort(key=lambda row: len(row[0]))
        pool: list[list[Row]] = [[]]
        for row in rows:
            if (len(pool[-1]) + 1) * _padded(len(row[0])) > size:
                pool.append([])
            pool[-1].append(row)
        rng.shuffle(pool)
        for batch in pool:
            length = _padded(max(len(ids) for ids, _ in batch)) + 1
            ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in batch])
            weights = torch.tensor([weight + [0.0] * (length - len(weight)) for _, weight in batch])
            yield ids, weights


def _padded(length: int) -> int:
    return -(-(length - 1) // BUCKET) * BUCKET


class Trainer:
    """bf16 weights, fp32 masters, two optimizers and a checkpoint.

    Args:
        network: returns the loss of a batch (ids, weights); its matrices in `layers` are Muon's.
        muon, adam: learning rates.
        export: writes the model for its users, given the masters and a folder.
    """

    def __init__(
        self,
        network: nn.Module,
        muon: float,
        adam: float,
        device: str,
        export: Callable[[dict[str, Tensor], Path], None],
    ) -> None:
        self.step, self.export = 0, export
        self.network = network.to(device)
        self.masters = {name: p.detach().clone().float() for name, p in self.network.named_parameters()}
        self.network.to(torch.bfloat16)
        for name, buffer in self.network.named_buffers():
            setattr(self.network, name, buffer.float())
        matrices = [p for name, p in self.masters.items() if p.dim() == 2 and "layers" in name]
        others = [p for name, p in self.masters.items() if p.dim() != 2 or "layers" not in name]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=muon, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.base_rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.loss = torch.compile(self.network, dynamic=True)

    def update(self, ids: Tensor, weights: Tensor, steps: int) -> float:
        """One step, with the gradients of all workers averaged; returns this worker's loss."""
        loss = self.loss(ids, weights)
        loss.backward()
        if distributed.is_initialized():
            average([p.grad for p in self.network.parameters() if p.grad is not None])
        factor = min(1.0, (self.step + 1) / 100, max(0.0, (steps - self.step) / (0.4 * steps)))
        for (_, master), parameter in zip(self.masters.items(), self.network.parameters(), strict=True):
            master.grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        for optimizer, rate in zip(self.optimizers, self.base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters.values(), self.network.parameters(), strict=True):
                parameter.copy_(master)
        self.step += 1
        return float(loss.detach())

    def start(self, weights: dict[str, Tensor]) -> None:
        """Begin with these weights; a vocabulary that has grown keeps its new rows."""
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if name in weights:
                    self.masters[name][: len(weights[name])].copy_(weights[name])
                    parameter.copy_(self.masters[name])

    def save(self, folder: Path) -> None:
        """Write the checkpoint and the model in the Hugging Face layout; each file appears whole."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "masters": self.masters,
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        torch.save(state, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")
        self.export(self.masters, folder)

    def resume(self, folder: Path) -> None:
        """Load the checkpoint if there is one."""
        if not (folder / "checkpoint.pt").exists():
            return
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        self.step = state["step"]
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                self.masters[name].copy_(state["masters"][name])
                parameter.copy_(self.masters[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def average(gradients: list[Tensor]) -> None:
    """Average gradients over the workers, in float32 and in one message."""
    flat = torch.cat([gradient.float().flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def export(
    shape: Shape, tokens: PreTrainedTokenizerFast, thinks: bool, masters: dict[str, Tensor], folder: Path
) -> None:
    """Write config, bf16 safetensors, tokenizer and chat template as transformers loads them."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    ends = {"eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id, "bos_token_id": None}
    config: Any = Qwen3Config(**shape.config(), **ends)
    model = Qwen3ForCausalLM(config)
    model.load_state_dict(masters, strict=True)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    tokens.chat_template = tokenizer.CHAT_TEMPLATE if not thinks else tokenizer.THINKING_TEMPLATE
    tokens.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m ensemblehub.lab.builtin.train", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--start", type=Path, help="folder of a model to begin with, or builtin:NAME")
    parser.add_argument(
        "--samples", type=Path, help="folder of answers (experiments.samples): adds the skills"
    )
    parser.add_argument(
        "--skills", type=float, default=0.15, help="their share of the texts (default: %(default)s)"
    )
    add_options(parser, steps=5000)
    options = parser.parse_args(arguments)
    options.out = options.out or Path("saves/builtin") / options.model
    if options.workers == 1:
        run(0, options)
    else:
        store = repeat(f"file://{tempfile.mkdtemp()}/store")
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_work, range(options.workers), repeat(options), store))


def add_options(parser: argparse.ArgumentParser, steps: int) -> None:
    """What every training of the builtin can be told."""
    parser.add_argument(
        "--steps", type=int, default=steps, help="optimizer steps in all (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="tokens per step (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="factor on the learning rates (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for model and checkpoint (default: saves/builtin/MODEL)"
    )
    parser.add_argument(
        "--save-every", type=int, default=250, help="steps between checkpoints (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share each step (default: %(default)s)"
    )


def _work(worker: int, options: argparse.Namespace, store: str) -> None:
    distributed.init_process_group("gloo", init_method=store, rank=worker, world_size=options.workers)
    run(worker, options)
    distributed.destroy_process_group()


def run(worker: int, options: argparse.Namespace) -> None:
    """Train a language model; worker 0 reports and saves."""
    recipe, tokens = RECIPES[options.model], RECIPES[options.model].tokens()
    torch.manual_seed(0)
    shape = recipe.shape(len(tokens))
    rates = (recipe.muon * options.rate, recipe.adam * options.rate)
    trainer = Trainer(Network(shape), *rates, options.device, partial(export, shape, tokens, recipe.thinks))
    skills = Skills.read(options.samples, options.model) if options.samples else None

    def draw(rng: random.Random) -> Row:
        asked = skills is not None and rng.random() < options.skills
        sample = skills.sample(rng) if skills and asked else recipe.sampler(rng)
        return encode(sample, tokens, recipe.prompt_weight)

    train(trainer, draw, options, worker)


def train(
    trainer: Trainer, draw: Callable[[random.Random], Row], options: argparse.Namespace, worker: int = 0
) -> None:
    """Run a trainer over drawn rows to `options.steps`, from its checkpoint or from `options.start`."""
    torch.set_num_threads(options.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.start:
        trainer.start(load_file(Path(resolve(str(options.start))) / "model.safetensors"))
    trainer.resume(options.out)
    if worker == 0:
        size = sum(p.numel() for p in trainer.masters.values())
        print(f"{options.out.name}: {size:,} parameters, from step {trainer.step}", flush=True)
    seed = 1 + trainer.step * options.workers + worker
    source = batches(draw, options.tokens // options.workers, seed)
    started, losses = time.time(), list[float]()
    while trainer.step < options.steps:
        ids, weights = next(source)
        losses.append(trainer.update(ids.to(options.device), weights.to(options.device), options.steps))
        if worker == 0 and trainer.step % 50 == 0:
            report(options, trainer.step, losses, (time.time() - started) / len(losses))
            started, losses = time.time(), []
        if worker == 0 and (trainer.step % options.save_every == 0 or trainer.step == options.steps):
            trainer.save(options.out)


def report(options: argparse.Namespace, step: int, losses: list[float], seconds: float) -> None:
    """One line on the terminal and one in `curve.jsonl`."""
    row = {"step": step, "loss": round(sum(losses) / len(losses), 4)}
    left = (options.steps - step) * seconds / 60
    print(
        f"step {step}/{options.steps}  loss {row['loss']:.4f}  {seconds:.2f} s/step  {left:.0f} min left",
        flush=True,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "curve.jsonl").open("a") as curve:
        curve.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
