"""Tokenizers of GGUF files against llama.cpp's own: `python -m benchmarks.gguf_tokenizers FILE...`.

FILE is a GGUF file or a folder with a `model.gguf`; a tokenizer that lies beside it is not used. What the
engine takes from the file is compared with llama.cpp on 401 prompts (control tokens, code, digits, white
space, Unicode, random characters, empty): the ids with control tokens read as such and as plain text, and
the text of those ids. So are the bytes of every token, the ids of 20 rendered chats, and the ids that end
an answer.
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import random
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import transformers

from ensemblehub.generators.llama_cpp.engine import LlamaCppEngine, LlamaCppOptions
from ensemblehub.generators.llama_cpp.gguf_file import GGUFFile
from ensemblehub.generators.llama_cpp.vocabulary import LlamaVocabulary
from ensemblehub.schema import Chat, Message, Request

RESULTS = Path("results/engines")
_CONTROL = 3  # ggml's types of tokens
_WITH_TEXT = (1, 4, 6)
EACH = 50  # prompts of a kind
SCRIPTS = [
    *(
        "Größe",
        "naïve",
        "Ελληνικά",
        "Русский",
        "עברית",
        "العربية",
        "हिन्दी",
        "ไทย",
        "中文",
        "日本語",
        "한국어",
        "tiếng",
    ),
    *("Việt", "e\u0301", "ﬁ", "Å", "½", "³", "Ⅷ", "１２３", "٣٤", "👩\u200d👩\u200d👧", "🇩🇪", "\u200b"),
]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\n\n\n", "\u00a0", "\u2003", "\u3000", "a", "1", ".", "é"]
WORDS = [
    "sum",
    "I'd",
    "DON'T",
    "they'll",
    "HTTPServer",
    "snake_case",
    "x",
    "\\frac",
    "</s>",
    "<s>",
    "[INST]",
    "é",
]


def prompts(controls: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Kind and text of every prompt; the same at every call.

    Args:
        controls: names of the vocabulary's control tokens.
    """
    draw, names = random.Random(0), sorted(controls)
    code = [block for block in inspect.getsource(textwrap).split("\n\n") if len(block) > 20]
    others = [
        chr(code) for code in (*range(0x20, 0x7F), *range(0xA0, 0x530), *range(0x4E00, 0x4E80), 0x1F600)
    ]
    kinds = {
        "control tokens": lambda: draw.choice(["", " ", "\n"]).join(draw.choices([*names, *WORDS], k=6)),
        "code": lambda: draw.choice(code)[: draw.randint(20, 400)],
        "digits": lambda: draw.choice(["", " ", ".", ", "]).join(
            str(draw.randrange(10**size)) for size in draw.choices(range(1, 12), k=4)
        ),
        "white space": lambda: "".join(draw.choices(SPACES, k=draw.randint(1, 12))),
        "Unicode": lambda: " ".join(draw.choices(SCRIPTS, k=5)),
        "words": lambda: draw.choice([" ", "  ", "\n"]).join(draw.choices([*WORDS, *SCRIPTS], k=8)),
        "random characters": lambda: "".join(draw.choices(others, k=draw.randint(1, 40))),
        "one character": lambda: chr(draw.choice([draw.randrange(0x80), draw.randrange(0xA0, 0xD7FF)])),
    }
    yield "empty", ""
    for kind, make in kinds.items():
        for _ in range(EACH):
            yield kind, make()


def chats() -> list[Chat]:
    """Conversations with and without system text, of several turns."""
    draw, made = random.Random(1), []
    for number in range(20):
        roles = ["system", "user", "assistant", "user"][number % 2 : 2 + 2 * (number // 10)]
        made.append(
            Chat(tuple(Message(role, " ".join(draw.choices([*WORDS[:8], *SCRIPTS], k=5))) for role in roles))
        )
    return made


def alone(file: Path, folder: Path) -> Path:
    """The file in a folder of its own."""
    folder.mkdir(parents=True)
    (folder / file.name).symlink_to(file.absolute())
    return folder / file.name


def compare(file: Path) -> dict[str, Any]:
    """What the engine's tokenizer and llama.cpp's own make of the same texts."""
    started = time.process_time()
    engine = LlamaCppEngine("engine", LlamaCppOptions(str(file)))
    header = time.process_time() - started
    renderer, vocabulary = engine.tokenizer, engine.vocabulary
    loaded = time.process_time() - started
    values = GGUFFile.read(file).values
    kinds = values["tokenizer.ggml.token_type"]
    names = [
        renderer.tokenizer.convert_ids_to_tokens(index)
        for index, kind in enumerate(kinds)
        if kind == _CONTROL
    ]
    asked = list(prompts(names))
    with LlamaVocabulary(file) as own:
        tokens = [index for index in range(own.size) if kinds[index] in _WITH_TEXT]
        spelling = [index for index in tokens if vocabulary.tokens[index] != own.decode(index)]
        more = {own.decode(index).decode() for index in own.ends - vocabulary.end}
        found = list(differences(engine, own, [text for _, text in asked]))
        rendered = [chat for chat in chats() if not _same_chat(engine, own, chat)]
    return {
        "model": values["general.name"],
        "pre": values["tokenizer.ggml.pre"],
        "prompts": Counter(kind for kind, _ in asked),
        "differ": [entry for entry in found if not any(name in entry["text"] for name in more)],
        "with more ends": [entry for entry in found if any(name in entry["text"] for name in more)],
        "tokens": len(tokens),
        "spelt otherwise": spelling,
        "chats": [len(chats()), len(rendered)],
        "ends": [[f"{vocabulary.names[index]} ({index})" for index in sorted(vocabulary.end)], sorted(more)],
        "seconds": {"header": header, "loaded": loaded},
    }


def differences(
    engine: LlamaCppEngine, own: LlamaVocabulary, texts: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """The texts whose ids, or the text of them, are not llama.cpp's."""
    for text in texts:
        whole = own.encode(text, add=True)
        if whole[:1] == whole[1:2] == own.encode("", add=True):
            whole = whole[1:]  # the prompt has the first token itself, and the engine adds no second
        ways = {
            "control tokens": (engine.tokenizer.encode(text, special=False), own.encode(text)),
            "plain": (engine.tokenizer.inside(text), own.encode(text, special=False)),
            "whole prompt": (engine.tokenizer.encode(text), whole),
        }
        for way, (ids, theirs) in ways.items():
            spelt = b"".join(engine.vocabulary.tokens[index] or own.decode(index) for index in ids)
            if list(ids) != theirs or spelt != b"".join(map(own.decode, theirs)):
                yield {"text": text, "way": way, "ids": ids, "llama.cpp": theirs}


def _same_chat(engine: LlamaCppEngine, own: LlamaVocabulary, chat: Chat) -> bool:
    """Whether llama.cpp reads the text of the rendered chat as the same ids."""
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    tokenizer = engine.tokenizer.tokenizer
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(engine.render(Request(chat)).ids) == own.encode(text)


def table(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = [
        "# Tokenizers of GGUF files",
        "",
        "Written by `python -m benchmarks.gguf_tokenizers`: the tokenizer that the `llama_cpp` engine",
        "takes from a GGUF file, with no Hugging Face tokenizer beside it, against llama.cpp's own. Every",
        "prompt is read with control tokens as such, with them as plain text, and with what the model",
        "begins any text with. A prompt differs where an id, or the ids' text, is not llama.cpp's. CPU",
        "seconds until the size of the model is known, and until it can tokenize.",
        "",
        f"Versions: {', '.join(f'{name} {version}' for name, version in record['versions'].items())}.",
        "",
        "| model | words | prompts | differ | tokens | spelt otherwise | chats | differ | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["models"]:
        differ = len({entry["text"] for entry in row["differ"]})
        if some := len({entry["text"] for entry in row["with more ends"]}):
            differ = f"{differ}, and {some} with `{'`, `'.join(row['ends'][1])}`"
        cells = [row["model"], f"`{row['pre']}`", sum(row["prompts"].values()), differ, f"{row['tokens']:,}"]
        cells += [
            len(row["spelt otherwise"]),
            *row["chats"],
            "{header:.1f}, {loaded:.1f}".format(**row["seconds"]),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    counts = record["models"][0]["prompts"]
    lines += ["", f"Prompts: {', '.join(f'{count} of {kind}' for kind, count in counts.items())}.", ""]
    for row in record["models"]:
        own, more = (", ".join(f"`{name}`" for name in names) for names in row["ends"])
        why = f"; llama.cpp also at {more}, which the file calls ordinary text, as its makers' tokenizer does"
        lines.append(f"- {row['model']} ends at {own}{why if more else ''}.")
        for entry in [*row["differ"][:8], *row["with more ends"][:1]]:
            text, ids = json.dumps(entry["text"], ensure_ascii=False), entry["ids"][:12]
            lines.append(f"  - {entry['way']}, `{text[:80]}`: {ids}, in llama.cpp {entry['llama.cpp'][:12]}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare the files and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="GGUF files, or folders with a model.gguf"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    options = parser.parse_args()
    record: dict[str, Any] = {"models": []}
    record["versions"] = {
        "llama-cpp-python": llama_cpp.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(options.files):
            file = path / "model.gguf" if path.is_dir() else path
            record["models"].append(compare(alone(file, Path(folder, str(number)))))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gguf_tokenizers.md").write_text(table(record))
    print(table(record))


if __name__ == "__main__":
    main()
