"""The server side of HTTP/1.1 on any Trio stream.

h11 parses; here are the walls: sizes are checked before anything is allocated, every wait has an end, and whatever two
readers could understand differently (both framings, folded or bare-LF headers, bytes behind a request) is refused with
400 and the connection closed, whatever h11 would have made of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import h11
import trio

from oubliette.core import limits

IDLE_SECONDS = 600
"""How long a kept connection waits for its next request: longer than HTTP clients keep theirs, so that it is the client
who closes first and no request meets a closing connection."""
SEND_SECONDS = 30
"""A client that takes nothing for so long is gone."""
LINGER_SECONDS = 1.0
LINGER_BYTES = 1 << 20
"""How much of an unwanted request is still read, so that the answer is not lost to a connection reset."""
READ_BYTES = 1 << 16

Headers = Sequence[tuple[str, str]]


class ClientGone(Exception):
    """The client hung up, or stopped reading for too long. Nothing more can be sent."""


class Refused(Exception):
    """The request cannot be read. ``status`` and ``str()`` are for the client; the connection is closed afterwards."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Head:
    """Request line and headers. Names are lower case."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]] = field(repr=False)

    def get(self, name: str) -> str | None:
        """The header's value; None when it is absent *or given more than once*."""
        values = [value for key, value in self.headers if key == name]
        return values[0] if len(values) == 1 else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class Exchange:
    """One request and its answer. The handler reads the body (once) and answers (once)."""

    def __init__(self, stream: trio.abc.Stream, connection: h11.Connection, head: Head) -> None:
        self._stream = stream
        self._connection = connection
        self.head = head
        self.started = False
        self.reusable = True
        """False: close after this answer."""
        self._watching = trio.CancelScope()

    async def read_body(
        self,
        max_bytes: int = limits.MAX_BODY_BYTES,
        *,
        reserve: Callable[[int], None] = lambda size: None,
        seconds: float = limits.BODY_SECONDS,
    ) -> bytes:
        """The whole body. ``reserve(size)`` is called before memory for ``size`` more bytes is used and may raise.

        Raises Refused (413 too large, 408 too slow, 400 damaged or followed by more) and ClientGone.
        """
        length = self.head.get("content-length")
        if length is not None and int(length) > max_bytes:
            raise Refused(413, f"The request body may have {max_bytes} bytes; it has {length}.")
        if length is not None:
            reserve(int(length))
        if self._connection.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        body = bytearray()
        raw_bytes = 0
        with trio.move_on_after(seconds) as scope:
            while True:
                event = self._next_event()
                if event is h11.NEED_DATA:
                    data = await _receive(self._stream)
                    if not data:
                        raise ClientGone
                    raw_bytes += len(data)
                    if raw_bytes > 2 * max_bytes + limits.MIB:
                        raise Refused(413, "The request body is too large.")
                    self._connection.receive_data(data)
                elif isinstance(event, h11.Data):
                    if len(body) + len(event.data) > max_bytes:
                        raise Refused(413, f"The request body may have {max_bytes} bytes; it has more.")
                    if length is None:
                        reserve(len(event.data))
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    raise Refused(400, "The request is not one plain HTTP/1.1 request.")
        if scope.cancelled_caught:
            raise Refused(408, f"The request body was not there after {seconds:g} seconds.")
        if self._connection.trailing_data[0]:
            raise Refused(400, "There are bytes behind the request: one request at a time.")
        return bytes(body)

    async def watch(self, gone: Callable[[], None]) -> None:
        """Run beside the answering: calls ``gone`` once the client has hung up; returns when the answer's end is sent.

        Closing only the sending side counts as hanging up. Bytes that come meanwhile belong to no request: the
        connection is not used again.
        """
        unwanted = 0
        with self._watching:
            while unwanted <= LINGER_BYTES:
                try:
                    data = await _receive(self._stream)
                except ClientGone:
                    data = b""
                if not data:
                    gone()
                    return
                unwanted += len(data)
                self.reusable = False
            await trio.sleep_forever()

    async def start(self, status: int, headers: Headers) -> None:
        """Send the response's head; ``send`` and ``finish`` follow."""
        self.started = True
        sent = [(name, value) for name, value in headers]
        if not self.reusable or self._connection.their_state is not h11.DONE:
            self.reusable = False
            sent.append(("connection", "close"))
        await self._send(h11.Response(status_code=status, headers=sent))

    async def send(self, data: bytes) -> None:
        """Send a piece of the body at once."""
        if data:
            await self._send(h11.Data(data=data))

    async def finish(self) -> None:
        """End the response. Without this call the client sees that it was cut."""
        self._watching.cancel()  # before the client can send its next request, which is not ours to swallow
        await self._send(h11.EndOfMessage())

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole response."""
        self._watching.cancel()
        await self.start(status, [*headers, ("content-length", str(len(body)))])
        await self.send(body)
        await self.finish()

    async def answer_unread(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole response to a request whose body was not read (to the end): the connection is closed after it."""
        self.reusable = False
        await self.answer(status, headers, body)

    @property
    def body_read(self) -> bool:
        return self._connection.their_state is h11.DONE

    @property
    def finished(self) -> bool:
        return self._connection.our_state in (h11.DONE, h11.MUST_CLOSE)

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(400, f"The request is damaged: {error}.") from error

    async def _send(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        if not data:
            return
        with trio.move_on_after(SEND_SECONDS) as scope:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ClientGone from error
        if scope.cancelled_caught:
            raise ClientGone


Handler = Callable[[Exchange], Awaitable[None]]
Refusal = Callable[[Refused, str], tuple[Headers, bytes]]
"""Makes the answer to a request that could not be read, from the error and the target (empty when unknown)."""


async def serve_http(stream: trio.abc.Stream, handler: Handler, refusal: Refusal) -> None:
    """Serve requests one after the other until the client or a broken rule ends it, then close the stream.

    ``handler`` may raise Refused or ClientGone; anything else it raises goes through after the stream is closed.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.MAX_HEADER_BYTES + 1024)
    linger = False
    try:
        while True:
            try:
                head = await _read_head(stream, connection)
            except Refused as refused:
                linger = await _refuse(Exchange(stream, connection, Head("", "", ())), refused, refusal)
                return
            if head is None:
                return
            exchange = Exchange(stream, connection, head)
            try:
                await handler(exchange)
            except Refused as refused:
                linger = await _refuse(exchange, refused, refusal)
                return
            if not exchange.reusable or not exchange.finished or connection.their_state is not h11.DONE:
                linger = exchange.finished
                return
            connection.start_next_cycle()
    except ClientGone:
        return
    finally:
        with trio.move_on_after(LINGER_SECONDS, shield=True):
            await _close(stream, linger=linger)


async def _read_head(stream: trio.abc.Stream, connection: h11.Connection) -> Head | None:
    """The next request's head, or None when the client closed between requests (or let the connection idle)."""
    buffer = bytearray()
    with trio.move_on_after(IDLE_SECONDS):
        buffer += await _receive(stream)
    if not buffer:
        return None
    with trio.move_on_after(limits.HEADER_SECONDS) as scope:
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            if len(buffer) > limits.MAX_HEADER_BYTES:
                raise Refused(431, f"The request head may have {limits.MAX_HEADER_BYTES} bytes.")
            data = await _receive(stream)
            if not data:
                raise ClientGone
            buffer += data
    if scope.cancelled_caught:
        raise Refused(408, f"The request head was not there after {limits.HEADER_SECONDS} seconds.")
    if end > limits.MAX_HEADER_BYTES:
        raise Refused(431, f"The request head may have {limits.MAX_HEADER_BYTES} bytes.")
    _check_framing(bytes(buffer[:end]))
    connection.receive_data(bytes(buffer))
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise Refused(400, f"The request is damaged: {error}.") from error
    if not isinstance(event, h11.Request):
        raise Refused(400, "The request is not one plain HTTP/1.1 request.")
    headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers]
    return Head(event.method.decode("ascii"), event.target.decode("latin-1"), headers)


def _check_framing(head: bytes) -> None:
    """Refuse what h11 tolerates and another reader might understand differently (RFC 9112 sections 2.2, 5.2, 6.3)."""
    lines = head.split(b"\r\n")
    if any(b"\n" in line or b"\r" in line or b"\0" in line for line in lines):
        raise Refused(400, "The request head has bare line ends or a NUL.")
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise Refused(400, "The request head has a folded line.")
    fields = [line.partition(b":") for line in lines[1:]]
    names = [name.strip().lower() for name, _, _ in fields]
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
        raise Refused(400, "The request says more than once how long it is.")
    if any(not value.strip().isdigit() for name, _, value in fields if name.lower() == b"content-length"):
        raise Refused(400, "The request does not say how long it is.")
    if b"upgrade" in names or lines[0].startswith(b"CONNECT "):
        raise Refused(400, "Upgrades and tunnels are not served.")


async def _receive(stream: trio.abc.Stream) -> bytes:
    try:
        return bytes(await stream.receive_some(READ_BYTES))
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ClientGone from error


async def _refuse(exchange: Exchange, refused: Refused, refusal: Refusal) -> bool:
    """Answer and say whether the answer is out (and the rest of the request worth draining)."""
    if exchange.started:
        return False
    headers, body = refusal(refused, exchange.head.target)
    await exchange.answer_unread(refused.status, headers, body)
    return True


async def _close(stream: trio.abc.Stream, *, linger: bool) -> None:
    """Close; with ``linger`` first take what the client is still sending, or a reset could overtake our answer."""
    try:
        if linger:
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
            left = LINGER_BYTES
            while left > 0 and (data := await stream.receive_some(READ_BYTES)):
                left -= len(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
    finally:
        await trio.aclose_forcefully(stream)
