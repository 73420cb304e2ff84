"""What the client remembers of the conversation it carries. Sans-IO: lines in, lines out, no sockets, no clock."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Union

LINE_BYTES = 1 << 20
"""Longest line in either direction, its newline included; the relay's limit."""
AGENT_LINE_BYTES = 16 << 20
"""Longest line of the agent's that is read whole, so that its call can be told that it is too long."""
CONNECTION_LOST = -32000
TOO_LONG = -32001
"""JSON-RPC's range for errors of an implementation's own."""

RequestId = Union[int, str]


class Lines:
    """Cuts a stream of bytes into lines; one that is too long is dropped whole."""

    def __init__(self, limit: int = LINE_BYTES) -> None:
        self._limit = limit
        self._held = bytearray()
        self._dropping = False

    def feed(self, data: Union[bytes, bytearray]) -> List[bytes]:
        """The lines that ``data`` completes, without their newlines, empty ones left out."""
        if b"\n" not in data and len(self._held) + len(data) < self._limit:
            self._held += data
            return []
        self._held += data
        *lines, rest = bytes(self._held).split(b"\n")
        if lines and self._dropping:
            lines.pop(0)
            self._dropping = False
        self._held = bytearray(rest)
        if len(rest) >= self._limit:
            self._held.clear()
            self._dropping = True
        return [line for line in lines if line.strip() and len(line) < self._limit]


class Pending:
    """The calls that the daemon has not answered yet. None is sent twice: what broke off is said to have broken."""

    def __init__(self) -> None:
        self._ids: Dict[RequestId, None] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def sent(self, line: bytes) -> None:
        """A line has gone to the daemon."""
        message = parse(line)
        if message is not None and "method" in message and is_id(message.get("id")):
            self._ids[message["id"]] = None

    def received(self, line: bytes) -> None:
        """A line has come from the daemon."""
        message = parse(line)
        if message is not None and "method" not in message and is_id(message.get("id")):
            self._ids.pop(message["id"], None)

    def broken(self) -> List[bytes]:
        """The connection is gone: an error line for each open call."""
        lines = [lost(one) for one in self._ids]
        self._ids.clear()
        return lines


def lost(request_id: RequestId) -> bytes:
    """The answer to a call whose fate is unknown."""
    text = "The connection to Oubliette broke before the answer came. See what happened, then try again."
    return _error(request_id, CONNECTION_LOST, "unavailable", text)


def not_sent(request_id: RequestId) -> bytes:
    """The answer to a call that nobody was there to take."""
    text = "Oubliette is away. Nothing was done; try again in a while."
    return _error(request_id, CONNECTION_LOST, "unavailable", text)


def too_long(request_id: RequestId) -> bytes:
    """The answer to a call that fits no line; nothing of it was sent."""
    text = "The call is longer than 1 MiB. Leave what is long in a file and name that."
    return _error(request_id, TOO_LONG, "too_large", text)


def tools_changed() -> bytes:
    """Tells the agent to ask for the tools again: the daemon that is back may have others."""
    return _line({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})


def hello(caller_id: str) -> bytes:
    """The first line of the connection. ``caller_id`` empty: Oubliette's own tools."""
    told = {"hello": "mcp"}
    if caller_id:
        told["id"] = caller_id
    return _line(told)


def parse(line: bytes) -> Optional[Dict[str, Any]]:
    """The JSON object of a line, or None: what is not one is passed on and answered by the other side."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def is_id(value: object) -> bool:
    """Whether a JSON-RPC id expects an answer."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _error(request_id: RequestId, number: int, code: str, text: str) -> bytes:
    said = f"{code}: {text}"
    data = {"error": {"code": code, "message": text, "retryable": code == "unavailable"}}
    return _line({"jsonrpc": "2.0", "id": request_id, "error": {"code": number, "message": said, "data": data}})


def _line(message: Dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
