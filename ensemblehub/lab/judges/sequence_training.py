"""Training a judge over sequences: Adam, early stopping on the validation loss, batches of like length.

Adam 1e-3, weight decay 1e-5, the rate halved when the validation loss stands still, at most 100 epochs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblehub.lab.judges.examples import Examples
from ensemblehub.tandem.sequence_judges import Context, SequenceJudge, build, inputs, padded, torch_module

RATE = 2e-3
DECAY = 1e-5
EPOCHS = 100
BATCH = 128
PATIENCE = 4  # epochs before the rate is halved
STOP = 10  # epochs without a better loss before training ends


def fit(
    judge: type[SequenceJudge], train: Examples, validation: Examples, levels: int, seed: int
) -> tuple[SequenceJudge, dict[str, Any]]:
    """A judge with the weights of the best validation loss, not calibrated yet;
    the same for the same seed.
    """
    torch = torch_module()
    tokens = np.concatenate([inputs(sequence) for sequence in train.readings.sequences])
    mean, std = tokens.mean(axis=0), np.maximum(tokens.std(axis=0), 1e-6)
    context = Context(levels)
    best = float("inf")
    best_epoch = 0
    kept = dict[str, NDArray[np.float32]]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(judge.kind, context.width)
        optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
        slower = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=PATIENCE)
        rng = np.random.default_rng(seed)
        for epoch in range(1, EPOCHS + 1):
            network.train()
            for at in rng.permutation(np.array(batches(train, rng), object)):
                loss = _loss(network, train, at, mean, std, context)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            loss = _whole(network, validation, mean, std, context)
            slower.step(loss)
            if loss < best:
                best, best_epoch = loss, epoch
                kept = {name: value.numpy().copy() for name, value in network.state_dict().items()}
            elif epoch - best_epoch >= STOP:
                break
    fitted = {"epochs": epoch, "best_epoch": best_epoch, "validation_loss": best}
    return judge(context, mean, std, kept), fitted


def batches(examples: Examples, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """All indices in batches of like length, ties in random order."""
    lengths = np.array([sequence.shape[1] for sequence in examples.readings.sequences], float)
    order = np.argsort(lengths + rng.uniform(0, 8, len(lengths)), kind="stable")
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def _loss(
    network: Any,
    examples: Examples,
    at: NDArray[np.int64],
    mean: NDArray[Any],
    std: NDArray[Any],
    context: Context,
) -> Any:
    torch, readings = torch_module(), examples.readings
    at = np.asarray(at, np.int64)
    x, lengths = padded([readings.sequences[index] for index in at], mean, std)
    about = torch.from_numpy(context.matrix(readings.level[at], readings.mentor_tokens[at]))
    truth = torch.from_numpy(examples.label[at]).float()
    return torch.nn.functional.binary_cross_entropy_with_logits(network(x, lengths, about), truth)


def _whole(
    network: Any, examples: Examples, mean: NDArray[Any], std: NDArray[Any], context: Context
) -> float:
    """Mean loss without dropout."""
    network.eval()
    parts = batches(examples, np.random.default_rng(0))
    with torch_module().no_grad():
        losses = [float(_loss(network, examples, at, mean, std, context)) * len(at) for at in parts]
    return sum(losses) / len(examples.label)
