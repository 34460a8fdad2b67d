"""Strategies with drafts: the answer reaches clients once, and streamed it is the same and costs the same."""

import json

import pytest

CONFIG = """
model_specs:
  - name: big
    engine: echo
    replies: {"lines of that answer": "2: so it is 4", "": "Goal: add them. It is 4."}
    parameters: 9
  - name: sure
    engine: echo
    replies: {"[Thinking Insights]": "Better, 4.", "expert": "Better, 4.", "": "I think\\nit is 5."}
    parameters: 1
    logprob: -0.01
    entropy: 0.1
  - name: unsure
    engine: echo
    replies: {"[Thinking Insights]": "Better, 4.", "expert": "Better, 4.", "": "I think\\nit is 5."}
    parameters: 1
    entropy: 2.0
ensemble: {models: [big, sure], output_aggregation_method: cascade}
ensembles:
"""
STRATEGIES = {
    "cascade": {},
    "plan_on_failure": {},
    "hint": {"share": 0.5},
    "review": {"accept": "logprob"},
    "stepwise": {"step_tokens": 30},
    "tandem": {"draft": "logprob", "levels": {"low": 2, "high": 4}, "judge": "fixed:high"},
    "vote": {"window": 1},
    "early_exit": {"engine": "big"},
    "think_on_failure": {},
}
DRAFT, LARGE, BETTER = "I think\nit is 5.", "Goal: add them. It is 4.", "Better, 4."
REJECTED = {
    "cascade": LARGE,
    "plan_on_failure": BETTER,
    "hint": BETTER,
    "review": "I think\nso it is 4",
    "stepwise": LARGE,
    "tandem": BETTER,
    "vote": LARGE,
    "early_exit": LARGE,
    "think_on_failure": LARGE,
}


@pytest.fixture(scope="module")
def server(serve):
    text = CONFIG
    for method, params in STRATEGIES.items():
        for small in ("sure", "unsure"):
            params = params | ({"small": small} if method == "think_on_failure" else {})
            section = {
                "models": ["big", small],
                "output_aggregation_method": method,
                "output_aggregation_params": params,
            }
            text += f"  {method}-{small}: {json.dumps(section)}\n"
    return serve(text)


@pytest.mark.parametrize("small", ["sure", "unsure"])
@pytest.mark.parametrize("method", STRATEGIES)
def test_the_answer_comes_once_and_alike_however_it_is_asked_for(server, method, small):
    body = {"model": f"{method}-{small}", "messages": [{"role": "user", "content": "2 + 2?"}]}
    whole = server.post("/v1/chat/completions", body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    lines = server.post("/v1/chat/completions", {**body, **options}).text.split("\n\n")
    *parts, last = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    shown = [part["choices"][0] for part in parts]
    accepted = small == "sure" and method not in ("vote", "early_exit")
    text = whole["choices"][0]["message"]["content"]
    assert text == (DRAFT if accepted else REJECTED[method])
    assert "".join(choice["delta"].get("content") or "" for choice in shown) == text
    assert [choice["finish_reason"] for choice in shown if choice["finish_reason"]] == ["stop"]
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    decided = [
        [verdict["sufficient"] for part in parts for verdict in part["ensemble"].get("verdicts", [])],
        [verdict["sufficient"] for verdict in whole["choices"][0]["metadata"]["verdicts"]],
    ]
    assert decided[0] == decided[1]
