"""Our errors as callers see them: one table from error code to HTTP status, and one shape for every door."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from oubliette.core.model import ErrorCode, Json
from oubliette.errors import OublietteError, RequestError

RPC_UNAUTHENTICATED: Final = -32001
RPC_RATE_LIMITED: Final = -32029
RPC_INVALID_PARAMS: Final = -32602
RPC_INVALID_REQUEST: Final = -32600

STATUS: Final = MappingProxyType(
    {
        ErrorCode.INVALID_ARGUMENT: 400,
        ErrorCode.UNKNOWN_ACTION: 400,
        ErrorCode.INVALID_CURSOR: 400,
        ErrorCode.UNAUTHENTICATED: 401,
        ErrorCode.BUDGET_SPENT: 402,
        ErrorCode.PERMISSION_DENIED: 403,
        ErrorCode.NOT_FOUND: 404,
        ErrorCode.CONFLICT: 409,
        ErrorCode.AMBIGUOUS: 409,
        ErrorCode.KEY_REUSED: 409,
        ErrorCode.BUSY: 409,
        ErrorCode.CANCELLED: 409,
        ErrorCode.LIMIT_REACHED: 409,
        ErrorCode.PURGED: 410,
        ErrorCode.TOO_LARGE: 413,
        ErrorCode.QUEUE_FULL: 429,
        ErrorCode.RATE_LIMITED: 429,
        ErrorCode.INTERNAL: 500,
        ErrorCode.CLONE_FAILED: 502,
        ErrorCode.AGENT_ERROR: 502,
        ErrorCode.MODEL_ERROR: 502,
        ErrorCode.NOT_READY: 503,
        ErrorCode.UNAVAILABLE: 503,
        ErrorCode.TIMED_OUT: 504,
        ErrorCode.STORAGE_FULL: 507,
    }
)

_PLAIN: Final = MappingProxyType(
    {
        ErrorCode.UNAVAILABLE: "The container could not do this.",
        ErrorCode.AGENT_ERROR: "The agent could not do this.",
        ErrorCode.TIMED_OUT: "This took too long and was given up.",
        ErrorCode.STORAGE_FULL: "There is no room left to store this.",
    }
)


def known_code(code: str) -> ErrorCode:
    """The code if it is one of ours, else ``internal``: nothing unknown reaches a client."""
    try:
        return ErrorCode(code)
    except ValueError:
        return ErrorCode.INTERNAL


def error_shape(error: BaseException, request_id: str) -> Json:
    """SHAPES' error object. Only a RequestError speaks for itself; of all others the caller learns the code."""
    if isinstance(error, RequestError):
        shape = error.as_json()
        shape["code"] = str(known_code(error.code))
    else:
        code = known_code(error.code) if isinstance(error, OublietteError) else ErrorCode.INTERNAL
        shape = {
            "code": str(code),
            "message": _PLAIN.get(code, "Something went wrong inside the daemon."),
            "hint": f"The daemon's log says more under request {request_id}.",
            "retryable": error.retryable if isinstance(error, OublietteError) else False,
        }
    shape["request_id"] = request_id
    return shape


def error_text(shape: Json) -> str:
    """``code: message hint``: all that some clients show their model."""
    return " ".join(part for part in (f"{shape['code']}: {shape['message']}", shape.get("hint", "")) if part)


def http_status(shape: Json) -> int:
    return STATUS[known_code(shape["code"])]


def http_error(status: int, message: str, request_id: str, hint: str = "") -> Json:
    """The body for what HTTP itself refuses (404, 405, 413, 415, …): SHAPES' error with the nearest code of ours."""
    codes = {404: "not_found", 408: "timed_out", 413: "too_large", 429: "rate_limited"}
    code = codes.get(status, "invalid_argument" if status < 500 else "internal")
    return error_shape(RequestError(code, message, hint=hint), request_id)


def rpc_error(code: int, shape: Json) -> Json:
    """A JSON-RPC error body for the answers given before any protocol is spoken (401, 429)."""
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": error_text(shape), "data": shape}}


def unauthenticated(message: str, hint: str = "") -> RequestError:
    return RequestError(
        "unauthenticated", message, hint=hint or "Send Authorization: Bearer oub_… (oubliette token create)."
    )
