"""Opaque cursors: a position in a list that rows added later never shift, bound to the filter it was made for."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from oubliette.errors import RequestError

R = TypeVar("R")

MAX_LENGTH = 512


def encode(position: Sequence[str | int], filters: object) -> str:
    """A cursor that continues after ``position`` for the same ``filters``."""
    text = json.dumps([_digest(filters), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str, filters: object, kinds: Sequence[type]) -> list[Any]:
    """The position in ``cursor``, its parts of ``kinds``. Raises RequestError invalid_cursor."""
    refused = RequestError(
        "invalid_cursor", "The cursor is not one of this list.", field="cursor", hint="Start again without a cursor."
    )
    if len(cursor) > MAX_LENGTH:
        raise refused
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        raise refused from None
    if not isinstance(parts, list) or len(parts) != len(kinds) + 1 or parts[0] != _digest(filters):
        raise refused
    for part, kind in zip(parts[1:], kinds, strict=True):
        if type(part) is not kind:
            raise refused
        if isinstance(part, int) and not -(2**63) <= part < 2**63:
            raise refused
        if isinstance(part, str) and any("\ud800" <= char <= "\udfff" for char in part):
            raise refused
    return parts[1:]


def page(
    rows: Sequence[R], limit: int, position: Callable[[R], Sequence[str | int]], filters: object
) -> tuple[list[R], str | None]:
    """Cut ``rows``, read with ``LIMIT limit + 1``, into a page and the cursor of the next one."""
    kept = list(rows[:limit])
    more = len(rows) > limit and kept
    return kept, encode(position(kept[-1]), filters) if more else None


def _digest(filters: object) -> str:
    return hashlib.sha256(json.dumps(filters, default=str, sort_keys=True).encode()).hexdigest()[:12]
