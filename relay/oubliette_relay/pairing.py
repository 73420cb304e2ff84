"""Connections in pairs: each one inside has one of its own to the daemon, and bytes go both ways with half-close right.

Plain non-blocking sockets on the event loop instead of asyncio's transports: one copy less, and what happens at each
end of each way is written here and not spread over callbacks whose details differ between Python versions.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from typing import Callable, Optional, Set, Tuple

from oubliette_relay import protocol
from oubliette_relay.processes import Refused
from oubliette_relay.protocol import Hello

PIECE = 256 * 1024
CONNECT_SECONDS = 5.0
HOLD_SECONDS = 60.0
"""How long a model connection waits for a daemon that is being restarted."""
PAIR_LIMIT = 128
"""All pairs at once, whoever asked for them."""
WAITING_LIMIT = 256
"""Model connections that are accepted and wait for one of ``protocol.MODEL_LIMIT`` slots. They do not wait in the
kernel's backlog: when that overflows, connections that look open to the client are reset (measured)."""
_BACKLOG = 1024
_PATH_BYTES = 100
"""Longer socket paths are reached through a descriptor of their directory."""

_scratch = memoryview(bytearray(PIECE))
"""Everything runs in one thread, and what is in here is sent or copied before the next read."""


async def dial_daemon(path: str, hello: Hello, seconds: float = CONNECT_SECONDS) -> socket.socket:
    """A connection to the daemon with its hello sent. Raises OSError when it does not listen."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    upstream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        upstream.setblocking(False)
        while True:
            try:
                _connect_unix(upstream, path)
                break
            except BlockingIOError:
                # The daemon's backlog is full. A UNIX socket has no connection in progress to wait for.
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(0.005)
        upstream.send(protocol.encode_hello(hello))
    except BaseException:
        upstream.close()
        raise
    return upstream


async def dial_daemon_streams(path: str, hello: Hello) -> Tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The same as asyncio's streams. Raises OSError."""
    return await asyncio.open_connection(sock=await dial_daemon(path, hello))


def _connect_unix(upstream: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= _PATH_BYTES:
        upstream.connect(path)
        return
    directory, name = os.path.split(path)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        upstream.connect(f"/proc/self/fd/{handle}/{name}")
    finally:
        os.close(handle)


async def _connect(inside: socket.socket, address: Tuple[str, int]) -> None:
    """Raises OSError. Without ``asyncio.wait_for``, which makes a task for it: dials are many and must be quick."""
    code = inside.connect_ex(address)
    if code == errno.EINPROGRESS:
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[int] = loop.create_future()

        def decide(waited_code: Optional[int] = None) -> None:
            if not decided.done():
                code = inside.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if waited_code is None else waited_code
                decided.set_result(code)

        alarm = loop.call_later(CONNECT_SECONDS, decide, errno.ETIMEDOUT)
        loop.add_writer(inside, decide)
        try:
            code = await decided
        finally:
            alarm.cancel()
            loop.remove_writer(inside)
    if code:
        raise OSError(code, os.strerror(code))


class Pairs:
    """All pairs of this relay."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pairs: Set[Pair] = set()

    async def dial(self, id: str, port: int) -> None:  # noqa: A002
        """What the daemon asked for: connect to that port inside and to the daemon. Raises Refused."""
        if not 0 < port < 65536:
            raise Refused("refused", f"no port {port}")
        if len(self._pairs) >= PAIR_LIMIT:
            raise Refused("busy", f"{PAIR_LIMIT} connections are open already")
        inside = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            inside.setblocking(False)
            inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await _connect(inside, ("127.0.0.1", port))
            upstream = await dial_daemon(self._path, Hello("dialed", id=id))
        except OSError as error:
            inside.close()
            raise Refused("refused", f"127.0.0.1:{port}: {error.strerror}") from error
        except BaseException:
            inside.close()
            raise
        self.join(inside, upstream)

    def join(self, inside: socket.socket, upstream: socket.socket, done: Optional[Callable[[], None]] = None) -> None:
        """Carry bytes between the two until both ways have ended; closes both and calls ``done``."""
        pair = Pair(inside, upstream)
        self._pairs.add(pair)

        def ended() -> None:
            self._pairs.discard(pair)
            if done is not None:
                done()

        pair.run(ended)

    def sweep(self) -> None:
        """Close pairs whose daemon's end has gone after it had half-closed: no event tells of that."""
        for pair in list(self._pairs):
            pair.close_if_abandoned()

    def close(self) -> None:
        for pair in list(self._pairs):
            pair.close()


class Pair:
    def __init__(self, inside: socket.socket, upstream: socket.socket) -> None:
        self._sockets = (inside, upstream)
        self._ways = (_Way(self, inside, upstream), _Way(self, upstream, inside))
        self._ended: Callable[[], None] = lambda: None
        self._closed = False

    def run(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        for way in self._ways:
            way.begin()

    def way_ended(self) -> None:
        if all(way.ended for way in self._ways):
            self.close()
        else:
            self.close_if_abandoned()

    def close_if_abandoned(self) -> None:
        """The daemon has read all it wants when it has closed its end altogether; the kernel says so on request."""
        if not self._closed and self._ways[1].ended:
            poll = select.poll()
            poll.register(self._sockets[1], 0)
            if any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0)):
                self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for way in self._ways:
            way.stop()
        for each in self._sockets:
            each.close()
        self._ended()


class _Way:
    """From one socket to the other. Reads only when the last piece has been written: that is the backpressure."""

    def __init__(self, pair: Pair, source: socket.socket, sink: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._pair = pair
        self._source = source
        self._sink = sink
        self._rest = memoryview(b"")
        self.ended = False

    def begin(self) -> None:
        self._loop.add_reader(self._source, self._readable)

    def stop(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _readable(self) -> None:
        try:
            size = self._source.recv_into(_scratch)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._pair.close()
            return
        if size == 0:
            self._end(self._sink, socket.SHUT_WR)
            return
        sent = self._send(_scratch[:size])
        if 0 <= sent < size:
            self._rest = memoryview(bytes(_scratch[sent:size]))
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._writable)

    def _writable(self) -> None:
        sent = self._send(self._rest)
        if sent < 0:
            return
        self._rest = self._rest[sent:]
        if not self._rest:
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._readable)

    def _send(self, data: memoryview) -> int:
        try:
            return self._sink.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # Nobody reads any more at that end; what it wrote before may still be on its way to the other.
            self._end(self._source, socket.SHUT_RD)
            return -1

    def _end(self, tell: socket.socket, how: int) -> None:
        self.stop()
        self.ended = True
        try:
            tell.shutdown(how)
        except OSError:
            self._pair.close()
            return
        self._pair.way_ended()


class ModelDoor:
    """The loopback listener for the agent's model requests: each connection gets one of its own to the daemon."""

    def __init__(self, path: str, pairs: Pairs, port: int) -> None:
        """Raises OSError when the port is taken."""
        self._path = path
        self._pairs = pairs
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(protocol.MODEL_LIMIT)
        self._waiting: Set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setblocking(False)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(_BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self._resume()

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _acceptable(self) -> None:
        try:
            inside, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._loop.remove_reader(self._listener)
                self._loop.call_later(0.2, self._resume)
            return
        inside.setblocking(False)
        inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.ensure_future(self._pair(inside))
        self._waiting.add(task)
        task.add_done_callback(self._paired)
        if len(self._waiting) >= WAITING_LIMIT:
            self._loop.remove_reader(self._listener)

    async def _pair(self, inside: socket.socket) -> None:
        await self._slots.acquire()
        deadline = self._loop.time() + HOLD_SECONDS
        pause = 0.05
        while True:
            try:
                upstream = await dial_daemon(self._path, Hello("http"))
                break
            except OSError:
                if self._loop.time() >= deadline:
                    inside.close()
                    self._slots.release()
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
        self._pairs.join(inside, upstream, self._slots.release)

    def _paired(self, task: asyncio.Task[None]) -> None:
        self._waiting.discard(task)
        self._resume()

    def _resume(self) -> None:
        if self._listener.fileno() >= 0 and len(self._waiting) < WAITING_LIMIT:
            self._loop.add_reader(self._listener, self._acceptable)
