"""Conversations kept for `previous_response_id`: in memory, bounded, those not used for longest forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import orjson

from ensemblehub.api.problems import Problem


class StoredResponses:
    """Whole conversations by the id of their last response.

    Args:
        count: maximum number of conversations; 0 keeps none.
        size: maximum size of all, in bytes; a conversation beyond it is not kept.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self.used = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, name: str, messages: Sequence[dict[str, Any]]) -> None:
        """Keep a conversation, within the bounds."""
        data = orjson.dumps(messages)
        if not self.count or len(data) > self.size:
            return
        self._kept[name] = data
        self.used += len(data)
        while len(self._kept) > self.count or self.used > self.size:
            self.used -= len(self._kept.popitem(last=False)[1])

    def find(self, name: str) -> list[dict[str, Any]]:
        """The messages of a conversation.

        Raises:
            Problem: it is not kept, or none is.
        """
        at = "previous_response_id"
        if not self.count:
            text = f"{at} cannot be honoured: responses are not stored here; send the whole conversation"
            raise Problem(400, text, "unsupported", at)
        if name not in self._kept:
            text = f"no response {name!r} is stored here, or not any more: send the whole conversation"
            raise Problem(404, text, "previous_response_not_found", at)
        self._kept.move_to_end(name)
        messages: list[dict[str, Any]] = orjson.loads(self._kept[name])
        return messages


class PinnedMembers:
    """The members of the first turn of each conversation; those not used for longest are forgotten first.

    Args:
        count: maximum number of conversations.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: OrderedDict[tuple[str, ...], tuple[str, ...]] = OrderedDict()

    def keep(self, key: tuple[str, ...], members: Sequence[str]) -> None:
        """Remember the members of a turn."""
        self._kept[key] = tuple(members)
        self._kept.move_to_end(key)
        while len(self._kept) > self.count:
            self._kept.popitem(last=False)

    def find(self, key: tuple[str, ...]) -> tuple[str, ...]:
        """The members; none of a conversation that is not known."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key, ())
