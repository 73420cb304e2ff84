"""The listening end of every relay: one socket per container, and which one was reached says which container calls.

The socket lies in a directory of ours that the container sees read-only: it can be dialled from inside, and neither
renamed, unlinked nor replaced by a link to another's. Nothing said on a connection widens which container it is; the
worst that a hostile inside can do is to spoil its own.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog
import trio

from oubliette.container.link import RelayLink
from oubliette.errors import ContainerError, RemoteWireError
from oubliette_relay import protocol
from oubliette_relay.protocol import Hello, HelloReader

log = structlog.get_logger(__name__)

SOCKET_NAME = "relay.sock"
CONNECTION_LIMIT = 64
"""Connections of one container at once that it opened of its own accord. Those that we asked for (dials, execs) come
on top: they are bounded by ``protocol.DIAL_LIMIT`` and ``EXEC_LIMIT``, and must not be shut out by the others."""
OFFENCE_SECONDS = 0.001
"""How long no connection of a container is accepted after each one that was refused or spoke garbage."""
OFFENCES_REMEMBERED = 50
LOG_SECONDS = 10.0
"""At most one line in so much time about what one container did wrong."""
_BACKLOG = 128
_PATH_BYTES = 100
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

ServeStream = Callable[[trio.abc.HalfCloseableStream, str], Awaitable[None]]
"""Serves one stream of the container whose id comes second; the stream is closed for it afterwards."""
ServeMcp = Callable[[trio.abc.HalfCloseableStream, str, str], Awaitable[None]]
"""The same, with the caller whose tools are asked for; empty: our own."""


class PrefixedStream(trio.abc.HalfCloseableStream):
    """A stream of which some bytes were read already."""

    def __init__(self, prefix: bytes, stream: trio.abc.HalfCloseableStream) -> None:
        self._prefix = prefix
        self._stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._prefix:
            return await self._stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        size = len(self._prefix) if max_bytes is None else max_bytes
        data, self._prefix = self._prefix[:size], self._prefix[size:]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class RelayHost:
    """Listens for relays. ``serve_model`` gets ``http`` streams, ``serve_mcp`` gets ``mcp`` ones (None: refused)."""

    def __init__(self, *, serve_model: ServeStream, serve_mcp: ServeMcp | None = None) -> None:
        self._serve_model = serve_model
        self._serve_mcp = serve_mcp

    @asynccontextmanager
    async def listen(self, container_id: str, directory: Path, *, uid: int | None = None) -> AsyncIterator[RelayLink]:
        """Listen on ``directory/relay.sock`` for that container's relay until the context ends.

        Only ``uid`` (default: our own) may dial; giving it away needs root. Raises ContainerError when the socket
        cannot be made.
        """
        link = RelayLink(container_id)
        failure: Exception | None = None
        with _listening(container_id, directory, uid) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept, listener, _Door(link), nursery)
                try:
                    yield link
                except Exception as error:  # noqa: BLE001 - raised again below, bare and not in a group of one
                    failure = error
                finally:
                    link.close()
                nursery.cancel_scope.cancel("the relay host stops listening")
        if failure is not None:
            raise failure

    async def _accept(self, listener: trio.socket.SocketType, door: _Door, nursery: trio.Nursery) -> None:
        while True:
            try:
                accepted, _ = await listener.accept()
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                door.complain("cannot accept", error=str(error))
                await trio.sleep(0.1)
                continue
            if door.open < CONNECTION_LIMIT + door.link.expected:
                door.open += 1
                nursery.start_soon(self._guard, door, trio.SocketStream(accepted))
            else:
                accepted.close()
                door.offence("refused a connection", limit=CONNECTION_LIMIT)
            if door.offences:
                door.offences -= 1
                await trio.sleep(OFFENCE_SECONDS)

    async def _guard(self, door: _Door, stream: trio.SocketStream) -> None:
        """One connection; whatever it does wrong ends here."""
        delivered = False
        try:
            delivered = await self._serve(door, stream)
        except RemoteWireError as error:
            door.offence("dropped a connection", error=str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("a relay connection broke", container=door.link.container_id, error=str(error))
        except Exception:
            log.exception("a relay connection crashed", container=door.link.container_id)
        finally:
            door.open -= 1
            if not delivered:
                await trio.aclose_forcefully(stream)

    async def _serve(self, door: _Door, raw: trio.SocketStream) -> bool:
        """True: the stream now belongs to whoever dialled."""
        hello, rest = await _read_hello(raw)
        stream: trio.abc.HalfCloseableStream = PrefixedStream(rest, raw) if rest else raw
        if hello.kind == "dialed":
            if not door.link.deliver(hello.id, stream):
                raise RemoteWireError("a dialed connection that nobody asked for")
            return True
        with door.own():
            if hello.kind == "control":
                await door.link.serve_control(hello, raw, rest)
            elif hello.kind == "http":
                await self._serve_model(stream, door.link.container_id)
            elif self._serve_mcp is not None:
                try:
                    await self._serve_mcp(stream, door.link.container_id, hello.id)
                finally:
                    door.link.client_left()
            else:
                raise RemoteWireError("mcp is not served here")
        return False


class _Door:
    """What is known of one container's connections."""

    def __init__(self, link: RelayLink) -> None:
        self.link = link
        self.open = 0
        """Accepted, and not handed to a dial."""
        self.offences = 0
        self._own = 0
        self._silent_until = 0.0
        self._unsaid = 0

    @contextmanager
    def own(self) -> Iterator[None]:
        """Count a connection that the container opened of its own accord."""
        if self._own >= CONNECTION_LIMIT:
            raise RemoteWireError(f"more than {CONNECTION_LIMIT} connections")
        self._own += 1
        try:
            yield
        finally:
            self._own -= 1

    def offence(self, what: str, **facts: object) -> None:
        self.offences = min(self.offences + 1, OFFENCES_REMEMBERED)
        self.complain(what, **facts)

    def complain(self, what: str, **facts: object) -> None:
        """Log it, now and then."""
        now = trio.current_time()
        if now < self._silent_until:
            self._unsaid += 1
            return
        log.warning(what, container=self.link.container_id, unsaid=self._unsaid, **facts)
        self._silent_until = now + LOG_SECONDS
        self._unsaid = 0


async def _read_hello(stream: trio.SocketStream) -> tuple[Hello, bytes]:
    reader = HelloReader()
    with trio.move_on_after(protocol.HELLO_SECONDS):
        while True:
            data = await stream.receive_some(protocol.HELLO_BYTES)
            if not data:
                raise RemoteWireError("a connection that ended before its hello")
            try:
                found = reader.feed(data)
            except protocol.ProtocolError as error:
                raise RemoteWireError(str(error)) from error
            if found is not None:
                return found
    raise RemoteWireError(f"no hello within {protocol.HELLO_SECONDS:g} s")


@contextmanager
def _listening(container_id: str, directory: Path, uid: int | None) -> Iterator[trio.socket.SocketType]:
    """The listening socket; its file is gone afterwards. ``directory`` is ours alone to write."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        handle = -1
        try:
            try:
                handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                _unlink_socket(handle)
                _bind(plain, handle, directory)
                # Between bind and listen nobody can connect: from here on only that uid may.
                os.chmod(SOCKET_NAME, 0o600, dir_fd=handle)
                if uid is not None and uid != os.geteuid():
                    os.chown(SOCKET_NAME, uid, -1, dir_fd=handle, follow_symlinks=False)
                plain.listen(_BACKLOG)
            except OSError as error:
                raise ContainerError(f"listen for the relay of {container_id} in {directory}: {error}") from error
            yield trio.socket.from_stdlib_socket(plain)
        finally:
            if handle >= 0:
                _forget_socket(handle, directory)


def _forget_socket(handle: int, directory: Path) -> None:
    try:
        _unlink_socket(handle)
    except OSError as error:
        log.warning("a relay's socket stays behind", directory=str(directory), error=str(error))
    finally:
        os.close(handle)


def _bind(plain: socket.socket, handle: int, directory: Path) -> None:
    """A UNIX socket's path has at most 107 bytes (103 on macOS); Linux can go through the directory's descriptor."""
    path = directory / SOCKET_NAME
    if len(os.fsencode(path)) <= _PATH_BYTES:
        plain.bind(os.fspath(path))
    else:
        plain.bind(f"/proc/self/fd/{handle}/{SOCKET_NAME}")


def _unlink_socket(handle: int) -> None:
    try:
        found = os.stat(SOCKET_NAME, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, f"{SOCKET_NAME} is there and is not a socket")
    os.unlink(SOCKET_NAME, dir_fd=handle)
