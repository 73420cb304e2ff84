"""The answer to one request, which may have to begin long before there is anything to say.

A request that waits for its budget keeps its connection: agents give up on silence (without headers after 300 s). So
after a while the answer begins as a success, and goes on with what every reader skips: comments of an event stream,
spaces before a JSON object. An error that turns out afterwards is said inside, in the words of the provider.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import trio

from oubliette.errors import RequestError
from oubliette.gateway.http1 import ClientGone, Exchange, Headers
from oubliette.gateway.models import Wire
from oubliette.gateway.refusals import error_body, refusal_of

PATIENCE_SECONDS = 5.0
"""A shorter wait leaves no trace: what follows still has its own status."""
SIGN_SECONDS = 10.0
"""How often a waiting answer shows that it lives."""
_STREAM: Headers = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
_OBJECT: Headers = (("content-type", "application/json"),)


class Answer:
    """Between one request's work and its exchange. The work waits first (``keep_alive`` runs beside it until
    ``waited``), then answers once: ``start``, ``send`` and ``finish``, or ``refuse``."""

    def __init__(self, exchange: Exchange, wire: Wire, *, streaming: bool) -> None:
        self._exchange = exchange
        self._wire = wire
        self._streaming = streaming
        self._begun = False
        self._over = False
        self._sending = trio.Lock()

    @property
    def begun(self) -> bool:
        """Its status is out: an error can only be said inside, or by breaking off."""
        return self._begun

    @property
    def waiting(self) -> bool:
        """The answer has begun and says nothing yet."""
        return self._begun and not self._over

    async def keep_alive(self, gone: Callable[[], None]) -> None:
        """Begin the answer when the work waits for long, and go on with it; ``gone`` when the client takes nothing."""
        await trio.sleep(PATIENCE_SECONDS)
        while not self._over:
            try:
                # Not to be cut in the middle of a piece: what comes after it has to be readable. The send has an end.
                with trio.CancelScope(shield=True):
                    await self._sign()
            except ClientGone:
                gone()
                return
            await trio.sleep(SIGN_SECONDS)

    async def _sign(self) -> None:
        async with self._sending:
            if self._over:
                return
            if not self._begun:
                self._begun = True
                await self._exchange.start(200, _STREAM if self._streaming else _OBJECT)
            await self._exchange.send(b": waiting for the budget\n\n" if self._streaming else b" ")

    async def waited(self) -> None:
        """From here on only the work speaks."""
        async with self._sending:
            self._over = True

    async def start(self, headers: Headers) -> None:
        """The head of a success; nothing when the answer has begun before."""
        if not self._begun:
            await self._exchange.start(200, headers)

    async def send(self, data: bytes) -> None:
        await self._exchange.send(data)

    async def finish(self) -> None:
        await self._exchange.finish()

    async def refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole error answer, or the same error inside the answer that has begun."""
        if not self._begun:
            await self._exchange.answer(status, headers, body)
            return
        self._over = True
        await self._exchange.send(error_event(self._wire, body) if self._streaming else body)
        await self._exchange.finish()

    async def refuse_waiting(self, error: RequestError) -> None:
        """End an answer that has begun and will have nothing else to say."""
        async with self._sending:
            await self.refuse(*refusal_of(self._wire, error))


def error_event(wire: Wire, body: bytes) -> bytes:
    """An error's body as an event of that provider's stream."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        value = error_body(wire, 502, body.decode(errors="replace")[:500] or "the provider refused the request")
    if wire is Wire.ANTHROPIC:
        return b"event: error\ndata: " + _line(value) + b"\n\n"
    if wire is Wire.OPENAI:
        inside = value.get("error")
        told = inside if isinstance(inside, dict) else {}
        event = {"type": "error", "sequence_number": 0, "code": told.get("code") or told.get("type")}
        event |= {"message": told.get("message") or "the request failed", "param": None}
        return b"event: error\ndata: " + _line(event) + b"\n\n"
    return b"data: " + _line(value) + b"\n\n"


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
