"""OpenCode's server as far as the adapter uses it, to show what the real one does only now and then."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import h11
import trio

from oubliette.wire.sse import encode


@dataclass
class FakeOpenCode:
    """``answers`` by method and path: JSON, bytes, ``(status, JSON)``, or a function from the query to JSON and the
    cursor of the next page. ``emit`` sends an event to who listens at that moment."""

    port: int = 0
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    deaf: bool = False
    """A new event stream says that it is connected and then misses everything until it is provoked."""
    serving: list[trio.SocketStream] = field(default_factory=list)
    provoked: trio.Event = field(default_factory=trio.Event)
    _streams: list[trio.MemorySendChannel[bytes]] = field(default_factory=list)
    _missing: set[trio.MemorySendChannel[bytes]] = field(default_factory=set)

    def emit(self, kind: str, given: dict[str, Any]) -> None:
        for stream in self._streams:
            if stream not in self._missing:
                stream.send_nowait(_event(kind, given))

    def cut(self) -> None:
        """End all event streams."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    async def serve(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER)
        self.serving.append(stream)
        try:
            async with stream:
                await self._serve(stream, http)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            return
        finally:
            self.serving.remove(stream)

    async def _serve(self, stream: trio.SocketStream, http: h11.Connection) -> None:
        body, head = b"", None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
        if head is None:
            return
        path, _, query = head.target.decode().partition("?")
        self.asked.append(f"{head.method.decode()} {path}")
        self.bodies.append(json.loads(body) if body else None)

        async def send(*events: Any) -> None:
            await stream.send_all(b"".join(http.send(event) or b"" for event in events))

        if path == "/global/event":
            await send(h11.Response(status_code=200, headers=[("content-type", "text/event-stream")]))
            await self._stream(send)
            await send(h11.EndOfMessage())
            return
        if path == "/tui/show-toast":
            self._missing.clear()
            self.provoked.set()
            self.emit("tui.toast.show", {})
        answer = self.answers.get(f"{head.method.decode()} {path}", self.answers.get(path, True))
        cursor = None
        if callable(answer):
            answer, cursor = answer(dict(parse_qsl(query)))
        status, given = answer if isinstance(answer, tuple) else (200, answer)
        raw = given if isinstance(given, bytes) else json.dumps(given).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(raw)))]
        if cursor is not None:
            headers.append(("x-next-cursor", cursor))
        await send(h11.Response(status_code=status, headers=headers), h11.Data(raw), h11.EndOfMessage())

    async def _stream(self, send: Any) -> None:
        outbox, inbox = trio.open_memory_channel[bytes](math.inf)
        self._streams.append(outbox)
        if self.deaf:
            self._missing.add(outbox)
        await send(h11.Data(_event("server.connected", {})))
        async for data in inbox:
            await send(h11.Data(data))


def _event(kind: str, given: dict[str, Any]) -> bytes:
    return encode(data=json.dumps({"directory": "/w", "payload": {"type": kind, "properties": given}}))


@asynccontextmanager
async def open_fake_opencode() -> AsyncIterator[FakeOpenCode]:
    fake = FakeOpenCode(answers={"/global/health": {"healthy": True}, "/config/providers": {"providers": []}})
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        fake.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, fake.serve, listeners)
        yield fake
        nursery.cancel_scope.cancel("test over")
