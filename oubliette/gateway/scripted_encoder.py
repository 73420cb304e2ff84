"""From what the scripted model says to bytes. Pure: pauses and cuts are handed to the caller.

An encoder (one for each wire, see ``scripted_wire``) turns the parts of an answer into server-sent events; ``stream``
drives it. An answer that is not streamed is made from the same parts by ``whole``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from oubliette.core.model import Json, ModelUsage
from oubliette.gateway.scripted import Answer, Cut, Pause, Text, Thought, ToolCall

Fresh = Callable[[int], str]
"""Random hexadecimal digits, for ids."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What the caller does next: send ``data``, wait, or end the connection there."""

    data: bytes = b""
    pause_seconds: float = 0.0
    cut: bool = False


class Encoder(ABC):
    """The events of one answer. Texts of one kind that follow each other are one part."""

    def __init__(self, model: str, usage: ModelUsage, created: int, fresh: Fresh) -> None:
        self.model = model
        self.usage = usage
        self.created = created
        self.fresh = fresh

    @abstractmethod
    def begin(self) -> list[Json]: ...

    @abstractmethod
    def open(self, kind: str) -> list[Json]:
        """A part of ``text`` or ``thought`` begins."""

    @abstractmethod
    def delta(self, kind: str, text: str) -> list[Json]: ...

    @abstractmethod
    def close(self, kind: str) -> list[Json]: ...

    @abstractmethod
    def call(self, call: ToolCall) -> list[Json]: ...

    @abstractmethod
    def end(self, *, calls: bool) -> list[Json]: ...

    @abstractmethod
    def whole(self, thoughts: str, text: str, calls: list[ToolCall]) -> Json:
        """The answer as one object."""

    def frame(self, event: Json) -> bytes:
        return b"data: " + _dump(event) + b"\n\n"

    def trailer(self) -> bytes:
        return b""


def stream(made: Encoder, answer: Answer) -> Iterator[Piece]:
    """The answer as server-sent events."""
    open_kind: str | None = None

    def events(listed: list[Json]) -> Iterator[Piece]:
        for event in listed:
            yield Piece(made.frame(event))

    yield from events(made.begin())
    for action in answer.actions:
        kind = {Text: "text", Thought: "thought"}.get(type(action))
        if open_kind is not None and open_kind != kind and not isinstance(action, Pause):
            yield from events(made.close(open_kind))
            open_kind = None
        if isinstance(action, Text | Thought) and kind is not None:
            joined = "\n" + action.text if open_kind else action.text
            if open_kind is None:
                yield from events(made.open(kind))
                open_kind = kind
            pieces, pause = (action.pieces, action.pause_seconds) if isinstance(action, Text) else (1, 0.0)
            for number, part in enumerate(cut_up(joined, pieces)):
                if number and pause:
                    yield Piece(pause_seconds=pause)
                yield from events(made.delta(kind, part))
        elif isinstance(action, ToolCall):
            yield from events(made.call(action))
        elif isinstance(action, Pause):
            yield Piece(pause_seconds=action.seconds)
        elif isinstance(action, Cut):
            yield Piece(cut=True)
            return
    if open_kind is not None:
        yield from events(made.close(open_kind))
    yield from events(made.end(calls=answer.calls))
    if trailer := made.trailer():
        yield Piece(trailer)


def whole(made: Encoder, answer: Answer) -> Iterator[Piece]:
    """The answer as one JSON body, after all its pauses; a cut one stops in the middle."""
    for action in answer.actions:
        if isinstance(action, Pause):
            yield Piece(pause_seconds=action.seconds)
    texts = [action.text for action in answer.actions if isinstance(action, Text)]
    thoughts = [action.text for action in answer.actions if isinstance(action, Thought)]
    calls = [action for action in answer.actions if isinstance(action, ToolCall)]
    body = _dump(made.whole("\n".join(thoughts), "\n".join(texts), calls))
    if any(isinstance(action, Cut) for action in answer.actions):
        yield Piece(body[: len(body) // 2])
        yield Piece(cut=True)
    else:
        yield Piece(body)


def cut_up(text: str, pieces: int) -> list[str]:
    size = max(1, -(-len(text) // pieces))
    return [text[at : at + size] for at in range(0, len(text), size)]


def _dump(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
