"""The Engine HTTP API as calls on Trio, with deadlines, and with errors of ours.

One short-lived client per call: a pooled httpx connection that is cancelled at the wrong moment is lost for good
(lab: ``httpx_pool_leak_under_cancel``), and a new one costs a millisecond.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import trio

from oubliette.errors import EngineError, OublietteError, RuntimeUnavailable
from oubliette.runtime.docker_endpoint import Endpoint, endpoint_from, negotiated

CALL_SECONDS = 30.0
CONNECT_SECONDS = 5.0
SETTLE_SECONDS = 10.0
"""How long a cancelled caller waits for a call that changes something."""
READ_BYTES = 1 << 16
LONGEST_LINE_BYTES = 1 << 20
LONGEST_ERROR_CHARACTERS = 1000

Query = Mapping[str, str | int]


class EngineRefused(EngineError):
    """The engine understood and said no. ``status`` is the HTTP status."""

    def __init__(self, what: str, status: int, text: str) -> None:
        super().__init__(f"{what}: {text}", retryable=status >= 500)
        self.status = status


class Hijacked:
    """Both directions of an upgraded connection. A broken one raises EngineError."""

    def __init__(self, stream: Any, what: str) -> None:
        self._stream = stream
        self._what = what

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        with self._translating():
            return bytes(await self._stream.read(READ_BYTES))

    async def write(self, data: bytes) -> None:
        with self._translating():
            await self._stream.write(data)

    def close_writing(self) -> None:
        """Half-close, which the process inside sees as the end of its stdin. Not over TLS."""
        with self._translating():
            self._stream.get_extra_info("socket").shutdown(socket.SHUT_WR)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # httpx translates nothing of a hijacked stream, and its transport's own errors are not ours to import.
            if isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "httpcore":
                raise EngineError(f"{self._what}: the connection broke: {error}", retryable=True) from error
            raise


class _Body(httpx.AsyncByteStream):
    """What is sent. httpx's own bodies are asynchronous generators, and one that a cancel leaves in the middle of a
    write stays open until it is collected; this is a plain iterator."""

    def __init__(self, content: AsyncIterable[bytes] | bytes | None, headers: Mapping[str, str]) -> None:
        self.headers = dict(headers)
        self._whole = [content] if isinstance(content, bytes) else []
        self._parts = None if isinstance(content, bytes) or content is None else aiter(content)
        if isinstance(content, bytes):
            self.headers["Content-Length"] = str(len(content))
        elif content is not None:
            self.headers["Transfer-Encoding"] = "chunked"

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._whole:
            return self._whole.pop()
        if self._parts is None:
            raise StopAsyncIteration
        return await anext(self._parts)


def _json_body(value: Any) -> _Body | None:
    return None if value is None else _Body(json.dumps(value).encode(), {"Content-Type": "application/json"})


@asynccontextmanager
async def _closing(answer: httpx.Response) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await answer.aclose()


class EngineApi:
    """Calls to one engine. ``what`` in each names the operation and its subject for the error."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)
        self._endpoint: Endpoint | None = None
        self._prefix: str | None = None

    def endpoint(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = endpoint_from(self._environ)
        return self._endpoint

    async def version(self) -> dict[str, Any]:
        """``/version`` of the engine. Also what negotiates the version of all other calls."""
        with self._translating("ask the engine for its version", CALL_SECONDS):
            async with self._client() as client:
                answer = await client.send(self._request("GET", "/version"))
                await _raise_for_status(answer, "ask the engine for its version")
                version = dict(answer.json())
        self._prefix = "/v" + negotiated(str(version.get("ApiVersion", "")), str(version.get("MinAPIVersion", "")))
        return version

    async def call(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Query | None = None,
        body: Any = None,
        seconds: float = CALL_SECONDS,
    ) -> Any:
        """One call, its JSON answer (None without a body). Raises EngineRefused, EngineError, RuntimeUnavailable."""
        prefix = await self._negotiated()
        with self._translating(what, seconds):
            async with self._client() as client:
                answer = await client.send(self._request(method, prefix + path, params, _json_body(body)))
                await _raise_for_status(answer, what)
                return answer.json() if answer.content.strip() else None

    async def settle(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Query | None = None,
        body: Any = None,
        seconds: float = CALL_SECONDS,
    ) -> Any:
        """As ``call``, but once it is sent a cancelled caller still waits for the answer, SETTLE_SECONDS at most. The
        engine goes on with what it was asked, and what is not there yet cannot be found and removed."""
        await trio.lowlevel.checkpoint_if_cancelled()
        answers: list[Any] = []
        errors: list[OublietteError] = []
        answered = trio.Event()
        shield = trio.CancelScope(shield=True)

        async def ask() -> None:
            with shield:
                try:
                    answers.append(await self.call(method, path, what=what, params=params, body=body, seconds=seconds))
                except OublietteError as error:
                    errors.append(error)
                finally:
                    answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            try:
                await answered.wait()
            except trio.Cancelled:
                shield.deadline = trio.current_time() + SETTLE_SECONDS
                raise
        if errors:
            raise errors[0]
        return answers[0]

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Query | None = None,
        content: AsyncIterable[bytes] | None = None,
        seconds: float,
    ) -> AsyncIterator[httpx.Response]:
        """A call whose body is read while it comes. The whole of it, reading included, may take ``seconds``."""
        prefix = await self._negotiated()
        body = None if content is None else _Body(content, {"Content-Type": "application/x-tar"})
        with self._translating(what, seconds):
            async with self._client() as client:
                answer = await client.send(self._request(method, prefix + path, params, body), stream=True)
                async with _closing(answer):
                    await _raise_for_status(answer, what)
                    yield answer

    @asynccontextmanager
    async def hijack(self, path: str, *, what: str, body: Any, seconds: float) -> AsyncIterator[Hijacked]:
        """A call that turns its connection into a raw stream (101). The whole of it may take ``seconds``."""
        prefix = await self._negotiated()
        request = self._request("POST", prefix + path, None, _json_body(body))
        request.headers.update({"Connection": "Upgrade", "Upgrade": "tcp"})
        with self._translating(what, seconds):
            async with self._client() as client:
                answer = await client.send(request, stream=True)
                async with _closing(answer):
                    await _raise_for_status(answer, what)
                    if answer.status_code != 101:
                        raise EngineError(f"{what}: the engine answered {answer.status_code}, not a raw stream")
                    yield Hijacked(answer.extensions["network_stream"], what)

    async def _negotiated(self) -> str:
        if self._prefix is None:
            await self.version()
        assert self._prefix is not None
        return self._prefix

    def _request(self, method: str, path: str, params: Query | None = None, body: _Body | None = None) -> httpx.Request:
        url = httpx.URL(self.endpoint().base_url + path)
        body = body or _Body(None, {})
        # A request with a stream of its own gets no Host from httpx.
        return httpx.Request(
            method, url, params=params, headers={"Host": url.netloc.decode(), **body.headers}, stream=body
        )

    def _client(self) -> httpx.AsyncClient:
        endpoint = self.endpoint()
        # verify=False is for the socket, where there is no TLS and loading the system's certificates costs 20 ms.
        transport = httpx.AsyncHTTPTransport(uds=endpoint.socket_path, verify=endpoint.tls or False, trust_env=False)
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        return httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)

    @contextmanager
    def _translating(self, what: str, seconds: float) -> Iterator[None]:
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError as error:
            raise EngineError(f"{what}: the engine did not finish within {seconds:g} s", retryable=True) from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self._prefix = None  # what comes back may be another version
            raise _unreachable(self.endpoint(), error) from error
        except (httpx.HTTPError, httpx.StreamError, json.JSONDecodeError, OSError) as error:
            raise EngineError(f"{what}: {type(error).__name__} {error}".strip(), retryable=True) from error


async def read_body(
    answer: httpx.Response, take: Callable[[bytes], None], *, what: str, silence_seconds: float
) -> None:
    """Give the body to ``take`` as it comes. It may raise errors of ours, which end the reading; so does a silence of
    ``silence_seconds``, as EngineError."""
    failure: OublietteError | None = None
    with trio.CancelScope(deadline=trio.current_time() + silence_seconds) as scope:
        async for data in answer.aiter_bytes():
            scope.deadline = trio.current_time() + silence_seconds
            try:
                take(data)
            except OublietteError as error:
                # Left in the middle, httpx's nested generators would stay open until they are collected. A cancel
                # reaches the innermost one and unwinds them all.
                failure = error
                scope.cancel("what came cannot be used")
    if failure is not None:
        raise failure
    if scope.cancelled_caught:
        raise EngineError(f"{what}: nothing came from the engine for {silence_seconds:g} s", retryable=True)


async def read_lines(
    answer: httpx.Response, handle: Callable[[dict[str, Any]], None], *, what: str, silence_seconds: float
) -> None:
    """Give each object of a body of JSON lines to ``handle``. A line with ``error`` raises EngineError; so does a line
    over LONGEST_LINE_BYTES, one that is no object, and a silence longer than ``silence_seconds``."""
    rest = b""

    def take(data: bytes) -> None:
        nonlocal rest
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > LONGEST_LINE_BYTES:
            raise EngineError(f"{what}: a line of the engine's progress is too long")
        for line in whole:
            _one_line(line, handle, what)

    await read_body(answer, take, what=what, silence_seconds=silence_seconds)
    _one_line(rest, handle, what)


def _one_line(line: bytes, handle: Callable[[dict[str, Any]], None], what: str) -> None:
    if not line.strip():
        return
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise EngineError(f"{what}: a line of the engine's progress is no JSON: {line[:100]!r}") from error
    if not isinstance(entry, dict) or "error" in entry:
        words = entry["error"] if isinstance(entry, dict) else entry
        raise EngineError(f"{what}: {str(words)[:LONGEST_ERROR_CHARACTERS]}")
    handle(entry)


async def _raise_for_status(answer: httpx.Response, what: str) -> None:
    if answer.status_code < 400:
        return
    text = (await answer.aread()).decode("utf-8", "replace").strip()
    try:
        text = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        text = text or f"status {answer.status_code}"
    raise EngineRefused(what, answer.status_code, text[:LONGEST_ERROR_CHARACTERS])


def _unreachable(endpoint: Endpoint, error: Exception) -> RuntimeUnavailable:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    hint = "Start Docker, or set DOCKER_HOST."
    if isinstance(cause, PermissionError):
        hint = "Add yourself to the group docker (and log in again), or run the daemon as root."
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error) or type(error).__name__
    return RuntimeUnavailable(f"No engine answers at {endpoint}: {reason}", hint=hint)
