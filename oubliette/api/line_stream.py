"""The SDK's server on a stream of ours: one JSON-RPC message to a line, and no handshake needed.

An agent does not initialise an MCP server a second time, so a client that has dialled again is served as one that was
initialised ("born ready"); an ``initialize`` is answered all the same.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

import mcp_types as types
import trio
from mcp.server.connection import Connection
from mcp.server.lowlevel.server import Server
from mcp.server.runner import serve_connection
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import SessionMessage
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from oubliette.api.mcp_private import Inward, Outward, message_streams
from oubliette.errors import RemoteWireError
from oubliette_relay import protocol

OPEN_CALLS: Final = 128
"""Calls of one container in progress at once, unsent answers included; no more is read until one has been answered."""
SEND_SECONDS: Final = 30.0
"""A client that takes no line for so long is cut off."""
_CHUNK: Final = 1 << 16
_PARSE_ERROR: Final = -32700
_INVALID_REQUEST: Final = -32600
_TOO_LARGE: Final = -32603


News = Callable[[Connection], Awaitable[None]]
"""Runs beside a stream, to tell its peer what it has not asked for; ended with it."""


class OpenCalls:
    """How many calls are in progress over all streams of a container: each may hold an answer that nobody reads."""

    def __init__(self) -> None:
        self.count = 0
        self.streams = 0
        """Who shares this; it is forgotten with the last."""
        self._fewer = trio.Event()

    async def one_more(self) -> None:
        """Waits while there are OPEN_CALLS."""
        while self.count >= OPEN_CALLS:
            await self._fewer.wait()
        self.count += 1

    def fewer(self, by: int) -> None:
        self.count -= by
        self._fewer.set()
        self._fewer = trio.Event()


async def serve_lines(
    stream: trio.abc.HalfCloseableStream,
    server: Server[Any],
    caller: object,
    news: News | None = None,
    *,
    calls: OpenCalls | None = None,
) -> None:
    """Serve until the peer closes its end; the calls in progress end with it. Handlers find ``caller`` as their
    ``lifespan_context``; ``calls`` is shared with the container's other streams. Raises RemoteWireError when the peer
    breaks the rules of the wire."""
    lines = _Lines(stream, calls or OpenCalls())
    try:
        await lines.serve(server, caller, news)
    finally:
        lines.forget()


class _Lines:
    def __init__(self, stream: trio.abc.HalfCloseableStream, calls: OpenCalls) -> None:
        self._stream = stream
        self._calls = calls
        self._open: set[str] = set()
        self._sending = trio.Lock()
        self._failure: RemoteWireError | None = None

    async def serve(self, server: Server[Any], caller: object, news: News | None) -> None:
        inward, received, sent, outward = message_streams()
        dispatcher: JSONRPCDispatcher[Any] = JSONRPCDispatcher(received, sent, inline_methods=frozenset({"initialize"}))
        connection = Connection.from_envelope(LATEST_HANDSHAKE_VERSION, None, None, outbound=dispatcher)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, inward, nursery.cancel_scope)
            nursery.start_soon(self._write, outward, nursery.cancel_scope)
            if news is not None:
                nursery.start_soon(news, connection)
            await serve_connection(server, dispatcher, connection=connection, lifespan_state=caller)
            nursery.cancel_scope.cancel("the stream has ended")
        if self._failure is not None:
            raise self._failure

    def forget(self) -> None:
        """The stream is over, and so are its calls."""
        self._calls.fewer(len(self._open))
        self._open.clear()

    def _fail(self, why: str, scope: trio.CancelScope) -> None:
        self._failure = RemoteWireError(why)
        scope.cancel(why)

    # --- from the peer

    async def _read(self, inward: Inward, scope: trio.CancelScope) -> None:
        """Until the peer closes its end, which closes ``inward`` and so ends the calls."""
        splitter = protocol.LineSplitter(protocol.LINE_BYTES)
        async with inward:
            try:
                while data := await self._stream.receive_some(_CHUNK):
                    for line in splitter.feed(data):
                        if line.strip():
                            await self._take(line, inward)
            except protocol.ProtocolError as error:
                self._fail(str(error), scope)
            except RemoteWireError as error:
                self._fail(str(error), scope)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                scope.cancel("the peer is gone")

    async def _take(self, line: bytes, inward: Inward) -> None:
        try:
            message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            await self._send(_not_understood(line))
            return
        # A peer that does not read is not read: what it takes back meanwhile would make room for more.
        await self._sending.acquire()
        self._sending.release()
        if isinstance(message, types.JSONRPCRequest):
            key = str(message.id)
            if key in self._open:
                raise RemoteWireError("a second call with the id of one in progress")
            await self._calls.one_more()
            self._open.add(key)
        elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
            # Nothing is sent for a call that was taken back.
            self._settled(str((message.params or {}).get("requestId")))
        await inward.send(SessionMessage(message))

    def _settled(self, key: str) -> None:
        if key in self._open:
            self._open.remove(key)
            self._calls.fewer(1)

    # --- to the peer

    async def _write(self, outward: Outward, scope: trio.CancelScope) -> None:
        async with outward:
            try:
                async for one in outward:
                    await self._send(_line_of(one.message))
                    if isinstance(one.message, types.JSONRPCResponse | types.JSONRPCError):
                        self._settled(str(one.message.id))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                scope.cancel("the peer is gone")
            except RemoteWireError as error:
                self._fail(str(error), scope)

    async def _send(self, line: bytes) -> None:
        with trio.move_on_after(SEND_SECONDS) as patience:
            async with self._sending:
                await self._stream.send_all(line + b"\n")
        if patience.cancelled_caught:
            raise RemoteWireError(f"no line was taken for {SEND_SECONDS:g} s")


def _line_of(message: types.JSONRPCMessage) -> bytes:
    """The message as a line; an error in its place when it is longer than a line may be."""
    line = message.model_dump_json(by_alias=True, exclude_unset=True).encode()
    if len(line) < protocol.LINE_BYTES:
        return line
    asked = message.id if isinstance(message, types.JSONRPCResponse | types.JSONRPCError) else None
    return _error(asked, _TOO_LARGE, "too_large: The answer is longer than 1 MiB. Ask for less with max_chars.")


def _not_understood(line: bytes) -> bytes:
    """The answer to what is no message; with the id of the call that it may have been."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return _error(None, _PARSE_ERROR, "This line is not JSON.")
    asked = value.get("id") if isinstance(value, dict) else None
    return _error(
        asked if isinstance(asked, int | str) and not isinstance(asked, bool) else None,
        _INVALID_REQUEST,
        "This line is not a JSON-RPC message.",
    )


def _error(asked: int | str | None, code: int, message: str) -> bytes:
    body = {"jsonrpc": "2.0", "id": asked, "error": {"code": code, "message": message}}
    return json.dumps(body, separators=(",", ":")).encode()
