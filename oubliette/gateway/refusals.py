"""Our own errors in the words of each provider, so that the agent's SDK of that provider shows the sentence."""

from __future__ import annotations

import json

from oubliette.core.model import Json
from oubliette.errors import OublietteError, RequestError
from oubliette.gateway.http1 import Headers
from oubliette.gateway.models import Wire

_STATUS = {
    "invalid_argument": 400,
    "not_ready": 400,
    "unauthenticated": 401,
    "budget_spent": 402,
    "limit_reached": 403,
    "permission_denied": 403,
    "conflict": 403,
    "cancelled": 403,
    "not_found": 404,
    "unknown_action": 405,
    "too_large": 413,
    "rate_limited": 429,
    "busy": 429,
    "model_error": 502,
    "unavailable": 503,
    "timed_out": 504,
}
"""429 and 5xx are what agents try again; everything that cannot become true by waiting is another 4xx."""

_ANTHROPIC_TYPE = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPENAI_TYPE = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_GOOGLE_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def status_of(error: OublietteError) -> int:
    """The HTTP status for one of our errors."""
    return _STATUS.get(error.code, 500)


def error_body(wire: Wire | None, status: int, message: str, code: str = "") -> Json:
    """The error object of that provider; OpenAI's, which most others copy, when none is known."""
    if wire is Wire.ANTHROPIC:
        fallback = "api_error" if status >= 500 else "invalid_request_error"
        return {"type": "error", "error": {"type": _ANTHROPIC_TYPE.get(status, fallback), "message": message}}
    if wire is Wire.GOOGLE:
        fallback = "INTERNAL" if status >= 500 else "INVALID_ARGUMENT"
        return {"error": {"code": status, "message": message, "status": _GOOGLE_STATUS.get(status, fallback)}}
    kind = _OPENAI_TYPE.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code or None}}


def refusal(wire: Wire | None, status: int, message: str, code: str = "") -> tuple[Headers, bytes]:
    """Headers and body of an error answer."""
    return [("content-type", "application/json")], json.dumps(error_body(wire, status, message, code)).encode()


def refusal_of(wire: Wire | None, error: OublietteError) -> tuple[int, Headers, bytes]:
    """The answer to a request that raised ``error``. What is not safe to show is said in general words."""
    status = status_of(error)
    message = error.message if isinstance(error, RequestError) else "The gateway could not do that."
    sentence = f"{message} {error.hint}".strip() if isinstance(error, RequestError) else message
    headers, body = refusal(wire, status, sentence, error.code)
    wait_ms = error.retry_after_ms if isinstance(error, RequestError) else None
    if wait_ms is not None or status == 429:
        seconds = max(1, -(-(wait_ms or 1000) // 1000))
        headers = [*headers, ("retry-after", str(seconds))]
    return status, headers, body
