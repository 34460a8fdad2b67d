"""An `echo` engine that calls the first tool it is offered, and answers once it has the tool's reply."""

import json
from contextlib import aclosing

from ensemblehub.generators.echo import EchoEngine
from ensemblehub.schema import Piece


class CallingEngine(EchoEngine):
    capabilities = EchoEngine.capabilities | {"tools"}

    async def stream(self, request, meter):
        tools = request.extra.get("tools") if request.extra.get("tool_choice") != "none" else None
        if not tools or request.prompt.messages[-1].role == "tool":
            async with aclosing(super().stream(request, meter)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        name = tools[0]["function"]["name"]
        parts = [
            {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
        ]
        parts += [
            {"index": 0, "function": {"arguments": bit}} for bit in (json.dumps({"a": 2, "b": 2})[:7], "")
        ]
        parts[-1]["function"]["arguments"] = json.dumps({"a": 2, "b": 2})[7:]
        for part in parts:
            yield Piece("", self.name, meter.purpose, tool_calls=(part,))
        yield Piece("", self.name, meter.purpose, (), "tool_calls")
        meter.record(self.name, self.info, prompt_tokens=self.count(request), completion_tokens=12)
