"""A provider of models on loopback that speaks all four wires: it plays the scripted model, remembers what it was
asked, checks the key, and misbehaves on request. For tests and for the bench."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from oubliette.gateway.http1 import ClientGone, Exchange, Headers, Refused, serve_http
from oubliette.gateway.models import Wire
from oubliette.gateway.refusals import error_body
from oubliette.gateway.scripted import Scripted
from oubliette.gateway.scripted_reply import ScriptedReply, reply

_SUFFIX = {"/messages": Wire.ANTHROPIC, "/responses": Wire.OPENAI, "/chat/completions": Wire.CHAT}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived."""

    path: str
    wire: Wire
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def key(self) -> str:
        """The key that came with it."""
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
        return self.headers.get("x-api-key") or self.headers.get("x-goog-api-key") or bearer


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """How one request is answered instead."""

    status: int
    body: bytes
    headers: Headers = (("content-type", "application/json"),)


@dataclass
class Provider:
    """What was asked, and where it listens."""

    port: int = 0
    key: str | None = None
    """Requests without it are refused, quoting the key that they showed."""
    asked: list[Asked] = field(default_factory=list)
    next: deque[Misbehaviour] = field(default_factory=deque)
    """Answers to the next requests."""
    gates: deque[trio.Event] = field(default_factory=deque)
    """With gates each piece of an answer waits for the next one to open."""
    closed_early: int = 0
    """How many answers lost their reader."""
    at_work: int = 0

    def base_url(self, wire: Wire) -> str:
        return f"http://127.0.0.1:{self.port}/{'v1beta' if wire is Wire.GOOGLE else 'v1'}"

    def fail_next(self, wire: Wire, status: int, message: str, **headers: str) -> None:
        """Answer one more request with an error in that provider's shape."""
        body = json.dumps(error_body(wire, status, message)).encode()
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.next.append(Misbehaviour(status, body, [("content-type", "application/json"), *named]))


@asynccontextmanager
async def open_provider(*, key: str | None = None) -> AsyncIterator[Provider]:
    """A provider that listens until the context ends."""
    provider = Provider(key=key)
    scripted = Scripted()
    async with trio.open_nursery() as nursery:
        handler = partial(_serve, provider=provider, scripted=scripted)
        [listener] = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        provider.port = listener.socket.getsockname()[1]
        yield provider
        nursery.cancel_scope.cancel()


async def _serve(stream: trio.abc.Stream, *, provider: Provider, scripted: Scripted) -> None:
    await serve_http(stream, partial(_handle, provider=provider, scripted=scripted), _refusal)


def _refusal(refused: Refused, target: str) -> tuple[Headers, bytes]:
    return [], str(refused).encode()


async def _handle(exchange: Exchange, *, provider: Provider, scripted: Scripted) -> None:
    body = json.loads(await exchange.read_body())
    target = exchange.head.target
    path = target.partition("?")[0]
    wire = next((wire for suffix, wire in _SUFFIX.items() if path.endswith(suffix)), Wire.GOOGLE)
    asked = Asked(target, wire, dict(exchange.head.headers), body)
    provider.asked.append(asked)
    if provider.next:
        planned = provider.next.popleft()
        await exchange.answer(planned.status, planned.headers, planned.body)
        return
    if provider.key is not None and asked.key != provider.key:
        message = f"Incorrect API key provided: {asked.key}. Yours begins with {provider.key[:6]}****."
        refusal = json.dumps(error_body(wire, 401, message)).encode()
        await exchange.answer(401, [("content-type", "application/json")], refusal)
        return
    streaming = ":streamGenerateContent" in path if wire is Wire.GOOGLE else bool(body.get("stream"))
    model = path.rpartition("/")[2].partition(":")[0] if wire is Wire.GOOGLE else body["model"]
    answer = reply(scripted, wire, body, streaming=streaming, model=model, session="")
    provider.at_work += 1
    finished = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.watch, nursery.cancel_scope.cancel)
            with suppress(ClientGone):
                await _play(exchange, answer, provider)
                finished = True
            nursery.cancel_scope.cancel()
    finally:
        provider.at_work -= 1
        provider.closed_early += not finished


async def _play(exchange: Exchange, answer: ScriptedReply, provider: Provider) -> None:
    await exchange.start(answer.status, answer.headers)
    for piece in answer.pieces:
        if provider.gates:
            await provider.gates.popleft().wait()
        if piece.cut:
            exchange.reusable = False
            return
        await trio.sleep(piece.pause_seconds)
        await exchange.send(piece.data)
    await exchange.finish()
