"""The front of the HTTP server: what every request passes before MCP or a route sees it, and on its way out.

In order: request id, Host and Origin, token, rate limit, body. What is refused here is refused in JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import trio
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken

from oubliette.api import errors
from oubliette.api.live import Origin
from oubliette.api.metrics import REFUSED, REQUESTS
from oubliette.api.origin import Doorkeeper, Headers, Peer, request_id
from oubliette.api.shared import Shared
from oubliette.api.tools.fields import size_words
from oubliette.api.tools.reply import compact
from oubliette.core import access
from oubliette.core.limits import BODY_SECONDS, MAX_HEADER_BYTES
from oubliette.core.model import Json
from oubliette.core.principals import Principal
from oubliette.errors import RequestError
from oubliette.log import get_logger

log = get_logger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ORIGIN: Final = "oubliette.origin"
"""Key of the scope under which a request's Origin goes to its handler."""
MCP_PATH: Final = "/mcp"
_BROWSER_HEADERS: Final = (
    b"authorization, content-type, last-event-id, x-request-id, mcp-session-id, mcp-protocol-version, mcp-method"
)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_SEND_SECONDS: Final = 40
_SLOWEST_BYTES_PER_SECOND: Final = 16_384
"""A client slower than this, or stuck for forty seconds, is given up."""


class Door:
    """The ASGI application that Hypercorn serves."""

    def __init__(self, shared: Shared, routes: App, mcp: App) -> None:
        server = shared.services.config.server
        self._shared = shared
        self._keeper = Doorkeeper(server)
        self._routes = routes
        self._mcp = mcp
        self._max_body = server.max_body_bytes
        self._loopback = server.loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "no websockets here"})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope["headers"])
        exchange = _Exchange(send, request_id(headers), _door_of(scope["path"]))
        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
                too_many = f"The headers are larger than {size_words(MAX_HEADER_BYTES)}."
                raise RequestError("too_large", too_many, data={"http_status": 431})
            peer = self._keeper.peer(scope, headers)
            self._keeper.check(headers, peer)
            exchange.cross_origin = self._cross_origin(headers)
            if scope["method"] == "OPTIONS" and exchange.cross_origin is not None:
                await exchange.preflight()
                return
            origin = await self._admit(scope, headers, peer, exchange.request_id)
            if origin is not None:
                scope = {**scope, ORIGIN: origin, "user": _sdk_user(origin.principal)}
            else:
                scope = {**scope, "oubliette.request_id": exchange.request_id}
            body = await self._body(scope, headers, receive)
        except RequestError as error:
            REFUSED.labels(reason=error.code).inc()
            await exchange.refuse(error)
            return
        app = self._mcp if _is_mcp(scope["path"]) else self._routes
        try:
            with exchange.patience:
                await app(scope, _replay(body, receive) if body is not None else receive, exchange.send)
        finally:
            if origin is not None:
                origin.gone = True

    async def _admit(self, scope: Scope, headers: Headers, peer: Peer, wanted: str) -> Origin | None:
        """Whoever calls, from the token; None where no token is needed."""
        path: str = scope["path"]
        open_metrics = path == "/metrics" and peer.direct and (self._loopback or not scope.get("client"))
        if not (_is_mcp(path) or path.startswith("/v1/") or path == "/metrics") or open_metrics:
            _check_open(path, scope["method"])
            return None
        principal = await self._shared.auth.principal(headers.all("authorization"), peer.address)
        trusted = principal.scope.is_admin and not principal.scope.read_only and peer.loopback and peer.direct
        if not trusted:
            self._shared.auth.admit(principal)
        if path == "/metrics":
            access.check(principal, "metrics.read", None)
        query = scope["query_string"].decode("latin-1").split("&")
        return Origin(
            principal,
            wanted,
            peer.address,
            protocol_session=headers.one("mcp-session-id"),
            split_tools="tools=split" in query,
        )

    def _cross_origin(self, headers: Headers) -> str | None:
        origin = headers.one("origin")
        return origin if origin is not None and self._keeper.allowed_origin(origin) else None

    async def _body(self, scope: Scope, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body of a POST, within its limits of size and time. None: there is none to read."""
        if scope["method"] != "POST":
            return None
        declared = headers.one("content-length") or "0"
        if not declared.isdigit():
            raise RequestError("invalid_argument", "The Content-Length is not a number.")
        too_large = RequestError(
            "too_large",
            f"The request body is larger than {size_words(self._max_body)}.",
            hint="The limit is server.max_body_bytes in the config.",
        )
        if len(declared) > 18 or int(declared) > self._max_body:
            raise too_large
        pieces: list[bytes] = []
        size = 0
        with trio.move_on_after(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise RequestError("cancelled", "The client left.")
                size += len(message.get("body", b""))
                if size > self._max_body:
                    raise too_large
                pieces.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return _readable(b"".join(pieces))
        raise RequestError("timed_out", f"The request body did not arrive within {BODY_SECONDS} s.", retryable=True)


class _Exchange:
    """One answer on its way out: names its request, allows its origin, is counted, and never waits for ever."""

    def __init__(self, send: Send, wanted: str, door: str) -> None:
        self._send = send
        self._door = door
        self._headers = [(b"x-request-id", wanted.encode())]
        self.request_id = wanted
        self.cross_origin: str | None = None
        self.patience = trio.CancelScope()
        """Cancelled when the client takes nothing for too long: the whole exchange ends."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            REQUESTS.labels(door=self._door, status=str(message["status"])).inc()
            message = {**message, "headers": [*message.get("headers", ()), *self._headers, *self._allowances()]}
        size = len(message.get("body", b""))
        with trio.move_on_after(_SEND_SECONDS + size / _SLOWEST_BYTES_PER_SECOND) as patience:
            await self._send(message)
        if patience.cancelled_caught:
            log.info("client given up: it does not take its answer", door=self._door, request_id=self.request_id)
            self.patience.cancel(reason="the client does not take its answer")
            await trio.lowlevel.checkpoint()

    def _allowances(self) -> list[tuple[bytes, bytes]]:
        if self.cross_origin is None:
            return []
        return [
            (b"access-control-allow-origin", self.cross_origin.encode("latin-1")),
            (b"access-control-expose-headers", b"mcp-session-id, www-authenticate, x-request-id, retry-after"),
            (b"vary", b"origin"),
        ]

    async def preflight(self) -> None:
        headers = [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", _BROWSER_HEADERS),
            (b"access-control-max-age", b"600"),
        ]
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})

    async def refuse(self, error: RequestError) -> None:
        shape = errors.error_shape(error, self.request_id)
        headers = []
        body: Json = {"error": shape}
        if error.code == "unauthenticated":
            body = errors.rpc_error(errors.RPC_UNAUTHENTICATED, shape)
            headers.append((b"www-authenticate", b'Bearer realm="oubliette"'))
        elif error.code == "rate_limited":
            body = errors.rpc_error(errors.RPC_RATE_LIMITED, shape)
        elif self._door == "mcp":
            body = errors.rpc_error(errors.RPC_INVALID_REQUEST, shape)
        if error.retry_after_ms is not None:
            headers.append((b"retry-after", str(-(-error.retry_after_ms // 1000)).encode()))
        if error.code in ("too_large", "timed_out"):
            headers.append((b"connection", b"close"))
        status = (error.data or {}).get("http_status") or errors.http_status(shape)
        log.info("refused", code=error.code, status=status, door=self._door, request_id=self.request_id)
        await send_json(self.send, status, body, headers)


async def send_json(send: Send, status: int, body: Json, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """A whole JSON answer."""
    data = compact(body).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *(headers or ())]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": data})


def _check_open(path: str, method: str) -> None:
    """Without a token there is only looking: nothing is read from the client."""
    if method in ("GET", "HEAD"):
        return
    if path in ("/health", "/ready", "/metrics"):
        raise RequestError("invalid_argument", f"{path} is for GET.", data={"http_status": 405})
    raise RequestError(
        "not_found", "There is nothing at this path.", hint="MCP is at /mcp, tools are under /v1/tools/."
    )


def _is_mcp(path: str) -> bool:
    return path.removesuffix("/") == MCP_PATH


def _door_of(path: str) -> str:
    """A word for the metrics; never the path itself."""
    if _is_mcp(path):
        return "mcp"
    for prefix, word in (("/v1/tools/", "tools"), ("/v1/", "streams"), ("/health", "health"), ("/ready", "ready")):
        if path.startswith(prefix):
            return word
    return "other"


def _sdk_user(principal: Principal) -> AuthenticatedUser:
    """What the SDK compares to tell whose protocol session it is."""
    return AuthenticatedUser(AccessToken(token="-", client_id=principal.id, scopes=[], subject=principal.id))  # noqa: S106


def _readable(body: bytes) -> bytes:
    """The body, unless JSON text in it holds half a surrogate pair: that cannot be written back to anybody."""
    if _SURROGATE.search(body):
        try:
            compact_text = json.dumps(json.loads(body), ensure_ascii=False)
            compact_text.encode()
        except UnicodeEncodeError:
            raise RequestError("invalid_argument", "The body contains a lone surrogate, which is not text.") from None
        except (ValueError, RecursionError):
            return body
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the connection says (its end)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
