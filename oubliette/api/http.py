"""The routes beside MCP: tools for curl and the CLI, event streams, health and metrics. Every answer is JSON or SSE."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final

import trio
from prometheus_client import CONTENT_TYPE_LATEST
from quart import request
from quart.wrappers.response import ResponseBody
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioResponse as Response
from werkzeug.exceptions import HTTPException

from oubliette.api import errors
from oubliette.api.desk import Desk
from oubliette.api.door import ORIGIN
from oubliette.api.firehose import Firehose, everything
from oubliette.api.frames import Frames
from oubliette.api.live import Origin
from oubliette.api.metrics import exposition
from oubliette.api.streams import StreamArgs, at_end, session_stream
from oubliette.api.tools.fields import invalid, shown
from oubliette.api.tools.gate import Target, find
from oubliette.api.tools.reply import compact
from oubliette.core.limits import MAX_CURSOR_CHARACTERS, MAX_ID_CHARACTERS
from oubliette.core.model import Json
from oubliette.errors import RequestError
from oubliette.log import get_logger

log = get_logger(__name__)

_MAX_CURSOR: Final = 1 << 62


class StreamBody(ResponseBody):
    """``async with open() as chunks`` in the shape that Quart serves."""

    def __init__(self, stream: AbstractAsyncContextManager[trio.abc.ReceiveChannel[bytes]]) -> None:
        self._stream = stream

    async def __aenter__(self) -> trio.abc.ReceiveChannel[bytes]:
        return await self._stream.__aenter__()

    async def __aexit__(self, *details: Any) -> bool | None:  # type: ignore[override]
        # The context's own exit knows what it must shield.
        return await self._stream.__aexit__(*details)  # noqa: ASYNC102

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise TypeError("this body is read inside its context")


def make_routes(desk: Desk, firehose: Firehose) -> QuartTrio:
    """The Quart application. Who calls was settled before by the door."""
    app = QuartTrio("oubliette", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = desk.shared.services.config.server.max_body_bytes
    app.config["BODY_TIMEOUT"] = None  # the door has read the body already
    frames = Frames()
    shared = desk.shared

    @app.post("/v1/tools/<tool>")
    async def call_tool(tool: str) -> Response:
        origin = _origin()
        raw: bytes = await request.get_data(cache=False, as_text=False)  # type: ignore[assignment]
        outcome = await desk.run(origin, tool, _json(raw) if raw.strip() else {})
        status = errors.http_status(outcome.data["error"]) if outcome.is_error else 200
        return _answer(outcome.data, status)

    @app.get("/v1/sessions/<session_id>/events")
    async def session_events(session_id: str) -> Response:
        origin = _origin()
        args = await shared.services.store.read(
            partial(_stream_args, origin=origin, session_id=session_id, asked=_asked())
        )
        if args.since is not None and await shared.services.store.read(partial(at_end, args=args)):
            return Response(status=204)
        shared.live.check_stream_room(origin.principal)
        return _stream(session_stream(shared, frames, origin.principal, args))

    @app.get("/v1/events")
    async def all_events() -> Response:
        origin = _origin()
        shared.live.check_stream_room(origin.principal)
        since = request.headers.get("Last-Event-ID") or request.args.get("since")
        return _stream(everything(shared, firehose, origin.principal, (since or "")[:MAX_CURSOR_CHARACTERS] or None))

    @app.get("/health")
    async def health() -> Response:
        return _answer({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        reason = shared.services.readiness()
        if reason is None:
            return _answer({"status": "ready"})
        return _answer({"status": "not ready", "reason": reason}, 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(exposition(), content_type=CONTENT_TYPE_LATEST)

    @app.errorhandler(RequestError)
    async def refused(error: RequestError) -> Response:
        shape = errors.error_shape(error, _request_id())
        return _answer({"error": shape}, errors.http_status(shape), error.retry_after_ms)

    @app.errorhandler(HTTPException)
    async def http_refused(error: HTTPException) -> Response:
        status = error.code or 500
        sentence = {
            404: "There is nothing at this path.",
            405: f"{request.method} is not for this path.",
            413: "The request body is too large.",
        }.get(status, error.name or "The request could not be served.")
        hint = "MCP is at /mcp, tools are under /v1/tools/." if status == 404 else ""
        answer = _answer({"error": errors.http_error(status, sentence, _request_id(), hint)}, status)
        allowed = getattr(error, "valid_methods", None)
        if allowed:
            answer.headers["Allow"] = ", ".join(sorted(allowed))
        return answer

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> Response:
        log.error("request failed", request_id=_request_id(), exc_info=error)
        return _answer({"error": errors.error_shape(error, _request_id())}, 500)

    return app


def _origin() -> Origin:
    origin: Origin = request.scope[ORIGIN]  # type: ignore[typeddict-item]
    return origin


def _request_id() -> str:
    origin = request.scope.get(ORIGIN)
    return origin.request_id if isinstance(origin, Origin) else str(request.scope.get("oubliette.request_id", ""))


def _answer(data: Json, status: int = 200, retry_after_ms: int | None = None) -> Response:
    response = Response(compact(data), status=status, content_type="application/json")
    if retry_after_ms is not None:
        response.headers["Retry-After"] = str(-(-retry_after_ms // 1000))
    return response


def _json(raw: bytes) -> object:
    """The arguments of a tool: a JSON object."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(raw, parse_constant=refuse)
    except RecursionError:
        raise RequestError("invalid_argument", "The body is nested too deep.") from None
    except UnicodeDecodeError:
        raise RequestError("invalid_argument", "The body is not UTF-8.") from None
    except ValueError as error:
        where = f" at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestError(
            "invalid_argument", f"The body is not JSON{where}.", hint="Send the tool's arguments as a JSON object."
        ) from None


def _stream(body: AbstractAsyncContextManager[trio.abc.ReceiveChannel[bytes]]) -> Response:
    response = Response(StreamBody(body), content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    response.timeout = None
    return response


def _asked() -> dict[str, str]:
    """The query of a stream; ``Last-Event-ID`` wins over ``since``."""
    asked = {name: request.args[name] for name in ("since", "deltas", "children") if name in request.args}
    last = request.headers.get("Last-Event-ID")
    if last:
        asked["since"] = last
    return asked


def _stream_args(tx: Any, origin: Origin, session_id: str, asked: dict[str, str]) -> StreamArgs:
    """Raises RequestError not_found, invalid_cursor, invalid_argument."""
    wanted: dict[str, object] = {"session_id": session_id[: MAX_ID_CHARACTERS + 1]}
    row = find(tx, origin.principal, "session.events", Target.SESSION, wanted).session
    since: int | None = None
    if "since" in asked:
        text = asked["since"]
        if not text.removeprefix("-").isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
            raise RequestError(
                "invalid_cursor", f"{shown(text)} is no cursor of this stream.", hint="Send the id of its last event."
            )
        since = max(-1, min(int(text), _MAX_CURSOR))
    for name in ("deltas", "children"):
        if asked.get(name, "0") not in ("0", "1", "true", "false", ""):
            raise invalid(name, "must be 1 or 0")
    return StreamArgs(
        session_id=row.session_id,
        root_id=row.root_id,
        is_root=row.parent_id is None,
        since=since,
        children=asked.get("children") in ("1", "true"),
        deltas=asked.get("deltas") in ("1", "true"),
    )
