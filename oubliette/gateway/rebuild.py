"""Requests are rebuilt, never forwarded: strict JSON in, a new object of known fields out. Pure.

Each ``rebuild_<wire>.py`` copies what its wire knows and leaves the rest: whatever makes the provider act on its own
(hosted tools, background jobs, stored conversations, fetching addresses), what changes the price behind our back
(service tiers, several answers) and everything unknown. Parts of a conversation that have to go leave a note in their
place, so that the model is not confused and the agent can read why.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from oubliette.core.model import Json
from oubliette.core.pricing import estimate_tokens
from oubliette.errors import RequestError

MAX_DEPTH = 64
"""Nesting of a request. Tool schemas are the deepest thing in it."""
MAX_VALUES = 400_000
"""Values in a request: bounds the memory that parsing takes (about 100 bytes each), whatever its size."""
MEDIA_TOKENS = 4_000
MEDIA_CHARACTERS_PER_TOKEN = 100
"""Estimates for images, which providers scale down to at most MEDIA_TOKENS, and for documents of many pages."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STRUCTURE = re.compile(rb"[\[\]{}]")


@dataclass(slots=True)
class Rebuilt:
    """A request as it goes out. ``removed`` names what was left out, for the log."""

    body: Json
    streaming: bool
    removed: list[str] = field(default_factory=list)

    def encode(self) -> bytes:
        text = json.dumps(self.body, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")  # a lone surrogate in an escape is all that is replaced


def parse_object(body: bytes) -> Json:
    """One JSON object, strictly: UTF-8, no key twice, finite numbers, bounded depth and number of values.

    A key given twice is refused rather than resolved: two readers could see two different requests.
    Raises RequestError invalid_argument or too_large.
    """
    structure = _STRING.sub(b"", body)
    if structure.count(b",") + structure.count(b"[") + structure.count(b"{") > MAX_VALUES:
        raise RequestError("too_large", f"The request holds more than {MAX_VALUES} values.")
    depth = 0
    for match in _STRUCTURE.finditer(structure):
        depth += 1 if match.group() in b"[{" else -1
        if depth > MAX_DEPTH:
            raise RequestError("invalid_argument", f"The request is nested more than {MAX_DEPTH} deep.")
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_no_key_twice, parse_float=_finite, parse_constant=_finite
        )
    except UnicodeDecodeError as error:
        raise RequestError("invalid_argument", "The request is not UTF-8.") from error
    except ValueError as error:
        raise RequestError("invalid_argument", f"The request is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise RequestError("invalid_argument", "The request must be one JSON object.")
    return value


def _no_key_twice(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} is given twice")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number of JSON")
    return number


def input_estimate(value: Any) -> int:
    """About how many tokens the model will read, on the safe side; images and documents by their size."""
    characters = media_tokens = 0
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, str):
            if len(current) > 2_000 and _is_media(current):
                media_tokens += max(MEDIA_TOKENS, len(current) // MEDIA_CHARACTERS_PER_TOKEN)
            else:
                characters += _weight(current)
        elif isinstance(current, dict):
            characters += sum(map(_weight, current))
            waiting.extend(current.values())
        elif isinstance(current, list):
            waiting.extend(current)
        else:
            characters += 4
    return estimate_tokens(characters) + media_tokens


def _weight(text: str) -> int:
    """Characters of a text, those of other scripts as often as they have bytes: a token holds fewer of them."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def keeps_for_an_hour(body: Json) -> bool:
    """Whether some part of it asks to be kept in the provider's cache for longer than usual."""
    waiting: list[Any] = [body]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            if current.get("ttl") == "1h":
                return True
            waiting.extend(current.values())
        elif isinstance(current, list):
            waiting.extend(current)
    return False


def _is_media(text: str) -> bool:
    return text.startswith("data:") or not any(character in text[:2_000] for character in " \n{}")


def words(text: str) -> frozenset[str]:
    """The words of ``text``."""
    return frozenset(text.split())


def known_fields(body: Json, known: Iterable[str], removed: list[str]) -> Json:
    """The fields that are known; the others are noted as removed."""
    allowed = frozenset(known)
    removed.extend(sorted(name for name in body if name not in allowed))
    return {name: value for name, value in body.items() if name in allowed}


def refuse_stored(body: Mapping[str, Any], *names: str) -> None:
    """A conversation, prompt or job kept at the provider cannot be seen, metered or ended: refused, not removed."""
    for name in names:
        if body.get(name):
            raise RequestError(
                "invalid_argument",
                f"{name!r} is not available here: every request has to carry its whole conversation.",
                field=name,
            )


def bounded(asked: Any, most: int) -> int:
    """The number of output tokens to allow: what was asked for, at most ``most``; ``most`` for anything odd."""
    if isinstance(asked, bool) or not isinstance(asked, int | float) or asked < 1:
        return most
    return min(int(asked), most)


def note(what: str) -> str:
    """What stands in place of a part that was left out."""
    return f"[The gateway left out {what}: this model may not use it here.]"


def kind_of(value: Mapping[str, Any], default: str = "") -> str:
    """The ``type`` of a part or tool; anything but text counts as an unknown one."""
    kind = value.get("type", default)
    return kind if isinstance(kind, str) else "?"


def is_data_url(url: Any) -> bool:
    return isinstance(url, str) and url[:5].lower() == "data:"


def with_parts(value: Json, name: str, sanitise: Callable[[Json], Json | None]) -> Json:
    """``value`` with the objects of its list ``name`` passed through ``sanitise``; unchanged without such a list."""
    return value | {name: each(value[name], sanitise)} if isinstance(value.get(name), list) else value


def each(value: Any, sanitise: Callable[[Json], Json | None]) -> Any:
    """``value`` with every object in it, when it is a list, passed through ``sanitise`` (None drops it)."""
    if not isinstance(value, list):
        return value
    passed = (sanitise(item) if isinstance(item, dict) else item for item in value)
    return [item for item in passed if item is not None]


def kept_tools(tools: Any, sanitise: Callable[[Json], Json | None], removed: list[str]) -> list[Json]:
    """The tools that stay."""
    kept: list[Json] = []
    for tool in tools if isinstance(tools, list) else []:
        clean = sanitise(tool) if isinstance(tool, dict) else None
        if clean is None:
            kind = tool.get("type") or next(iter(tool), "") if isinstance(tool, dict) else ""
            removed.append(f"tool {kind}"[:80])
        else:
            kept.append(clean)
    return kept


def settle_tools(
    out: Json,
    sanitise: Callable[[Json], Json | None],
    choice_stays: Callable[[Any, list[Json]], bool],
    removed: list[str],
) -> None:
    """Keep of ``out["tools"]`` what may stay, and with it no choice of a tool that is gone, and nothing without any."""
    kept = kept_tools(out["tools"], sanitise, removed)
    if not kept or not choice_stays(out.get("tool_choice"), kept):
        out.pop("tool_choice", None)
    if kept:
        out["tools"] = kept
    else:
        del out["tools"]
        out.pop("parallel_tool_calls", None)
