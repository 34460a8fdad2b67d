"""What is remembered of earlier requests: in memory, bounded, the least recently used forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import orjson

from ensemblehub.api.problems import Problem

_PREVIOUS = "previous_response_id"


class StoredResponses:
    """Responses and their whole conversations, by the key that made them and by their id.

    Args:
        count: maximum number of responses; 0 keeps none.
        size: maximum size of all, in bytes; one beyond it is not kept.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self.used = 0
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def keep(self, owner: str, response: dict[str, Any], messages: Sequence[dict[str, Any]]) -> None:
        """Keep a response and the conversation that ends with it, within the bounds."""
        data = orjson.dumps({"response": response, "messages": messages})
        if not self.count or len(data) > self.size:
            return
        self._kept[owner, response["id"]] = data
        self.used += len(data)
        while len(self._kept) > self.count or self.used > self.size:
            self.used -= len(self._kept.popitem(last=False)[1])

    def conversation(self, owner: str, name: str) -> list[dict[str, Any]]:
        """The messages of a conversation.

        Raises:
            Problem: it is not kept, is another key's, or none is.
        """
        if not self.count:
            text = (
                f"{_PREVIOUS} cannot be honoured: responses are not stored here; send the whole conversation"
            )
            raise Problem(400, text, "unsupported", _PREVIOUS)
        if (owner, name) not in self._kept:
            text = f"no response {name!r} is stored here, or not any more: send the whole conversation"
            raise Problem(404, text, "previous_response_not_found", _PREVIOUS)
        messages: list[dict[str, Any]] = self._read(owner, name)["messages"]
        return messages

    def response(self, owner: str, name: str) -> dict[str, Any]:
        """A stored response.

        Raises:
            Problem: as `forget`.
        """
        self._check(owner, name)
        response: dict[str, Any] = self._read(owner, name)["response"]
        return response

    def forget(self, owner: str, name: str) -> None:
        """Delete a response and its conversation; those that continue it are whole by themselves.

        Raises:
            Problem: 404, it is not kept, or is another key's.
        """
        self._check(owner, name)
        self.used -= len(self._kept.pop((owner, name)))

    def _check(self, owner: str, name: str) -> None:
        if (owner, name) not in self._kept:
            text = f"no response {name!r} is stored here" + (
                "" if self.count else ": this server stores none"
            )
            raise Problem(404, text, "response_not_found", "response_id")

    def _read(self, owner: str, name: str) -> dict[str, Any]:
        self._kept.move_to_end((owner, name))
        found: dict[str, Any] = orjson.loads(self._kept[owner, name])
        return found


class PinnedMembers:
    """The members of the first turn of each conversation; those not used for longest are forgotten first.

    Args:
        count: maximum number of conversations.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: OrderedDict[tuple[str, ...], tuple[str, ...]] = OrderedDict()

    def keep(self, key: tuple[str, ...], members: Sequence[str]) -> None:
        """Remember the members of a turn, if it is the first."""
        self._kept.setdefault(key, tuple(members))
        self._kept.move_to_end(key)
        while len(self._kept) > self.count:
            self._kept.popitem(last=False)

    def find(self, key: tuple[str, ...]) -> tuple[str, ...]:
        """The members; none of a conversation that is not known."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key, ())
