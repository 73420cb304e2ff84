"""One request to a provider: the only place that opens a connection to one.

h11 on a stream of its own for each call, not httpx: its pool loses a slot when a request is cancelled, which is what we
do for a living; the generators of its bodies warn when they are left in the middle; and without it a request takes a
millisecond less. Nothing of the environment is used but certificates, and redirects are not followed.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import h11
import httpx
import trio

from oubliette.errors import RequestError

CONNECT_SECONDS = 15
"""For the connection and the TLS handshake."""
SILENCE_SECONDS = 600
"""A provider that sends nothing for so long has forgotten us. Thinking takes minutes; streams send pings."""
ERROR_BODY_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
_READ_BYTES = 1 << 16


class UpstreamCut(Exception):
    """The provider's answer broke off."""


class UpstreamAnswer:
    """An answer whose head is there, valid while its request is."""

    def __init__(self, exchange: _Exchange, head: h11.Response) -> None:
        self._exchange = exchange
        self.status = head.status_code
        self.headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}

    async def receive(self) -> bytes:
        """The next piece as soon as it is there; empty at the end. Raises UpstreamCut when it breaks off or falls
        silent."""
        event = await self._exchange.next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def error_body(self) -> bytes:
        """The first megabyte of an error's body; what there is of it when it breaks off."""
        body = bytearray()
        try:
            while len(body) < ERROR_BODY_BYTES and (piece := await self.receive()):
                body += piece
        except UpstreamCut:
            pass
        return bytes(body[:ERROR_BODY_BYTES])


class _Exchange:
    """h11's client side on a stream."""

    def __init__(self, stream: trio.abc.Stream, alias: str) -> None:
        self._stream = stream
        self._alias = alias
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)

    async def ask(self, request: h11.Request, body: bytes) -> h11.Response:
        """Send it all; the head of the answer. A provider may answer, and close, before it has read everything."""
        head = self._http.send(request) or b""
        self._http.send(h11.Data(data=body))
        self._http.send(h11.EndOfMessage())
        try:
            if len(body) > _READ_BYTES:
                await self._stream.send_all(head)
                await self._stream.send_all(body)
            else:
                await self._stream.send_all(head + body)
        except trio.BrokenResourceError:
            pass
        event = await self.next()
        if not isinstance(event, h11.Response):
            raise UpstreamCut(f"{self._alias!r} closed the connection")
        return event

    async def next(self) -> object:
        """The next event but an interim answer."""
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    with trio.fail_after(SILENCE_SECONDS):
                        self._http.receive_data(bytes(await self._stream.receive_some(_READ_BYTES)))
                elif not isinstance(event, h11.InformationalResponse):
                    return event
        except h11.RemoteProtocolError as error:
            raise UpstreamCut(f"the answer of {self._alias!r} broke off") from error
        except trio.BrokenResourceError as error:
            raise UpstreamCut(f"the connection to {self._alias!r} broke off") from error
        except trio.TooSlowError as error:
            raise UpstreamCut(f"{self._alias!r} was silent for {SILENCE_SECONDS} seconds") from error


class Upstreams:
    """Opens requests to providers."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        """``tls`` replaces the usual certificates."""
        self._tls = tls

    @asynccontextmanager
    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, alias: str
    ) -> AsyncIterator[UpstreamAnswer]:
        """Send the request and wait for the head of the answer. Raises RequestError when there is no answer that can be
        passed on, UpstreamCut when there is half of one."""
        parts = urlsplit(url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        request = h11.Request(
            method="POST",
            target=target,
            headers=[
                ("host", parts.netloc.rpartition("@")[2]),
                ("connection", "close"),
                ("content-length", str(len(body))),
                *headers,
            ],
        )
        stream = await self._connect(parts.scheme, parts.hostname or "", parts.port, alias)
        try:
            exchange = _Exchange(stream, alias)
            try:
                head = await exchange.ask(request, body)
            except UpstreamCut as error:
                raise RequestError("model_error", f"There is no answer: {error}.") from error
            if 300 <= head.status_code < 400:
                raise RequestError(
                    "model_error",
                    f"The provider of {alias!r} answered with a redirect.",
                    hint="Set its base_url to where it really is.",
                )
            answer = UpstreamAnswer(exchange, head)
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise RequestError("model_error", f"The provider of {alias!r} answered compressed, unasked.")
            yield answer
        finally:
            await trio.aclose_forcefully(stream)

    async def _connect(self, scheme: str, host: str, port: int | None, alias: str) -> trio.abc.Stream:
        encrypted = scheme == "https"
        with trio.move_on_after(CONNECT_SECONDS):
            try:
                stream = await trio.open_tcp_stream(host, port or (443 if encrypted else 80))
                if not encrypted:
                    return stream
                try:
                    secured = trio.SSLStream(stream, self._context(), server_hostname=host, https_compatible=True)
                    await secured.do_handshake()
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
                return secured
            except (OSError, trio.BrokenResourceError) as error:
                cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
                raise RequestError(
                    "model_error", f"The provider of {alias!r} cannot be reached ({_reason(cause)})."
                ) from error
        raise RequestError("model_error", f"The provider of {alias!r} cannot be reached (no connection in time).")

    def _context(self) -> ssl.SSLContext:
        """Certificates of the certifi package and of this machine. They take 10 ms to load: once, when first needed."""
        if self._tls is None:
            self._tls = httpx.create_ssl_context()
            self._tls.load_default_certs()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def _reason(error: BaseException) -> str:
    """What went wrong, without the address: that is the operator's."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "the TLS handshake failed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
