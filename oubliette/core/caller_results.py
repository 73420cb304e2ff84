"""What a caller answers to a call of its tool, as the agent's MCP client takes it. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from oubliette.core import limits
from oubliette.core.model import Json
from oubliette.errors import RequestError

_IMAGES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
_ABOUT: Final = 'An array is MCP content: [{"type": "text", "text": "…"}]. Give plain data as an object or a string.'


@dataclass(frozen=True, slots=True)
class CallerResult:
    """``content`` is an MCP content list. ``is_error``: the tool says that it failed."""

    content: Sequence[Json]
    is_error: bool = False


def result_of(given: str | Sequence[Any] | Mapping[str, Any]) -> CallerResult:
    """A string is the text, an object is given as its compact JSON (agents see only texts), an array is an MCP content
    list of texts, images and text resources. Raises RequestError."""
    if isinstance(given, str):
        content: list[Json] = [_text(given)]
    elif isinstance(given, Mapping):
        content = [_text(json.dumps(given, separators=(",", ":"), ensure_ascii=False))]
    else:
        content = [_item(number, one) for number, one in enumerate(given, start=1)] or [_text("")]
    return _bounded("result", CallerResult(content))


def failure_of(text: str) -> CallerResult:
    """The tool failed, in the caller's words. Raises RequestError."""
    if not text.strip():
        raise RequestError("invalid_argument", "error needs a text that says what went wrong.", field="error")
    return _bounded("error", CallerResult([_text(text)], is_error=True))


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _item(number: int, one: Any) -> Json:
    kind = one.get("type") if isinstance(one, Mapping) else None
    if kind == "text" and isinstance(one.get("text"), str):
        return _text(one["text"])
    if kind == "image" and one.get("mimeType") in _IMAGES and _is_base64(one.get("data")):
        return {"type": "image", "mimeType": one["mimeType"], "data": one["data"]}
    resource = one.get("resource") if kind == "resource" else None
    if isinstance(resource, Mapping) and isinstance(resource.get("text"), str) and isinstance(resource.get("uri"), str):
        kept = {key: resource[key] for key in ("uri", "mimeType", "text") if isinstance(resource.get(key), str)}
        return {"type": "resource", "resource": kept}
    raise RequestError(
        "invalid_argument",
        f"result: item {number} is no text {{text}}, no image {{data (base64), mimeType of {', '.join(_IMAGES)}}} "
        "and no resource {uri, text}.",
        hint=_ABOUT,
        field="result",
    )


def _is_base64(data: object) -> bool:
    if not isinstance(data, str) or not data:
        return False
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _bounded(field: str, result: CallerResult) -> CallerResult:
    size = len(json.dumps(result.content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))
    if size > limits.MAX_CALLER_RESULT_BYTES:
        raise RequestError(
            "too_large",
            f"{field} is larger than {limits.MAX_CALLER_RESULT_BYTES // 1024} KiB of JSON ({size:,} bytes).",
            hint="Answer with less: the agent still waits.",
            field=field,
        )
    return result
