"""The built-in tokenizer: byte-level BPE in which every digit is a token of its own.

Trained with digits split one by one (a leading space goes with the digit); because no merge then joins
two digits, GPT-2's own splitting rule gives the same tokens afterwards, so transformers, vLLM and
llama.cpp (`pre = gpt-2`) all read it alike.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ensemblehub.lab.builtin import corpus

VOCABULARY_SIZE = 1024
_SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ '<|assistant|>' + ('<think>' + message['reasoning_content'] + '</think>' "
    "if message.get('reasoning_content') else '') + message['content'] + '<|end|>' }}"
    "{%- else -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|assistant|>' }}{%- if enable_thinking is defined and enable_thinking -%}{{ '<think>' }}{%- endif -%}"
    "{%- endif -%}"
)
# The mentor thinks unless told not to; the intern answers at once.
THINKING_TEMPLATE = CHAT_TEMPLATE.replace(
    "enable_thinking is defined and enable_thinking", "enable_thinking is not defined or enable_thinking"
)


def build(digits: bool = True, size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """Train the tokenizer on corpus texts (about ten seconds).

    Args:
        digits: every digit is a token of its own; without it numbers merge into tokens as words do, which
            gives the guest its other vocabulary.
        size: tokens at most.
    """
    tokenizer = Tokenizer(models.BPE())
    split = _SPLIT if digits else _SPLIT.replace(r" ?\p{N}|", r" ?\p{N}+|")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(corpus.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.tokenizer_texts(), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=corpus.PAD, eos_token=corpus.END)
    fast.chat_template = CHAT_TEMPLATE
    return fast
