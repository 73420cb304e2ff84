"""One POST to a receiver: resolved once, connected to by that address, and only the status of the answer looked at.

h11 on a stream of its own, not httpx: that one resolves the name itself, each time anew, so that a judged address need
not be the one that is connected to. No redirect is followed, no proxy used, no body of an answer read.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import h11
import httpx
import trio

from oubliette.core.addresses import all_public
from oubliette.errors import OublietteError

TIMEOUT_SECONDS: Final = 15
"""For everything, from the name server to the head of the answer."""
CONNECT_SECONDS: Final = 5
"""For each of a host's addresses, while there are more to try."""
HEAD_BYTES: Final = 1 << 16
_READ_BYTES: Final = 1 << 14
_MAX_ADDRESSES: Final = 8


class NotDelivered(OublietteError):
    """There was no answer, or nobody may be asked. The sentence names neither the address nor its path."""

    code = "unavailable"
    retryable = True


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said. ``retry_after_seconds``: when it wants to hear again, if it said so."""

    status: int
    retry_after_seconds: float | None = None

    @property
    def taken(self) -> bool:
        return 200 <= self.status < 300


class Poster:
    """Sends requests. Certificates are loaded when first needed: that takes 10 ms."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """``tls`` replaces the usual certificates."""
        self._tls = tls
        self._timeout_seconds = timeout_seconds

    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, allow_private: bool = False
    ) -> Answer:
        """Send ``body`` and wait for the head of the answer. Raises NotDelivered."""
        parts = urlsplit(url)
        with trio.move_on_after(self._timeout_seconds):
            stream = await self._connect(parts, allow_private)
            try:
                return await _ask(stream, _request(parts, headers, body), body)
            finally:
                await trio.aclose_forcefully(stream)
        raise NotDelivered(f"no answer within {self._timeout_seconds:g} seconds")

    async def _connect(self, parts: SplitResult, allow_private: bool) -> trio.abc.Stream:
        encrypted = parts.scheme == "https"
        if not encrypted and not allow_private:
            raise NotDelivered("plain http is not allowed")
        host = parts.hostname or ""
        stream = await _dial(await _addresses(host, parts.port or (443 if encrypted else 80), allow_private))
        if not encrypted:
            return stream
        try:
            secured = trio.SSLStream(stream, self._context(), server_hostname=host, https_compatible=True)
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            raise NotDelivered(_tls_words(error.__cause__)) from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured

    def _context(self) -> ssl.SSLContext:
        """Certificates of the certifi package, or what the environment names, and of this machine."""
        if self._tls is None:
            self._tls = httpx.create_ssl_context()
            self._tls.load_default_certs()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


async def _addresses(host: str, port: int, allow_private: bool) -> list[tuple[Any, tuple[Any, ...]]]:
    """(family, address) pairs of the host, in the resolver's order: the only time that its name is looked up."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotDelivered("the host has no address") from error
    if not found:
        raise NotDelivered("the host has no address")
    if not allow_private and not all_public(str(entry[4][0]) for entry in found):
        raise NotDelivered("the host has an address that is not public, which needs allow_private")
    return [(entry[0], entry[4]) for entry in found[:_MAX_ADDRESSES]]


async def _dial(addresses: Sequence[tuple[Any, tuple[Any, ...]]]) -> trio.SocketStream:
    """The first of the addresses that answers."""
    why = "no connection"
    for position, (family, address) in enumerate(addresses, 1):
        sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
        patience = CONNECT_SECONDS if position < len(addresses) else float("inf")
        try:
            with trio.move_on_after(patience) as scope:
                await sock.connect(address)
                return trio.SocketStream(sock)
            if scope.cancelled_caught:
                sock.close()
        except OSError as error:
            sock.close()
            why = f"no connection: {error.strerror or type(error).__name__}"
        except BaseException:
            sock.close()
            raise
    raise NotDelivered(why)


def _request(parts: SplitResult, headers: Sequence[tuple[str, str]], body: bytes) -> h11.Request:
    path = parts.path or "/"
    return h11.Request(
        method="POST",
        target=f"{path}?{parts.query}" if parts.query else path,
        headers=[
            ("host", parts.netloc),
            ("connection", "close"),
            ("content-length", str(len(body))),
            *headers,
        ],
    )


async def _ask(stream: trio.abc.Stream, request: h11.Request, body: bytes) -> Answer:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
    said = b"".join(http.send(part) or b"" for part in (request, h11.Data(data=body), h11.EndOfMessage()))
    with suppress(trio.BrokenResourceError):  # a receiver may answer, and close, before it has read everything
        await stream.send_all(said)
    try:
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
            elif isinstance(event, h11.Response):
                return Answer(event.status_code, _retry_after(event))
            elif not isinstance(event, h11.InformationalResponse):
                raise NotDelivered("the connection was closed without an answer")
    except h11.RemoteProtocolError as error:
        raise NotDelivered("the answer is not HTTP, or broke off") from error
    except trio.BrokenResourceError as error:
        raise NotDelivered("the connection broke off before an answer") from error


def _retry_after(response: h11.Response) -> float | None:
    for name, value in response.headers:
        if name == b"retry-after" and value.isdigit() and len(value) < 10:
            return float(value)
    return None


def _tls_words(error: BaseException | None) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        # "Hostname mismatch, certificate is not valid for 'hooks.example.org'.": the host is not for the log.
        return f"its certificate is not trusted: {error.verify_message.partition(', certificate is not valid for')[0]}"
    return "the TLS handshake failed"
