"""Result folders made by hand: every answer is given by its question and a 0 or 1."""

import json

SETTINGS = {
    "task": "made",
    "split": "test",
    "prompt": "plain",
    "sampling": {"temperature": 0.0, "max_tokens": 9},
}


def row(number, right, sample=0, text="", **more):
    question = f"q{number}"
    return {
        "id": f"{question}#{sample}" if sample else question,
        "question": question,
        "sample": sample,
        "asked": f"asked {number}",
        "prompted": f"prompted {number}",
        "subject": "even" if number % 2 == 0 else "odd",
        "level": 1 + (number > 3),
        "correct": bool(right),
        "graded": str(right),
        "reason": "" if right else "wrong",
        "finish": "stop",
        "error": "",
        "leak": False,
        "read": 10,
        "written": 5,
        "flops": 1e9,
        "cold_flops": 2e9,
        "usd": 0.0,
        "seconds": 0.5,
        "wall": 1.0,
        "text": text or f"answer {right}",
    } | more


def journal(folder, name, rows, **settings):
    path = folder / "answers" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"settings": {"cell": name, **SETTINGS, **settings}}, *rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def cell(folder, name, digits, **settings):
    rows = [row(number, int(digit)) for number, digit in enumerate(digits)]
    return journal(folder, name, rows, **settings)
