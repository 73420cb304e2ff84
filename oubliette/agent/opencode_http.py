"""HTTP/1.1 to the agent's server over any stream: one connection per call, h11 on top of what ``dial`` gives.

Not httpx: it wants to open its own connections, and its pool loses a slot when a request is cancelled at the wrong
moment. A dial to a container is a local round trip; a kept connection would save little and break a call now and then
(the server closes idle ones by itself, and a prompt must not be sent twice).
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import h11
import trio

from oubliette.errors import AgentProtocolError, AgentUnreachable, ContainerError

Dial = Callable[[int], AbstractAsyncContextManager[trio.abc.Stream]]

CALL_SECONDS = 15.0
MAX_ANSWER_BYTES = 256 << 20
"""Of one answer: a long history with images in it."""
_PARSE_APART_BYTES = 1 << 20
"""Larger answers are parsed in a thread, so that the daemon goes on meanwhile."""
_PIECE = 1 << 16
_USER = "opencode"


class AgentRefused(AgentProtocolError):
    """The agent's server answered with an error status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Answer:
    """The body of an answer, valid while its exchange is."""

    def __init__(self, what: str, http: h11.Connection, stream: trio.abc.Stream) -> None:
        self._what = what
        self._http = http
        self._stream = stream

    async def receive(self) -> bytes:
        """The next piece; empty at the end. Raises AgentUnreachable when it breaks off."""
        event = await self.next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def next(self) -> object:
        """The next h11 event but an interim answer."""
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(bytes(await self._stream.receive_some(_PIECE)))
                elif not isinstance(event, h11.InformationalResponse):
                    return event
        except h11.RemoteProtocolError as error:
            raise AgentUnreachable(f"{self._what}: the agent broke off its answer") from error
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ContainerError) as error:
            raise AgentUnreachable(f"{self._what}: the connection to the agent broke: {error}") from error


class AgentHttp:
    """Calls to one agent process. Raises AgentUnreachable when there is no answer, AgentRefused for an error status,
    AgentProtocolError for an answer that makes no sense."""

    def __init__(self, dial: Dial, port: int, password: str) -> None:
        self._dial = dial
        self._port = port
        secret = base64.b64encode(f"{_USER}:{password}".encode()).decode()
        self._headers = [("host", f"127.0.0.1:{port}"), ("authorization", f"Basic {secret}"), ("connection", "close")]

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        seconds: float = CALL_SECONDS,
    ) -> Any:
        """Send ``body`` as JSON; the parsed answer, None for an empty one."""
        answer = await self.page(method, path, query=query, body=body, seconds=seconds)
        return answer[0]

    async def page(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        seconds: float = CALL_SECONDS,
    ) -> tuple[Any, Mapping[str, str]]:
        """``call``, with the headers of the answer (names in lower case)."""
        what = f"{method} {path}"
        with trio.move_on_after(seconds):
            async with self._exchange(method, path, query, body) as (head, answer):
                data = bytearray()
                while piece := await answer.receive():
                    data += piece
                    if len(data) > MAX_ANSWER_BYTES:
                        raise AgentProtocolError(f"{what}: the answer has more than {MAX_ANSWER_BYTES} bytes")
            headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
            return await _parsed(what, head.status_code, bytes(data)), headers
        raise AgentUnreachable(f"{what}: no answer from the agent in {seconds:g} s")

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str] | None = None, seconds: float = CALL_SECONDS
    ) -> AsyncIterator[Answer]:
        """GET something endless. ``seconds`` is for the head of the answer only."""
        with trio.CancelScope(deadline=trio.current_time() + seconds) as patience:
            async with self._exchange("GET", path, query, None) as (head, answer):
                if head.status_code != 200:
                    raise AgentRefused(f"GET {path}: the agent answered {head.status_code}", head.status_code)
                patience.deadline = float("inf")
                yield answer
            return
        raise AgentUnreachable(f"GET {path}: no answer from the agent in {seconds:g} s")

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any
    ) -> AsyncIterator[tuple[h11.Response, Answer]]:
        what = f"{method} {path}"
        headers = list(self._headers)
        payload = b""
        if body is not None:
            payload = json.dumps(body).encode()
            headers.append(("content-type", "application/json"))
        if method != "GET":
            headers.append(("content-length", str(len(payload))))
        target = f"{path}?{urlencode(query)}" if query else path
        http = h11.Connection(h11.CLIENT)
        try:
            async with self._dial(self._port) as stream:
                request = http.send(h11.Request(method=method, target=target, headers=headers)) or b""
                await stream.send_all(
                    request + (http.send(h11.Data(payload)) or b"") + (http.send(h11.EndOfMessage()) or b"")
                )
                answer = Answer(what, http, stream)
                head = await answer.next()
                if not isinstance(head, h11.Response):
                    raise AgentUnreachable(f"{what}: the agent closed the connection")
                yield head, answer
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ContainerError) as error:
            raise AgentUnreachable(f"{what}: the agent cannot be reached: {error}") from error


def parse_json(data: str | bytes) -> Any:
    """``json.loads``, with halves of surrogate pairs made U+FFFD: JavaScript cuts text wherever it likes, and such a
    half can be written nowhere. Raises ValueError or RecursionError."""
    value = json.loads(data)
    if isinstance(data, str):
        return _whole(value) if "\\ud" in data or "\\uD" in data else value
    return _whole(value) if b"\\ud" in data or b"\\uD" in data else value


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(one) for key, one in value.items()}
    return value


async def _parsed(what: str, status: int, data: bytes) -> Any:
    try:
        if not data.strip():
            answer = None
        elif len(data) > _PARSE_APART_BYTES:
            answer = await trio.to_thread.run_sync(parse_json, data)
        else:
            answer = parse_json(data)
    except (ValueError, RecursionError) as error:
        if status < 300:
            raise AgentProtocolError(f"{what}: the agent's answer is not JSON") from error
        answer = None
    if status >= 300:
        raise AgentRefused(f"{what}: the agent answered {status}{_reason(answer)}", status)
    return answer


def _reason(answer: Any) -> str:
    """What an error answer says: ``{name, data: {message}}`` or ``{message}``."""
    if not isinstance(answer, dict):
        return ""
    data = answer.get("data")
    message = (data.get("message") if isinstance(data, dict) else None) or answer.get("message")
    return f": {message.partition(chr(10))[0][:300]}" if isinstance(message, str) and message else ""
