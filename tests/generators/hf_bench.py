"""Tiny random models with a tokenizer trained on the spot."""

import asyncio
import random

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ensemblehub.cost import UsageLedger
from ensemblehub.generators.hf.engine import HFEngine, HFOptions

SPECIALS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{%- for m in messages -%}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}"
    "{%- if enable_thinking is defined and enable_thinking -%}{{ 'Think: ' }}{%- endif -%}{%- endif -%}"
)
TEXT = "the quick brown fox jumps over lazy dogs while nine small birds sing about rain and sun 0 1 2 3"
WORDS = TEXT.split()


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=12)) for _ in range(200)]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>"
    )
    fast.chat_template = TEMPLATE
    return fast


SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "initializer_range": 0.2,
}


def save(folder, config, seed=0):
    tokenizer = make_tokenizer()
    config.vocab_size = len(tokenizer)
    torch.manual_seed(seed)
    network = transformers.AutoModelForCausalLM.from_config(config)
    network.generation_config.eos_token_id = 1
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_qwen(folder):
    return save(folder, transformers.Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True))


def save_llama(folder):
    return save(folder, transformers.LlamaConfig(**SHAPE, tie_word_embeddings=False))


def save_sliding(folder):
    """Two of three layers attend to a window of eight tokens."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    window = {"use_sliding_window": True, "sliding_window": 8, "layer_types": kinds}
    return save(folder, transformers.Qwen3Config(**SHAPE, **window, head_dim=16))


def save_mistral(folder):
    return save(folder, transformers.MistralConfig(**SHAPE, sliding_window=8, tie_word_embeddings=False))


class Bench:
    """An engine, a ledger and a count of its forward passes."""

    def __init__(self, path, **options):
        self.engine = HFEngine("tiny", HFOptions(path, device="cpu", **options))
        self.ledger = UsageLedger()
        self.meter = self.ledger.meter("answer")
        self.passes = []  # (rows, new tokens) of each forward pass

    async def __aenter__(self):
        await self.engine.load()
        self.model = self.engine._worker.loaded.result()
        forward = self.model.forward

        def counted(slots, starts, ids, *, keep):
            self.passes.append((len(ids), max(map(len, ids))))
            return forward(slots, starts, ids, keep=keep)

        self.model.forward = counted
        return self

    async def __aexit__(self, *_):
        await self.engine.close()

    async def pieces(self, request):
        return [piece async for piece in self.engine.stream(request, self.meter)]

    async def ids(self, request):
        return [token.id for piece in await self.pieces(request) for token in piece.tokens]

    async def text(self, request):
        return "".join(piece.text for piece in await self.pieces(request))

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    @property
    def cost(self):
        return self.ledger.total

    def take_usage(self):
        """The usage since the last call."""
        total = self.ledger.total
        self.ledger.calls.clear()
        return total

    def fresh(self, ids):
        """float64 log-probabilities (tokens, vocabulary) of a direct forward pass."""
        with torch.no_grad():
            logits = self.model.network(input_ids=torch.tensor([list(ids)])).logits[0]
        return logits.double().log_softmax(-1)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))
