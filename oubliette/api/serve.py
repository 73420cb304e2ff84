"""Serving HTTP: listeners, Hypercorn's protocol code with a deadline on every send, and an orderly end.

Hypercorn's own ``serve`` is not used: its sends are shielded without a deadline, so one client that stops reading
would hold up the shutdown for ever. What ``BoundedSend`` replaces was looked at in the version named here.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper
from hypercorn.utils import wrap_app

from oubliette.config.server import Server
from oubliette.core.limits import HEADER_SECONDS, MAX_CONNECTIONS, MAX_HEADER_BYTES
from oubliette.errors import OublietteError
from oubliette.log import get_logger

log = get_logger(__name__)

HYPERCORN: Final = "0.18.0"
DRAIN_SECONDS: Final = 2
"""How long requests in progress may go on once the doors close."""
SEND_SECONDS: Final = 30
"""A client that does not take one piece in that time is gone."""
LAST_SEND_SECONDS: Final = 1
"""The same, once the doors close."""
_PIECE_BYTES: Final = 1 << 16
_BACKLOG: Final = 256
_MAX_SOCKET_PATH: Final = 100


class Sends:
    """All sends in progress, so that the end can shorten them."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._seconds: float = SEND_SECONDS

    def bounded(self) -> trio.CancelScope:
        return trio.CancelScope(deadline=trio.current_time() + self._seconds, shield=True)

    def enter(self, scope: trio.CancelScope) -> None:
        self._scopes.add(scope)

    def leave(self, scope: trio.CancelScope) -> None:
        self._scopes.discard(scope)

    def shorten(self) -> None:
        self._seconds = LAST_SEND_SECONDS
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, trio.current_time() + self._seconds)


class BoundedSend(TCPServer):
    """Hypercorn's connection, whose sends end: in pieces, each with a deadline. And one that ends when its client has
    gone, where Hypercorn's keeps waiting for the next request until its keep-alive time is over."""

    sends: Sends

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            data = memoryview(event.data)
            try:
                for start in range(0, len(data), _PIECE_BYTES):
                    await self._send_piece(data[start : start + _PIECE_BYTES])
                return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except trio.TooSlowError:
                # Half a piece is out: nothing sensible can follow on this connection.
                await trio.aclose_forcefully(self.stream)
            await self.protocol.handle(Closed())

    async def _send_piece(self, piece: memoryview) -> None:
        scope = self.sends.bounded()
        self.sends.enter(scope)
        try:
            with scope:
                await self.stream.send_all(piece)
        finally:
            self.sends.leave(scope)
        if scope.cancelled_caught:
            raise trio.TooSlowError


async def serve_http(
    app: Callable[..., Any],
    server: Server,
    *,
    shutdown: trio.Event,
    closing: Callable[[], None],
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``shutdown``; ``started`` gets the addresses. ``closing`` ends the streams before the drain begins.

    Raises OublietteError when an address cannot be had.
    """
    config = _hypercorn_config(server)
    context = WorkerContext(None)
    sends = Sends()
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    room = trio.CapacityLimiter(MAX_CONNECTIONS)
    async with (
        _listeners(server, config.create_ssl_context()) as (listeners, addresses),
        trio.open_nursery() as connections,
    ):

        async def handle(stream: trio.abc.Stream) -> None:
            await _connection(stream, wrapped, config, context, sends, room)

        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(_accept, handle, listener, connections)
            task_status.started(addresses)
            await shutdown.wait()
            closing()
            accepting.cancel_scope.cancel(reason="shutdown")
        await context.terminated.set()
        sends.shorten()
        connections.cancel_scope.deadline = trio.current_time() + DRAIN_SECONDS
    log.info("doors closed")


async def _accept(
    handle: Callable[[trio.abc.Stream], Any], listener: trio.abc.Listener[Any], connections: trio.Nursery
) -> None:
    await trio.serve_listeners(handle, [listener], handler_nursery=connections)


async def _connection(
    stream: trio.abc.Stream,
    app: AppWrapper,
    config: HypercornConfig,
    context: WorkerContext,
    sends: Sends,
    room: trio.CapacityLimiter,
) -> None:
    """One connection from first byte to last. Whatever goes wrong in it stays in it."""
    try:
        room.acquire_on_behalf_of_nowait(stream)
    except trio.WouldBlock:
        log.warning("too many connections; one was refused", limit=MAX_CONNECTIONS)
        await trio.aclose_forcefully(stream)
        return
    try:
        connection = BoundedSend(app, config, context, {}, stream)  # type: ignore[arg-type]  # annotated as SSL only
        connection.sends = sends
        await connection.run()
    except Exception:  # one exception here would end the listener for everybody
        log.exception("connection failed")
    finally:
        room.release_on_behalf_of(stream)
        await trio.aclose_forcefully(stream)


def _hypercorn_config(server: Server) -> HypercornConfig:
    config = HypercornConfig()
    config.accesslog = None
    config.errorlog = logging.getLogger("oubliette.http")
    config.keep_alive_timeout = HEADER_SECONDS
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.alpn_protocols = ["http/1.1"]
    config.include_server_header = False
    if server.tls is not None:
        config.certfile, config.keyfile = str(server.tls.cert), str(server.tls.key)
    return config


@asynccontextmanager
async def _listeners(
    server: Server, context: ssl.SSLContext | None
) -> AsyncIterator[tuple[list[trio.abc.Listener[Any]], list[str]]]:
    """The listening sockets and their addresses; closed (and the UNIX socket unlinked) at the end."""
    listeners: list[trio.abc.Listener[Any]] = []
    addresses: list[str] = []
    bound_path: Path | None = None
    try:
        for plain in await _tcp(server):
            listeners.append(trio.SSLListener(plain, context, https_compatible=True) if context else plain)
            addresses.append(_address(plain, "https" if context else "http"))
        if server.unix_socket is not None:
            listeners.append(await _unix(server.unix_socket))
            bound_path = server.unix_socket
            addresses.append(f"unix:{server.unix_socket}")
        yield listeners, addresses
    finally:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        if bound_path is not None:
            bound_path.unlink(missing_ok=True)


async def _tcp(server: Server) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(server.port, host=server.host, backlog=_BACKLOG)
    except OSError as error:
        hints = {
            errno.EADDRINUSE: "Another program listens there: stop it, or set server.address in the config.",
            errno.EACCES: "Ports below 1024 need privileges: set server.address in the config.",
            errno.EADDRNOTAVAIL: "This machine has no such address: set server.address in the config.",
        }
        raise OublietteError(
            f"listen on {server.address}: {error.strerror or error}",
            hint=hints.get(error.errno or 0, "Look at server.address in the config."),
            code="unavailable",
        ) from error


def _address(listener: trio.SocketListener, scheme: str) -> str:
    host, port = listener.socket.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _unix(path: Path) -> trio.SocketListener:
    """A UNIX socket for this user alone. A stale one is replaced, one in use is an error."""
    try:
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise OSError(errno.ENAMETOOLONG, f"the path is longer than {_MAX_SOCKET_PATH} bytes")
        await _remove_stale(trio.Path(path))
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            await sock.bind(os.fsencode(path))
        finally:
            os.umask(mask)
        sock.listen(_BACKLOG)
        return trio.SocketListener(sock)
    except OSError as error:
        raise OublietteError(
            f"listen on {path}: {error.strerror or error}",
            hint="Look at server.unix_socket in the config.",
            code="unavailable",
        ) from error


async def _remove_stale(path: trio.Path) -> None:
    try:
        mode = (await path.lstat()).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file that is no socket")
    try:
        stream = await trio.open_unix_socket(os.fspath(path))
    except OSError:
        await path.unlink()
        return
    await trio.aclose_forcefully(stream)
    raise OSError(errno.EADDRINUSE, "another program listens there")
