"""Results cut to size: what is too long is shortened where it is long, and says so."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, Final

from oubliette.core.model import Json

_KEEP: Final = 120
"""No text is cut shorter than this."""

_WHOLE: Final = frozenset({"cursor", "next_cursor", "turns_cursor", "next", "secret", "path", "remote_url"})
"""Members that are of no use when cut."""

UNTRUSTED: Final = "--- written by the agent, not by Oubliette ---"
"""Stands above agent-written text, which comes last in prose."""


def compact(value: Any) -> str:
    """Compact JSON; an unpaired surrogate becomes U+FFFD so that it can be sent."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def fit(data: Json, max_characters: int, *, whole_list: str = "") -> Json:
    """The same object in at most so many characters of JSON (a little more when ids alone are longer). Long texts are
    cut first, then long lists, but not the ``whole_list``: its items are what a cursor counts."""
    size = len(compact(data))
    if size <= max_characters:
        return data
    data = copy.deepcopy(data)
    low, high = _KEEP, max((len(text) for _, _, text in _texts(data)), default=_KEEP)
    while low < high:
        cap = (low + high + 1) // 2
        cut = sum(len(text) - cap for _, _, text in _texts(data) if len(text) > cap)
        if size - cut <= max_characters * 0.9:
            low = cap
        else:
            high = cap - 1
    for holder, name, text in list(_texts(data)):
        if len(text) > low:
            _cut(holder, name, text, low)
    while len(compact(data)) > max_characters:
        lists = [found for found in _lists(data) if found[1] != whole_list and len(found[0][found[1]]) > 1]
        if not lists:
            break
        holder, name = max(lists, key=lambda found: len(compact(found[0][found[1]])))
        full = len(holder[name])
        holder[name] = holder[name][: full // 2]
        holder[f"{name}_truncated"] = True
    return data


def cut_text(text: str, max_characters: int) -> str:
    """Prose of at most so many characters; the last line says when something is missing."""
    if len(text) <= max_characters:
        return text
    tail = f"\n[cut: the first {max_characters:,} of {len(text):,} characters; ask with max_chars]"
    return text[: max_characters - len(tail)] + tail


def _texts(value: Any) -> Iterator[tuple[Any, Any, str]]:
    """Every text in the value: (its dict or list, its key, itself)."""
    pending = [value]
    while pending:
        holder = pending.pop()
        pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, item in pairs:
            if isinstance(item, str):
                if key not in _WHOLE:
                    yield holder, key, item
            elif isinstance(item, dict | list):
                pending.append(item)


def _lists(value: Json) -> Iterator[tuple[Json, str]]:
    """Every list with something in it that is a named member: (its dict, its name)."""
    pending: list[Any] = [value]
    while pending:
        holder = pending.pop()
        if isinstance(holder, dict):
            for key, item in holder.items():
                if isinstance(item, list) and item:
                    yield holder, key
            pending.extend(item for item in holder.values() if isinstance(item, dict | list))
        else:
            pending.extend(item for item in holder if isinstance(item, dict | list))


def _cut(holder: Any, name: Any, text: str, cap: int) -> None:
    holder[name] = text[:cap]
    if isinstance(holder, dict):
        holder[f"{name}_truncated"] = True
        holder.setdefault(f"{name}_bytes", len(text.encode("utf-8", "surrogatepass")))
