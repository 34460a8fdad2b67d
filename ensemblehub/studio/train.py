"""Train a studio model: `python -m ensemblehub.studio.train mentor|intern`.

Muon for the matrices, AdamW for the rest; bf16 weights with fp32 masters on the CPU; rows of like length
in batches of equal token count; a checkpoint every few hundred steps from which the same command resumes.
The learning rate rises over 100 steps, stays, and falls to zero over the last 40 % of `--steps`, so a run
in its flat part can be lengthened or shortened by resuming it with another `--steps`.
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
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import PreTrainedTokenizerFast

from ensemblehub.studio import corpus, tokenizer
from ensemblehub.studio.corpus import Sample
from ensemblehub.studio.network import Network, Shape

BUCKET = 32  # lengths are padded to a multiple of this
POOL = 8  # batches drawn at once, to sort by length
SAMPLERS: dict[str, Callable[[random.Random], Sample]] = {
    "mentor": corpus.mentor_sample,
    "intern": corpus.intern_sample,
}
SHAPES: dict[str, dict[str, int]] = {
    "mentor": {"layers": 4, "width": 192, "heads": 6, "feed_forward": 448},
    "intern": {"layers": 2, "width": 96, "heads": 3, "feed_forward": 192},
}
MUON_RATE = {"mentor": 1.5e-3, "intern": 5e-3}
ADAM_RATE = {"mentor": 2e-3, "intern": 4e-3}
PROMPT_WEIGHT = {"mentor": 0.05, "intern": 0.3}  # weight of the loss on what is read, against what is written


def encode(sample: Sample, tokens: PreTrainedTokenizerFast, prompt_weight: float) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of a sample, its insight cut at a token."""
    if sample.insight:
        kept = tokens.encode(sample.insight)
        kept = kept[: max(1, round(sample.cut * len(kept)))]
        head, closing = sample.prompt.rsplit(corpus.END + corpus.ASSISTANT, 1)
        prompt = tokens.encode(head + corpus.INSIGHT_HEADER) + kept
        prompt += tokens.encode(corpus.END + corpus.ASSISTANT + closing)
    else:
        prompt = tokens.encode(sample.prompt)
    reply = tokens.encode(sample.reply + corpus.END)
    return prompt + reply, [prompt_weight] * len(prompt) + [1.0] * len(reply)


def batches(model: str, tokens: PreTrainedTokenizerFast, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of about `size` tokens: ids and weights, each (rows, length)."""
    rng, draw = random.Random(seed), SAMPLERS[model]
    while True:
        rows: list[tuple[list[int], list[float]]] = []
        while sum(len(ids) for ids, _ in rows) < POOL * size:
            rows += [encode(draw(rng), tokens, PROMPT_WEIGHT[model]) for _ in range(16)]
        rows.sort(key=lambda row: len(row[0]))
        pool: list[list[tuple[list[int], list[float]]]] = [[]]
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
    """bf16 weights, fp32 masters, two optimizers and a checkpoint."""

    def __init__(self, model: str, shape: Shape, device: str) -> None:
        torch.manual_seed(0)
        self.name, self.step, self.losses = model, 0, [float("nan")]
        self.network = Network(shape).to(device)
        self.masters = {name: p.detach().clone().float() for name, p in self.network.named_parameters()}
        self.network.to(torch.bfloat16)
        self.network.cos, self.network.sin = self.network.cos.float(), self.network.sin.float()
        matrices = [p for name, p in self.masters.items() if p.dim() == 2 and "layers" in name]
        others = [p for name, p in self.masters.items() if p.dim() != 2 or "layers" not in name]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=MUON_RATE[model], momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(others, lr=ADAM_RATE[model], betas=(0.9, 0.95), weight_decay=0.0),
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

    def save(self, folder: Path, tokens: PreTrainedTokenizerFast) -> None:
        """Write the checkpoint and the model in the Hugging Face layout; each file appears whole."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {"step": self.step, "masters": self.masters, "optimizers": [o.state_dict() for o in self.optimizers]}
        torch.save(state, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")
        export(self.masters, self.network.shape, tokens, folder, thinks=self.name == "mentor")

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
    masters: dict[str, Tensor], shape: Shape, tokens: PreTrainedTokenizerFast, folder: Path, thinks: bool
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
    parser = argparse.ArgumentParser(prog="python -m ensemblehub.studio.train", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", choices=sorted(SAMPLERS))
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps in all (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens per step (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for model and checkpoint (default: saves/studio/MODEL)")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that share each step (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.out = options.out or Path("saves/studio") / options.model
    if options.workers == 1:
        run(0, options)
    else:
        store = repeat(f"file://{tempfile.mkdtemp()}/store")
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_work, range(options.workers), repeat(options), store))


def _work(worker: int, options: argparse.Namespace, store: str) -> None:
    distributed.init_process_group("gloo", init_method=store, rank=worker, world_size=options.workers)
    run(worker, options)
    distributed.destroy_process_group()


def run(worker: int, options: argparse.Namespace) -> None:
    """Train; worker 0 reports and saves."""
    torch.set_num_threads(options.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokens = tokenizer.build()
    trainer = Trainer(options.model, Shape(vocabulary=len(tokens), **SHAPES[options.model]), options.device)
    trainer.resume(options.out)
    if worker == 0:
        size = sum(p.numel() for p in trainer.masters.values())
        print(f"{options.model}: {size:,} parameters, from step {trainer.step}", flush=True)
    seed = 1 + trainer.step * options.workers + worker
    source = batches(options.model, tokens, options.tokens // options.workers, seed)
    started, losses = time.time(), list[float]()
    while trainer.step < options.steps:
        ids, weights = next(source)
        losses.append(trainer.update(ids.to(options.device), weights.to(options.device), options.steps))
        if worker == 0 and trainer.step % 50 == 0:
            report(options, trainer.step, losses, (time.time() - started) / len(losses))
            started, losses = time.time(), []
        if worker == 0 and (trainer.step % options.save_every == 0 or trainer.step == options.steps):
            trainer.save(options.out, tokens)


def report(options: argparse.Namespace, step: int, losses: list[float], seconds: float) -> None:
    """One line on the terminal and one in `curve.jsonl`."""
    row = {"step": step, "loss": round(sum(losses) / len(losses), 4)}
    left = (options.steps - step) * seconds / 60
    print(f"step {step}/{options.steps}  loss {row['loss']:.4f}  {seconds:.2f} s/step  {left:.0f} min left", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "curve.jsonl").open("a") as curve:
        curve.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
