"""What goes on in each principal's name: its open streams and its calls, so that limits hold and an end reaches them.

Revocation, expiry and shutdown cancel the scopes that are registered here; nobody has to remember who serves what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Literal

import trio

from oubliette.api.metrics import STREAMS, WAITING_CALLS
from oubliette.core.limits import STREAMS_IN_ALL, STREAMS_PER_TOKEN, WAITING_CALLS_PER_TOKEN
from oubliette.core.principals import Principal
from oubliette.errors import Limit, RequestError

Ending = Literal["revoked", "evicted", "ended"]
_SENTENCES: Final = {
    "revoked": ("unauthenticated", "The token was revoked or has expired."),
    "evicted": ("cancelled", "The call was given up: its client had left and others were waiting."),
    "ended": ("cancelled", "The protocol session was ended."),
}


@dataclass(slots=True)
class Origin:
    """Where a call came from: the HTTP exchange that carries it. ``gone``: that exchange is over.

    ``protocol_session`` is the handshake session it belongs to.
    """

    principal: Principal
    request_id: str
    address: str = ""
    protocol_session: str | None = None
    gone: bool = False
    split_tools: bool = False


@dataclass(eq=False, slots=True)
class _Work:
    principal_id: str
    origin: Origin | None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ending: Ending | None = None

    def end(self, how: Ending) -> None:
        if self.ending is None:
            self.ending = how
            self.scope.cancel(reason=how)


class Live:
    """All streams and calls of this process."""

    def __init__(self) -> None:
        self._calls: dict[str, dict[_Work, None]] = {}
        self._streams: dict[str, dict[_Work, None]] = {}
        self._lent: dict[str, dict[_Work, None]] = {}
        """By the token that lends an agent its scope: these calls are in their sessions' names as well."""
        self._stream_count = 0
        self.on_end: Callable[[str], None] = lambda _principal_id: None
        """Told of each principal whose token is no longer good."""

    @contextmanager
    def call(self, principal: Principal, origin: Origin | None = None) -> Iterator[None]:
        """A call in progress. When a principal has too many, the oldest whose client has left makes room.

        Raises RequestError: limit_reached at the door; unauthenticated or cancelled when it was ended from outside.
        """
        mine = self._calls.setdefault(principal.id, {})
        if len(mine) >= WAITING_CALLS_PER_TOKEN:
            orphan = next((work for work in mine if work.origin is not None and work.origin.gone), None)
            if orphan is None:
                raise RequestError(
                    "limit_reached",
                    f"{WAITING_CALLS_PER_TOKEN} calls of this token are in progress.",
                    hint="Wait for some to end; one session wait can follow many sessions.",
                    retryable=True,
                    retry_after_ms=1000,
                    limit=Limit("waiting_calls", WAITING_CALLS_PER_TOKEN, len(mine)),
                )
            mine.pop(orphan, None)
            orphan.end("evicted")
        work = _Work(principal.id, origin)
        lent = self._registered(self._lent, work, principal.grant) if principal.grant else nullcontext()
        with self._registered(self._calls, work), lent, WAITING_CALLS.track_inprogress(), work.scope:
            yield
        self._explain(work)

    def check_stream_room(self, principal: Principal) -> None:
        """Raises RequestError limit_reached when the principal, or everybody together, may open no more streams."""
        mine = len(self._streams.get(principal.id, ()))
        for name, limit, used in (
            ("streams_per_token", STREAMS_PER_TOKEN, mine),
            ("streams", STREAMS_IN_ALL, self._stream_count),
        ):
            if used >= limit:
                raise RequestError(
                    "limit_reached",
                    f"{limit} event streams are open, which is all there may be"
                    + (" of one token." if name == "streams_per_token" else "."),
                    hint="Close one; a tree's stream (children=1) follows many sessions.",
                    retryable=True,
                    retry_after_ms=1000,
                    limit=Limit(name, limit, used),
                )

    @contextmanager
    def stream(self, principal: Principal) -> Iterator[None]:
        """An open stream. Ends quietly when its principal's token does. Raises RequestError limit_reached."""
        self.check_stream_room(principal)
        work = _Work(principal.id, None)
        self._stream_count += 1
        try:
            with self._registered(self._streams, work), STREAMS.track_inprogress(), work.scope:
                yield
        finally:
            self._stream_count -= 1

    def principals(self) -> set[str]:
        """Ids of all in whose name something goes on."""
        return {*self._calls, *self._streams, *self._lent}

    def end_principal(self, principal_id: str) -> None:
        """Its token is no longer good: end all of its streams and calls."""
        for table in (self._calls, self._streams, self._lent):
            for work in list(table.get(principal_id, ())):
                work.end("revoked")
        self.on_end(principal_id)

    def end_protocol_session(self, protocol_session: str, principal_id: str) -> None:
        """Its principal closed a handshake session: end the calls made in it. Another's is not theirs to end."""
        for work in list(self._calls.get(principal_id, ())):
            if work.origin is not None and work.origin.protocol_session == protocol_session:
                work.end("ended")

    @contextmanager
    def _registered(self, table: dict[str, dict[_Work, None]], work: _Work, by: str | None = None) -> Iterator[None]:
        key = by or work.principal_id
        mine = table.setdefault(key, {})
        mine[work] = None
        try:
            yield
        finally:
            mine.pop(work, None)
            if not mine and table.get(key) is mine:
                del table[key]

    def _explain(self, work: _Work) -> None:
        if work.scope.cancelled_caught and work.ending is not None:
            code, sentence = _SENTENCES[work.ending]
            raise RequestError(code, sentence)
