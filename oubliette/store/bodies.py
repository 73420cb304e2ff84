"""How an event's body is stored: JSON of at most 1 MiB, long fields cut to their head and tail."""

from __future__ import annotations

from typing import Any

from oubliette.core.model import Json
from oubliette.store.codec import to_json

MAX_BODY_BYTES = 1 << 20
"""SECURITY: an event is 1 MiB stored, head and tail kept."""

_MARGIN_BYTES = 4096
_SMALLEST_BYTES = 1024
_MAX_DEPTH = 64


def stored_form(body: Json) -> tuple[Json, str]:
    """(the body as it is kept, its JSON). ``text``, ``tool.output`` and ``tool.input`` are cut first and say so with
    ``_truncated`` and ``_bytes``; only a body that is too large without them loses anything else."""
    text = to_json(body)
    if _fits(text):
        return body, text
    limit = MAX_BODY_BYTES - _MARGIN_BYTES
    while limit >= _SMALLEST_BYTES:
        cut = _cut_fields(body, limit)
        text = to_json(cut)
        if _fits(text):
            return cut, text
        limit //= 2
    limit, items = MAX_BODY_BYTES // 8, 1000
    while limit >= 16:
        cut = _shrunk(_cut_fields(body, _SMALLEST_BYTES), limit, items, 0)
        text = to_json(cut)
        if _fits(text):
            return cut, text
        limit, items = limit // 4, max(items // 4, 4)
    whole = to_json(body)
    cut = {"text": head_and_tail(whole, _SMALLEST_BYTES), "text_truncated": True, "text_bytes": _size(whole)}
    return cut, to_json(cut)


def head_and_tail(text: str, limit: int) -> str:
    """At most ``limit`` bytes of UTF-8: the beginning and the end, with a line between that says what is missing."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return text
    note = f"\n… {len(data) - limit} bytes cut …\n"
    room = max(limit - len(note.encode()), 2)
    head = data[: room - room // 2].decode("utf-8", "ignore")
    tail = data[len(data) - room // 2 :].decode("utf-8", "ignore")
    return head + note + tail


def _fits(text: str) -> bool:
    return len(text) * 4 <= MAX_BODY_BYTES or _size(text) <= MAX_BODY_BYTES


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _cut_fields(body: Json, limit: int) -> Json:
    cut = dict(body)
    _cut_text(cut, "text", limit)
    if isinstance(body.get("tool"), dict):
        tool = cut["tool"] = dict(body["tool"])
        _cut_text(tool, "output", limit)
        if "input" in tool:
            whole = to_json(tool["input"])
            if _size(whole) > limit:
                tool["input"] = _cut_input(tool["input"], whole, limit)
                tool["input_truncated"] = True
                tool.setdefault("input_bytes", _size(whole))
    return cut


def _cut_text(holder: Json, name: str, limit: int) -> None:
    """A field that the agent's adapter has cut before keeps the full size it was given then."""
    value = holder.get(name)
    if isinstance(value, str) and _size(value) > limit:
        holder[name] = head_and_tail(value, limit)
        holder[f"{name}_truncated"] = True
        holder.setdefault(f"{name}_bytes", _size(value))


def _cut_input(value: Any, whole: str, limit: int) -> Json:
    """The same object with its long strings cut, or, when that does not help, the JSON's own head and tail."""
    piece = limit // 2
    while piece >= 64:
        cut = _shrunk(value, piece, 1000, 0)
        if isinstance(cut, dict) and _size(to_json(cut)) <= limit:
            return cut
        piece //= 4
    return {"json": head_and_tail(whole, limit // 2)}


def _shrunk(value: Any, limit: int, items: int, depth: int) -> Any:
    """``value`` with strings of at most ``limit`` bytes and containers of at most ``items`` members."""
    if isinstance(value, str):
        return head_and_tail(value, limit)
    if depth >= _MAX_DEPTH:
        return None
    if isinstance(value, dict):
        kept = list(value.items())[:items]
        return {head_and_tail(str(key), limit): _shrunk(item, limit, items, depth + 1) for key, item in kept}
    if isinstance(value, list):
        return [_shrunk(item, limit, items, depth + 1) for item in value[:items]]
    return value
