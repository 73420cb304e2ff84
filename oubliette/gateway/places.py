"""What the gateway holds for each container: requests at work and those that wait, and the memory of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from oubliette.core.limits import MIB
from oubliette.errors import RequestError

MAX_REQUESTS = 16
"""Requests at once for each container; one more is told to come back."""
MAX_BODY_BYTES_AT_ONCE = 64 * MIB
"""Bodies being read and answered at once for each container: bounds the memory that an agent can make us hold."""
MAX_PARKED_BYTES = 64 * MIB
"""Bodies of its requests that wait for their budget, beside those."""


@dataclass(slots=True)
class Place:
    """What one container is doing at the gateway."""

    connections: int = 0
    requests: int = 0
    body_bytes: int = 0
    parked_bytes: int = 0
    freed: trio.Event = field(default_factory=trio.Event)

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """One of the container's requests. Raises RequestError rate_limited when all are taken."""
        if self.requests >= MAX_REQUESTS:
            raise RequestError(
                "rate_limited", f"This container has {MAX_REQUESTS} model requests at work.", retry_after_ms=1000
            )
        slot = Slot(self)
        try:
            yield slot
        finally:
            slot.leave()


class Slot:
    """One request's share of its container. While it is parked it keeps none of the others from working."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._bytes = 0
        self._parked = False
        place.requests += 1

    def take_bytes(self, size: int) -> None:
        """Account for so much more of the body. Raises RequestError rate_limited."""
        if self._place.body_bytes + size > MAX_BODY_BYTES_AT_ONCE:
            raise RequestError("rate_limited", "This container sends too much at once.", retry_after_ms=1000)
        self._place.body_bytes += size
        self._bytes += size

    def park(self) -> None:
        """Wait beside the others from now on. Raises RequestError rate_limited when too much waits already."""
        place = self._place
        if self._parked:
            return
        if place.parked_bytes + self._bytes > MAX_PARKED_BYTES:
            raise RequestError(
                "rate_limited", "Too much of this container waits for its budget.", retry_after_ms=60_000
            )
        self._parked = True
        place.parked_bytes += self._bytes
        self._leave_work()

    async def unpark(self) -> None:
        """Be one of those at work again; waits while all places are taken."""
        if not self._parked:
            return
        place = self._place
        while place.requests >= MAX_REQUESTS or place.body_bytes + self._bytes > MAX_BODY_BYTES_AT_ONCE:
            await place.freed.wait()
        self._parked = False
        place.parked_bytes -= self._bytes
        place.requests += 1
        place.body_bytes += self._bytes

    def leave(self) -> None:
        """The request is over."""
        if self._parked:
            self._place.parked_bytes -= self._bytes
        else:
            self._leave_work()

    def _leave_work(self) -> None:
        place = self._place
        place.requests -= 1
        place.body_bytes -= self._bytes
        place.freed.set()
        place.freed = trio.Event()
