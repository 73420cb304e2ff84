"""Talking to the daemon: tools by POST, events by SSE.

By the standard library's client, not httpx: that one imports rich and costs 0.2 s, which every command would pay.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from oubliette.cli.problems import NOT_RUNNING, CliError
from oubliette.errors import Limit, RequestError

CONNECT_SECONDS = 5
CALL_SECONDS = 300
"""Longer than any call waits by itself."""
SILENCE_SECONDS = 45
"""An event stream says something every 15 s."""
RECONNECTS = 20
RESULT_CHARACTERS = 1_000_000
"""Results are cut for models; a person or a program wants them whole."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message of an event stream."""

    kind: str
    data: dict[str, Any]
    cursor: str | None


class Daemon:
    """The daemon at ``url``, as the principal of ``secret``. Every call is a connection of its own."""

    def __init__(self, url: str, secret: str, *, certificate: str | None = None) -> None:
        self.url = url
        self._secret = secret
        self._certificate = certificate

    def call(self, tool: str, /, *, nulls: Iterable[str] = (), **arguments: Any) -> dict[str, Any]:
        """Run a tool. Arguments that are None are left out, but for ``nulls``, which are sent as null: back to the
        default. Raises RequestError as the daemon said it, or CliError."""
        body: dict[str, Any] = {"max_chars": RESULT_CHARACTERS} | {
            name: value for name, value in arguments.items() if value is not None
        }
        body |= dict.fromkeys(nulls)
        response, connection = self._send("POST", f"/v1/tools/{tool}", json.dumps(body), CALL_SECONDS)
        try:
            return _result(response)
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of a plain GET. Raises CliError when nobody answers."""
        response, connection = self._send("GET", path, None, CONNECT_SECONDS)
        try:
            return response.status, _parsed(response.read())
        finally:
            connection.close()

    def events(
        self, session_id: str, *, since: int = -1, deltas: bool = False, children: bool = False
    ) -> Iterator[Received]:
        """Everything of a session after index ``since``, live, until it is over or the generator is closed.

        A lost connection is made again from where it broke; previews lost then are not repeated.
        """
        query = urlencode(
            {"since": since, **({"deltas": 1} if deltas else {}), **({"children": 1} if children else {})}
        )
        path = f"/v1/sessions/{quote(session_id, safe='')}/events?{query}"
        cursor: str | None = None
        failures = 0
        while True:
            try:
                for received in self._stream(path, cursor):
                    failures = 0
                    cursor = received.cursor or cursor
                    yield received
                    if received.kind == "end":
                        return
                raise ConnectionError("it was closed")
            except _Ended:
                return
            except (OSError, HTTPException, CliError) as error:
                failures += 1
                if cursor is None or failures > RECONNECTS:
                    raise CliError(
                        f"the event stream of {self.url} broke: {error}", hint="oubliette status", exit_code=NOT_RUNNING
                    ) from error
            time.sleep(min(2.0, 0.05 * 2**failures))

    def _stream(self, path: str, cursor: str | None) -> Iterator[Received]:
        response, connection = self._send("GET", path, None, SILENCE_SECONDS, cursor)
        try:
            if response.status == 204:
                raise _Ended
            if response.status != 200:
                _result(response)
                raise CliError(f"the daemon answered {response.status} {response.reason}")
            yield from _messages(response)
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: str | None, timeout: float, cursor: str | None = None
    ) -> tuple[HTTPResponse, HTTPConnection]:
        parts = urlsplit(self.url)
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if cursor is not None:
            headers["Last-Event-ID"] = cursor
        connection: HTTPConnection
        if parts.scheme == "https":
            connection = HTTPSConnection(parts.hostname or "", parts.port, timeout=CONNECT_SECONDS, context=self._tls())
        else:
            connection = HTTPConnection(parts.hostname or "", parts.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            connection.request(method, path, body=body, headers=headers)
            return connection.getresponse(), connection
        except (OSError, HTTPException) as error:
            connection.close()
            reason = (
                "it does not answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            )
            raise CliError(
                f"the daemon at {self.url} cannot be reached: {reason}", hint="oubliette status", exit_code=NOT_RUNNING
            ) from error

    def _tls(self) -> ssl.SSLContext:
        """The daemon's own certificate is the one to trust; its name need not fit the loopback address."""
        context = ssl.create_default_context(cafile=self._certificate)
        context.check_hostname = False
        return context


class _Ended(Exception):
    """The stream has nothing more, now or ever."""


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _result(response: HTTPResponse) -> dict[str, Any]:
    try:
        body = _parsed(response.read())
    except (OSError, HTTPException) as error:
        raise CliError(f"the daemon's answer broke off: {error}") from error
    if response.status < 400:
        return body  # its ``error``, if any, is of the thing that was asked about
    if "error" not in body:
        raise CliError(f"the daemon answered {response.status} {response.reason}")
    said = body["error"]
    said = said.get("data", said)  # 401 and 429 come as JSON-RPC errors that carry ours
    limit = said.get("limit") or {}
    raise RequestError(
        str(said.get("code", "internal")),
        str(said.get("message", f"the daemon answered {response.status}")),
        hint=str(said.get("hint", "")),
        field=said.get("field"),
        retryable=bool(said.get("retryable")),
        candidates=said.get("candidates"),
        limit=Limit(limit["name"], limit["limit"], limit["used"])
        if {"name", "limit", "used"} <= limit.keys()
        else None,
    )


def _messages(response: HTTPResponse) -> Iterator[Received]:
    """The stream's messages; comments and retry hints are passed over. See the HTML standard, 9.2.6."""
    kind, data, cursor = "", list[str](), None
    while line := response.readline():
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            if data:
                yield Received(kind or "message", _parsed("\n".join(data).encode()), cursor)
            kind, data = "", []
            continue
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif name == "id":
            cursor = value
