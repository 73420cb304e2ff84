"""Server-sent events, both ways, sans-IO (HTML standard, 9.2.5 "Parsing an event stream")."""

from __future__ import annotations

from typing import NamedTuple

from oubliette.errors import LocalWireError, RemoteWireError

MAX_EVENT_BYTES = 64 << 20
"""The largest event that is collected; an agent sends images as base64 inside of one."""
_CR, _LF = 0x0D, 0x0A
_BOM = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One dispatched event. ``id`` is the stream's last event id at that moment (empty: none was sent)."""

    data: str
    event: str = "message"
    id: str = ""


class SseParser:
    """Takes bytes as they arrive, gives events as soon as their blank line is there. An event that the end of the
    stream cuts short is dropped, as the standard wants. Bytes that are not UTF-8 become U+FFFD."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        """How long the server wants us to wait before we come back; None: it has not said."""
        self._max = max_event_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._bytes = 0
        self._event = ""
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that ``data`` completes, in order. Raises RemoteWireError for an event over the limit."""
        found: list[SseEvent] = []
        start, size = 0, len(data)
        if self._after_cr and size:
            self._after_cr = False
            start = int(data[0] == _LF)
        while start < size:
            end = _line_end(data, start)
            if end < 0:
                break
            self._line += data[start:end]
            start = end + 1
            if data[end] == _CR:
                if start == size:
                    self._after_cr = True
                elif data[start] == _LF:
                    start += 1
            self._take_line(found)
        self._line += data[start:]
        self._check()
        return found

    def _check(self) -> None:
        if self._bytes + len(self._line) > self._max:
            raise RemoteWireError(f"read an event stream: an event of more than {self._max} bytes")

    def _take_line(self, found: list[SseEvent]) -> None:
        line = bytes(self._line)
        self._line.clear()
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(found)
            return
        name, colon, value = line.partition(b":")
        if colon and value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._bytes += len(value) + 1
            self._check()
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode(errors="replace")
        elif name == b"id" and b"\0" not in value:
            self.last_event_id = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value[:9])

    def _dispatch(self, found: list[SseEvent]) -> None:
        if self._data:
            text = b"\n".join(self._data).decode(errors="replace")
            found.append(SseEvent(text, self._event or "message", self.last_event_id))
        self._data = []
        self._bytes = 0
        self._event = ""


def _line_end(data: bytes, start: int) -> int:
    """Where the line that begins at ``start`` ends; -1: not in ``data``."""
    lf = data.find(b"\n", start)
    cr = data.find(b"\r", start, lf if lf >= 0 else len(data))
    return cr if cr >= 0 else lf


def encode(
    event: str | None = None,
    data: str | None = None,
    id: str | None = None,  # noqa: A002  the field's own name
    retry: int | None = None,
    comment: str | None = None,
) -> bytes:
    """One block of an event stream, blank line included; ``retry`` in milliseconds. Without ``data`` a browser sees
    no event: for comments and for ``retry``. Raises LocalWireError for a line break where none can be."""
    lines = [f":{' ' if line else ''}{line}" for line in _lines(comment)]
    for name, value in (("event", event), ("id", id)):
        if value is not None:
            if any(character in value for character in "\r\n\0"):
                raise LocalWireError(f"write an event stream: a line break in {name}")
            lines.append(f"{name}: {value}")
    if retry is not None:
        lines.append(f"retry: {retry}")
    lines += [f"data: {line}" for line in _lines(data)]
    return ("\n".join(lines) + "\n\n").encode()


def _lines(text: str | None) -> list[str]:
    if text is None:
        return []
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
