"""An `echo` engine that calls a tool it is offered, and answers once it has the tool's reply."""

import json
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from ensemblehub.generators.echo import EchoEngine, EchoOptions
from ensemblehub.schema import Piece, Token


@dataclass(frozen=True)
class CallingOptions(EchoOptions):
    """`calls`: arguments by the tool's name; the first that is offered is called, or with none any tool.

    `knows`: whether the tokens of a call are given, with the logprob of the script.
    """

    calls: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    knows: bool = False


class CallingEngine(EchoEngine):
    options = CallingOptions
    capabilities = EchoEngine.capabilities | {"tools"}

    async def stream(self, request, meter):
        tools = request.extra.get("tools") if request.extra.get("tool_choice") != "none" else None
        names = [tool["function"]["name"] for tool in tools or ()]
        calls = self.script.calls or {name: {"a": 2, "b": 2} for name in names[:1]}
        name = next((name for name in calls if name in names), None)
        if name is None or request.prompt.messages[-1].role == "tool":
            async with aclosing(super().stream(request, meter)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        parts = [
            {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
        ]
        arguments = json.dumps(calls[name])
        parts += [{"index": 0, "function": {"arguments": bit}} for bit in (arguments[:7], arguments[7:])]
        for part in parts:
            yield Piece("", self.name, meter.purpose, tool_calls=(part,))
        tokens = (Token(arguments, None, self.script.logprob, 0.1),) if self.script.knows else ()
        yield Piece("", self.name, meter.purpose, tokens, "tool_calls")
        meter.record(self.name, self.info, prompt_tokens=self.count(request), completion_tokens=12)
