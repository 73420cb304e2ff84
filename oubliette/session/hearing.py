"""What a turn hears of its agent, in order, until it has been dealt with."""

from __future__ import annotations

from collections import deque
from itertools import takewhile

import trio

from oubliette.agent.base import AgentDurable, AgentEvent
from oubliette.errors import AgentError

BATCH = 500


class Hearing:
    """One stream of an agent's events. What was heard and not ``done`` when its reader is stopped stays in here."""

    def __init__(self, stream: trio.MemoryReceiveChannel[AgentEvent]) -> None:
        self._stream = stream
        self._heard: deque[AgentEvent] = deque()

    @property
    def first(self) -> AgentEvent | None:
        """The oldest that is not dealt with."""
        return self._heard[0] if self._heard else None

    @property
    def durables(self) -> list[AgentDurable]:
        """The oldest ones, as far as they are all to be stored."""
        return [one for one in takewhile(_is_durable, self._heard) if isinstance(one, AgentDurable)]

    def done(self, count: int = 1) -> None:
        """So many of the oldest have been dealt with."""
        for _ in range(count):
            self._heard.popleft()

    async def more(self) -> None:
        """Wait until something has arrived; many small events become one batch. Raises AgentError at the end."""
        try:
            self._heard.append(await self._stream.receive())
        except trio.EndOfChannel:
            raise AgentError("The agent's events ended without an outcome.", retryable=True) from None
        self._take_what_is_there(BATCH)

    def rest(self) -> list[AgentEvent]:
        """All that has arrived and was not dealt with. Does not wait."""
        self._take_what_is_there(None)
        rest = list(self._heard)
        self._heard.clear()
        return rest

    def _take_what_is_there(self, most: int | None) -> None:
        while most is None or len(self._heard) < most:
            try:
                self._heard.append(self._stream.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                return


def _is_durable(event: AgentEvent) -> bool:
    return isinstance(event, AgentDurable)
