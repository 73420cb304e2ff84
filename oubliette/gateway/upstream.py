"""One request to a provider: the only place that opens a connection to one.

A short-lived client per call: httpx pools leak slots when requests are cancelled, and cancelling is what we do. The
certificates are loaded once for all of them. Nothing of the environment is used, redirects are never followed.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import cast

import httpx
import trio

from oubliette.errors import RequestError

CONNECT_SECONDS = 15
SILENCE_SECONDS = 600
"""A provider that sends nothing for so long has forgotten us. Thinking takes minutes; streams send pings."""
ERROR_BODY_BYTES = 1 << 20


class UpstreamCut(Exception):
    """The provider's answer broke off."""


class UpstreamAnswer:
    """An answer whose head is there. ``pieces`` are its bytes as they arrive, decoded."""

    def __init__(self, response: httpx.Response, alias: str) -> None:
        self._response = response
        self._alias = alias
        self.status = response.status_code
        self.headers = response.headers

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Raises UpstreamCut when it breaks off or falls silent."""
        plain = self._response.headers.get("content-encoding", "identity") == "identity"
        source = self._response.aiter_raw() if plain else self._response.aiter_bytes()
        async with aclosing(cast("AsyncGenerator[bytes, None]", source)) as chunks:
            while True:
                try:
                    with trio.fail_after(SILENCE_SECONDS):
                        chunk = await anext(chunks, None)
                except (httpx.HTTPError, httpx.StreamError) as error:
                    raise UpstreamCut(f"the answer of {self._alias!r} broke off ({type(error).__name__})") from error
                except trio.TooSlowError as error:
                    raise UpstreamCut(f"{self._alias!r} was silent for {SILENCE_SECONDS} seconds") from error
                if chunk is None:
                    return
                yield chunk

    async def error_body(self) -> bytes:
        """The first megabyte of an error's body; what there is of it when it breaks off."""
        body = bytearray()
        try:
            async with aclosing(self.pieces()) as pieces:
                async for piece in pieces:
                    body += piece[: ERROR_BODY_BYTES - len(body)]
                    if len(body) >= ERROR_BODY_BYTES:
                        break
        except UpstreamCut:
            pass
        return bytes(body)


class Upstreams:
    """Opens requests to providers."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, proxy: str | None = None) -> None:
        """``tls`` replaces the usual certificates, ``proxy`` is the URL of an HTTP proxy to go through."""
        self._tls = tls
        self._proxy = proxy
        self._no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, url: str) -> ssl.SSLContext:
        """Certificates take 10 ms to load: once, when they are first needed. Plain http needs a context all the same,
        an empty one, or httpx makes one for every request."""
        if not url.startswith("https:"):
            return self._no_tls
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
        return self._tls

    @asynccontextmanager
    async def post(
        self, url: str, headers: Sequence[tuple[str, str]], body: bytes, *, alias: str
    ) -> AsyncIterator[UpstreamAnswer]:
        """Send the request and wait for the head of the answer. Raises RequestError when there is no answer."""
        request = httpx.Request(
            "POST", url, headers=list(headers), content=body, extensions={"timeout": {"connect": CONNECT_SECONDS}}
        )
        # The transport alone: a client around it would add redirects, cookies and a millisecond.
        async with httpx.AsyncHTTPTransport(verify=self._context(url), proxy=self._proxy, trust_env=False) as transport:
            try:
                with trio.fail_after(SILENCE_SECONDS):
                    response = await transport.handle_async_request(request)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise RequestError(
                    "model_error", f"The provider of {alias!r} cannot be reached ({type(error).__name__})."
                ) from error
            except trio.TooSlowError as error:
                raise RequestError(
                    "timed_out", f"The provider of {alias!r} did not answer within {SILENCE_SECONDS} seconds."
                ) from error
            try:
                if 300 <= response.status_code < 400:
                    raise RequestError(
                        "model_error",
                        f"The provider of {alias!r} answered with a redirect.",
                        hint="Set its base_url to where it really is.",
                    )
                yield UpstreamAnswer(response, alias)
            finally:
                await response.aclose()
