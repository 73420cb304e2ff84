"""What a provider's answer says about its cost, read on the side while the bytes pass. Sans-IO.

A reader never touches, delays or judges the stream: whatever it cannot read it skips, and the usage is then incomplete.
One reader per wire is in ``usage_<wire>.py``; it sees each event's (or the whole answer's) JSON object.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from oubliette.core.model import Json

MAX_EVENT_BYTES = 16 << 20
"""A longer event is skipped; the last one of a response repeats all of its text."""
MAX_COUNT = 10**9
"""No request has so many tokens: a larger number is nonsense and read as none."""


@dataclass(slots=True)
class Reported:
    """Tokens of one answer, disjoint as in ``core.pricing``.

    ``complete`` False: the provider's own final numbers were not seen. ``characters`` is how much was answered, for an
    estimate then. ``unpriced``: something was used that tokens do not pay for. ``error``: the provider ended the stream
    with one.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_hour_tokens: int = 0
    complete: bool = False
    characters: int = 0
    unpriced: bool = False
    error: str | None = None

    @property
    def input_known(self) -> bool:
        return bool(self.input_tokens or self.cache_read_tokens or self.cache_write_tokens)


class SseData:
    """Splits a stream of server-sent events into the ``data`` of each, at any cut of the bytes."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes."""
        if b"\n" not in data:
            if len(self._rest) <= MAX_EVENT_BYTES:
                self._rest += data
            return []
        events = []
        *lines, rest = bytes(self._rest + data).split(b"\n")
        self._rest = bytearray(rest)
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if not line:
                if self._data and self._size <= MAX_EVENT_BYTES:
                    events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                self._size += len(line)
                if self._size <= MAX_EVENT_BYTES:
                    self._data.append(line[5:].removeprefix(b" "))
        return events


class UsageReader(ABC):
    """Feed it the answer's bytes in any pieces; then ask ``finish`` once."""

    def __init__(self, *, streaming: bool) -> None:
        self.reported = Reported()
        self._streaming = streaming
        self._events = SseData()
        self._body = bytearray()

    def feed(self, data: bytes) -> None:
        if not self._streaming:
            if len(self._body) + len(data) <= MAX_EVENT_BYTES:
                self._body += data
            return
        for event in self._events.feed(data):
            if (value := _object(event)) is not None:
                self.event(value)

    def finish(self) -> Reported:
        if not self._streaming and (value := _object(bytes(self._body))) is not None:
            self.body(value)
        return self.reported

    @abstractmethod
    def event(self, value: Json) -> None:
        """One event of a stream."""

    @abstractmethod
    def body(self, value: Json) -> None:
        """A whole answer that was not streamed."""


def _object(text: bytes) -> Json | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def inner(value: Any, *path: str) -> Any:
    """``value[path[0]][path[1]]…`` of nested objects, or None."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def count(value: Any, *path: str) -> int:
    """A number of tokens at that path; 0 for anything that is none."""
    found = inner(value, *path)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= MAX_COUNT:
        return 0
    return int(found)


def items(value: Any, *path: str) -> list[Any]:
    """The list at that path, or an empty one."""
    found = inner(value, *path)
    return found if isinstance(found, list) else []


def length(value: Any) -> int:
    """Characters of a text; 0 for anything else."""
    return len(value) if isinstance(value, str) else 0


def message_of(error: Any) -> str:
    """A provider's error object as a short text."""
    message = inner(error, "message")
    return (message if isinstance(message, str) else json.dumps(error))[:500]
