"""A receiver of webhooks that behaves as it is told: answers, keeps silent, hangs up, redirects, never ends."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

Behaviour = Callable[[trio.abc.Stream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Received:
    """One request."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)


def answers(status: int, headers: str = "", body: str = "") -> Behaviour:
    async def answer(stream: trio.abc.Stream) -> None:
        head = f"HTTP/1.1 {status} Said\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        await stream.send_all((head + body).encode())

    return answer


async def keeps_silent(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


async def hangs_up(stream: trio.abc.Stream) -> None:
    await trio.aclose_forcefully(stream)


async def speaks_no_http(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")


async def never_ends_its_head(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"x-more: " + b"y" * 10_000 + b"\r\n")


async def never_ends_its_body(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await stream.send_all(b"2710\r\n" + b"z" * 10_000 + b"\r\n")


@dataclass
class Receiver:
    """``plan`` is used up first, one behaviour a request; then ``otherwise`` holds."""

    plan: list[Behaviour] = field(default_factory=list)
    otherwise: Behaviour = field(default_factory=lambda: answers(204))
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    busy: int = 0
    most_busy: int = 0
    port: int = 0
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?who=us"

    async def until(self, count: int, seconds: float = 20) -> list[Received]:
        """Wait until so many requests have come."""
        with trio.fail_after(seconds):
            while len(self.received) < count:
                await self._news.wait()
                self._news = trio.Event()
        return self.received

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        try:
            request = await _read(stream)
            if request is None:
                return
            self.received.append(request)
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            self._news.set()
            try:
                await (self.plan.pop(0) if self.plan else self.otherwise)(stream)
            finally:
                self.busy -= 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)


async def _read(stream: trio.abc.Stream) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += await stream.receive_some(65536)
    return Received(first.split(" ")[1], headers, body)


@asynccontextmanager
async def open_receiver(
    *plan: Behaviour, otherwise: Behaviour | None = None, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(plan), otherwise or answers(204))
    async with trio.open_nursery() as nursery:
        if tls is None:
            (listener,) = await nursery.start(partial(trio.serve_tcp, receiver.serve, port, host="127.0.0.1"))
            receiver.port = listener.socket.getsockname()[1]
        else:
            (secured,) = await nursery.start(
                partial(trio.serve_ssl_over_tcp, receiver.serve, port, tls, host="127.0.0.1", https_compatible=True)
            )
            receiver.port = secured.transport_listener.socket.getsockname()[1]
        try:
            yield receiver
        finally:
            nursery.cancel_scope.cancel(reason="the receiver is closed")
